"""What a request waited for, from its being due to its first token.

The engine reads prompts in the order in which it took them in: while one is being read, whoever waits behind it waits
for that one's tokens, and of those some were in the cache before and have been lost. So each moment that a request
spends inside the engine is put down to what the engine was doing then:

- all of `max_num_seqs` slots are taken, and it has none: **slot**
- it could have one, but all blocks are held and nobody's prompt is being read: **blocks**
- a prompt is being read, the first in line: **lost** and **compute**, as its lost and its new tokens

What passes outside the engine (sending late, HTTP, reading late) is the **client**'s. Preempted requests are read again
at a moment nobody sees: their tokens take their share of the time put down to reading.
"""

import heapq
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from bench.records import TurnRecord

Floats = npt.NDArray[np.float64]

# Of the blocks, held by requests being answered: only then can one have waited for blocks. vLLM takes a prompt in only
# if all of it fits, and the gauge is read once a second: so well below 1, and not asked where requests were preempted.
FULL = 0.85


@dataclass(frozen=True, slots=True)
class Wait:
    """Means over a level's answered requests; they add up to its mean TTFT."""

    client_s: float
    slot_s: float
    blocks_s: float
    lost_s: float
    preempted_s: float
    compute_s: float

    @property
    def total_s(self) -> float:
        return float(sum(asdict(self).values()))


@dataclass(frozen=True, slots=True)
class Stays:
    """Requests inside the engine, one after another as they were sent."""

    arrived_s: Floats
    scheduled_s: Floats
    first_s: Floats
    end_s: Floats
    lost_share: Floats  # of the tokens that a prompt makes the engine read


@dataclass(frozen=True, slots=True)
class Told:
    """What the server tells of a level as a whole; None is 'not told'."""

    max_seqs: int | None = None
    kv_usage_max: float | None = None
    preemptions: float | None = None
    ttft_s: float | None = None  # the mean by its own clock, from a request's arrival


def split(records: Sequence[TurnRecord], told: Told) -> Wait | None:
    """Of one level and repeat; None where the server does not tell what it had cached."""
    turns = [record for record in records if record.turn > 0 and record.ttft_s is not None]
    lost_tokens = [tokens for record in turns if (tokens := record.lost_tokens) is not None]
    if not turns or len(lost_tokens) < len(turns):
        return None
    full = told.kv_usage_max is None or told.kv_usage_max >= FULL or (told.preemptions or 0) > 0
    stays = _stays(turns, np.array(lost_tokens, float), told)
    slot, blocks, lost, compute = _spent(stays, told.max_seqs, full)
    whole = sum(record.ttft_s or 0.0 for record in turns)
    again = _preempted_share(turns, told.preemptions or 0.0)
    n = len(turns)
    return Wait(
        client_s=(whole - slot - blocks - lost - compute) / n,
        slot_s=slot / n,
        blocks_s=blocks / n,
        lost_s=lost * (1 - again) / n,
        preempted_s=(lost + compute) * again / n,
        compute_s=compute * (1 - again) / n,
    )


def _column(turns: Sequence[TurnRecord], name: str) -> Floats:
    """nan where it was not told."""
    return np.array([getattr(record, name) for record in turns], float)


def _client_share(outside: Floats, late: Floats, ttft: Floats, server_ttft_s: float | None) -> float:
    """Of the time outside: what the server's own TTFT leaves, or where it is not told, how late we sent."""
    whole = sum(outside.tolist())
    ours = sum(late.tolist()) if server_ttft_s is None else sum(ttft.tolist()) - server_ttft_s * len(ttft)
    return min(1.0, max(0.0, ours / whole)) if whole > 0 else 0.0


def _stays(turns: Sequence[TurnRecord], lost: Floats, told: Told) -> Stays:
    due, sent, first, end = (_column(turns, f"{name}_s") for name in ("intended", "sent", "first", "end"))
    queue, prefill = _column(turns, "queue_s"), _column(turns, "prefill_s")
    # Neither in the engine's queue nor being read: at the client, under way, or waiting for the engine to look up.
    outside = np.maximum(0.0, first - due - np.nan_to_num(queue) - np.nan_to_num(prefill))
    share = _client_share(outside, sent - due, first - due, told.ttft_s)
    read = np.array([(one.prompt_tokens or one.planned_prompt_tokens) - (one.cached_tokens or 0) for one in turns])
    lost_share = np.minimum(1.0, np.divide(lost, read, out=np.zeros_like(lost), where=read > 0))
    order = np.argsort(sent, kind="stable")
    arrived = np.minimum(due + share * outside, first)[order]
    first, end = first[order], np.maximum(end, first)[order]
    scheduled = _scheduled(arrived, first, end, prefill[order], told.max_seqs)
    return Stays(arrived, np.maximum(arrived, scheduled), first, end, lost_share[order])


def _scheduled(arrived: Floats, first: Floats, end: Floats, prefill: Floats, max_seqs: int | None) -> Floats:
    """By the engine's clock where it was told, else by ours and the rule of first come, first served."""
    known = np.where(np.isnan(prefill), arrived, first - prefill)
    if max_seqs is None or not np.isnan(prefill).any():
        return known
    slots: list[float] = []  # when the last max_seqs to leave do
    for at in range(len(known)):
        if np.isnan(prefill[at]) and len(slots) == max_seqs:
            known[at] = min(max(arrived[at], slots[0]), first[at])
        heapq.heappush(slots, end[at])
        if len(slots) > max_seqs:
            heapq.heappop(slots)
    return known


def _spent(stays: Stays, max_seqs: int | None, full: bool) -> tuple[float, float, float, float]:
    """Seconds of all requests together, waiting for a slot, for blocks, for lost tokens, for new ones.

    Between any two moves nothing changes: so many are queued, being read and served from one until the next.
    """
    moves = np.column_stack([stays.arrived_s, stays.scheduled_s, stays.first_s, stays.end_s])
    order = np.argsort(moves, axis=None, kind="stable")
    arrives, enters, begins, leaves = (order % 4 == kind for kind in range(4))
    queued, read, served = (
        np.cumsum(come.astype(int) - go)[:-1] for come, go in ((arrives, enters), (enters, begins), (enters, leaves))
    )
    took = np.diff(moves.ravel()[order])
    no_slot = served >= max_seqs if max_seqs is not None else np.zeros(len(took), bool)
    no_blocks = ~no_slot & (read == 0) if full else np.zeros(len(took), bool)
    reading = (np.where(no_slot | no_blocks, 0, queued) + read) * took
    share = np.where(read > 0, stays.lost_share[_first_in_line(stays.scheduled_s, order)], 0.0)
    spent = (no_slot * queued * took, no_blocks * queued * took, reading * share, reading * (1 - share))
    slot, blocks, lost, compute = (float(np.cumsum(each)[-1]) for each in spent)
    return slot, blocks, lost, compute


def _first_in_line(scheduled: Floats, order: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
    """After each move but the last, whose prompt is being read if any is: the first scheduled of those not read."""
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    line = np.argsort(scheduled, kind="stable")
    all_read = np.maximum.accumulate(place.reshape(-1, 4)[line, 2])
    first = np.searchsorted(all_read, np.arange(len(order) - 1), side="right")
    return line[np.minimum(first, len(line) - 1)]


def _preempted_share(turns: Sequence[TurnRecord], preemptions: float) -> float:
    """Of all the tokens the engine read."""
    prompts = [record.prompt_tokens or record.planned_prompt_tokens for record in turns]
    read = sum(prompts) - sum(record.cached_tokens or 0 for record in turns)
    again = preemptions * sum(prompts) / len(prompts)
    return again / (again + read) if again else 0.0
