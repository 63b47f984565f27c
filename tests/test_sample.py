import math

import numpy as np
import pytest

from bench import sample


def test_percentiles_are_numpys() -> None:
    values = list(np.random.default_rng(1).lognormal(size=137))
    for share in (0.0, 0.5, 0.95, 0.99, 1.0):
        assert sample.percentile(values, share) == pytest.approx(float(np.quantile(values, share)))
    assert sample.percentile([], 0.5) is None


def test_a_failure_ranks_as_infinitely_slow() -> None:
    values = [0.1] * 97 + [math.inf] * 3
    assert sample.percentile(values, 0.5) == 0.1
    assert sample.percentile(values, 0.99) == math.inf


def test_an_interval_needs_sessions_and_covers_the_truth() -> None:
    assert sample.intervals([[1.0]] * 4, [0.99]) == [(None, None)]
    rng = np.random.default_rng(5)
    hits = 0
    for _ in range(40):
        sessions = [list(rng.normal(rng.normal(), 0.5, size=10)) for _ in range(40)]
        ((low, high),) = sample.intervals(sessions, [0.5])
        assert low is not None
        assert high is not None
        hits += low <= 0 <= high
    assert hits >= 34, "turns of a session are alike: an interval that forgets it covers far less"


def test_a_sample_is_of_whole_sessions_and_its_percentiles_are_of_their_turns() -> None:
    rng = np.random.default_rng(4)
    sessions = [list(rng.lognormal(size=rng.integers(1, 12))) for _ in range(70)]
    sessions[3][0] = math.inf
    shares = [0.0, 0.5, 0.95, 1.0]
    found = sample.redrawn(sessions, shares, seed=1)
    rng = np.random.default_rng(1)
    for times, row in zip(rng.multinomial(70, np.full(70, 1 / 70), size=sample.RESAMPLES), found, strict=True):
        turns = sorted(value for often, session in zip(times, sessions, strict=True) for value in session * int(often))
        assert list(row) == [turns[math.ceil((len(turns) - 1) * share)] for share in shares]


def test_the_floors_are_those_of_early_stopping() -> None:
    assert [sample.floor(share) for share in (0.50, 0.90, 0.95, 0.99)] == [8, 46, 93, 473]


def test_turns_of_one_session_count_as_less_than_their_number() -> None:
    rng = np.random.default_rng(2)
    apart = [list(rng.integers(0, 2, 20)) for _ in range(200)]
    same = [[float(one)] * 20 for one in rng.integers(0, 2, 200)]
    assert sample.alike(sample.flags(apart)) == pytest.approx(1, abs=0.2)
    assert sample.alike(sample.flags(same)) == pytest.approx(20, rel=0.01), "20 equal turns say as much as one"


def test_a_percentile_says_how_many_sessions_it_lacks() -> None:
    rng = np.random.default_rng(3)
    sessions = [list(rng.lognormal(size=10)) for _ in range(40)]
    assert sample.needs(sessions, 0.5) == 0
    assert 0 < sample.needs(sessions, 0.99) <= 20, (
        "400 of 473 requests are there: 8 sessions more, if they are not alike"
    )
    assert sample.needs([list(rng.lognormal(size=10)) for _ in range(120)], 0.99) == 0


@pytest.mark.parametrize(("ones", "sure"), [(0, (0.93, 0.98)), (2, (0.3, 0.6)), (12, (0.0, 0.01))])
def test_how_sure_a_share_lies_under_one_percent(ones: int, sure: tuple[float, float]) -> None:
    sessions = [(int(number < ones), 1) for number in range(200)]
    assert sure[0] <= sample.chance_below(sessions, 0.01) <= sure[1]
