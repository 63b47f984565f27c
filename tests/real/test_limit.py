"""How close a real vLLM came to the limit of what it runs on, and what that drew; the driver is a stand-in."""

import json
import subprocess
from pathlib import Path

import pytest

from bench import engine
from bench.records import Folder
from bench.table import from_csv
from tests.driver import installed, needs_compiler
from tests.real.command import BENCH, HERE, needs_vllm

pytestmark = [needs_vllm, needs_compiler]
CORES = """
[roof]
bf16_tflops = { value = 10, source = "more than two cores do" }
bandwidth_gb_s = { value = 1000, source = "more than two cores do" }
"""


def test_a_run_tells_what_its_card_did_and_drew(tmp_path: Path) -> None:
    machine, out = tmp_path / "card.toml", tmp_path / "run"
    small = (HERE / "small.toml").read_text()
    machine.write_text(small.replace('device = "cpu"', 'device = "cuda"') + CORES)
    words = ["--gpu", machine, "--workload", HERE / "small-agents.toml", "--kv", "fp16", "--levels", "1,3"]
    words += ["--requests", "600", "--no-bounds", "--vllm", engine.find(None, "cpu")[0], "--out", out]
    ran = subprocess.run([*BENCH, "sweep", *words], env=installed(tmp_path), capture_output=True, text=True)
    assert ran.returncode in (0, 4), ran.stderr
    one, three = from_csv((out / "levels.csv").read_text())
    samples = [row for row in Folder.open(out).rows("server.jsonl") if row["concurrency"] == 1]
    assert (
        samples[-1]["steps"] - samples[0]["steps"] == samples[-1]["generated_tokens"] - samples[0]["generated_tokens"]
    ), "alone, a step gives a token"
    for row in (one, three):
        assert row.power_w == pytest.approx(300, rel=0.5), "by a clock that others may hold up"
        assert 0 < (row.matrix_share or 0) < 1
        assert 0 < (row.bandwidth_share or 0) < 1
    assert (three.prefill_tokens_per_s or 0) > (one.prefill_tokens_per_s or 0)
    said = json.loads((out / "run.json").read_text())["verdict"]["card"]
    assert said["joules_per_1000_tasks"] == pytest.approx(three.power_w / three.req_per_s * said["turns"] * 1000)
    assert "MJ." in " ".join(ran.stdout.split())
