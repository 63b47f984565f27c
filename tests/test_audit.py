from collections.abc import Callable
from dataclasses import replace

from bench.audit import Warning, audit
from bench.stats import LevelRow
from tests.test_stats import ONE

Row = Callable[..., LevelRow]
SERVER = {"cache": {"block_size": 16}, "hits": None}


def said(warnings: list[Warning]) -> list[tuple[str, bool]]:
    return [(warning.what, warning.fatal) for warning in warnings]


def test_a_sound_run_has_no_warnings(row: Row) -> None:
    assert audit([ONE], [row(ttft_p50_s=0.1, ttft_p99_s=0.2, late_p99_s=0.0001)], {**SERVER, "hits": 64}, True) == []


def test_failures_past_one_percent_are_fatal(row: Row) -> None:
    assert said(audit([], [row(errors=2)], SERVER, True)) == [
        ("fp8, realistic, C = 1: 2 of 200 requests failed", False)
    ]
    assert said(audit([], [row(errors=3)], SERVER, True))[0][1]


def test_another_length_than_planned_is_fatal_where_it_can_be_exact(row: Row) -> None:
    wrong = [replace(ONE, prompt_tokens=101), replace(ONE, output_tokens=10)]
    exact = said(audit(wrong, [], SERVER, True))
    assert exact == [
        ("1 of 2 prompts had another length than planned (100 became 101)", True),
        ("1 of 2 answers had another length than planned (11 became 10)", True),
    ]
    assert [fatal for _, fatal in said(audit(wrong, [], SERVER, False))] == [False], "1 % off is within reach of text"


def test_a_prompt_cached_further_than_anything_sent_means_a_warm_level(row: Row) -> None:
    warm = replace(ONE, planned_prompt_tokens=900, prompt_tokens=900, cached_tokens=880, eligible_tokens=96)
    (what, fatal), *_ = said(audit([warm], [], SERVER, True))
    assert "were cached further" in what
    assert fatal


def test_the_servers_counter_has_to_agree(row: Row) -> None:
    assert audit([ONE], [], {**SERVER, "hits": 64.0}, True) == []
    assert "server counted 70" in said(audit([ONE], [], {**SERVER, "hits": 70.0}, True))[0][0]


def test_a_late_client_is_a_warning_and_fatal_where_it_could_be_the_tail(row: Row) -> None:
    late = row(concurrency=8, ttft_p50_s=0.3, ttft_p99_s=1.0, late_p99_s=0.03)
    ((what, fatal),) = said(audit([], [late], SERVER, True))
    assert "C = 8: 30.0 ms at p99, 3.0%" in what
    assert not fatal
    assert said(audit([], [replace(late, late_p99_s=0.6)], SERVER, True))[0][1]


def test_levels_too_short_to_reach_full_depth_are_named() -> None:
    deep = [replace(ONE, turn=12, concurrency=2), replace(ONE, turn=4, concurrency=48)]
    assert said(audit(deep, [], SERVER, True)) == [("at C = 48 no session reached its last turn", False)]
