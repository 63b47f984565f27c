"""What is expected of each level stands in run.json before any is played; then a run says how far off that was."""

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from bench import foretold, words
from bench.stats import LevelRow
from tests.test_cli import SMALL, at, bench, fake  # noqa: F401

Row = Callable[..., LevelRow]
PLAY = ("--gpu", "known.toml", *SMALL, "--levels", "1,2", "--requests", "12", "--bounds-at", "2")
SPEED = """
[speed]
source = "known"
step_s = 1e-3
weights_s = 0
token_s = 1e-6
attend_s = 1e-9
read_s = 1e-9
sequence_s = 1e-4
request_s = 1e-3
said_s = 1e-8
"""


@pytest.fixture
def machine(at: Path) -> Path:  # noqa: F811
    """Of which it is known how fast it is, and how large its cache."""
    l4 = (Path(__file__).parent.parent / "launch/l4.toml").read_text().replace("Qwen/Qwen3-4B-FP8", "M")
    pinned = l4.replace('dtype = "fp8"', 'dtype = "fp8"\ntokens = 64_000').replace(
        "[serve]", "[serve]\nblock_size = 16"
    )
    (at / "known.toml").write_text(pinned + SPEED)
    return at


def said(case: str, concurrency: int, p50: float | None, req_per_s: float = 1.0) -> dict[str, object]:
    return {"case": case, "concurrency": concurrency, "ttft_p50_s": p50, "ttft_p99_s": 1.0, "req_per_s": req_per_s}


def test_an_error_is_what_was_foretold_over_what_came(row: Row) -> None:
    told = [said("realistic", 1, 1.0), said("realistic", 2, 1.0), said("best", 2, None), said("realistic", 9, 1.0)]
    rows = [
        row(concurrency=1, ttft_p50_s=2.0, req_per_s=0.5),
        row(concurrency=2, ttft_p50_s=math.inf),
        row(case="best", concurrency=2, ttft_p50_s=1.0),
    ]
    one, two, best = foretold.errors(told, rows)
    assert (one["ttft_p50_s"], one["req_per_s"], one["ttft_p99_s"]) == (-0.5, 1.0, None)
    assert (two["ttft_p50_s"], best["ttft_p50_s"]) == (None, None), "of a failure, or of nothing, there is no error"


def test_the_two_sides_of_the_knee_are_told_apart(row: Row) -> None:
    found = [
        {"case": case, "concurrency": level, "ttft_p50_s": off, "ttft_p99_s": None, "req_per_s": None}
        for case, level, off in (
            *(("realistic", level, off) for level, off in ((1, 0.1), (2, -0.2), (4, 0.9), (6, -0.4), (8, 0.6))),
            ("best", 1, 9.0),
        )
    ]
    sides = foretold.typical(found, over=6)
    assert sides["below"]["ttft_p50_s"] == 0.2, "of 0.1, 0.2 and 0.9"
    assert sides["past"]["ttft_p50_s"] == pytest.approx(0.5), "of 0.4 and 0.6"
    assert sides["past"]["req_per_s"] is None
    assert foretold.typical(found, over=None)["past"]["ttft_p50_s"] is None


def test_it_is_written_down_before_anything_is_played(machine: Path) -> None:
    ran = bench("sweep", *PLAY, *fake("dies"), "--out", "run")
    assert ran.returncode == 3, ran.stderr
    run = json.loads((machine / "run" / "run.json").read_text())
    levels = run["variants"]["fp8"]["foretold"]["levels"]
    assert run["variants"]["fp8"]["foretold"]["source"] == "known"
    planned = bench("plan", *PLAY, "--out", "plan")
    assert planned.returncode == 0, planned.stderr
    with (machine / "plan" / "levels.csv").open() as file:
        rows = [(r["case"], int(r["concurrency"]), float(r["ttft_p99_s"])) for r in csv.DictReader(file)]
    assert [(one["case"], one["concurrency"], pytest.approx(one["ttft_p99_s"])) for one in levels] == rows
    assert [row[:2] for row in rows] == [("realistic", 1), ("realistic", 2), ("best", 2), ("worst", 2)]


def test_a_run_says_how_far_off_that_was(machine: Path) -> None:
    bench("sweep", *PLAY, *fake("healthy"), "--out", "run")
    ran = bench("report", "run")
    assert "Foretold: simulated before the first level was played; off, in the median, at these levels by" in " ".join(
        ran.stdout.split()
    )
    page = (machine / "run" / "report.html").read_text()
    assert "first level was played; constants: known." in page
    assert "TTFT p50, foretold" in page
    verdict = json.loads((machine / "run" / "run.json").read_text())["verdict"]["foretold"]
    assert [one["case"] for one in verdict["levels"]] == ["realistic", "realistic", "best", "worst"]


def test_where_nothing_was_answered_nothing_is_said_to_be_off(row: Row) -> None:
    sides = foretold.typical(foretold.errors([said("realistic", 1, 1.0)], [row(concurrency=1)]), over=None)
    assert list(words._foretold(sides)) == []


def test_what_nobody_can_foretell_is_not_foretold(at: Path) -> None:  # noqa: F811
    ran = bench("sweep", "--gpu", "l4", "--model", "M", *PLAY[2:], *fake("healthy"), "--out", "run", "--json")
    assert json.loads(ran.stdout)["variants"]["fp8"]["foretold"] is None
    assert json.loads(ran.stdout)["verdict"]["foretold"] is None


def test_a_percentile_that_was_only_seen_is_told_in_brackets(machine: Path) -> None:
    bench("sweep", *PLAY, *fake("healthy"), "--out", "run")
    page = (machine / "run" / "report.html").read_text()
    assert "more sessions make it a percentile" in page
