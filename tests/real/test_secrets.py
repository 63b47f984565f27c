"""What a real vLLM lets out: its key, and by which doors it can be reached."""

import json
import secrets
from pathlib import Path

import pytest

from bench import key
from tests.real.command import SMALL, needs_vllm
from tests.test_secrets import Ear

pytestmark = needs_vllm


def test_with_a_key_of_its_own_it_is_measured_behind_local_doors_and_the_key_is_left_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    canary, ear = f"{secrets.token_hex(4)}-{secrets.token_hex(12)}", Ear()
    monkeypatch.setenv(key.OF_OUR_SERVER, canary)
    words = ("--kv", "fp16", "--tp", "2", "--levels", "2", "--requests", "12", "--no-bounds", "--out")
    ear.bench("sweep", *SMALL, *words, str(tmp_path / "run"))
    records = [json.loads(line) for line in (tmp_path / "run" / "requests.jsonl").read_text().splitlines()]
    assert [record["status"] for record in records] == ["ok"] * 13
    assert any(b"VLLM::Worker" in told for told in ear.seen.values()), "the engine's processes were not seen"
    assert ear.listening == {"127.0.0.1"}
    assert ear.heard(tmp_path, canary) == []
