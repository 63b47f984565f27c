from itertools import islice

import pytest

from bench import workload
from bench.errors import BenchError
from bench.workload import Content, Spread


def test_the_study_session_grows_to_22_800_tokens() -> None:
    session = next(workload.load("coding-agent").sessions(seed=0, concurrency=1))
    assert len(session.steps) == 12
    assert sum(part.tokens for part in session.opening) == 10_000
    assert 10_000 + sum(step.new_tokens for step in session.steps) == 22_804
    assert {step.output_tokens for step in session.steps} == {75}


def test_shapes_are_those_of_the_seed_whatever_the_level() -> None:
    work = workload.load("steady-agents")
    shapes = [[s.steps for s in islice(work.sessions(seed=7, concurrency=c), 60)] for c in (1, 1)]
    assert shapes[0] == shapes[1]
    tails = [list(islice(work.sessions(seed=7, concurrency=c), 20, 60)) for c in (1, 8)]
    assert tails[0] == tails[1]
    assert shapes[0] != [s.steps for s in islice(work.sessions(seed=8, concurrency=1), 60)]


def test_spread_sessions_are_met_at_different_depths_with_their_history_warm() -> None:
    first = list(islice(workload.load("steady-agents").sessions(seed=0, concurrency=16), 32))
    depths = [session.first_turn for session in first[:16]]
    assert len(set(depths)) > 3
    assert {session.first_turn for session in first[16:]} == {1}
    deep = next(session for session in first if session.first_turn > 1)
    assert deep.cached_tokens == 10_000 + deep.opening[1].tokens > 10_000


def test_no_session_passes_max_context() -> None:
    work = workload.load("steady-agents")
    limit = work.file.session.max_context
    assert limit is not None
    for session in islice(work.sessions(seed=3, concurrency=0), 300):
        assert 10_000 + sum(step.new_tokens for step in session.steps) + session.steps[-1].output_tokens <= limit


def test_a_spread_keeps_its_mean() -> None:
    import numpy as np

    spread = Spread(min=1, max=10**6, mean=1000, std=500)
    drawn = [spread.draw(np.random.default_rng(i)) for i in range(4000)]
    assert abs(sum(drawn) / len(drawn) - 1000) < 40


def test_the_best_case_shares_all_but_200_tokens_and_the_worst_all_but_the_prompt() -> None:
    work = workload.load("coding-agent")
    best, worst = next(work.single_shots(0, 0.0)), next(work.single_shots(0, 1.0))
    assert [(part.owner, part.tokens) for part in best.opening] == [("shared", 10_000), ("level", 12_804)]
    assert best.steps[0].new_tokens == 200
    assert best.cached_tokens == 22_804
    assert [(part.owner, part.tokens) for part in worst.opening] == [
        ("shared", 10_000),
        ("session", 32),
        ("level", 12_804),
    ]
    assert worst.cached_tokens == 10_000


def test_a_miss_rate_between_misses_that_often_at_uniform_depth() -> None:
    shots = list(islice(workload.load("steady-agents").single_shots(0, 0.25), 2000))
    misses = [shot for shot in shots if shot.cached_parts == 1]
    assert 0.22 < len(misses) / len(shots) < 0.28
    assert len({shot.first_turn for shot in misses}) > 6
    assert misses[0].opening[1].owner == "session"


def test_content_differs_by_run_level_and_session_and_repeats_by_seed() -> None:
    words = tuple(str(i).encode() for i in range(2000))
    one = Content(words, b",", seed=0, salt=1)
    assert one.text(0, 8, 0, 3, tokens=50) == one.text(0, 8, 0, 3, tokens=50)
    others = [one.text(0, 8, 0, 4, tokens=50), one.text(0, 10, 0, 3, tokens=50), one.text(0, 8, 1, 3, tokens=50)]
    others += [Content(words, b",", seed=0, salt=2).text(0, 8, 0, 3, tokens=50)]
    assert one.text(0, 8, 0, 3, tokens=50) not in others


def test_a_workload_longer_than_the_context_is_refused() -> None:
    with pytest.raises(BenchError, match=r"longest context is 50,3\d\d tokens, --max-model-len is 32,768"):
        workload.fits(workload.load("reviewer"), 32_768)
