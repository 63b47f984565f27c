"""A real vLLM that somebody else runs: measured as it is, and still there afterwards."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench import connection, engine, recipe, server
from bench.records import Folder
from tests.real.command import SMALL, bench, needs_vllm

pytestmark = needs_vllm


@pytest.fixture
def theirs(tmp_path: Path) -> Iterator[server.Endpoint]:
    run = tmp_path / "theirs"
    run.mkdir()
    launch = recipe.launch(SMALL[1], "fp16", None, 1, True, ())
    with server.serve(engine.ask(engine.find(None, "cpu"), print), launch, run, print) as endpoint:
        yield endpoint


def test_it_is_measured_by_token_ids_with_nothing_lost_and_goes_on(theirs: server.Endpoint, tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = ("--levels", "1", "--requests", "6", "--no-bounds", "--out", str(out))
    bench("sweep", "--endpoint", theirs.base_url, *SMALL[2:], *words, expect=(0, 4))  # 4: a busy machine
    facts = json.loads((out / "run.json").read_text())["variants"]["endpoint"]
    assert facts["dialect"] == {"name": "token ids, answers by id", "reports_cached": True}
    assert facts["server"]["cache"]["tokens"] == 8192
    assert not facts["server"]["started_by_us"]
    records = Folder.open(out).records()
    assert [record.status for record in records] == ["ok"] * 7
    assert sum(record.lost_tokens or 0 for record in records) == 0
    assert all(record.prompt_tokens == record.planned_prompt_tokens for record in records)
    assert theirs.alive() is None
    assert connection.run(theirs.silent()) is None
