"""Numbers become a verdict: where the cliff stands, the highest level that keeps the promise, and how sure both are.

The rule, in the words a user reads (README, "How the knee is found"):
- Where the server tells each request's cached tokens, a level's tail belongs to eviction when at least 1 % of its
  requests lost more than 1,000 tokens of their own history: then the 99th percentile is made of them.
- Where it does not, the tail has left the body when p99 is at least 3 times the last healthy level's, more than the
  growth in sessions explains, while p50 has not followed.
- One level is not a cliff: the level above has to say the same, by times alone one of the two above; the highest level
  that was measured has no such witness.
The knee is the bracket between the last level before and the first level after.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bench import sample, stats
from bench.errors import BenchError
from bench.records import TurnRecord
from bench.stats import METRICS, LevelRow

UNLUCKY_SHARE = 0.01
SURE = 0.9
TAIL_JUMP = 3.0
SEEN_IN = {True: "lost tokens", False: "the tail alone"}
BODY_SHARE = 0.5  # of the tail's jump that p50 may follow at most


@dataclass(frozen=True, slots=True)
class Knee:
    lo: int
    hi: int
    seen_in: str


@dataclass(frozen=True, slots=True)
class Slo:
    """`ttft_p99<2s`"""

    metric: str
    limit: float
    above: bool
    text: str

    def met(self, row: LevelRow) -> bool | None:
        value = getattr(row, self.metric)
        if value is None or row.why_none:
            return None
        if stats.is_limit(row, self.metric):  # more than that is certain, less is not
            return self.above if value >= self.limit else None
        return bool(value >= self.limit if self.above else value <= self.limit)


def parse_slo(text: str) -> Slo:
    match = re.fullmatch(r"\s*(\w+?)\s*([<>])=?\s*([\d.]+)\s*(ms|s|%|)\s*", text)
    hint = "for example ttft_p99<2s or req_per_s>1; known: " + ", ".join(METRICS)
    if not match:
        raise BenchError(f"--slo {text!r} is not METRIC<VALUE", hint)
    name = match[1] if match[1] in METRICS else f"{match[1]}_s"
    if name not in METRICS:
        raise BenchError(f"--slo: no metric {match[1]}", hint)
    try:
        limit = float(match[3]) * {"ms": 1e-3, "%": 1e-2}.get(match[4], 1.0)
    except ValueError:
        raise BenchError(f"--slo: {match[3]} is not a number", hint) from None
    above, timed = match[2] == ">", name.endswith("_s") and name != "req_per_s"
    if (timed and match[4] == "%") or (not timed and match[4] in ("ms", "s")):
        raise BenchError(f"--slo {text!r}: {name} is {'a time' if timed else 'no time'}", hint)
    if (not above and limit <= 0) or (above and match[4] == "%" and limit >= 1):
        raise BenchError(f"--slo {text!r} can never be kept", hint)
    return Slo(name, limit, above, text.strip())


def ceiling(rows: Sequence[LevelRow], slo: Slo) -> int | None:
    """The highest level up to which every level meets the SLO; None if the first does not, or it was not measured."""
    best = None
    for row in rows:
        if not slo.met(row):
            return best
        best = row.concurrency
    return best


def knee(rows: Sequence[LevelRow]) -> Knee | None:
    """Rows of the realistic case in order of concurrency, of levels that have percentiles."""
    by_loss = any(row.unlucky is not None for row in rows)
    broken, witnesses = (_evicts, 1) if by_loss else (_leaves, 2)
    for at in range(1, len(rows)):
        before, here, above = rows[at - 1], rows[at], rows[at + 1 : at + 1 + witnesses]
        stays = not above or any(broken(row, before) for row in above)
        if broken(here, before) and stays and not _evicts(before, before):
            return Knee(before.concurrency, here.concurrency, SEEN_IN[by_loss])
    return None


def from_the_start(rows: Sequence[LevelRow]) -> bool:
    """The lowest level is past the knee already, and so is the one above."""
    return bool(rows) and all(_evicts(row, row) for row in rows[:2])


def _evicts(row: LevelRow, _: LevelRow) -> bool:
    return row.unlucky is not None and row.unlucky >= UNLUCKY_SHARE * row.requests


def _leaves(row: LevelRow, before: LevelRow) -> bool:
    """Has the tail left the body, seen from the last level before? Not if either may be slower than is known."""
    if not all(here.ttft_p99_s and here.ttft_p50_s for here in (before, row)):
        return False
    if stats.is_limit(before, "ttft_p99_s") or stats.is_limit(row, "ttft_p50_s"):
        return False
    jump, body = _over(row, before, "ttft_p99_s"), _over(row, before, "ttft_p50_s")
    return jump >= _wanted(row, before) and body <= BODY_SHARE * jump


def _wanted(row: LevelRow, before: LevelRow) -> float:
    return TAIL_JUMP * max(1.0, row.concurrency / before.concurrency / 2)


def _over(row: LevelRow, before: LevelRow, name: str) -> float:
    return float(getattr(row, name) / getattr(before, name))


Turns = Sequence[TurnRecord]


def knee_confidence(found: Knee, rows: Sequence[LevelRow], lo: Turns, hi: Turns) -> float | None:
    """How sure it is that the level below is healthy and the one above is not; None without enough sessions."""
    if found.seen_in == SEEN_IN[True]:
        below = sample.chance_below(_flags(lo, stats.is_unlucky), UNLUCKY_SHARE)
        above = sample.chance_below(_flags(hi, stats.is_unlucky), UNLUCKY_SHARE)
        return below * (1 - above)
    tails = [
        [[of(record) for record in session] for session in stats.by_session(turns)]
        for turns, of in ((lo, stats.ttft), (hi, stats.least))  # the jump is no less than that
    ]
    if min(map(len, tails)) < sample.FEW_SESSIONS:
        return None
    before, here = (sample.redrawn(tail, [0.99], seed)[:, 0] for seed, tail in enumerate(tails))
    by_level = {row.concurrency: row for row in rows}
    jumped = here >= before * _wanted(by_level[found.hi], by_level[found.lo])
    return float(np.mean(jumped & np.isfinite(before)))


def absence_confidence(turns: Turns, already: bool, more: int = 0) -> float | None:
    """Where no knee was found: how sure it is that the highest level is healthy, or the lowest `already` broken; or
    would be, after so many more requests of the same."""
    if all(stats.is_unlucky(record) is None for record in turns):
        return None
    healthy = sample.chance_below(_flags(turns, stats.is_unlucky), UNLUCKY_SHARE, more)
    return 1 - healthy if already else healthy


def allowed(slo: Slo) -> float | None:
    """The share of requests that may be slower than was promised; None where it is no percentile of TTFT."""
    match = re.fullmatch(r"ttft_p(\d+)_s", slo.metric)
    return 1 - int(match[1]) / 100 if match and not slo.above else None


def promise_confidence(
    slo: Slo, turns: Turns, more: int = 0, of: Callable[[TurnRecord], float] = stats.ttft
) -> float | None:
    """How sure it is that the promise is kept there, or would be after so many more requests of the same; only of
    percentiles of TTFT."""
    limit = allowed(slo)
    if limit is None:
        return None
    return sample.chance_below(_flags(turns, lambda record: of(record) > slo.limit), limit, more)


def ceiling_confidence(slo: Slo, kept: Turns, broken: Turns) -> float | None:
    """How sure it is that the promise is kept there and not at the level above; only of percentiles of TTFT."""
    at = promise_confidence(slo, kept)
    above = promise_confidence(slo, broken, of=stats.least) if broken else 0.0
    return None if at is None or above is None else at * (1 - above)


def ceiling_between(slo: Slo, levels: Mapping[int, Turns], top: int | None) -> tuple[int | None, int | None] | None:
    """The highest level up to the ceiling that surely keeps the promise, and the lowest above that surely breaks it.
    None where these are the ceiling and the level above, as they should be, or where requests do not tell."""
    if top is None or allowed(slo) is None:
        return None
    kept = [at for at, turns in levels.items() if at <= top and (promise_confidence(slo, turns) or 0.0) >= SURE]
    above = sorted(at for at in levels if at > top)
    broken = [at for at in above if (promise_confidence(slo, levels[at], of=stats.least) or 0.0) <= 1 - SURE]
    found = max(kept, default=None), min(broken, default=None)
    return None if found == (top, min(above, default=None)) else found


def _flags(turns: Turns, flag: Callable[[TurnRecord], bool | None]) -> sample.Flags:
    return sample.flags(map(flag, session) for session in stats.by_session(turns))
