"""What is served: a model's geometry from its config.json, and a folder with that geometry and no weights.

`--model synthetic:NAME` serves the true shapes with random weights (vLLM's `--load-format dummy`): speed and memory do
not depend on their values, and no hub is asked.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import bounded, shape, tables
from bench.errors import BenchError

SYNTHETIC = "synthetic:"
COUNT = shape.positive
CONFIG = {
    "num_hidden_layers": COUNT,
    "num_attention_heads": COUNT,
    "num_key_value_heads?": COUNT,
    "head_dim?": (COUNT, None),
    "hidden_size": COUNT,
    "intermediate_size": COUNT,
    "vocab_size": COUNT,
    "tie_word_embeddings?": bool,
    "max_position_embeddings": COUNT,
    "quantization_config?": (None, dict),
}
WORD = "w"  # the synthetic tokenizer knows w0, w1, w2 …: token 7 is the word w7


@dataclass(frozen=True, slots=True)
class Geometry:
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool
    context: int
    weight_bytes: int  # of one parameter of a linear layer; embeddings stay at 2

    @property
    def linear_parameters(self) -> int:
        attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.intermediate)

    @property
    def weights_bytes(self) -> int:
        tables_of_words = self.vocabulary * self.hidden * (1 if self.tied else 2)
        return self.linear_parameters * self.weight_bytes + tables_of_words * 2


def is_synthetic(model: str) -> bool:
    return model.startswith(SYNTHETIC)


def geometry(model: str, fp8_weights: bool = False) -> Geometry | None:
    """None where no config.json of it is at hand: then only the server knows."""
    config = config_of(model)
    if config is None or not {"num_hidden_layers", "num_attention_heads"} <= set(config):
        return None
    shape.check(config, CONFIG, f"config.json of {model}")
    quantised = (config.get("quantization_config") or {}).get("quant_method") == "fp8"
    heads = config["num_attention_heads"]
    return Geometry(
        layers=config["num_hidden_layers"],
        hidden=config["hidden_size"],
        intermediate=config["intermediate_size"],
        heads=heads,
        kv_heads=config.get("num_key_value_heads", heads),
        head_dim=config.get("head_dim") or config["hidden_size"] // heads,
        vocabulary=config["vocab_size"],
        tied=config.get("tie_word_embeddings", False),
        context=config["max_position_embeddings"],
        weight_bytes=1 if fp8_weights or quantised or model.lower().endswith("-fp8") else 2,
    )


def config_of(model: str) -> dict[str, Any] | None:
    """A folder's config.json, the hub's local copy, or the one shipped for a model of that name."""
    model = model.removeprefix(SYNTHETIC)
    if (folder := Path(model) / "config.json").is_file():
        return _read(folder)
    cache = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    snapshots = sorted((cache / "hub" / f"models--{model.replace('/', '--')}").glob("snapshots/*/config.json"))
    if snapshots:
        return _read(snapshots[-1])
    name = model.split("/")[-1].lower().removesuffix("-fp8")
    known = name in tables.shipped("launch/models", ".json")
    return _read(tables.find("launch/models", name, ".json")) if known else None


def _read(path: Path) -> dict[str, Any]:
    config = bounded.document(path)
    shape.check(config, dict, str(path))
    known: dict[str, Any] = config
    return known


def check(model: str) -> None:
    """Refuse a synthetic model whose shapes nobody knows."""
    if is_synthetic(model) and geometry(model) is None:
        known = ", ".join(tables.shipped("launch/models", ".json"))
        raise BenchError(f"no geometry for {model}", f"shipped: {known}; or synthetic:FOLDER, with a config.json in it")


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
