"""The arithmetic against vLLM's own code, for every shipped model: weights, groups of layers, blocks, tokens."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench import engine, kv, tables
from bench.model import config_of, shapes
from tests.real.command import HERE, needs_vllm

pytestmark = needs_vllm
SHIPPED = tables.shipped("launch/models", ".json")
PLAYED = [
    *((name, dtype, 1, 1) for name in SHIPPED for dtype in ("auto", "fp8")),
    ("qwen2.5-coder-7b", "auto", 4, 2),
    ("qwen2.5-coder-7b", "auto", 4, 3),
    ("llama-3.1-70b", "fp8", 8, 3),
    ("gemma-3-27b-text", "auto", 2, 4),
    ("gemma-3-1b", "auto", 4, 2),
    ("gpt-oss-20b", "auto", 1, 3),
    ("deepseek-v2-lite", "auto", 4, 2),
    ("deepseek-v3", "fp8", 8, 2),
    ("qwen3-30b-a3b", "auto", 8, 2),
]
MEMORY = 200_000_000_000
NORMS_AND_BIASES = 0.002  # of the weights
Question = tuple[str, str, int, int]


def asked(question: Question, folder: Path) -> dict[str, Any]:
    name, dtype, tp, pp = question
    config = {key: value for key, value in (config_of(name) or {}).items() if key != "quantization_config"}
    (folder / name).mkdir(exist_ok=True)
    (folder / name / "config.json").write_text(json.dumps(config))
    longest = min(32_768, config["max_position_embeddings"])
    told = {"folder": str(folder / name), "context": longest, "dtype": dtype, "tp": tp, "pp": pp, "memory": MEMORY}
    return told


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[Question, dict[str, Any]]]:
    """vLLM takes long to import, so it is asked everything at once."""
    folder = tmp_path_factory.mktemp("configs")
    questions: list[Question] = [*PLAYED, *((name, "turboquant", 1, 1) for name in SHIPPED)]
    lines = [json.dumps(asked(question, folder)) for question in questions]
    python = Path(engine.find(None, "cpu")[0]).with_name("python")
    ran = subprocess.run(
        [python, HERE / "asked_of_vllm.py"], input="\n".join(lines), capture_output=True, text=True, timeout=300
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    yield dict(zip(questions, map(json.loads, ran.stdout.splitlines()), strict=True))
    shutil.rmtree(folder)


Answers = dict[Question, dict[str, Any]]


@pytest.mark.parametrize("question", PLAYED, ids=lambda question: "-".join(map(str, question)))
def test_weights_groups_blocks_and_tokens_are_vllms_own(question: Question, answers: Answers) -> None:
    name, dtype, tp, pp = question
    theirs, model = answers[question], shapes(f"synthetic:{name}")
    assert list(model.stage_bytes(tp, pp)) == pytest.approx(theirs["weights"], rel=NORMS_AND_BIASES)
    assert list(kv.windows(model)) == theirs["windows"]
    block, context = theirs["block"], min(32_768, model.context)
    block_bytes = [each * block for each in kv.slot_bytes(model, dtype, tp, pp)]
    assert block_bytes == theirs["block_bytes"]
    blocks = min(MEMORY // int(each) for each in block_bytes)
    assert blocks == theirs["blocks"]
    admission = kv.Admission(context, block, theirs["in_flight"])
    assert int(blocks * block * context / admission.slots(kv.windows(model))) == theirs["tokens"]


@pytest.mark.parametrize("name", [name for name in SHIPPED if not (shapes(name).latent or any(shapes(name).windows))])
def test_a_tokens_work_is_vllms_own(name: str, answers: Answers) -> None:
    """What the share of a card's matrix rate is counted with."""
    theirs, model = answers[name, "auto", 1, 1]["operations"], shapes(name)
    attention = theirs.pop("attn.attn_qk") + theirs.pop("attn.attn_av")
    head = theirs.pop("unembed.unembed")
    assert 4 * model.layers * model.heads * model.head_dim * 1000 == attention
    assert model.head_operations == head
    assert 2 * model.active_parameters == pytest.approx(sum(theirs.values()), rel=0.01 if model.experts else 1e-9)


@pytest.mark.parametrize("name", SHIPPED)
def test_turboquants_bytes_and_plain_layers_are_vllms_own(name: str, answers: Answers) -> None:
    theirs, model = answers[name, "turboquant", 1, 1], shapes(f"synthetic:{name}")
    if model.latent or any(model.windows):
        return
    for dtype, slot in theirs["slots"].items():
        found = kv.layer_bytes(model, dtype)
        inner = set(range(model.layers)) - set(theirs["plain"])
        assert {found[layer] for layer in inner} <= {slot * model.kv_heads}
        assert {found[layer] for layer in theirs["plain"]} == {4.0 * model.head_dim * model.kv_heads}


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_models_are_as_long_as_vllm_lets_them_be(name: str) -> None:
    config = config_of(name) or {}
    assert shapes(name).context == config["max_position_embeddings"]
