"""Numbers become a verdict: where the cliff stands, and the highest level that keeps the promise.

The rule, in the words a user reads (README, "How the knee is found"):
- Where the server tells each request's cached tokens, a level's tail belongs to eviction when at least 1 % of its
  requests lost more than 1,000 tokens of their own history: then the 99th percentile is made of them.
- Where it does not, the tail has left the body when p99 is at least 3 times the last healthy level's, more than the
  growth in sessions explains, while p50 has not followed, and the levels above stay there.
The knee is the bracket between the last level before and the first level after.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from bench.errors import BenchError
from bench.stats import METRICS, LevelRow

UNLUCKY_SHARE = 0.01
TAIL_JUMP = 3.0
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
        if value is None:
            return None
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
    return Slo(name, limit, match[2] == ">", text.strip())


def ceiling(rows: Sequence[LevelRow], slo: Slo) -> int | None:
    """The highest level up to which every level meets the SLO; None if the first does not, or it was not measured."""
    best = None
    for row in rows:
        if not slo.met(row):
            return best
        best = row.concurrency
    return best


def knee(rows: Sequence[LevelRow]) -> Knee | None:
    """Rows of the realistic case in order of concurrency."""
    by_loss = bool(rows) and all(row.unlucky is not None for row in rows)
    for at in range(1, len(rows)):
        before, here = rows[at - 1], rows[at]
        if by_loss and _evicts(here) and not _evicts(before):
            return Knee(before.concurrency, here.concurrency, "lost tokens")
        if not by_loss and _leaves(before, rows[at:]):
            return Knee(before.concurrency, here.concurrency, "the tail alone")
    return None


def _evicts(row: LevelRow) -> bool:
    return row.unlucky is not None and row.unlucky >= UNLUCKY_SHARE * row.requests


def _leaves(before: LevelRow, rest: Sequence[LevelRow]) -> bool:
    """Has the tail left the body from the first of `rest` on?"""
    here = rest[0]
    if not all(row.ttft_p99_s and row.ttft_p50_s for row in (before, *rest)):
        return False
    jump = _over(here, before, "ttft_p99_s")
    body = _over(here, before, "ttft_p50_s")
    wanted = TAIL_JUMP * max(1.0, here.concurrency / before.concurrency / 2)
    stays = median(_over(row, before, "ttft_p99_s") for row in rest) >= TAIL_JUMP
    return jump >= wanted and body <= BODY_SHARE * jump and stays


def _over(row: LevelRow, before: LevelRow, name: str) -> float:
    return float(getattr(row, name) / getattr(before, name))


def verdict(rows: Sequence[LevelRow], slo: Slo, predicted: float | None) -> dict[str, Any]:
    """Of one variant."""
    realistic = sorted((row for row in rows if row.case == "realistic"), key=lambda row: row.concurrency)
    found = knee(realistic)
    return {
        "knee": [found.lo, found.hi] if found else None,
        "seen_in": found.seen_in if found else None,
        "ceiling": ceiling(realistic, slo),
        "slo": slo.text,
        "highest": realistic[-1].concurrency if realistic else None,
        "predicted_knee": predicted,
        "cause": _cause(realistic, found, predicted),
    }


def _cause(rows: Sequence[LevelRow], found: Knee | None, predicted: float | None) -> str | None:
    """Which of what was measured stands behind the knee; None is 'not known'."""
    if found is None or found.seen_in != "lost tokens":
        return None
    fit = f"; the arithmetic says that {predicted:.1f} sessions fit" if predicted is not None else ""
    past = next(row for row in rows if row.concurrency == found.hi)
    lost = f"{past.unlucky} of {past.requests} requests lost {past.lost_tokens:,} tokens of their sessions' history"
    return f"KV cache full: at {found.hi} sessions {lost}{fit}"
