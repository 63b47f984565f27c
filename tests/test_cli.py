"""What a user types, and what comes back."""

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench import family

HERE = Path(__file__).parent
ROOT = HERE.parent
SMALL = ("--workload", str(HERE / "real" / "small-agents.toml"))


def fake(mode: str) -> tuple[str, str]:
    return "--vllm", shlex.join([sys.executable, str(HERE / "fake_vllm.py"), mode])


@pytest.fixture
def at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return tmp_path


def bench(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "bench", *words], capture_output=True, text=True, timeout=60)


BAD = {
    "no card": ((), "--gpu is missing"),
    "unknown card": (("--gpu", "l5"), "no file launch/l5.toml"),
    "unknown precision": (("--gpu", "l4", "--kv", "fp3"), "no cache of type fp3"),
    "strange precision": (("--gpu", "l4", "--kv", "../x"), "is not the name of a precision"),
    "unknown workload": (("--gpu", "l4", "--workload", "nope"), "no file workloads/nope.toml"),
    "unknown flag of ours": (("--gpu", "l4", "--max-d", "4"), "No such option"),
    "unknown flag of vLLM's": (("--gpu", "l4", "--", "--no-such-thing"), "has no flag --no-such-thing"),
    "a word too many": (("--gpu", "l4", "extra"), "unexpected word 'extra'"),
    "levels that are no numbers": (("--gpu", "l4", "--levels", "1,two"), "is not a list of numbers"),
    "level nought": (("--gpu", "l4", "--levels", "0,1"), "is not a list of numbers"),
    "levels twice": (("--gpu", "l4", "--levels", "1", "--max-c", "4"), "exclude each other"),
    "a promise that nobody can keep": (("--gpu", "l4", "--slo", "ttft_p99<0s"), "can never be kept"),
    "a share as a time": (("--gpu", "l4", "--slo", "ttft_p99<95%"), "is a time"),
    "a time as a share": (("--gpu", "l4", "--slo", "eligible_hit_rate>2s"), "is no time"),
    "a promise that cannot be read": (("--gpu", "l4", "--slo", "fast"), "is not METRIC<VALUE"),
    "a prompt longer than the context": (("--gpu", "l4", "--workload", "reviewer"), "longest context is 50,"),
    "a level beyond reason": (("--gpu", "l4", "--levels", "1,1000000000"), "is not a list of numbers"),
    "a geometry nobody knows": (("--gpu", "l4", "--model", "synthetic:nope"), "no geometry for synthetic:nope"),
    "a model larger than the card": (
        ("--gpu", "l4", "--model", "synthetic:qwen3-32b"),
        "does not fit: 65.5 GB of weights",
    ),
    "an endpoint that is no URL": (("--endpoint", "localhost:8000"), "is not a URL"),
    "one thing said twice": (
        ("--gpu", "l4", "--vary", "max-num-seqs=4", "--", "--max-num-seqs", "8"),
        "different things",
    ),
    "a port that is no number": (("--gpu", "l4", "--", "--port", "abc"), "--port abc is not a number"),
    "a port beyond all ports": (("--gpu", "l4", "--", "--port", "99999"), "--port 99999 is no port"),
    "a context that is no number": (("--gpu", "l4", "--", "--max-model-len", "long"), "--max-model-len long is not a"),
    "a share that is no number": (
        ("--gpu", "l4", "--", "--gpu-memory-utilization=all"),
        "utilization all is not a number",
    ),
    "a switch that is no switch": (("--gpu", "l4", "--vary", "prefix-caching=maybe"), "has no flag --prefix-caching"),
    "endpoint and card": (("--endpoint", "http://127.0.0.1:9", "--gpu", "l4"), "--gpu cannot change it"),
    "a share that is not a number": (("--gpu", "l4", "--miss-rate", "nan"), "nan is no number"),
    "more repeats than a life has": (("--gpu", "l4", "--repeats", "99999999"), "not in the range"),
    "vary without values": (("--gpu", "l4", "--vary", "kv"), "is not WHAT=A,B"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_a_clear_line_and_exit_2_before_anything_starts(at: Path, case: str) -> None:
    words, says = BAD[case]
    split = words.index("--") if "--" in words else len(words)
    stand_in = () if "--endpoint" in words else fake("mute")
    ran = bench("sweep", *words[:split], *stand_in, *words[split:])
    assert ran.returncode == 2, ran.stderr
    assert says in ran.stderr
    assert "Traceback" not in ran.stderr
    assert not (at / "results").exists()


def fine(ran: subprocess.CompletedProcess[str]) -> bool:
    """A machine with too much to do makes the client late, which is rightly said, and not what is tested here."""
    said = [line for line in ran.stderr.splitlines() if line.startswith("INVALID")]
    return ran.returncode == 0 or (ran.returncode == 4 and all("the client could have moved" in line for line in said))


def test_no_vllm_to_be_found_says_how_to_get_one(at: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "bench", "sweep", "--gpu", "l4"],
        capture_output=True, text=True, timeout=60, env={**os.environ, "PATH": str(at)},
    )  # fmt: skip
    assert ran.returncode == 2
    assert "no vllm to be found" in ran.stderr
    assert "pip install vllm" in ran.stderr


def test_a_port_in_use_is_refused(at: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        ran = bench("sweep", "--gpu", "l4", *fake("mute"), "--", "--port", port)
    assert ran.returncode == 2
    assert f"port {port} is in use" in ran.stderr


def test_a_folder_that_exists_or_cannot_be_written_is_refused(at: Path) -> None:
    (at / "old").mkdir()
    (at / "old" / "run.json").write_text("{}")
    (at / "file").write_text("")
    for out, says in (("old", "exists already"), ("file", "exists already"), ("/proc/x", "cannot write")):
        ran = bench("sweep", "--gpu", "l4", "--model", "M", *fake("mute"), "--out", out)
        assert ran.returncode == 2, ran.stderr
        assert says in ran.stderr


def test_dry_run_prints_command_levels_and_duration_and_starts_nothing(at: Path) -> None:
    ran = bench(
        "sweep", "--gpu", "l4", "--kv", "fp8", "--max-c", "48", "--dry-run", *fake("mute"), "--", "--max-num-seqs", "64"
    )
    assert fine(ran), ran.stderr
    assert "vllm serve Qwen/Qwen3-4B-FP8" in ran.stdout
    assert "--host 127.0.0.1" in ran.stdout
    assert ran.stdout.count("--max-num-seqs") == 1
    levels = "1(200)  2(200)  4(200)  6(200)  8(200)  10(200)  12(200)  14(200)  16(200)  18(200)  20(200)  24(200)"
    assert f"{levels}  28(200)  32(200)  40(200)  48(200)" in ran.stdout
    assert "13.0 sessions fit" in ran.stdout
    assert "Expected duration: about" in ran.stdout
    assert not (at / "results").exists()


def test_a_dry_run_is_told_to_programs_too(at: Path) -> None:
    ran = bench(
        "sweep", "--gpu", "l4", "--vary", "kv=fp16,fp8", "--levels", "2,4", "--dry-run", "--json", *fake("mute")
    )
    told = json.loads(ran.stdout)["variants"]
    assert [*told] == ["fp16", "fp8"]
    assert [level["concurrency"] for level in told["fp8"]["levels"] if level["case"] == "realistic"] == [2, 4]
    assert told["fp8"]["forecast"]["sessions"] == pytest.approx(13.0, abs=0.1)
    assert "--kv-cache-dtype fp8" in told["fp8"]["command"]
    search = bench("sweep", "--gpu", "l4", "--search", "--dry-run", "--json", *fake("mute"))
    assert json.loads(search.stdout)["variants"]["fp8"]["predicted"]["knee"] == 13


def test_where_200_requests_cannot_fill_the_cache_every_session_grows_to_its_end(at: Path) -> None:
    h200 = bench("sweep", "--gpu", "h200", "--max-c", "100", "--dry-run", *fake("mute")).stdout
    assert "  14(200)  16(200)  18(216)  20(240)" in h200
    assert "48(576)  56(672)  64(768)  80(960)  96(1152)  100(1200)" in h200
    l40s = bench("sweep", "--gpu", "l40s", "--dry-run", *fake("mute")).stdout
    assert "35.9 sessions fit" in l40s
    assert "32(384)  40(480)  48(576)\n" in l40s


def test_the_bounds_are_taken_where_they_are_asked_for(at: Path) -> None:
    words = ("sweep", "--gpu", "l4", "--levels", "1,12,14", *fake("mute"))
    told = bench(*words, "--bounds-at", "12,6", "--dry-run", "--json").stdout
    levels = json.loads(told)["variants"]["fp8"]["levels"]
    ends = [(one["case"], one["concurrency"]) for one in levels if one["case"] != "realistic"]
    assert ends == [("best", 6), ("best", 12), ("worst", 6), ("worst", 12)]
    searched = bench("sweep", "--gpu", "l4", "--search", "--bounds-at", "6", *fake("mute"), "--dry-run").stdout
    assert "best at 6(24)  worst at 6(24)" in searched, "named, so wanted"
    for wrong, why in (("--no-bounds", "--bounds-at and --no-bounds exclude"), ("--bounds-at=6,x", "is not a list")):
        ran = bench(*words, "--bounds-at", "6", wrong, "--dry-run")
        assert ran.returncode == 2
        assert why in ran.stderr


def test_every_level_has_requests_for_all_its_sessions(at: Path) -> None:
    words = ("sweep", "--gpu", "l4", "--levels", "1,300", *fake("mute"), "--dry-run")
    told = json.loads(bench(*words, "--bounds-at", "150", "--json").stdout)["variants"]["fp8"]["levels"]
    assert [(one["case"], one["requests"]) for one in told[1:]] == [("realistic", 600), ("best", 300), ("worst", 300)]
    for few in (("--requests", "299"), ("--requests", "300", "--bounds-at", "301")):
        ran = bench(*words, *few)
        assert ran.returncode == 2
        assert "sessions busy" in ran.stderr
    one = bench("sweep", "--gpu", "l4", "--levels", "1", "--requests", "1", "--no-bounds", *fake("mute"), "--dry-run")
    assert "sessions (requests): 1(1)\n" in one.stdout


def test_the_levels_of_several_precisions_cover_the_largest_and_the_bounds_fit_the_smallest(at: Path) -> None:
    ran = bench("sweep", "--gpu", "cpu", "--vary", "kv=auto,fp8", "--dry-run", *fake("mute"))
    assert ran.stdout.count("14(200)  16(200)\n  best at 1(20)  best at 6(24)") == 2, ran.stdout


FAST = ("--gpu", "l4", "--model", "M", *SMALL, "--levels", "1,2", "--requests", "12", "--no-bounds")


def test_a_server_that_tells_nothing_is_measured_and_the_rest_is_not_measured(at: Path) -> None:
    ran = bench("sweep", *FAST, *fake("family"), "--out", "run")
    assert fine(ran), ran.stderr
    run = json.loads((at / "run" / "run.json").read_text())
    assert run["variants"]["fp8"]["dialect"] == {"name": "text", "reports_cached": False}
    header, first, _ = (at / "run" / "levels.csv").read_text().splitlines()
    cells = dict(zip(header.split(","), first.split(","), strict=True))
    assert float(cells["ttft_p50_s"]) > 0
    assert cells["lost_tokens"] == cells["prefix_hit_rate"] == cells["preemptions"] == ""
    assert run["verdict"]["predicted_knee"] is None


def test_a_log_that_takes_no_more_costs_no_run(at: Path) -> None:
    with Path("/dev/full").open("w") as full:
        words = [sys.executable, "-m", "bench", "sweep", *FAST, *fake("healthy"), "--out", "run"]
        ran = subprocess.run(words, stderr=full, timeout=60)
    assert ran.returncode in (0, 4)  # 4: a machine with too much to do
    assert json.loads((at / "run" / "run.json").read_text())["ended"] == "finished"


def test_what_nobody_can_vouch_for_is_said(at: Path) -> None:
    bench("sweep", *FAST, *fake("healthy"), "--out", "run")
    (at / "run" / "client.jsonl").unlink()
    said = " ".join(bench("report", "run").stdout.split())
    assert "the client did not tell how it did" in said


def test_every_file_of_a_run_is_there(at: Path) -> None:
    ran = bench("sweep", *FAST, *fake("healthy"), "--out", "run", "--json")
    assert fine(ran), ran.stderr
    assert json.loads(ran.stdout) == json.loads((at / "run" / "run.json").read_text())
    assert {"run.json", "requests.jsonl", "levels.csv", "table.md", "vllm-fp8.log"} <= {
        p.name for p in (at / "run").iterdir()
    }
    run = json.loads(ran.stdout)
    assert run["argv"][:2] == ["bench", "sweep"]
    assert run["workload"]["digest"]
    assert len((at / "run" / "requests.jsonl").read_text().splitlines()) == 2 * (12 + 1)


def test_a_server_that_does_not_start_is_exit_3(at: Path) -> None:
    ran = bench("sweep", *FAST, *fake("crash"), "--out", "run")
    assert ran.returncode == 3
    assert "CUDA out of memory" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_a_server_that_dies_twice_in_one_level_is_exit_3_with_its_requests_on_file(at: Path) -> None:
    ran = bench("sweep", *FAST, *fake("dies"), "--out", "run")
    assert ran.returncode == 3, ran.stderr
    assert "vLLM ended with exit code 9" in ran.stderr
    records = [json.loads(line) for line in (at / "run" / "requests.jsonl").read_text().splitlines()]
    answered = [record["attempt"] for record in records if record["status"] == "ok"]
    assert answered == [0] * 4 + [1] * 4, "six answers each, two of them to the questions before the level"
    assert {record["attempt"] for record in records if record["status"] == "failed"} == {0, 1}


def test_a_report_that_cannot_be_written_does_not_hide_how_the_run_ended(at: Path) -> None:
    (at / "run").mkdir()
    (at / "run" / ".levels.csv.draft").symlink_to("/proc/version")  # which nobody writes
    ran = bench("sweep", *FAST, *fake("dies"), "--out", "run")
    assert ran.returncode == 3, ran.stderr
    _, found, after = ran.stderr.partition("cannot write to run/levels.csv")
    assert found
    assert "vLLM ended with exit code 9" in after
    assert "Traceback" not in ran.stderr


def test_an_error_of_the_system_that_names_no_file_is_told_without_a_traceback(at: Path) -> None:
    (at / "run").mkdir()
    (at / "run" / "vllm-fp8.command").symlink_to("/dev/full")
    ran = bench("sweep", *FAST, *fake("healthy"), "--out", "run")
    assert ran.returncode == 2, ran.stderr
    assert "bench: No space left on device" in ran.stderr
    assert "Traceback" not in ran.stderr
    assert "No space left" in json.loads((at / "run" / "run.json").read_text())["ended"], "for whoever finds it later"


def test_errors_make_the_run_invalid_exit_4(at: Path) -> None:
    ran = bench("sweep", *FAST, *fake("errors"), "--out", "run")
    assert ran.returncode == 4, ran.stderr
    assert "INVALID: fp8" in ran.stdout
    assert "requests failed" in ran.stderr
    assert "failed" in (at / "run" / "table.md").read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_while_the_server_starts_leaves_nothing_and_is_exit_130(at: Path, number: signal.Signals) -> None:
    command = [sys.executable, "-m", "bench", "sweep", *FAST, *fake("mute"), "--out", "run"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    while not (at / "run" / "vllm-fp8.log").exists():
        time.sleep(0.05)
    time.sleep(0.3)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert not [pid for pid, owner in family.owned() if owner.endswith(str((at / "run").resolve()))]


def test_an_endpoint_is_measured_and_its_key_reaches_no_file(at: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCH_API_KEY", "sk-canary-123")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    words = ["healthy", "serve", "M", "--served-model-name", "M", "--port", port]
    process = subprocess.Popen([sys.executable, str(HERE / "fake_vllm.py"), *words])
    try:
        for _ in range(100):
            with socket.socket() as knock:
                if knock.connect_ex(("127.0.0.1", int(port))) == 0:
                    break
            time.sleep(0.1)
        url = f"http://127.0.0.1:{port}/v1"
        ran = bench("sweep", "--endpoint", url, *SMALL, "--levels", "2", "--requests", "12", "--out", "run")
        assert fine(ran), ran.stderr
    finally:
        process.kill()
        process.wait()
    assert "sk-canary" not in ran.stdout + ran.stderr
    assert not [path for path in (at / "run").iterdir() if b"sk-canary" in path.read_bytes()]


def test_an_endpoint_that_is_not_there_is_exit_3(at: Path) -> None:
    ran = bench("sweep", "--endpoint", "http://127.0.0.1:9", *SMALL)
    assert ran.returncode == 3
    assert "does not answer" in ran.stderr


def test_help_waits_for_no_numbers_library() -> None:
    loaded = "import sys, bench.cli; print([m for m in ('numpy', 'httpx', 'asyncio') if m in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, cwd=ROOT)
    assert ran.stdout.strip() == "[]"
    assert "bench sweep --gpu cpu" in bench("--help").stdout
