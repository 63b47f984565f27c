"""One thing wrong at a time, and which check notices it."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest

from bench import audit, recipe, workload
from bench.audit import Evidence, Warning
from bench.records import TurnRecord
from bench.stats import LevelRow
from tests.test_stats import ONE

Row = Callable[..., LevelRow]


def evidence(
    records: Sequence[TurnRecord] = (), rows: Sequence[LevelRow] = (), planned: int | None = None, **facts: Any
) -> Evidence:
    planned = sum(record.turn > 0 for record in records) if planned is None else planned
    felt = {"case": "realistic", "concurrency": 2, "stepped_s": 0.0, "suspended_s": 0.0}
    settings = {"cache": {"tokens": 1}, "version": "1", "models": ["m"]}
    told = {"server": {"cache": {"block_size": 16}}, "dialect": {"name": "token ids"}, "launch": None,
            "settings": [settings, settings], **facts}  # fmt: skip
    run = {"variants": {"v": told}, "workload": {"file": {}}, "machine": {"busy": 0.1}, "repeats": 1,
           "levels": [{"variant": "v", "case": "realistic", "concurrency": 2, "requests": planned}]}  # fmt: skip
    return Evidence(run, "v", records, rows, pulses=[felt])


def said(seen: Evidence) -> list[tuple[str, bool]]:
    return [(warning.what, warning.fatal) for check in audit.audit(seen) for warning in check.warnings]


def passed(seen: Evidence) -> dict[str, bool | None]:
    return {check.name: check.passed for check in audit.audit(seen)}


def counted(**values: float) -> list[dict[str, Any]]:
    """The server's counters before and after the level."""
    place = {"case": "realistic", "concurrency": 2, "repeat": 0}
    return [{**place, **dict.fromkeys(values, 0.0)}, {**place, **values}]


def test_a_sound_run_has_no_warnings_and_says_what_could_not_be_checked(row: Row) -> None:
    seen = evidence([ONE], [row(ttft_p50_s=0.1, ttft_p99_s=0.2, late_p99_s=0.0001)])
    seen = replace(seen, samples=counted(prefix_hits=64.0, first_tokens=1.0))
    assert said(seen) == []
    assert {name for name, ok in passed(seen).items() if not ok} == {"repeats agree"}
    assert passed(evidence([replace(ONE, cached_tokens=None)]))["every level began cold"] is None


def test_every_planned_request_has_an_outcome() -> None:
    assert said(evidence([ONE], planned=3)) == [("v: 2 of 3 planned requests were never sent", True)]
    assert said(evidence([ONE, ONE], planned=1)) == [("v: 1 requests more than planned were sent", True)]
    run = evidence([ONE], planned=3).run
    assert audit.ledger(run, [ONE, replace(ONE, status="failed"), replace(ONE, turn=0)]) == {
        "planned": 3, "ok": 1, "failed": 1, "truncated": 0, "timeout": 0, "cut": 0, "never_sent": 1,
    }  # fmt: skip


def test_failures_past_one_percent_are_fatal(row: Row) -> None:
    assert said(evidence(rows=[row(errors=2)])) == [("fp8, realistic, C = 1: 2 of 200 requests failed", False)]
    assert said(evidence(rows=[row(errors=3)]))[0][1]


def test_those_who_timed_out_are_counted_apart_and_a_level_without_percentiles_says_why(row: Row) -> None:
    ((what, _),) = said(evidence(rows=[row(errors=5, timeouts=3)]))
    assert what == "fp8, realistic, C = 1: 5 of 200 requests were not answered: 2 failed, 3 timed out"
    waited = row(errors=8, timeouts=8)
    assert [fatal for _, fatal in said(evidence(rows=[waited]))] == [False], "percentiles say how long at least"
    none = row(errors=50, why_none="no percentiles: 50 of 200 requests failed (50x oh)", lag_p99_s=0.2)
    assert said(evidence(rows=[none])) == [
        ("fp8, realistic, C = 1: no percentiles: 50 of 200 requests failed (50x oh)", True)
    ], "nothing is said of a tail that nobody knows"


def test_a_machine_that_slept_and_a_wall_clock_that_was_set_are_named_by_level() -> None:
    quiet = evidence([ONE])
    (here,) = quiet.pulses
    slept, stepped = {**here, "concurrency": 8, "suspended_s": 31.4}, {**here, "concurrency": 4, "stepped_s": 2.5}
    assert said(replace(quiet, pulses=[here, slept, {**slept, "suspended_s": 31.3}])) == [
        ("v, realistic, C = 8: the machine was suspended for 31.4 s", False)
    ]
    assert said(replace(quiet, pulses=[stepped])) == [("v, realistic, C = 4: the wall clock was set by 2.500 s", False)]
    assert passed(quiet)["clocks ran evenly"]
    older = {name: told for name, told in here.items() if not name.endswith("ed_s")}
    assert passed(replace(quiet, pulses=[older]))["clocks ran evenly"] is None, "it told nothing of its clocks"
    assert said(replace(quiet, pulses=[{**here, "suspended_s": None}])) == [], "the system does not tell"


@pytest.mark.parametrize(
    "wrong", [{"sent_s": 9.0}, {"first_s": 10.0}, {"last_s": 10.4}, {"end_s": 11.0}, {"first_s": None, "last_s": 10.0}]
)
def test_times_that_run_backwards_are_noticed(wrong: dict[str, Any]) -> None:
    ((what, fatal),) = said(evidence([ONE, replace(ONE, **wrong)]))
    assert what == "v: the times of 1 requests run backwards"
    assert not fatal
    assert said(evidence([replace(ONE, sent_s=ONE.intended_s - 1e-6)])) == []


def test_half_streams_past_one_percent_are_fatal() -> None:
    half = replace(ONE, status="truncated", error="the stream ended without [DONE]")
    assert ("1 of 3 streams ended before their end was said", True) in said(evidence([ONE, ONE, half]))
    assert ("1 of 101 streams ended before their end was said", False) in said(evidence([ONE] * 100 + [half]))


def test_another_length_than_planned_is_fatal_where_it_can_be_exact() -> None:
    wrong = [replace(ONE, prompt_tokens=101), replace(ONE, output_tokens=10)]
    assert said(evidence(wrong)) == [
        ("1 of 2 prompts had another length than planned (100 became 101)", True),
        ("1 of 2 answers had another length than planned (11 became 10)", True),
    ]
    text = {"name": "text"}
    assert [fatal for _, fatal in said(evidence(wrong, dialect=text))] == [False], "1 % off is within reach of text"


def test_a_late_client_is_a_warning_and_fatal_where_it_moved_the_tail(row: Row) -> None:
    late = row(concurrency=8, ttft_p50_s=0.3, ttft_p99_s=1.0, late_p99_s=0.03, punctual_p99_s=0.98)
    ((what, fatal),) = said(evidence(rows=[late]))
    assert "C = 8: 30.0 ms at p99, 3.0%" in what
    assert not fatal
    moved = replace(late, late_p99_s=0.6, punctual_p99_s=0.7)
    _, (what, fatal) = said(evidence(rows=[moved]))
    assert "C = 8: the client could have moved the tail: 300 ms of its own at p99, where TTFT is 1,000 ms" in what
    assert fatal
    arriving = evidence(rows=[moved])
    arriving.run["workload"]["file"] = {"arrivals": {"sessions_per_s": 2.0}}
    assert not any(fatal for _, fatal in said(arriving)), "there a turn is late because all places are taken"


def test_a_loop_that_does_not_look_could_have_moved_the_tail_of_its_level(row: Row) -> None:
    well = row(ttft_p50_s=0.3, ttft_p99_s=1.0, lag_p99_s=0.05)
    assert said(evidence(rows=[well])) == []
    (what, fatal), *_ = said(evidence(rows=[well, replace(well, concurrency=8, lag_p99_s=0.2)]))
    assert "C = 8" in what
    assert fatal
    assert said(evidence(rows=[row(ttft_p50_s=0.01, ttft_p99_s=0.03, lag_p99_s=0.008)])) == [], (
        "no promise is that near"
    )


def test_a_client_that_needs_most_of_a_core_is_warned_of(row: Row) -> None:
    ((what, fatal),) = said(evidence(rows=[row(client_cpu=0.84)]))
    assert "84% of a core" in what
    assert not fatal


def test_a_client_that_reads_late_on_our_own_machine_makes_the_run_worthless(row: Row) -> None:
    slow = row(concurrency=4, wait_client_s=0.08, wait_compute_s=0.02)
    (what, fatal), *_ = said(evidence(rows=[slow], launch={"name": "cpu"}))
    assert "80% of TTFT passed outside the server, 80 ms" in what
    assert fatal
    assert said(evidence(rows=[slow])) == [], "of a server elsewhere it may be the way there"


def test_waiting_for_our_own_places_is_no_late_client_where_sessions_arrive_at_a_rate(row: Row) -> None:
    seen = evidence(rows=[row(wait_client_s=9.0, wait_compute_s=0.02)], launch={"name": "cpu"})
    seen.run["workload"]["file"] = {"arrivals": {"sessions_per_s": 2.0}}
    assert said(seen) == []


def test_text_that_became_other_tokens_than_planned_is_neither_warm_nor_lost() -> None:
    more = replace(ONE, planned_prompt_tokens=10_000, eligible_tokens=9_000, prompt_tokens=10_300, cached_tokens=9_270)
    assert "cached further" not in str(said(evidence([more], dialect={"name": "text"})))
    fewer = replace(more, prompt_tokens=9_700, cached_tokens=8_730)
    assert fewer.lost_tokens == 0, "none of the 9,000 words was lost, they are 8,730 tokens"


def test_a_server_that_does_not_answer_afterwards_has_not_changed() -> None:
    told = [{"cache": {"tokens": 5}, "version": "1"}, {"cache": {"tokens": None}, "version": None}]
    seen = evidence([ONE], settings=told)
    assert said(seen) == []
    assert passed(seen)["settings were the same afterwards"] is None


def test_a_prompt_cached_further_than_anything_sent_means_a_warm_level() -> None:
    warm = replace(ONE, planned_prompt_tokens=900, prompt_tokens=900, cached_tokens=880, eligible_tokens=96)
    (what, fatal), *_ = said(evidence([warm]))
    assert "were cached further" in what
    assert fatal


def test_the_servers_counter_has_to_agree() -> None:
    assert said(replace(evidence([ONE]), samples=counted(prefix_hits=64.0))) == []
    assert "server counted 70" in said(replace(evidence([ONE]), samples=counted(prefix_hits=70.0)))[0][0]


def test_what_was_cut_is_not_put_down_to_others() -> None:
    cut = replace(ONE, status="cut", first_s=None, cached_tokens=None)
    assert said(replace(evidence([ONE, cut]), samples=counted(prefix_hits=900.0))) == []


def test_others_on_the_server_make_the_run_worthless() -> None:
    assert said(replace(evidence([ONE]), samples=counted(first_tokens=2.0))) == [
        ("the server answered 2 requests while ours were 1", True)
    ]


def test_a_machine_that_was_busy_before_is_a_warning() -> None:
    seen = evidence([ONE], launch={"name": "cpu"})
    seen.run["machine"]["busy"] = 0.4
    assert said(seen) == [("the machine was busy before the run: others took 40% of its processor time", False)]


def test_a_server_that_was_changed_meanwhile_makes_the_run_worthless() -> None:
    told = [{"cache": {"tokens": 5}, "version": "1"}, {"cache": {"tokens": 9}, "version": "1"}]
    assert said(evidence([ONE], settings=told)) == [("the server's cache changed while it was measured", True)]


def test_repeats_that_do_not_agree_are_named(row: Row) -> None:
    assert "by 8.0%" in said(evidence(rows=[row(repeats=3, repeat_spread=0.08)]))[0][0]
    assert said(evidence(rows=[row(repeats=3, repeat_spread=0.02)])) == []


def test_levels_too_short_to_reach_full_depth_are_named() -> None:
    deep = [replace(ONE, turn=12, concurrency=2), replace(ONE, turn=4, concurrency=48)]
    seen = evidence(deep)
    seen.run["workload"]["file"] = {"session": {"turns": 12}}
    assert said(seen) == [("v: at C = 48 no session reached its last turn", False)]
    seen.run["workload"]["file"] = {"session": {"turns": {"min": 3, "max": 30}}}
    assert said(seen) == [], "sessions of many lengths end at many turns"


def test_levels_of_which_none_reached_full_depth_are_named_too() -> None:
    seen = evidence([replace(ONE, turn=2, concurrency=13), replace(ONE, turn=2, concurrency=14)])
    seen.run["workload"]["file"] = {"session": {"turns": 12}}
    (warning,) = [warning for check in audit.audit(seen) for warning in check.warnings]
    assert warning.what == "v: at C = 13, 14 no session reached its last turn"
    assert warning.try_next.startswith("--requests 168 ")


@pytest.mark.parametrize(("slower_by_the_end", "noticed"), [(0.0, False), (1.0, True)])
def test_a_level_that_drifts_is_named_and_one_that_only_deepens_is_not(slower_by_the_end: float, noticed: bool) -> None:
    rng = np.random.default_rng(4)
    turns = []
    for session in range(30):
        for turn in range(1, 7):
            when = session + turn / 7
            took = 0.1 * turn * rng.lognormal(0, 0.1) * (1 + slower_by_the_end * when / 31)
            turns.append(replace(ONE, session=session, turn=turn, intended_s=when, sent_s=when, first_s=when + took))
    drifts = [what for what, _ in said(evidence(turns)) if "drifted" in what]
    assert bool(drifts) is noticed


SHIPPED = {"workload": {"name": "coding-agent", "digest": None}, "seed": 0, "repeats": 1,
           "levels": [{"case": "realistic", "requests": 200}]}  # fmt: skip


def test_what_departs_from_the_shipped_recipe_is_named() -> None:
    work = workload.load("coding-agent")
    base = recipe.launch("cpu", "fp8", None, 1, True, ())
    as_shipped = {"launch": asdict(base)}
    run = {**SHIPPED, "workload": {"name": work.name, "digest": work.digest}, "variants": {"fp8": as_shipped}}
    assert audit.departures(run) == []
    other = {"launch": asdict(replace(base, model="m", tp=2, prefix_caching=False, extra=("--max-num-seqs", "4")))}
    own = {**run, "workload": {"name": work.name, "digest": "mine"}, "variants": {"fp8": other, "e": {"launch": None}},
           "seed": 7, "levels": [{"case": "realistic", "requests": 54}]}  # fmt: skip
    assert audit.departures(own) == [
        "workload coding-agent is not a shipped one", "fp8: model m", "fp8: --tensor-parallel-size 2",
        "fp8: no prefix caching", "fp8: --max-num-seqs 4", "e: a server that bench did not start", "seed 7",
        "54 requests a level instead of 200",
    ]  # fmt: skip


def test_a_check_fails_only_by_what_is_fatal() -> None:
    assert audit.Check("c", (Warning("w", "y", "t"),)).passed is True
    assert audit.Check("c", (Warning("w", "y", "t", fatal=True),)).passed is False
    assert audit.Check("c", (), "not told").passed is None
