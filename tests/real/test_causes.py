"""One thing made scarce at a time, on a real vLLM: the verdict has to name it. (The KV cache is test_engine's.)"""

import json
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

from tests.real.command import BENCH, HERE, SMALL, needs_vllm, sweep, undisturbed

pytestmark = needs_vllm
CACHE = ("--kv", "plenty")
PLENTY = (*CACHE, "--requests", "72")


def test_four_slots_and_plenty_of_cache(tmp_path: Path) -> None:
    answers = ("--workload", str(HERE / "long-answers.toml"))
    levels = ("--levels", "2,12", "--requests", "36", "--no-bounds")
    run = undisturbed(tmp_path, *CACHE, *answers, *levels, "--", "--max-num-seqs", "4")
    assert run["verdict"]["binding"] == "slot"
    assert run["verdict"]["cause"].startswith("no free slot: 12 sessions share 4 (--max-num-seqs); ")
    assert run["verdict"]["knee"] is None
    assert "plenty: --max-num-seqs 4" in run["verdict"]["departures"]


def test_computing_everything_anew_with_plenty_of_cache(tmp_path: Path) -> None:
    run, records = sweep(tmp_path / "r", *PLENTY, "--levels", "1,24")
    assert run["verdict"]["worst_case"]["binding"] == "compute"
    assert run["verdict"]["worst_case"]["sentence"].startswith("compute saturated: at 24 sessions")
    assert all(r.queue_s is not None and r.prefill_s is not None for r in records), "this vLLM tells each its times"


def test_a_client_that_is_held_up(tmp_path: Path) -> None:
    """The process is stopped most of the time, as a machine with too much to do would."""
    out = tmp_path / "r"
    words = [*BENCH, "sweep", *SMALL, *PLENTY, "--levels", "2,4", "--no-bounds", "--out", str(out)]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        while process.poll() is None:
            if '"concurrency":4' in _text(out / "requests.jsonl"):
                process.send_signal(signal.SIGSTOP)
                time.sleep(0.4)
                process.send_signal(signal.SIGCONT)
            time.sleep(0.2)
    finally:
        process.send_signal(signal.SIGCONT)
        process.terminate()
        _, err = process.communicate(timeout=60)
    verdict: dict[str, Any] = json.loads((out / "run.json").read_text())["verdict"]
    assert verdict["binding"] == "client", err
    assert verdict["cause"].startswith("the client, not the server: at 4 sessions it falls behind; ")
    assert verdict["valid"] is False
    assert process.returncode == 4


def _text(path: Path) -> str:
    return path.read_text() if path.is_file() else ""


def test_the_official_sdk_beside_our_client(tmp_path: Path) -> None:
    run, records = sweep(tmp_path / "r", *PLENTY, "--levels", "2", "--no-bounds", "--client", "openai")
    shapes = {
        case: sorted((r.session, r.turn, r.prompt_tokens) for r in records if r.case == case and r.turn > 0)
        for case in ("realistic", "openai")
    }
    assert len(shapes["openai"]) == len(shapes["realistic"]) == 72
    alike = [set(shapes[case]) for case in ("openai", "realistic")]
    assert len(alike[0] & alike[1]) >= 70, "the same sessions, to the token; who has the last turns is of time"
    assert {r.lost_tokens for r in records} == {0}, "each turn extends what the server had answered"
    (compared,) = run["verdict"]["sdk"]
    assert compared["level"] == 2
    assert compared["sdk_ttft_p50_s"] > compared["bench_ttft_p50_s"]
