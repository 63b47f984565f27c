"""Known differences are found, none is found where there is none, and everything is said that could mislead."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from bench import compare
from bench.compare import Play, Side
from bench.errors import BenchError
from bench.stats import METRICS
from tests.test_stats import ONE

SAME = {"workload": "coding-agent", "fp8: vLLM": "0.32.0"}
LEVELS = (2, 4, 8, 12)


def played(rng: np.random.Generator, tail: float = 1.0, everything: float = 1.0, drift: float = 0.05) -> Side:
    """Sessions that are alike inside, a tail of the unlucky, and a drift that a whole run shares."""
    run = math.exp(rng.normal(0, drift)) * everything
    plays = []
    for level in LEVELS:
        sessions = []
        for _ in range(18):
            own = rng.lognormal(0, 0.1)
            turns = 0.1 * level * own * run * np.linspace(0.8, 1.2, 11) * rng.lognormal(0, 0.15, 11)
            unlucky = rng.random(11) < 0.08
            sessions.append(tuple(float(v) for v in np.where(unlucky, turns * 3 * tail, turns)))
        plays.append(Play("fp8", "realistic", level, 0, tuple(sessions), 5.0 / run))
    return Side("run", tuple(plays), {"fp8": [12, 14]}, {"fp8": 12}, {"fp8": (0.96, 0.95)}, SAME, True, None)


def sides(seed: int, runs: int, **shift: float) -> tuple[list[Side], list[Side]]:
    rng = np.random.default_rng(seed)
    return [played(rng) for _ in range(runs)], [played(rng, **shift) for _ in range(runs)]


def headlines(runs: int, pairs: int, **shift: float) -> list[str]:
    return [compare.compare(*sides(seed, runs, **shift)).headline for seed in range(pairs)]


@pytest.mark.parametrize("runs", [1, 3])
def test_of_forty_pairs_of_identical_runs_at_most_two_cry_wolf(runs: int) -> None:
    found = headlines(runs, 40)
    assert sum(one != "no difference found" for one in found) <= 2


def test_a_tail_slower_by_a_fifth_is_found_with_six_runs_a_side() -> None:
    assert headlines(6, 10, tail=1.2).count("regression") >= 8


def test_one_run_a_side_finds_what_is_large_and_says_what_it_could_not_have_seen() -> None:
    assert headlines(1, 6, everything=2.0) == ["regression"] * 6
    assert headlines(1, 6, everything=0.5) == ["improvement"] * 6
    found = compare.compare(*sides(1, 1))
    assert all(one.could_have_seen and one.could_have_seen > 0.15 for one in found.overall)
    assert "No difference found (could have seen ≥ " in compare.text(found)
    assert "not measured; three or more" in " ".join(compare.text(found).split())


def test_more_runs_see_smaller_differences() -> None:
    least = [compare.compare(*sides(2, runs)).overall[0].could_have_seen or 0 for runs in (1, 2, 4, 8)]
    assert least == sorted(least, reverse=True)


def test_a_faster_throughput_is_faster() -> None:
    a, b = sides(3, 3)
    b = [replace(one, plays=tuple(replace(play, req_per_s=9.0) for play in one.plays)) for one in b]
    found = {one.metric: one.judged for one in compare.compare(a, b).overall}
    assert found["req/s"] == "faster"
    assert METRICS["req_per_s"].better == "more"


def test_failures_on_one_side_are_slower_and_never_nonsense() -> None:
    a, b = sides(4, 1)
    plays = b[0].plays
    failed = tuple((math.inf, *session[1:]) for session in plays[0].sessions)
    found = compare.compare(a, [replace(b[0], plays=(replace(plays[0], sessions=failed), *plays[1:]))])
    broken = [one for one in found.levels if one.b is not None and math.isinf(one.b)]
    assert {one.metric for one in broken} == {"TTFT p95", "TTFT p99"}
    assert {one.judged for one in broken} == {"slower"}
    assert found.headline == "regression", "a tail that has become failures is no missing number"
    assert "nan" not in compare.text(found).lower()


def moved(before: Sequence[int | None], after: Sequence[int | None], sure: float = 0.99) -> tuple[str, str]:
    def side(knee: int | None) -> Side:
        bracket = None if knee is None else [knee, knee + 2]
        return replace(played(np.random.default_rng(0)), knees={"fp8": bracket}, sure={"fp8": (sure, sure)})

    found = compare.compare([side(knee) for knee in before], [side(knee) for knee in after])
    return found.brackets[0], found.headline


def test_a_knee_has_moved_only_if_both_sides_are_sure_of_theirs() -> None:
    assert moved([12], [8]) == ("fp8: knee: 12 before, 8 after: fewer sessions", "regression")
    assert moved([8], [12])[1] == "improvement"
    assert moved([12], [10], sure=0.9) == (
        "fp8: knee: 12 before, 10 after: no difference found, 20% likely to be chance", "no difference found",
    )  # fmt: skip
    assert moved([12, 12, 12], [10, 10, 10], sure=0.9)[1] == "regression", "three that agree outweigh each one's doubt"
    assert "do not agree" in moved([12, 10], [10, 10])[0]
    assert moved([12], [12])[0].endswith("the same")


def test_what_is_not_comparable_is_noted_or_refused() -> None:
    a, b = sides(5, 1)
    other = replace(b[0], conditions={**SAME, "fp8: vLLM": "0.33.0"}, imported="vLLM bench", valid=False)
    notes = "\n".join(compare.compare(a, [other]).notes)
    assert "NOT THE SAME fp8: vLLM: 0.32.0 before, 0.33.0 after" in notes
    assert "imported from vLLM bench, not checked" in notes
    assert "NOT THE SAME workload" not in notes
    elsewhere = replace(b[0], plays=tuple(replace(play, variant="tq4") for play in b[0].plays))
    with pytest.raises(BenchError, match="no level in common"):
        compare.compare(a, [elsewhere])


def test_a_published_run_compares_like_its_requests() -> None:
    records = [replace(ONE, session=n % 6, turn=1 + n // 6, first_s=10.2 + n / 100) for n in range(36)]
    records.append(replace(ONE, status="failed", first_s=None, session=7))
    made = compare.plays(records)
    assert compare.from_json(compare.to_json(made)) == made
    assert math.inf in made[0].sessions[-1]


def test_the_table_is_narrow_enough_to_be_read() -> None:
    found = compare.compare(*sides(6, 3, everything=1.5))
    assert max(map(len, compare.text(found).splitlines())) <= 110
    assert compare.text(found).startswith("Regression: the second side is slower.")
    assert compare.markdown(found).count("|\n") == 2 + len(found.overall) + len(found.levels)
