from collections.abc import Callable
from dataclasses import replace

import pytest

from bench import knee
from bench.errors import BenchError
from bench.records import TurnRecord
from bench.stats import LevelRow
from tests.test_stats import ONE

Row = Callable[..., LevelRow]

# The study's printed table: C, p50, p95, p99 in seconds, req/s.
L4 = """
1 .388 .487 .493 .42|2 .541 .931 .965 .68|4 .717 .99 1.13 1.01|6 1.06 1.43 1.75 1.18|8 1.14 1.73 2.16 1.23
10 1.19 1.89 2.31 1.33|12 1.25 2.16 2.60 1.36|14 1.29 8.93 38.9 1.05|16 2.10 25.4 35.4 .78|18 2.27 24.3 50.5 .66
20 2.25 25.5 44.8 .68|24 2.40 32.5 45.4 .72|28 2.55 31.5 34.9 .74|32 2.58 34.1 49.7 .77|40 3.00 39.2 50.5 .84
48 5.74 40.5 43.2 .89
"""


def levels(row: Row, tails: dict[int, tuple[float, float]], **more: object) -> list[LevelRow]:
    return [row(concurrency=c, ttft_p50_s=p50, ttft_p99_s=p99, **more) for c, (p50, p99) in tails.items()]


def study(row: Row) -> list[LevelRow]:
    rows = [[float(cell) for cell in line.split()] for line in L4.replace("\n", "|").split("|") if line]
    return [
        row(concurrency=int(c), ttft_p50_s=p50, ttft_p95_s=p95, ttft_p99_s=p99, req_per_s=rps)
        for c, p50, p95, p99, rps in rows
    ]


def bracket(rows: list[LevelRow]) -> tuple[int, int] | None:
    found = knee.knee(rows)
    return (found.lo, found.hi) if found else None


def test_the_studys_table_has_its_knee_between_12_and_14_and_its_ceiling_at_6(row: Row) -> None:
    assert bracket(study(row)) == (12, 14)
    assert knee.ceiling(study(row), knee.parse_slo("ttft_p99<2s")) == 6


def test_linear_growth_of_a_saturated_server_is_no_knee(row: Row) -> None:
    assert bracket(levels(row, {c: (2.1 * c, 2.4 * c) for c in (1, 2, 4, 6, 8, 12, 16, 24, 48)})) is None


def test_one_noisy_level_is_no_knee(row: Row) -> None:
    tails = {1: (0.1, 0.2), 2: (0.1, 0.2), 4: (0.1, 2.0), 6: (0.1, 0.2), 8: (0.1, 0.3), 10: (0.1, 0.3)}
    assert bracket(levels(row, tails)) is None


def test_one_noisy_level_of_lost_tokens_is_no_knee(row: Row) -> None:
    unlucky = {4: 0, 6: 0, 8: 5, 10: 0, 12: 0, 14: 11, 16: 34}
    rows = [row(concurrency=c, ttft_p50_s=0.1, ttft_p99_s=0.2, unlucky=u) for c, u in unlucky.items()]
    assert bracket(rows) == (12, 14)
    assert bracket(rows[:5]) is None


def test_a_cliff_stays_one_when_levels_far_past_it_recover(row: Row) -> None:
    tails = {8: (1, 2), 12: (1, 2.5), 14: (1.1, 30), 16: (1.3, 25), 18: (1.3, 9), 20: (1.3, 4), 24: (1.2, 3)}
    assert bracket(levels(row, tails)) == (12, 14)
    unlucky = {12: 0, 14: 9, 16: 30, 20: 4, 24: 0, 28: 0}  # too few turns each to fill the cache
    assert bracket([row(concurrency=c, ttft_p50_s=1, ttft_p99_s=2, unlucky=u) for c, u in unlucky.items()]) == (12, 14)


def test_the_best_case_has_no_knee(row: Row) -> None:
    assert bracket(levels(row, {c: (0.05 + 0.02 * c, 0.06 + 0.03 * c) for c in (1, 2, 4, 8, 12, 24, 48)})) is None


def test_evicting_from_the_first_level_on_leaves_the_knee_below_what_was_measured(row: Row) -> None:
    rows = [row(concurrency=c, ttft_p50_s=1, ttft_p99_s=9, unlucky=50) for c in (14, 16, 18)]
    assert bracket(rows) is None
    assert knee.from_the_start(rows)
    assert knee.from_the_start(rows[:1])
    assert not knee.from_the_start([replace(rows[0], unlucky=0), *rows])
    assert not knee.from_the_start([])


def test_a_noisy_level_borrows_no_witness_from_the_true_cliff(row: Row) -> None:
    unlucky = {8: 0, 10: 3, 12: 0, 14: 11, 16: 34}
    assert bracket([row(concurrency=c, ttft_p50_s=1, ttft_p99_s=2, unlucky=u) for c, u in unlucky.items()]) == (12, 14)


def test_a_level_of_which_nothing_is_known_does_not_blind_the_others(row: Row) -> None:
    unlucky = {8: 0, 12: 0, 14: 11, 16: 34, 48: None}
    rows = [row(concurrency=c, ttft_p50_s=1, ttft_p99_s=2, unlucky=u) for c, u in unlucky.items()]
    assert bracket(rows) == (12, 14)
    found = knee.knee(rows)
    assert found is not None
    assert found.seen_in == "lost tokens"


def level(unlucky: int, sessions: int = 20, slow: float = 5.0) -> list[TurnRecord]:
    """Ten turns a session; the unlucky ones spread over them."""
    gone = {"eligible_tokens": 9000, "cached_tokens": 0, "first_s": 10.0 + slow}
    return [
        replace(ONE, session=n % sessions, turn=1 + n // sessions, **(gone if n < unlucky else {"cached_tokens": 96}))
        for n in range(10 * sessions)
    ]


def test_a_knee_is_the_surer_the_clearer_its_sides(row: Row) -> None:
    found = knee.Knee(12, 14, "lost tokens")
    clear = knee.knee_confidence(found, [], level(0), level(40))
    hardly = knee.knee_confidence(found, [], level(1), level(3))
    assert clear is not None
    assert hardly is not None
    assert clear > 0.9 > 0.7 > hardly


def test_a_ceiling_is_the_surer_the_more_sessions_kept_it() -> None:
    slo = knee.parse_slo("ttft_p99<2s")
    few, many, broken = (knee.ceiling_confidence(slo, turns, []) for turns in (level(0, 4), level(0, 60), level(40)))
    assert few is not None
    assert many is not None
    assert few < 0.7 < 0.99 < many
    assert broken is not None
    assert broken < 1e-30
    hardly = knee.ceiling_confidence(slo, level(0, 60), level(2))
    assert hardly is not None
    assert hardly < 0.7, "the level above may be no worse"
    assert knee.ceiling_confidence(knee.parse_slo("req_per_s>1"), level(0), []) is None, (
        "only a share has this kind of odds"
    )


def test_a_ceiling_that_is_not_sure_says_between_which_levels_it_surely_lies() -> None:
    slo = knee.parse_slo("ttft_p99<2s")
    levels = {6: level(0, 60), 8: level(0), 10: level(2), 12: level(3), 14: level(40), 16: level(90)}
    assert knee.ceiling_between(slo, levels, 10) == (8, 14), "3 of 200 happen where 1 % is the truth"
    assert knee.ceiling_between(slo, {at: levels[at] for at in (6, 8, 14)}, 8) is None, "said by the ceiling itself"
    assert knee.ceiling_between(slo, {at: levels[at] for at in (10, 12)}, 10) == (None, None)
    assert knee.ceiling_between(knee.parse_slo("req_per_s>1"), levels, 10) is None


def test_slow_growth_is_no_knee(row: Row) -> None:
    assert bracket(levels(row, {c: (0.3 * 1.1**c, 0.5 * 1.15**c) for c in range(1, 20)})) is None


def test_lost_tokens_say_it_whatever_the_times_say(row: Row) -> None:
    rows = [row(concurrency=c, ttft_p50_s=0.1, ttft_p99_s=0.2, unlucky=u, lost_tokens=9 * u) for c, u in
            ((8, 0), (12, 1), (14, 2), (16, 40))]  # fmt: skip
    assert bracket(rows) == (12, 14), "1 of 200 is not yet the 99th percentile, 2 of 200 are"


def test_the_ceiling_stops_at_the_first_level_that_breaks_the_promise(row: Row) -> None:
    rows = levels(row, {1: (0.1, 0.5), 2: (0.1, 2.5), 4: (0.1, 0.5)})
    assert knee.ceiling(rows, knee.parse_slo("ttft_p99<2s")) == 1
    assert knee.ceiling(rows, knee.parse_slo("ttft_p99<100ms")) is None
    assert knee.ceiling(rows, knee.parse_slo("ttft_p95<2s")) is None, "not measured keeps no promise"


@pytest.mark.parametrize(
    ("text", "metric", "limit", "above"),
    [("ttft_p99<2s", "ttft_p99_s", 2.0, False), ("ttft_p50_s <= 300 ms", "ttft_p50_s", 0.3, False),
     ("req_per_s>1.5", "req_per_s", 1.5, True), ("eligible_hit_rate>95%", "eligible_hit_rate", 0.95, True)],
)  # fmt: skip
def test_promises_are_read(text: str, metric: str, limit: float, above: bool) -> None:
    slo = knee.parse_slo(text)
    assert (slo.metric, slo.above) == (metric, above)
    assert slo.limit == pytest.approx(limit)


@pytest.mark.parametrize("text", ["", "ttft_p99", "ttft_p77<2s", "ttft_p99<fast", "ttft_p99<2parsecs"])
def test_promises_that_cannot_be_read_list_what_can(text: str) -> None:
    with pytest.raises(BenchError) as caught:
        knee.parse_slo(text)
    assert "ttft_p99" in caught.value.hint
