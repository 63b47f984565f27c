import math
from dataclasses import replace

import numpy as np
import pytest

from bench import stats
from bench.records import TurnRecord

ONE = TurnRecord(
    variant="v", case="realistic", concurrency=2, repeat=0, session=0, turn=1, status="ok", intended_s=10.0,
    sent_s=10.1, first_s=10.5, last_s=11.5, end_s=11.6, planned_prompt_tokens=100, planned_output_tokens=11,
    prompt_tokens=100, output_tokens=11, cached_tokens=64, eligible_tokens=96,
)  # fmt: skip


def test_ttft_counts_from_when_the_turn_was_due() -> None:
    assert ONE.ttft_s == pytest.approx(0.5)
    assert ONE.late_s == pytest.approx(0.1)
    assert ONE.lost_tokens == 32


def test_percentiles_are_numpys() -> None:
    values = list(np.random.default_rng(1).lognormal(size=137))
    for share in (0.0, 0.5, 0.95, 0.99, 1.0):
        assert stats.percentile(values, share) == pytest.approx(float(np.quantile(values, share)))
    assert stats.percentile([], 0.5) is None


def test_a_failure_ranks_as_infinitely_slow_and_never_as_nothing() -> None:
    values = [0.1] * 97 + [math.inf] * 3
    assert stats.percentile(values, 0.5) == 0.1
    assert stats.percentile(values, 0.99) == math.inf
    assert stats.seconds(math.inf) == "failed"


def test_a_level_with_failures_shows_them_everywhere() -> None:
    failed = replace(ONE, status="failed", first_s=None, last_s=None, cached_tokens=None, session=1)
    row = stats.reduce([ONE, failed, replace(ONE, turn=0)], [])
    assert (row.requests, row.errors) == (2, 1)
    assert row.ttft_p99_s == math.inf
    assert row.lost_tokens == 32
    assert row.preemptions is None, "not measured is not zero"


def test_throughput_counts_repeats_apart() -> None:
    later = [replace(ONE, repeat=1, intended_s=100.0, sent_s=100.1, first_s=100.5, last_s=101.5, end_s=101.6)]
    assert stats.reduce([ONE, *later], []).req_per_s == pytest.approx(2 / 3.0)


def test_an_interval_needs_sessions_and_covers_the_truth() -> None:
    assert stats.interval([[1.0]] * 4, 0.99) == (None, None)
    rng = np.random.default_rng(5)
    hits = 0
    for _ in range(40):
        sessions = [list(rng.normal(rng.normal(), 0.5, size=10)) for _ in range(40)]
        low, high = stats.interval(sessions, 0.5)
        assert low is not None
        assert high is not None
        hits += low <= 0 <= high
    assert hits >= 34, "turns of a session are alike: an interval that forgets it covers far less"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0571, "57 ms"), (0.388, "388 ms"), (0.9999, "1.00 s"), (1.25, "1.25 s"), (38.94, "38.9 s"), (102.2, "102 s")],
)
def test_times_read_as_the_study_prints_them(value: float, text: str) -> None:
    assert stats.seconds(value) == text


def test_counters_grow_over_each_repeat_alone() -> None:
    samples = [{"repeat": r, "preemptions": v} for r, v in ((0, 5.0), (0, 7.0), (1, 7.0), (1, 10.0))]
    assert stats.growth(samples, "preemptions") == 5.0
    assert stats.growth([{"repeat": 0, "preemptions": None}], "preemptions") is None
