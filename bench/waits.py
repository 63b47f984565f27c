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

from bench.records import TurnRecord

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
class Stay:
    """One request inside the engine."""

    arrived_s: float
    scheduled_s: float
    first_s: float
    end_s: float
    lost_share: float  # of the tokens that its prompt makes the engine read


@dataclass(frozen=True, slots=True)
class Told:
    """What the server tells of a level as a whole; None is 'not told'."""

    max_seqs: int | None = None
    kv_usage_max: float | None = None
    preemptions: float | None = None
    ttft_s: float | None = None  # the mean by its own clock, from a request's arrival


def split(records: Sequence[TurnRecord], told: Told) -> Wait | None:
    """Of one level and repeat; None where the server does not tell what it had cached."""
    turns = [record for record in records if record.ttft_s is not None and record.turn > 0]
    if not turns or any(record.lost_tokens is None for record in turns):
        return None
    full = told.kv_usage_max is None or told.kv_usage_max >= FULL or (told.preemptions or 0) > 0
    stays = _stays(turns, told.max_seqs, _client_share(turns, told.ttft_s))
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


def _outside_s(record: TurnRecord) -> float:
    """Not in the engine's queue nor being read: at the client, under way, or waiting for the engine to look up."""
    return max(0.0, (record.ttft_s or 0.0) - (record.queue_s or 0.0) - (record.prefill_s or 0.0))


def _client_share(turns: Sequence[TurnRecord], ttft_s: float | None) -> float:
    """Of the time outside: what the server's own TTFT leaves, or where it is not told, how late we sent."""
    outside = sum(_outside_s(record) for record in turns)
    late = sum(record.late_s for record in turns)
    ours = late if ttft_s is None else sum(record.ttft_s or 0.0 for record in turns) - ttft_s * len(turns)
    return min(1.0, max(0.0, ours / outside)) if outside > 0 else 0.0


def _stays(turns: Sequence[TurnRecord], max_seqs: int | None, client_share: float) -> list[Stay]:
    """By the engine's clock where it was told, else by ours and the rule of first come, first served."""
    made: list[Stay] = []
    slots: list[float] = []  # when the last max_seqs to leave do
    for record in sorted(turns, key=lambda record: record.sent_s):
        assert record.first_s is not None
        assert record.lost_tokens is not None
        arrived = min(record.intended_s + client_share * _outside_s(record), record.first_s)
        if record.prefill_s is not None:
            scheduled = record.first_s - record.prefill_s
        else:
            scheduled = (
                arrived if max_seqs is None or len(slots) < max_seqs else min(max(arrived, slots[0]), record.first_s)
            )
        read = (record.prompt_tokens or record.planned_prompt_tokens) - (record.cached_tokens or 0)
        lost = min(1.0, record.lost_tokens / read) if read > 0 else 0.0
        made.append(Stay(arrived, max(arrived, scheduled), record.first_s, max(record.end_s, record.first_s), lost))
        heapq.heappush(slots, made[-1].end_s)
        if max_seqs is not None and len(slots) > max_seqs:
            heapq.heappop(slots)
    return made


def _spent(stays: Sequence[Stay], max_seqs: int | None, full: bool) -> tuple[float, float, float, float]:
    """Seconds of all requests together, waiting for a slot, for blocks, for lost tokens, for new ones."""
    slot = blocks = lost = compute = last = 0.0
    queued: set[int] = set()
    read: set[int] = set()
    served: set[int] = set()
    for at, number, leaves, enters in _moves(stays, queued, read, served):
        took, waiting = at - last, len(queued)
        if max_seqs is not None and len(served) >= max_seqs:
            slot, waiting = slot + waiting * took, 0
        elif full and not read:
            blocks, waiting = blocks + waiting * took, 0
        share = stays[min(read, key=lambda one: stays[one].scheduled_s)].lost_share if read else 0.0
        lost += (waiting + len(read)) * took * share
        compute += (waiting + len(read)) * took * (1 - share)
        last = at
        for left in leaves:
            left.discard(number)
        for entered in enters:
            entered.add(number)
    return slot, blocks, lost, compute


Places = tuple[set[int], ...]


def _moves(
    stays: Sequence[Stay], queued: set[int], read: set[int], served: set[int]
) -> list[tuple[float, int, Places, Places]]:
    """In order of time: who leaves which place and enters which."""
    moves: list[tuple[float, int, Places, Places]] = []
    for number, stay in enumerate(stays):
        moves += [
            (stay.arrived_s, number, (), (queued,)),
            (stay.scheduled_s, number, (queued,), (read, served)),
            (stay.first_s, number, (read,), ()),
            (stay.end_s, number, (served,), ()),
        ]
    return sorted(moves, key=lambda move: move[0])


def _preempted_share(turns: Sequence[TurnRecord], preemptions: float) -> float:
    """Of all the tokens the engine read."""
    prompts = [record.prompt_tokens or record.planned_prompt_tokens for record in turns]
    read = sum(prompts) - sum(record.cached_tokens or 0 for record in turns)
    again = preemptions * sum(prompts) / len(prompts)
    return again / (again + read) if again else 0.0
