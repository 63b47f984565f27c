"""The commands that read runs that are over: compare, publish, export, report."""

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from bench.load import Level
from bench.records import Folder
from tests.test_report import run_folder
from tests.test_stats import ONE


def bench(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bench", *map(str, words)], capture_output=True, text=True, timeout=120
    )


def long_run(place: Path, slow: float = 1.0, levels: tuple[int, ...] = (1, 2)) -> Path:
    """A valid run, twenty sessions a level."""
    run = run_folder(place).manifest()
    folder = Folder.create(place / "long")
    for concurrency in levels:
        for n in range(200):
            took = slow * (0.3 + 0.001 * (n % 37))
            turn = replace(ONE, variant="fp8", concurrency=concurrency, session=n // 10, turn=1 + n % 10, sent_s=10.0)
            folder.keep(replace(turn, first_s=10.0 + took, cached_tokens=96))
    played = [asdict(Level("fp8", "realistic", c, 0, 200)) for c in levels]
    settings = {"cache": {"tokens": 4000}, "version": "0.32.0", "models": ["m"]}
    variant = {**run["variants"]["fp8"], "settings": [settings, settings]}
    variant["server"] = {
        **variant["server"],
        "model": "/home/somebody/mini/../../evil",
        "cache": {"block_size": 16, "tokens": 400_000},
    }
    run |= {"levels": played, "schema": 2, "variants": {"fp8": variant}}
    run["machine"]["host"] = "secret-host"
    run["argv"] = ["bench", "sweep", "--endpoint", "http://me:pw@gpu7.corp:8000/v1", "--out", "/home/somebody/runs/x",
                   "--", "--hf-token", "hf_1", "--api-key=sk_2", "--model", "~/secret-folder/m"]  # fmt: skip
    variant["server"]["command"] = (
        "/opt/of-somebody/vllm serve --hf-token hf_1 --port 7 (/home/somebody/x,/home/somebody)"
    )
    folder.write_manifest(run)
    return folder.path


def test_a_run_is_published_without_what_is_private_and_compares_like_itself(tmp_path: Path) -> None:
    run, results = long_run(tmp_path), tmp_path / "results"
    done = bench("publish", run, "--to", results)
    assert done.returncode == 0, done.stderr
    (place,) = results.glob("*/*/*/*")
    assert {file.name for file in place.iterdir()} >= {
        "run.json",
        "table.md",
        "report.html",
        "sessions.json",
        "curve.svg",
    }
    assert not (place / "requests.jsonl").exists()
    told = "".join(file.read_text() for file in results.rglob("*") if file.is_file())
    for private in ("secret-host", "somebody", "hf_1", "sk_2", "me:pw", "gpu7", "secret-folder"):
        assert private not in told
    assert "vllm serve --hf-token REDACTED --port 7" in told
    assert "fp8" in (results / "README.md").read_text()
    same = bench("compare", place, run, "--fail-on", "regression")
    assert (same.returncode, same.stdout.partition(".")[0]) == (0, "No difference found"), same.stderr
    assert bench("publish", run, "--to", results).returncode == 2, "a published run is never overwritten"
    again = bench("report", place)
    assert again.returncode == 2
    assert "has no requests.jsonl" in again.stderr


def test_a_regression_exits_5_and_an_improvement_does_not(tmp_path: Path) -> None:
    fast, slow = long_run(tmp_path / "a"), long_run(tmp_path / "b", slow=3.0)
    ran = bench("compare", fast, slow, "--fail-on", "regression")
    assert ran.returncode == 5, ran.stderr
    assert ran.stdout.startswith("Regression: ")
    assert "+200%" in ran.stdout
    assert bench("compare", slow, fast, "--fail-on", "regression").returncode == 0
    assert bench("compare", fast, slow).returncode == 0, "without --fail-on it only tells"


def test_a_knee_where_there_was_none_is_a_regression(tmp_path: Path) -> None:
    fine, broken = (long_run(tmp_path / name, levels=(1, 2, 4)) for name in "ab")
    lines = (broken / "requests.jsonl").read_text().splitlines()
    for at in range(200, 600):  # of the second level and the third
        if at % 5 == 0:
            lines[at] = lines[at].replace('"eligible_tokens":96', '"eligible_tokens":9000')
    (broken / "requests.jsonl").write_text("\n".join(lines) + "\n")
    ran = bench("compare", fine, broken, "--fail-on", "regression")
    assert ran.returncode == 5, ran.stdout + ran.stderr
    assert ran.stdout.startswith("Regression: knee of the whole run, 4 to 1")


def test_what_is_not_valid_is_neither_published_nor_judged(tmp_path: Path) -> None:
    run = long_run(tmp_path / "a")
    manifest = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**manifest, "ended": "interrupted"}))
    refused = bench("publish", run, "--to", tmp_path / "results")
    assert refused.returncode == 4
    assert "the run did not finish: interrupted" in refused.stderr
    assert not (tmp_path / "results").exists()
    assert bench("compare", run, run, "--fail-on", "regression").returncode == 4
    assert "NOT VALID" in bench("compare", run, run).stdout


def test_a_level_that_was_cut_short_is_not_compared(tmp_path: Path) -> None:
    whole, cut = long_run(tmp_path / "a"), long_run(tmp_path / "b")
    lines = (cut / "requests.jsonl").read_text().splitlines()
    lines[-1] = lines[-1].replace('"status":"ok"', '"status":"cut"')
    (cut / "requests.jsonl").write_text("\n".join(lines) + "\n")
    ran = bench("compare", whole, cut)
    assert "errors" not in ran.stdout
    assert "only one side has realistic at 2" in ran.stdout
    assert "Regression" not in ran.stdout


def test_runs_of_different_workloads_are_refused(tmp_path: Path) -> None:
    a, b = long_run(tmp_path / "a"), long_run(tmp_path / "b")
    manifest = json.loads((b / "run.json").read_text())
    manifest["workload"]["digest"] = "other"
    (b / "run.json").write_text(json.dumps(manifest))
    ran = bench("compare", a, b)
    assert ran.returncode == 2
    assert "the workloads differ: w d, then w other" in ran.stderr


def test_what_differs_is_said_whatever_the_servers_are_called(tmp_path: Path) -> None:
    for name, words in {"l4": (), "other": ("--model", "synthetic:qwen3-4b-fp8", "--kv", "fp16")}.items():
        bench("plan", "--gpu", "l4", *words, "--levels", 1, "--no-bounds", "--out", tmp_path / name)
    told = bench("compare", tmp_path / "l4", tmp_path / "other").stdout
    assert "DIFFERS: model: Qwen/Qwen3-4B-FP8, then synthetic:qwen3-4b-fp8." in " ".join(told.split())


def test_a_folder_of_runs_counts_as_repeats(tmp_path: Path) -> None:
    several = tmp_path / "several"
    several.mkdir()
    for name in "abc":
        long_run(tmp_path / name).rename(several / name)
    ran = bench("compare", several, several)
    assert "One run a side" not in ran.stdout, "three a side see the drift themselves"


@pytest.mark.parametrize("form", ["vllm-bench", "llm-d", "github-action"])
def test_every_export_is_written(tmp_path: Path, form: str) -> None:
    run = long_run(tmp_path)
    ran = bench("export", run, "--as", form)
    assert ran.returncode == 0, ran.stderr
    files = [Path(line) for line in ran.stdout.splitlines()]
    assert files
    assert all(json.loads(file.read_text()) for file in files)


def test_our_own_export_reads_back_as_another_tools_result_and_pairs_with_the_run(tmp_path: Path) -> None:
    run = long_run(tmp_path)
    bench("export", run, "--as", "vllm-bench", "--to", tmp_path / "out")
    (two,) = [file for file in (tmp_path / "out").iterdir() if "concurrency2" in file.name]
    ran = bench("compare", run, two)
    assert ran.returncode == 0, ran.stderr
    assert "not checked" in ran.stdout
    assert "TTFT p99" in ran.stdout


def test_what_cannot_be_written_or_read_is_refused_in_a_line(tmp_path: Path) -> None:
    run = long_run(tmp_path)
    ran = bench("export", run, "--as", "llm-d", "--to", "/dev/null/x")
    assert (ran.returncode, "Traceback" in ran.stderr) == (2, False), ran.stderr
    (run / "requests.jsonl").write_bytes(bytes(range(256)))
    ran = bench("report", run)
    assert (ran.returncode, "Traceback" in ran.stderr) == (4, False), ran.stderr


def test_what_is_no_run_is_refused_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{}")
    ran = bench("compare", tmp_path / "x.json", tmp_path / "nowhere")
    assert ran.returncode == 2
    assert "neither a run nor a result that bench knows" in ran.stderr
