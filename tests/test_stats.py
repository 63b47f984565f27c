import math
from dataclasses import replace

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


def test_a_level_with_failures_shows_them_everywhere() -> None:
    failed = replace(ONE, status="failed", first_s=None, last_s=None, cached_tokens=None, session=1)
    row = stats.reduce([*[ONE] * 9, failed, replace(ONE, turn=0)], [])
    assert (row.requests, row.errors) == (10, 1)
    assert row.ttft_p99_s == math.inf
    assert row.lost_tokens == 9 * 32
    assert row.preemptions is None, "not measured is not zero"


def test_throughput_counts_repeats_apart() -> None:
    later = [replace(ONE, repeat=1, intended_s=100.0, sent_s=100.1, first_s=100.5, last_s=101.5, end_s=101.6)]
    assert stats.reduce([ONE, *later], []).req_per_s == pytest.approx(2 / 3.0)


def test_a_percentile_without_its_floor_is_a_limit_never_a_bare_number() -> None:
    few = [replace(ONE, session=n % 20, turn=1 + n // 20, first_s=10.2 + n / 1000) for n in range(200)]
    row = stats.reduce(few, [])
    assert stats.show(row, "ttft_p50_s") == "299 ms"
    assert row.needs_p99
    assert stats.show(row, "ttft_p99_s").startswith("≥")
    assert stats.show(stats.reduce(few[:3], []), "ttft_p99_s") == "-", "of three sessions not even a limit is known"


def test_the_lucky_and_the_unlucky_are_told_apart() -> None:
    kept = [replace(ONE, turn=n, cached_tokens=96) for n in (1, 2, 3)]
    gone = [replace(ONE, turn=n, eligible_tokens=9000, cached_tokens=0, first_s=15.0) for n in (5, 4)]
    row = stats.reduce([*kept, *gone], [])
    assert (row.unlucky, row.first_unlucky_turn) == (2, 4)
    assert (row.lucky_p50_s, row.unlucky_p50_s) == (pytest.approx(0.5), pytest.approx(5.0))


def test_the_working_set_is_what_live_sessions_hold_at_once() -> None:
    def session(number: int, start: float) -> list[TurnRecord]:
        return [
            replace(ONE, session=number, turn=1, sent_s=start, end_s=start + 1, prompt_tokens=1200, output_tokens=10),
            replace(
                ONE, session=number, turn=2, sent_s=start + 1, end_s=start + 2, prompt_tokens=1500, output_tokens=10
            ),
        ]

    together = [*session(0, 0.0), *session(1, 0.5)]
    in_turn = [*session(0, 0.0), *session(1, 3.0)]
    assert stats.reduce(together, [], shared_tokens=1000).working_set_tokens == 1000 + 2 * 510
    assert stats.reduce(in_turn, [], shared_tokens=1000).working_set_tokens == 1000 + 510


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
