import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest

from bench import compare, difference, plays
from bench.compare import Comparison, Finding, Side
from bench.errors import BenchError, Exit
from bench.plays import Play
from bench.records import TurnRecord

LEVELS = (1, 2, 4, 8, 12, 14)
Floats = np.ndarray


def run(seed: int, drift: float = 0.03, jitter: float = 0.06, levels: Sequence[int] = LEVELS) -> Side:
    """As on a real engine: deeper turns are slower, a session is as lucky as its other turns, and at the top level one
    in five sessions loses its history; with noise that all of a level, and all of a run, has in common."""
    rng = np.random.default_rng(seed)
    common = rng.normal(0, drift)
    played = []
    for level in levels:
        factor = math.exp(common + rng.normal(0, jitter))
        own = rng.normal(0, 0.15, size=17)
        unlucky = rng.random(17) < (0.2 if level == max(LEVELS) else 0.0)
        depth = 0.08 + 0.01 * np.arange(12)
        ttft = factor * depth * level**0.6 * np.exp(own[:, None] + rng.normal(0, 0.2, size=(17, 12)))
        ttft *= np.where(unlucky[:, None] & (rng.random((17, 12)) < 0.5), 10.0, 1.0)
        sessions = tuple(tuple(map(float, session)) for session in ttft)
        played.append(Play("fp8", "realistic", level, 0, sessions, level / (factor * 0.5)))
    return side(f"run {seed}", played)


def side(name: str, played: Sequence[Play], **known: object) -> Side:
    blank = Side(name, tuple(played), {}, {}, {}, {"workload": "coding-agent 1"}, True, None)
    return replace(blank, **known)  # type: ignore[arg-type]


def altered(one: Side, change: Callable[[Floats], Floats], levels: Sequence[int] = LEVELS) -> Side:
    def new(play: Play) -> Play:
        values = np.array([ttft for session in play.sessions for ttft in session])
        told = iter(change(values).tolist() if play.concurrency in levels else values.tolist())
        return replace(play, sessions=tuple(tuple(next(told) for _ in session) for session in play.sessions))

    return replace(one, plays=tuple(map(new, one.plays)))


def slower_tail(values: Floats) -> Floats:
    return np.where(values > np.quantile(values, 0.9), 1.2 * values, values)


def failing(count: int) -> Callable[[Floats], Floats]:
    return lambda values: np.where(np.arange(len(values)) % (len(values) // count) == 0, math.inf, values)


def runs(first: int, count: int) -> list[Side]:
    return [run(seed) for seed in range(first, first + count)]


def only(found: Comparison, metric: str, level: int | None = None) -> Finding:
    (finding,) = [one for one in found.findings if (one.metric, one.concurrency) == (metric, level)]
    return finding


# --- how often it is wrong, and how often right ---


@pytest.mark.parametrize("size", [1, 3])
def test_it_does_not_cry_wolf(size: int) -> None:
    alarms = [
        compare.compare(runs(1000 * size + 2 * size * pair, size), runs(1000 * size + 2 * size * pair + size, size))
        for pair in range(40)
    ]
    assert sum(found.headline == "regression" for found in alarms) <= 2, "of 40 pairs of the same, at most 5 %"
    assert sum(found.headline == "improvement" for found in alarms) <= 2


def test_a_tail_slower_by_a_fifth_is_found_with_three_runs_a_side() -> None:
    found = [
        compare.compare(runs(5000 + 6 * pair, 3), [altered(one, slower_tail) for one in runs(5003 + 6 * pair, 3)])
        for pair in range(20)
    ]
    assert sum(one.headline == "regression" for one in found) >= 17
    tails = [only(one, "ttft_p95_s") for one in found]
    assert sum((one.low or 0) <= 0.2 <= (one.high or 0) for one in tails) >= 18, "the interval holds the truth"
    assert sum(only(each, "req_per_s").verdict == "slower" for each in found) <= 2, "throughput was left alone"


def test_a_machine_that_drifts_more_than_was_assumed_is_believed_less() -> None:
    quiet = compare.compare(runs(1, 3), runs(4, 3))
    rough = compare.compare([run(s, drift=0.3) for s in (1, 2, 3)], [run(s, drift=0.3) for s in (4, 5, 6)])
    assert (only(rough, "ttft_p50_s").could_have_seen or 0) > 2 * (only(quiet, "ttft_p50_s").could_have_seen or 0)


def test_more_runs_see_less() -> None:
    seen = [only(compare.compare(runs(1, n), runs(50, n)), "ttft_p95_s").could_have_seen or 0 for n in (1, 3, 8)]
    assert seen[0] > 1.5 * seen[1] > 2 * seen[2]
    assert seen[1] < 0.25, "three runs a side find a quarter"


def test_faster_is_an_improvement_and_the_other_way_round_a_regression() -> None:
    slow, fast = runs(1, 3), [altered(one, lambda values: values / 1.5) for one in runs(4, 3)]
    assert compare.compare(slow, fast).headline == "improvement"
    assert compare.compare(fast, slow).headline == "regression"


def test_a_cliff_at_one_level_alone_is_a_regression() -> None:
    cliff = [altered(one, lambda values: 8 * values, levels=[12]) for one in runs(2, 1)]
    found = compare.compare(runs(1, 1), cliff)
    assert found.headline == "regression"
    assert only(found, "ttft_p99_s", 12).verdict == "slower"
    assert only(found, "ttft_p99_s", 8).verdict == "no difference found"


def test_a_lucky_and_an_unlucky_run_at_the_cliff_are_no_difference() -> None:
    """Two of 17 sessions lost their history in one run and none in the other: p95 is 7 times larger, by chance."""
    before = run(1)
    some = altered(run(2), lambda values: np.where(np.arange(len(values)) < 24, 10 * values, values), levels=[12])
    found = compare.compare([before], [some])
    tail = only(found, "ttft_p95_s", 12)
    assert (tail.change or 0) > 1
    assert tail.verdict == "no difference found"


def test_sessions_of_different_size_at_the_same_place_cost_no_certainty() -> None:
    """What a workload gives each session is the same in both runs: no part of what chance does."""

    def sized(seed: int, shuffled: bool) -> Side:
        rng = np.random.default_rng(seed)
        sizes = np.random.default_rng(0).lognormal(0, 1.0, size=20)
        if shuffled:
            rng.shuffle(sizes)
        ttft = sizes[:, None] * np.exp(rng.normal(0, 0.05, size=(20, 10)))
        return side(str(seed), [Play("fp8", "realistic", 4, 0, tuple(map(tuple, ttft.tolist())), 1.0)])

    alike, mixed = (
        only(compare.compare([sized(1, mix)], [sized(2, mix)]), "ttft_p50_s", 4).could_have_seen or 0
        for mix in (False, True)
    )
    assert alike < 0.7 * mixed


# --- failures ---


def test_failures_on_one_side_are_slower_and_never_nan() -> None:
    found = compare.compare(runs(1, 1), [altered(one, failing(6)) for one in runs(2, 1)])
    p99 = only(found, "ttft_p99_s", 4)
    assert (p99.verdict, p99.b, p99.change) == ("slower", math.inf, math.inf)
    assert found.headline == "regression"
    assert not any(
        value is not None and math.isnan(value)
        for one in found.findings
        for value in (one.a, one.b, one.change, one.low, one.high, one.could_have_seen, one.p)
    )
    back = only(compare.compare([altered(one, failing(6)) for one in runs(1, 1)], runs(2, 1)), "ttft_p99_s", 4)
    assert (back.verdict, back.change) == ("faster", -1.0)
    assert "nan" not in difference.text(found)


def test_a_percentile_that_is_no_time_says_so_in_words() -> None:
    before, after = [run(1)], [altered(run(2), failing(40))]
    assert "failed or timed out" in difference.text(compare.compare(before, after))
    assert "failed or timed out" not in difference.text(compare.compare(before, [run(2)]))


def test_failures_too_few_for_any_percentile_are_counted() -> None:
    found = compare.compare(runs(1, 3), [altered(one, failing(1)) for one in runs(4, 3)])
    errors = only(found, "errors")
    assert (errors.a, errors.b, errors.verdict) == (0, 18, "slower")
    one = compare.compare(runs(1, 1), [altered(one, failing(1), levels=[4]) for one in runs(4, 1)])
    assert only(one, "errors").verdict == "no difference found", "one of 1,224 happens"
    assert not [one for one in compare.compare(runs(1, 1), runs(2, 1)).findings if one.metric == "errors"]


def test_a_level_where_everything_failed_on_both_sides_says_nothing() -> None:
    dead = [altered(one, lambda values: values * math.inf, levels=[14]) for one in runs(1, 2)]
    dead = [replace(d, plays=(*d.plays[:-1], replace(d.plays[-1], req_per_s=0.0))) for d in dead]
    found = compare.compare(dead[:1], dead[1:])
    assert found.headline == "no difference found"
    assert only(found, "req_per_s", 14).change is None


# --- knee and ceiling ---


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [
        ([12, 14], [12, 14], "no difference found"),
        ([12, 14], [10, 12], "no difference found"),  # both may be 12
        ([12, 14], [6, 8], "slower"),
        ([6, 8], [12, 14], "faster"),
        ([12, 14], None, "no difference found"),  # none found is not "beyond the last level"
    ],
)
def test_a_knee_moves_when_its_brackets_do_not_touch(before: list[int], after: list[int] | None, verdict: str) -> None:
    a, b = (replace(run(1), knees={"fp8": knee}, sure={"fp8": (0.97, None)}) for knee in (before, after))
    assert only(compare.compare([a], [b]), "knee").verdict == verdict
    doubting = replace(b, sure={"fp8": (0.6, None)})
    assert only(compare.compare([a], [doubting]), "knee").verdict == "no difference found"


def test_the_ceiling_of_one_run_is_shown_but_not_judged() -> None:
    high, low = (replace(run(1), ceilings={"fp8": ceiling}, sure={"fp8": (None, 0.99)}) for ceiling in (12, 2))
    assert only(compare.compare([high], [low]), "ceiling").verdict == "no difference found"
    assert only(compare.compare([high, high], [low, low]), "ceiling").verdict == "slower"


# --- what may be compared, and what is said besides ---


def test_what_has_nothing_in_common_is_refused() -> None:
    other = replace(run(2), conditions={"workload": "short-qa 7"})
    with pytest.raises(BenchError, match="workloads differ") as told:
        compare.compare([run(1)], [other])
    assert told.value.exit == Exit.USAGE
    with pytest.raises(BenchError, match="nothing in common"):
        compare.compare([run(1, levels=[2])], [run(2, levels=[4])])


def test_differences_in_conditions_are_told() -> None:
    a = replace(run(1), conditions={"card": "L4", "seed": "0"})
    b = replace(run(2, levels=[1, 2]), conditions={"card": "H100", "seed": "0"}, valid=False, imported="AIPerf")
    short = replace(b, plays=(replace(b.plays[0], sessions=b.plays[0].sessions[:5]), b.plays[1]))
    notes = "\n".join(compare.compare([a], [short]).notes)
    for told in ("card: L4, then H100", "NOT VALID", "imported from AIPerf, not checked", "requests of realistic at 1",
                 "only one side has realistic at 4", "One run a side"):  # fmt: skip
        assert told in notes
    assert "seed" not in notes
    assert not compare.compare(runs(1, 2), runs(3, 2)).notes


def test_one_precision_can_be_held_against_another() -> None:
    other = run(2)
    found = compare.compare(
        [run(1)], [replace(other, plays=tuple(replace(play, variant="fp16") for play in other.plays))]
    )
    assert {finding.variant for finding in found.findings} == {"fp8 to fp16"}


def test_it_says_the_same_each_time() -> None:
    assert compare.compare(runs(1, 1), runs(2, 1)) == compare.compare(runs(1, 1), runs(2, 1))


def test_the_terminal_has_a_hundred_columns_and_the_verdict_first() -> None:
    found = compare.compare(runs(1, 3), [altered(one, lambda values: 3 * values) for one in runs(4, 3)])
    lines = difference.text(found).splitlines()
    assert lines[0].startswith("Regression: TTFT")
    assert max(map(len, lines)) <= 100
    assert difference.markdown(found).startswith("**Regression")
    same = difference.text(compare.compare(runs(1, 1), runs(2, 1)))
    assert same.startswith("No difference found. Could have seen, over all levels: TTFT p50 ≥")


# --- plays ---


def record(session: int, turn: int, first_s: float | None, end_s: float, repeat: int = 0) -> TurnRecord:
    known: Mapping[str, object] = {"status": "failed" if first_s is None else "ok", "intended_s": 0.0, "sent_s": 0.0}
    return TurnRecord(
        variant="fp8", case="realistic", concurrency=2, repeat=repeat, session=session, turn=turn, first_s=first_s,
        last_s=first_s, end_s=end_s, planned_prompt_tokens=1, planned_output_tokens=1, prompt_tokens=1, output_tokens=1,
        cached_tokens=None, eligible_tokens=0, **known,  # type: ignore[arg-type]
    )  # fmt: skip


def test_plays_have_sessions_in_their_order_and_no_warm_up() -> None:
    ended = [record(0, 0, 9.0, 9.0), record(2, 1, 0.3, 1.0), record(1, 2, None, 3.0), record(1, 1, 0.1, 4.0)]
    (play,) = plays.of(ended)
    assert play.sessions == ((0.1, math.inf), (0.3,)), "not in the order in which they were answered"
    assert play.req_per_s == pytest.approx(2 / 4.0)


def test_published_plays_are_the_same_to_the_last_digit() -> None:
    played = (*run(1).plays, altered(run(2), failing(3)).plays[0])
    text = plays.to_json(played)
    assert plays.from_json(text) == played
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    with pytest.raises(BenchError, match=r"sessions\.json is damaged"):
        plays.from_json(text[:-20])


def test_repeats_of_a_run_count_as_its_sessions() -> None:
    once = run(1, levels=[4])
    twice = replace(once, plays=(*once.plays, replace(run(2, levels=[4]).plays[0], repeat=1)))
    found = compare.compare([twice], [twice])
    rates = [play.req_per_s or 0 for play in twice.plays]
    assert only(found, "req_per_s", 4).a == pytest.approx(2 / sum(1 / rate for rate in rates))
