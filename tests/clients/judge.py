"""What a client said is set against what the server wrote down: one row of figures, or why there are none."""

import statistics
from collections.abc import Sequence

from tests.clients import turns
from tests.clients.contestants import Report
from tests.clients.processes import Watch
from tests.clients.table import Row
from tests.clients.truth import Answered, pace
from tests.clients.turns import p99


def judge(
    name: str,
    concurrency: int,
    requests: int,
    answered: Sequence[Answered],  # in order of arrival
    watch: Watch,
    report: Report | None,
    problem: str | None,
) -> Row:
    if not answered:
        return Row(name, concurrency, problem=problem or "sent nothing")
    cpu_s = _cpu_a_request(watch, answered, requests)
    answered = answered[-requests:]  # what came before was a warm-up
    if len(answered) < requests:
        problem = problem or f"{len(answered)} of {requests} requests"
    starts, ends = [one.arrived for one in answered], sorted(one.ended for one in answered)
    gaps = [start - end for start, end in zip(starts[concurrency:], ends, strict=False)]
    true = [one.first - one.arrived for one in answered]
    return Row(
        name,
        concurrency,
        cpu_ms=_ms(cpu_s),
        bias_ms=_bias(report.ttfts_s, true) if report else None,
        due_bias_ms=_bias(report.due_ttfts_s, true) if report else None,
        matched_ms=_ms_p99(_one_by_one(report, answered)) if report else None,
        gap_ms=_ms_p99(gaps),
        load=_load(concurrency, [start - starts[0] for start in starts[:concurrency]] + gaps),
        lag_ms=_ms_p99([one.first - one.due for one in answered]),
        problem=problem,
    )


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else 1e3 * seconds


def _ms_p99(values: Sequence[float]) -> float | None:
    return 1e3 * p99(values) if values else None


def _load(concurrency: int, empty: Sequence[float]) -> float:
    """`empty`: for how long a place had been so when a request took it."""
    planned = pace(concurrency).first + (turns.OUTPUT_TOKENS - 1) * pace(concurrency).gap
    return planned / (planned + statistics.fmean(empty))


def _cpu_a_request(watch: Watch, answered: Sequence[Answered], requests: int) -> float | None:
    used = watch.between(answered[-requests:][0].arrived, max(one.ended for one in answered))
    return used and used[1] / sum(one.arrived >= used[0] for one in answered)


def _bias(reported_s: Sequence[float], true_s: Sequence[float]) -> float | None:
    return 1e3 * (p99(reported_s) - p99(true_s)) if reported_s else None


def _one_by_one(report: Report, answered: Sequence[Answered]) -> list[float]:
    """But for the first turns: all at once, they wait for the server to read them."""
    start = min((turn.due for turn in report.turns), default=0.0)
    known = {one.mark: one.first - one.arrived for one in answered}
    later = (turn for turn in report.turns if turn.due > start and turn.mark in known)
    return [turn.first - turn.sent - known[turn.mark] for turn in later]
