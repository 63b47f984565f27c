"""KV cache: the bytes of a token in each kind of layer, and how vLLM shares one pool among the kinds.

vLLM cuts the pool into blocks of one size. Layers of one kind form groups, all of as many layers as the rarest kind
has; a block holds some tokens for one group. Layers that see all tokens keep a session's every token, those with a
window only the last ones. Here a slot is one token's part of a block.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from bench.geometry import Geometry, Unknown

BYTES = {"auto": 2, "bfloat16": 2, "float16": 2, "fp8": 1, "fp8_e4m3": 1, "fp8_e5m2": 1}
TURBOQUANT = {  # bits of a key's and a value's element; keys of 8 bits need no factor of their own
    "turboquant_k8v4": (8, 4),
    "turboquant_4bit_nc": (4, 4),
    "turboquant_k3v4_nc": (3, 4),
    "turboquant_3bit_nc": (3, 3),
}
PLAIN_LAYERS = 2  # at either end, which TurboQuant leaves in 16 bit
MUCH = 1.5  # how many times the rarest kind's layers another kind may have before it is cut into groups of that size


def layer_bytes(model: Geometry, dtype: str, tp: int = 1) -> list[float]:
    """Of one token in each layer, on one GPU. A GPU has one head at least; a latent vector is whole on each."""
    if dtype in TURBOQUANT:
        return _turboquant(model, dtype, tp)
    if dtype not in BYTES:
        raise Unknown(f"no layout on file for {dtype}")
    elements = model.latent.kv_rank + model.latent.rope if model.latent else 2 * _heads(model, tp) * model.head_dim
    return [float(elements * BYTES[dtype])] * model.layers


def _heads(model: Geometry, tp: int) -> int:
    return max(1, model.kv_heads // tp)


def _turboquant(model: Geometry, dtype: str, tp: int) -> list[float]:
    if model.latent or any(model.windows):
        raise Unknown(f"no layout on file for {dtype} in layers of latent attention or with a window")
    key_bits, value_bits = TURBOQUANT[dtype]
    key = math.ceil(model.head_dim * key_bits / 8) + (0 if key_bits == 8 else 2)
    value = math.ceil(model.head_dim * value_bits / 8) + 4
    packed, plain = (key + value + 1) // 2 * 2, 4 * model.head_dim
    ends = min(PLAIN_LAYERS, model.layers // 2)
    inner = range(ends, model.layers - ends)
    return [float(_heads(model, tp) * (packed if layer in inner else plain)) for layer in range(model.layers)]


def groups(model: Geometry) -> list[tuple[int, ...]]:
    """The layers of each group."""
    kinds = [[at for at, w in enumerate(model.windows) if w == window] for window in dict.fromkeys(model.windows)]
    least, most = min(map(len, kinds)), max(map(len, kinds))
    size = most if most < MUCH * least else least
    return [tuple(kind[at :: -(-len(kind) // size)]) for kind in kinds for at in range(-(-len(kind) // size))]


def windows(model: Geometry) -> tuple[int | None, ...]:
    """Of each group."""
    return tuple(model.windows[group[0]] for group in groups(model))


def slot_bytes(model: Geometry, dtype: str, tp: int = 1, pp: int = 1) -> tuple[float, ...]:
    """On each GPU of each stage: of the group with the most there."""
    each = layer_bytes(model, dtype, tp)
    return tuple(
        max(sum(each[layer] for layer in group if layer in stage) for group in groups(model))
        for stage in model.stages(pp)
    )


@dataclass(frozen=True, slots=True)
class Admission:
    """What vLLM sets aside for one request of the longest context, and counts its cache by."""

    context: int
    block: int
    in_flight: int  # tokens scheduled and not yet done: their blocks stay until then, window or not

    def slots(self, windows: Sequence[int | None]) -> int:
        return sum(self._of(window) for window in windows)

    def _of(self, window: int | None) -> int:
        if window is None:
            return -(-self.context // self.block) * self.block
        held = min(window - 1 + self.in_flight, self.context)
        return (-(-held // self.block) + 1) * self.block


def held(windows: Sequence[int | None], tokens: float, turn: float) -> float:
    """Slots of a session that deep: its windows, and what its last turn has left behind in them, not yet taken back."""
    return sum(tokens if window is None else min(window + turn, tokens) for window in windows)
