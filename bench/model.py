"""What is served: a model's geometry from its config.json, and a folder with that geometry and no weights.

`--model synthetic:NAME` serves the true shapes with random weights (vLLM's `--load-format dummy`): speed and memory do
not depend on their values, and no hub is asked.
"""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench import bounded, shape, tables
from bench.errors import BenchError
from bench.geometry import Experts, Geometry, Latent, Unknown

SYNTHETIC = "synthetic:"
COUNT = shape.positive
CONFIG = {
    "model_type?": str,
    "num_hidden_layers": COUNT,
    "num_attention_heads": COUNT,
    "num_key_value_heads?": (COUNT, None),
    "head_dim?": (COUNT, None),
    "hidden_size": COUNT,
    "intermediate_size": COUNT,
    "vocab_size": COUNT,
    "tie_word_embeddings?": bool,
    "max_position_embeddings": COUNT,
    "quantization_config?": (None, {"quant_method?": str}),
    "rope_scaling?": (None, {"factor?": float, "original_max_position_embeddings?": COUNT}),
    "sliding_window?": (None, COUNT),
    "layer_types?": (None, [str]),
}
OF_FAMILY: dict[str, shape.Shape] = {
    "gemma3_text": {"sliding_window": COUNT, "sliding_window_pattern?": COUNT},
    "gpt_oss": {
        "sliding_window": COUNT,
        "layer_types": [str],
        "num_local_experts": COUNT,
        "num_experts_per_tok": COUNT,
    },
    "qwen3_moe": {
        "num_experts": COUNT,
        "num_experts_per_tok": COUNT,
        "moe_intermediate_size": COUNT,
        "decoder_sparse_step?": COUNT,
        "mlp_only_layers?": [int],
    },
    "deepseek_v2": {
        "kv_lora_rank": COUNT,
        "q_lora_rank": (None, COUNT),
        "qk_rope_head_dim": COUNT,
        "qk_nope_head_dim": COUNT,
        "v_head_dim": COUNT,
        "n_routed_experts": COUNT,
        "num_experts_per_tok": COUNT,
        "moe_intermediate_size": COUNT,
        "n_shared_experts?": (None, int),
        "first_k_dense_replace": int,
        "moe_layer_freq?": COUNT,
    },
}
OF_FAMILY["deepseek_v3"] = OF_FAMILY["deepseek_v2"]
FAMILIES = {"", "llama", "mistral", "qwen2", "qwen3", *OF_FAMILY}  # whose layers were compared with vLLM's own
TABLES_EVERYWHERE = {"gemma3_text", "gpt_oss", "qwen3_moe"}  # as of vLLM 0.32
MOST_LAYERS = 10_000
MXFP4_BYTES = 4.25 / 8  # a scale of 8 bits for every 32 elements
WINDOW = {"full_attention": False, "sliding_attention": True}
OF_ONE_SHAPE = re.compile(r"^meta-|(-(fp8|instruct|chat|it|hf))+$")  # what a name may add to the shapes' own
WORD = "w"  # the synthetic tokenizer knows w0, w1, w2 …: token 7 is the word w7


def is_synthetic(model: str) -> bool:
    return model.startswith(SYNTHETIC)


def geometry(model: str, fp8_weights: bool = False) -> Geometry | None:
    """None where it cannot be told: then only the server knows."""
    try:
        return shapes(model, fp8_weights)
    except Unknown:
        return None


def shapes(model: str, fp8_weights: bool = False) -> Geometry:
    """From its config.json; what we have not compared with vLLM is refused, with the reason."""
    config = config_of(model)
    if config is None:
        raise Unknown("the model's geometry is not at hand: no config.json of it is on this machine")
    if missing := {"num_hidden_layers", "num_attention_heads"} - set(config):
        raise Unknown(f"the model's geometry is not at hand: its config.json has no '{min(missing)}'")
    family = config.get("model_type", "")
    where = f"config.json of {model}"
    shape.check(config, CONFIG, where)
    if family not in FAMILIES or config["num_hidden_layers"] > MOST_LAYERS:
        raise Unknown(f"the model's geometry is not at hand: layers of model_type {family:.80} are not on file")
    shape.check(config, OF_FAMILY.get(family, {}), where)
    heads = config["num_attention_heads"]
    weight_bytes, expert_bytes = _widths(model, config, fp8_weights)
    return Geometry(
        layers=config["num_hidden_layers"],
        hidden=config["hidden_size"],
        intermediate=config["intermediate_size"],
        heads=heads,
        kv_heads=config.get("num_key_value_heads") or heads,
        head_dim=config.get("head_dim") or max(1, config["hidden_size"] // heads),
        vocabulary=config["vocab_size"],
        tied=config.get("tie_word_embeddings", family == "gemma3_text"),
        context=_context(config),
        weight_bytes=weight_bytes,
        expert_bytes=expert_bytes,
        windows=_windows(config),
        tables_everywhere=family in TABLES_EVERYWHERE,
        latent=_latent(config) if family.startswith("deepseek") else None,
        experts=_experts(config),
    )


def _windows(config: Mapping[str, Any]) -> tuple[int | None, ...]:
    layers, window = range(config["num_hidden_layers"]), config.get("sliding_window")
    family = config.get("model_type", "")
    if config.get("use_sliding_window"):
        raise Unknown("the model's geometry is not at hand: use_sliding_window is not on file")
    if kinds := config.get("layer_types"):
        if set(kinds) - set(WINDOW) or len(kinds) != len(layers) or (window is None and "sliding_attention" in kinds):
            raise Unknown(f"the model's geometry is not at hand: layers of {', '.join(sorted(set(kinds)))[:80]}")
        return tuple(window if WINDOW[kind] else None for kind in kinds)
    if family == "gemma3_text":
        every = config.get("sliding_window_pattern", 6)
        return tuple(None if (layer + 1) % every == 0 else window for layer in layers)
    return tuple(window if family == "mistral" else None for _ in layers)


def _latent(config: Mapping[str, Any]) -> Latent:
    return Latent(
        kv_rank=config["kv_lora_rank"],
        rope=config["qk_rope_head_dim"],
        nope=config["qk_nope_head_dim"],
        value=config["v_head_dim"],
        query_rank=config["q_lora_rank"],
    )


def _experts(config: Mapping[str, Any]) -> Experts | None:
    """Each family has its own words for it."""
    layers, family = range(config["num_hidden_layers"]), config.get("model_type", "")
    if family == "gpt_oss":
        return Experts(
            config["num_local_experts"], config["num_experts_per_tok"], config["intermediate_size"], 0, frozenset()
        )
    if family == "qwen3_moe":
        step, dense = config.get("decoder_sparse_step", 1), config.get("mlp_only_layers", [])
        without = frozenset(layer for layer in layers if layer in dense or (layer + 1) % step)
        return Experts(
            config["num_experts"], config["num_experts_per_tok"], config["moe_intermediate_size"], 0, without
        )
    if family.startswith("deepseek"):
        width, first, step = (
            config["moe_intermediate_size"],
            config["first_k_dense_replace"],
            config.get("moe_layer_freq", 1),
        )
        return Experts(
            config["n_routed_experts"],
            config["num_experts_per_tok"],
            width,
            width * (config.get("n_shared_experts") or 0),
            frozenset(layer for layer in layers if layer < first or layer % step),
        )
    return None


def _widths(model: str, config: Mapping[str, Any], fp8_weights: bool) -> tuple[float, float]:
    """Bytes of a parameter, and of one of an expert. Synthetic weights are quantised by their name or a flag alone."""
    told = {} if is_synthetic(model) else config.get("quantization_config") or {}
    method = told.get("quant_method", "")
    if fp8_weights or method == "fp8" or model.lower().endswith("-fp8"):
        return 1.0, 1.0
    if method == "mxfp4":
        return 2.0, MXFP4_BYTES
    bits, group = (told.get(key, 0) for key in ("bits", "group_size"))
    if method in ("awq", "gptq") and shape.positive(bits) and shape.positive(group):
        packed = bits / 8 + (2 + bits / 8) / group  # a scale and a zero for every group
        return packed, packed
    if method:
        raise Unknown(f"the model's geometry is not at hand: weights of {method:.80} are not on file")
    return 2.0, 2.0


def _context(config: Mapping[str, Any]) -> int:
    """The longest that vLLM lets --max-model-len be."""
    longest: int = config["max_position_embeddings"]
    scaling = config.get("rope_scaling") or {}
    kind = scaling.get("rope_type") or scaling.get("type")
    if kind == "yarn" and "original_max_position_embeddings" in scaling:
        return max(longest, int(scaling["original_max_position_embeddings"] * scaling.get("factor", 1)))
    if kind in ("linear", "dynamic") and config.get("model_type") != "gemma3_text":
        return max(longest, int(longest * scaling.get("factor", 1)))
    return longest


def config_of(model: str) -> dict[str, Any] | None:
    """A folder's config.json, the hub's local copy, or the one shipped for a model of that name."""
    model = model.removeprefix(SYNTHETIC)
    if (folder := Path(model) / "config.json").is_file():
        return _read(folder)
    cache = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    snapshots = sorted((cache / "hub" / f"models--{model.replace('/', '--')}").glob("snapshots/*/config.json"))
    if snapshots:
        return _read(snapshots[-1])
    name = OF_ONE_SHAPE.sub("", model.split("/")[-1].lower())
    known = name in tables.shipped("launch/models", ".json")
    return _read(tables.find("launch/models", name, ".json")) if known else None


def _read(path: Path) -> dict[str, Any]:
    config = bounded.document(path)
    shape.check(config, dict, str(path))
    known: dict[str, Any] = config
    return known


def check(model: str) -> None:
    """Refuse a synthetic model whose shapes nobody knows, or whose weights random ones cannot stand for."""
    if not is_synthetic(model):
        return
    try:
        shapes(model)
    except Unknown as reason:
        known = ", ".join(tables.shipped("launch/models", ".json"))
        raise BenchError(
            f"no geometry for {model}: {reason}", f"shipped: {known}; or synthetic:FOLDER, with a config.json in it"
        ) from None
    method = ((config_of(model) or {}).get("quantization_config") or {}).get("quant_method", "fp8")
    if method != "fp8":
        raise BenchError(
            f"{model} can be computed, not served: its weights are {method:.80}, and random ones are 16 bit or fp8",
            f"for the arithmetic alone give {model.removeprefix(SYNTHETIC)}; to serve it, the model itself",
        )


def materialise(model: str, folder: Path) -> Path:
    """Write what vLLM needs to serve `synthetic:NAME` into `folder`: the config and a tokenizer of plain words."""
    check(model)
    config = config_of(model) or {}
    folder.mkdir(parents=True, exist_ok=True)
    config.pop("quantization_config", None)
    words = {f"{WORD}{token}": token for token in range(config["vocab_size"])}
    tokenizer: dict[str, Any] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": words, "unk_token": f"{WORD}0"},
    }
    files = {
        "config.json": config,
        "generation_config.json": {"eos_token_id": config["vocab_size"] - 1},
        "tokenizer.json": tokenizer,
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": config["max_position_embeddings"],
            "unk_token": f"{WORD}0",
        },
    }
    for file, content in files.items():
        (folder / file).write_text(json.dumps(content))
    return folder
