"""Forty pairs of runs of a real vLLM that do not differ: how often does a comparison cry wolf, and is it deaf?"""

import gzip
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from bench import compare, sample
from bench.compare import Side
from bench.plays import Play

FILE = Path(__file__).parent / "identical" / "runs.json.gz"


@pytest.fixture(scope="module")
def runs() -> list[Side]:
    plays: dict[int, list[Play]] = {}
    for run, level, rate, sessions in json.loads(gzip.decompress(FILE.read_bytes())):
        ttfts = tuple(tuple(ticks / 1e5 for ticks in session) for session in sessions)
        plays.setdefault(run, []).append(Play("v", "realistic", level, 0, ttfts, rate))
    return [Side(str(run), tuple(found), {}, {}, {}, {}, True, None) for run, found in plays.items()]


def headlines(runs: Sequence[Side], a_side: int, slower: float = 1.0) -> list[str]:
    """Of neighbours, taken in turns: the second, fourth, ... of a group stand against the first, third, ..."""
    groups = [runs[at : at + 2 * a_side] for at in range(0, len(runs) - 2 * a_side + 1, 2 * a_side)]
    return [compare.compare(group[::2], [tail(run, slower) for run in group[1::2]]).headline for group in groups]


def tail(run: Side, factor: float) -> Side:
    """The slowest tenth of every level made slower still."""
    return replace(run, plays=tuple(_stretched(play, factor) for play in run.plays))


def _stretched(play: Play, factor: float) -> Play:
    edge = sample.percentile([ttft for session in play.sessions for ttft in session], 0.9)
    assert edge is not None
    sessions = tuple(tuple(t * factor if t > edge else t for t in session) for session in play.sessions)
    return replace(play, sessions=sessions)


@pytest.mark.parametrize(("a_side", "pairs"), [(1, 42), (2, 21), (3, 14)])
def test_identical_runs_differ_in_at_most_one_of_twenty_comparisons(runs: list[Side], a_side: int, pairs: int) -> None:
    found = headlines(runs, a_side)
    assert len(found) == pairs
    assert sum(one != "no difference found" for one in found) <= pairs / 20


def test_a_tail_slower_by_a_fifth_is_found_with_three_runs_a_side(runs: list[Side]) -> None:
    found = headlines(runs, 3, slower=1.2)
    assert found.count("regression") >= 0.8 * len(found)
    assert "improvement" not in found
