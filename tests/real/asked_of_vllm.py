"""Run by vLLM's own Python: what its code makes of a model's config.json, without weights, memory or a server.

A line on standard input is {"folder", "dtype", "tp", "pp", "memory"}; a line on standard output is what came of it. The
ranks of --tp and of the stages are played one after the other, on torch's meta device.
"""

import json
import os
import sys
import tempfile
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", VLLM_NO_USAGE_STATS="1", VLLM_LOGGING_LEVEL="ERROR")
SAID = os.dup(1)
os.dup2(2, 1)  # whatever vLLM prints is not an answer

import torch  # noqa: E402
from vllm.config import get_layers_from_vllm_config, set_current_vllm_config  # noqa: E402
from vllm.distributed import init_distributed_environment, initialize_model_parallel, parallel_state  # noqa: E402
from vllm.engine.arg_utils import EngineArgs  # noqa: E402
from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase  # noqa: E402
from vllm.model_executor.layers.quantization.turboquant.config import TQ_PRESETS, TurboQuantConfig  # noqa: E402
from vllm.model_executor.model_loader.utils import initialize_model  # noqa: E402
from vllm.utils.torch_utils import set_default_torch_dtype  # noqa: E402
from vllm.v1.attention.backends.utils import get_supported_kv_cache_layouts, resolve_kv_cache_layout  # noqa: E402
from vllm.v1.core import kv_cache_utils  # noqa: E402
from vllm.v1.metrics.perf import ExecutionContext, ModelMetrics  # noqa: E402


def configured(asked: dict[str, Any]) -> Any:
    return EngineArgs(
        model=asked["folder"], load_format="dummy", skip_tokenizer_init=True, enforce_eager=True,
        max_model_len=asked["context"], max_num_batched_tokens=2048, kv_cache_dtype=asked["dtype"],
    ).create_engine_config()  # fmt: skip


def stage(config: Any, tp: int, pp: int, rank: int) -> tuple[int, dict[str, Any]]:
    """Bytes of the weights of one GPU of a stage, and its layers that keep a cache."""
    parallel_state.destroy_model_parallel()
    initialize_model_parallel(1, 1)
    parallel_state._TP.world_size = tp
    parallel_state._PP.world_size, parallel_state._PP.rank_in_group = pp, rank
    parallel_state._PP.rank, parallel_state._PP.ranks = rank, list(range(pp))
    with set_default_torch_dtype(config.model_config.dtype), torch.device("meta"):
        model = initialize_model(config)
    weights = sum(one.numel() * one.element_size() for one in model.parameters())
    return weights, dict(get_layers_from_vllm_config(config, AttentionLayerBase))


def answer(asked: dict[str, Any]) -> dict[str, Any]:
    weights, specs = [], []
    for rank in range(asked["pp"]):
        config = configured(asked)
        with set_current_vllm_config(config):
            size, layers = stage(config, asked["tp"], asked["pp"], rank)
            weights.append(size)
            specs.append({name: layer.get_kv_cache_spec(config) for name, layer in layers.items()})
            names = [
                one.name for one in get_supported_kv_cache_layouts({x.get_attn_backend() for x in layers.values()})
            ]
    resolve_kv_cache_layout(config, [names], specs[0].values())
    caches = kv_cache_utils.get_kv_cache_configs(config, specs, [asked["memory"]] * asked["pp"])
    groups = caches[0].kv_cache_groups
    return {
        "weights": weights,
        "block": config.cache_config.block_size,
        "in_flight": config.max_in_flight_tokens,
        "windows": [getattr(group.kv_cache_spec, "sliding_window", None) for group in groups],
        "block_bytes": [kv_cache_utils._pool_bytes_per_block(config, cache.kv_cache_groups) for cache in caches],
        "blocks": caches[0].num_blocks,
        "tokens": kv_cache_utils.get_kv_cache_capacity(config, caches[0])[0],
        "operations": operations(config),
    }


def operations(config: Any) -> dict[str, int]:
    """Of one token of an answer, with a thousand before it: as its estimate of a card's use has them."""
    one = ExecutionContext.from_single_request(1, 1000, is_prefill=False)
    return dict(ModelMetrics(config).get_num_flops_breakdown(one, per_gpu=False))


def packed(asked: dict[str, Any]) -> dict[str, Any]:
    """TurboQuant's bytes of a token and head, which the CPU's kernels do not use, and the layers it leaves plain."""
    config = configured({**asked, "dtype": "auto"}).model_config
    head = config.get_head_size()
    return {
        "slots": {name: TurboQuantConfig.from_cache_dtype(name, head).slot_size_aligned for name in TQ_PRESETS},
        "plain": [int(layer) for layer in TurboQuantConfig.get_boundary_skip_layers(config)],
    }


with tempfile.TemporaryDirectory() as meeting:  # every group of ranks, even of one, meets in a file there
    init_distributed_environment(1, 0, f"file://{meeting}/ranks", 0, "gloo")
    for line in sys.stdin:
        question = json.loads(line)
        found = packed(question) if question["dtype"] == "turboquant" else answer(question)
        os.write(SAID, (json.dumps(found) + "\n").encode())
