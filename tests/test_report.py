"""What is printed, to the letter; and that an old run says the same again."""

import io
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from bench import progress, report, table
from bench.conclusion import conclude
from bench.load import Level
from bench.records import Folder
from bench.stats import LevelRow
from tests.test_stats import ONE

Row = Callable[..., LevelRow]


def test_a_row_fits_a_screen_of_80_characters(row: Row) -> None:
    here = row(
        concurrency=14, ttft_p50_s=0.5401, ttft_p95_s=2.17, ttft_p99_s=5.694, req_per_s=5.3, eligible_hit_rate=0.976,
        lost_tokens=71_296, unlucky=11, duration_s=37.8,
    )  # fmt: skip
    assert table.header() == "  C  TTFT p50      p95      p99  req/s     hit   lost  unlucky  errors    took"
    assert table.line(here) == " 14    540 ms   2.17 s   5.69 s   5.30   97.6%    71K       11       0  37.8 s"
    assert len(table.header()) < 80


def test_what_was_not_measured_is_a_dash(row: Row) -> None:
    assert table.line(row()).split() == ["1", "-", "-", "-", "-", "-", "-", "-", "0", "1.00", "s"]


def run_folder(tmp_path: Path) -> Folder:
    """Two levels; at the second half of the requests have lost their history."""
    folder = Folder.create(tmp_path / "run")
    for concurrency, lost in ((1, 0), (2, 5000)):
        for number in range(1, 11):
            gone = lost if number > 5 else 0
            turn = replace(
                ONE,
                variant="fp8",
                concurrency=concurrency,
                session=number,
                turn=number,
                eligible_tokens=6000,
                sent_s=10.0,
            )
            folder.keep(replace(turn, cached_tokens=6000 - gone, planned_output_tokens=11))
    server = {
        "version": "0.32.0",
        "cache": {"block_size": 16, "tokens": 4000},
        "command": "vllm serve",
        "base_url": "http://127.0.0.1:1",
    }
    folder.write_manifest(
        {
            "schema": 1, "started": "2026-11-20T20:00:00+00:00", "ended": "finished", "argv": ["bench", "sweep"],
            "seed": 0, "salt": 7, "slo": "ttft_p99<2s", "repeats": 1,
            "workload": {"name": "w", "digest": "d", "file": {"summary": "s"}},
            "typical": {"shared_tokens": 1000, "own_tokens": 1900, "output_tokens": 100, "turns": 12},
            "levels": [asdict(Level("fp8", "realistic", c, 0, 10)) for c in (1, 2)],
            "machine": {"bench": "0", "cpu": "c", "cores": 2, "gpus": [], "system": "s", "python": "3"},
            "variants": {"fp8": {"launch": None, "server": server, "capacity": None,
                                 "dialect": {"name": "token ids", "reports_cached": True}}},
        }
    )  # fmt: skip
    return folder


def test_a_run_is_concluded_from_its_records_alone(tmp_path: Path) -> None:
    folder = run_folder(tmp_path)
    done = conclude(folder)
    report.write(folder, done)
    verdict = done.run["verdict"]
    assert verdict["knee"] == [1, 2]
    assert verdict["predicted_knee"] == 1.5
    assert verdict["ceiling"] == 2
    assert [row.lost_tokens for row in done.rows] == [0, 25_000]
    first = {name: (folder.path / name).read_text() for name in ("levels.csv", "table.md", "run.json")}
    report.write(folder, conclude(folder))
    assert first == {name: (folder.path / name).read_text() for name in first}
    assert "inside the bracket" in first["table.md"]


def test_a_run_that_lies_past_the_knee_altogether_says_so_and_failures_are_no_number(tmp_path: Path) -> None:
    folder = run_folder(tmp_path)
    lines = (folder.path / "requests.jsonl").read_text().splitlines()
    lost = [line.replace('"cached_tokens":6000', '"cached_tokens":100') for line in lines]
    (folder.path / "requests.jsonl").write_text("\n".join(lost) + "\n")
    done = conclude(folder)
    report.write(folder, done)
    assert "Knee: below 1 sessions, the lowest level measured, which loses history already." in report.closing(
        done, folder
    )
    assert "none up to" not in (folder.path / "table.md").read_text()
    json.loads((folder.path / "run.json").read_text(), parse_constant=lambda constant: pytest.fail(constant))


def test_a_level_that_was_cut_short_has_no_row(tmp_path: Path) -> None:
    folder = run_folder(tmp_path)
    lines = (folder.path / "requests.jsonl").read_text().splitlines()
    (folder.path / "requests.jsonl").write_text("\n".join(lines[:-1]) + "\n")
    run = folder.manifest()
    folder.write_manifest({**run, "ended": "interrupted"})
    done = conclude(folder)
    assert [row.concurrency for row in done.rows] == [1]
    assert not done.valid
    assert "the run did not finish: interrupted" in report.cautions(done)


def test_a_hostile_name_cannot_break_the_table(tmp_path: Path) -> None:
    folder = run_folder(tmp_path)
    run = folder.manifest()
    run["workload"]["name"] = "a | b\x1b[31m"
    folder.write_manifest(run)
    assert "\x1b" not in report.closing(conclude(folder), folder)


def test_elsewhere_than_on_a_terminal_a_state_is_said_once() -> None:
    out = io.StringIO()
    terminal = progress.Terminal(out)
    for second in range(3):
        terminal.say(f"vLLM is compiling ({second} s)")
    terminal.say("vLLM is opening its port (4 s)")
    terminal.say("")
    assert out.getvalue().splitlines() == ["vLLM is compiling (0 s)", "vLLM is opening its port (4 s)"]
