"""The stages that wait for a card: each is a command that bench takes, and fits into the minutes there are."""

import json
from pathlib import Path

import pytest

from tests.card.stages import STAGES
from tests.test_cli import bench

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_is_a_command_that_could_be_played(stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    words = [*STAGES[stage]]
    cut = words.index("--") if "--" in words else len(words)
    ran = bench("sweep", *words[:cut], "--vllm", "nowhere", "--dry-run", "--json", *words[cut:])
    assert ran.returncode == 0, ran.stderr
    for variant in json.loads(ran.stdout)["variants"].values():
        assert variant["forecast"]["capacity"]["tokens"], "or nobody knows where its knee should be"
