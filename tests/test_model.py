"""What a config.json says of a model, and which ones are refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from bench import model, tables
from bench.errors import BenchError
from bench.geometry import Unknown

# Parameters as the models' own pages count them, in thousand millions; gpt-oss without its packing.
PARAMETERS = {
    "llama-2-13b": 13.016, "llama-3.1-8b": 8.030, "llama-3.1-70b": 70.554, "mistral-7b-v0.1": 7.242,
    "qwen2.5-coder-7b": 7.616, "qwen2.5-coder-32b": 32.764, "qwen3-4b": 4.022, "qwen3-8b": 8.191, "qwen3-32b": 32.762,
    "qwen3-30b-a3b": 30.532, "qwen3-coder-30b-a3b": 30.532, "gpt-oss-20b": 20.915, "gpt-oss-120b": 116.829,
    "gemma-3-1b": 1.000, "gemma-3-27b-text": 27.009, "deepseek-v2-lite": 15.706, "deepseek-v3": 671.026,
}  # fmt: skip


def test_every_shipped_model_has_the_parameters_its_makers_count() -> None:
    assert set(PARAMETERS) == set(tables.shipped("launch/models", ".json")) - {"mini"}
    for name, billions in PARAMETERS.items():
        assert model.shapes(f"synthetic:{name}").weights_bytes / 2e9 == pytest.approx(billions, rel=0.001), name


@pytest.mark.parametrize(
    ("name", "gigabytes"),
    [("Qwen/Qwen3-4B-FP8", 4.4), ("gpt-oss-20b", 13.7), ("gpt-oss-120b", 65.2), ("deepseek-v3", 673.0)],
)
def test_weights_are_as_wide_as_they_are_stored(name: str, gigabytes: float) -> None:
    assert model.shapes(name).weights_bytes / 1e9 == pytest.approx(gigabytes, abs=0.06)


def test_a_hub_name_finds_the_shapes_it_shares() -> None:
    for name in ("meta-llama/Meta-Llama-3.1-8B-Instruct", "meta-llama/Llama-3.1-8B"):
        assert model.shapes(name) == model.shapes("llama-3.1-8b")
    assert model.shapes("meta-llama/Llama-2-13b-chat-hf") == model.shapes("llama-2-13b")
    assert model.geometry("Qwen/Qwen3-30B-A3B-Instruct-2507") is None, "another context: not the same model"


def test_windows_are_read_as_each_family_writes_them() -> None:
    assert set(model.shapes("mistral-7b-v0.1").windows) == {4096}
    assert model.shapes("gpt-oss-20b").windows == (128, None) * 12
    assert model.shapes("gemma-3-1b").windows == ((512,) * 5 + (None,)) * 4 + (512, 512)
    assert not any(model.shapes("qwen2.5-coder-7b").windows), "a window that is switched off"


def folder(tmp_path: Path, **changed: Any) -> str:
    config = {**json.loads(Path("launch/models/qwen3-4b.json").read_text()), **changed}
    told = {key: value for key, value in config.items() if value is not None}
    (tmp_path / "config.json").write_text(json.dumps(told))
    return str(tmp_path)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"model_type": "mamba"}, "model_type mamba"),
        ({"layer_types": ["linear_attention"] * 36}, "linear_attention"),
        ({"use_sliding_window": True}, "use_sliding_window"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "weights of bitsandbytes"),
        ({"num_hidden_layers": None}, "has no 'num_hidden_layers'"),
    ],
)
def test_what_was_not_compared_with_vllm_is_refused_with_its_reason(
    tmp_path: Path, changed: dict[str, Any], reason: str
) -> None:
    with pytest.raises(Unknown, match=reason):
        model.shapes(folder(tmp_path, **changed))
    assert model.geometry(str(tmp_path)) is None


def test_a_config_without_a_field_says_which(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="hidden_size"):
        model.shapes(folder(tmp_path, hidden_size=None))


def test_packed_weights_carry_their_scales(tmp_path: Path) -> None:
    packed = {"quant_method": "awq", "bits": 4, "group_size": 128}
    found = model.shapes(folder(tmp_path, quantization_config=packed))
    assert found.weight_bytes == 0.5 + 2.5 / 128


def test_a_stretched_context_is_as_long_as_it_was_stretched(tmp_path: Path) -> None:
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32_768}
    assert model.shapes(folder(tmp_path, rope_scaling=yarn)).context == 131_072


def test_random_weights_stand_for_no_packed_ones() -> None:
    model.check("synthetic:deepseek-v2-lite")
    with pytest.raises(BenchError, match="can be computed, not served"):
        model.check("synthetic:gpt-oss-20b")
    with pytest.raises(BenchError, match="no geometry for synthetic:nobody"):
        model.check("synthetic:nobody")
