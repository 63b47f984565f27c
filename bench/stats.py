"""Records become numbers: percentiles that count the failed, intervals that know a session's turns are alike."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from bench.records import TurnRecord

RESAMPLES = 2000
FEW_SESSIONS = 5  # below this many an interval says nothing
UNLUCKY_TOKENS = 1000  # a request that lost more than about a turn's worth of its history


@dataclass(frozen=True, slots=True)
class LevelRow:
    """A level as numbers; a row of levels.csv."""

    variant: str
    case: str
    concurrency: int
    requests: int
    errors: int
    ttft_p50_s: float | None
    ttft_p95_s: float | None
    ttft_p99_s: float | None
    ttft_p99_lo_s: float | None
    ttft_p99_hi_s: float | None
    req_per_s: float | None
    eligible_hit_rate: float | None
    prefix_hit_rate: float | None
    lost_tokens: int | None
    preemptions: float | None
    kv_usage_max: float | None
    duration_s: float
    unlucky: int | None
    sessions: int
    tpot_p50_s: float | None
    late_p99_s: float | None


def percentile(values: Sequence[float], share: float) -> float | None:
    """Linear between order statistics (numpy's default); a failure ranks as infinitely slow."""
    if not values:
        return None
    ordered = sorted(values)
    at = share * (len(ordered) - 1)
    low, high = ordered[math.floor(at)], ordered[math.ceil(at)]
    return low if low == high else low + (high - low) * (at - math.floor(at))


def interval(groups: list[list[float]], share: float) -> tuple[float | None, float | None]:
    """95 % interval of a percentile from resampling whole sessions, for turns of one session are not independent."""
    if len(groups) < FEW_SESSIONS:
        return None, None
    rng = np.random.default_rng(0)
    values = [np.array(group) for group in groups]
    drawn = rng.integers(len(values), size=(RESAMPLES, len(values)))
    # method "higher" never mixes a number with the infinity of a failure
    points = [np.quantile(np.concatenate([values[i] for i in row]), share, method="higher") for row in drawn]
    low, high = np.quantile(points, [0.025, 0.975], method="nearest")
    return float(low), float(high)


def reduce(records: Sequence[TurnRecord], samples: Sequence[dict[str, Any]]) -> LevelRow:
    """All repeats of one level of one case, with the server's own samples taken while it ran."""
    turns = [record for record in records if record.turn > 0]
    first = turns[0]
    ttft = {id(record): math.inf if record.ttft_s is None else record.ttft_s for record in turns}
    by_session: dict[tuple[int, int], list[float]] = {}
    for record in turns:
        by_session.setdefault((record.repeat, record.session), []).append(ttft[id(record)])
    low, high = interval(list(by_session.values()), 0.99)
    values = list(ttft.values())
    lost = [record.lost_tokens for record in turns if record.lost_tokens is not None]
    duration = sum(_span([record for record in turns if record.repeat == repeat]) for repeat in _repeats(turns))
    good = sum(record.status == "ok" for record in turns)
    return LevelRow(
        variant=first.variant,
        case=first.case,
        concurrency=first.concurrency,
        requests=len(turns),
        errors=len(turns) - good,
        ttft_p50_s=percentile(values, 0.50),
        ttft_p95_s=percentile(values, 0.95),
        ttft_p99_s=percentile(values, 0.99),
        ttft_p99_lo_s=low,
        ttft_p99_hi_s=high,
        req_per_s=good / duration if duration > 0 else None,
        eligible_hit_rate=_eligible_hit_rate(turns),
        prefix_hit_rate=_ratio(growth(samples, "prefix_hits"), growth(samples, "prefix_queries")),
        lost_tokens=sum(lost) if lost else None,
        preemptions=growth(samples, "preemptions"),
        kv_usage_max=max(
            (sample["kv_usage"] for sample in samples if sample.get("kv_usage") is not None), default=None
        ),
        duration_s=duration,
        unlucky=sum(tokens > UNLUCKY_TOKENS for tokens in lost) if lost else None,
        sessions=len(by_session),
        tpot_p50_s=percentile([tpot for record in turns if (tpot := _tpot(record)) is not None], 0.50),
        late_p99_s=percentile([record.late_s for record in turns if record.turn > 1], 0.99),
    )


def _repeats(turns: Sequence[TurnRecord]) -> set[int]:
    return {record.repeat for record in turns}


def _span(turns: Sequence[TurnRecord]) -> float:
    return max(record.end_s for record in turns) - min(record.sent_s for record in turns)


def _eligible_hit_rate(turns: Sequence[TurnRecord]) -> float | None:
    measured = [record for record in turns if record.lost_tokens is not None]
    eligible = sum(record.eligible_tokens for record in measured)
    return 1 - sum(record.lost_tokens or 0 for record in measured) / eligible if eligible else None


def _tpot(record: TurnRecord) -> float | None:
    first, last = record.first_s, record.last_s
    if first is None or last is None or not record.output_tokens or record.output_tokens < 2:
        return None
    return (last - first) / (record.output_tokens - 1)


def growth(samples: Sequence[dict[str, Any]], name: str) -> float | None:
    """How far a counter went in each repeat, added up."""
    total, seen = 0.0, False
    for repeat in {sample["repeat"] for sample in samples}:
        values = [s[name] for s in samples if s["repeat"] == repeat and s.get(name) is not None]
        if len(values) > 1:
            total, seen = total + values[-1] - values[0], True
    return total if seen else None


def _ratio(part: float | None, whole: float | None) -> float | None:
    return part / whole if part is not None and whole else None


# --- the one table of metrics ---

Better = Literal["less", "more", "neither"]


def seconds(value: float) -> str:
    """Three digits: 57 ms, 388 ms, 1.25 s, 38.9 s, 102 s."""
    if math.isinf(value):
        return "failed"
    if value < 0.9995:
        return f"{value * 1000:.0f} ms" if value >= 0.00995 else f"{value * 1000:.1f} ms"
    return f"{value:.2f} s" if value < 9.995 else f"{value:.1f} s" if value < 99.95 else f"{value:.0f} s"


def rate(value: float) -> str:
    return f"{value:.2f}" if value < 99.5 else f"{value:.0f}"


def share(value: float) -> str:
    return f"{value:.1%}"


def count(value: float) -> str:
    return f"{value:,.0f}"


def tokens(value: float) -> str:
    return f"{value:.0f}" if value < 1000 else f"{value / 1e3:.0f}K" if value < 999_500 else f"{value / 1e6:.1f}M"


@dataclass(frozen=True, slots=True)
class Metric:
    title: str
    unit: str
    better: Better
    format: Callable[[float], str]


METRICS: dict[str, Metric] = {
    "ttft_p50_s": Metric("TTFT p50", "s", "less", seconds),
    "ttft_p95_s": Metric("p95", "s", "less", seconds),
    "ttft_p99_s": Metric("p99", "s", "less", seconds),
    "req_per_s": Metric("req/s", "1/s", "more", rate),
    "eligible_hit_rate": Metric("hit", "", "more", share),
    "lost_tokens": Metric("lost", "tokens", "less", tokens),
    "unlucky": Metric("unlucky", "requests", "less", count),
    "preemptions": Metric("preempted", "", "less", count),
    "kv_usage_max": Metric("KV used", "", "neither", share),
    "prefix_hit_rate": Metric("server's hit", "", "more", share),
    "tpot_p50_s": Metric("TPOT p50", "s", "less", seconds),
    "errors": Metric("errors", "requests", "less", count),
    "requests": Metric("requests", "requests", "neither", count),
    "duration_s": Metric("took", "s", "neither", seconds),
    "late_p99_s": Metric("client late p99", "s", "less", seconds),
}


def show(row: LevelRow, name: str) -> str:
    value = getattr(row, name)
    return "-" if value is None else METRICS[name].format(value)
