"""Arithmetic before the run: how many tokens the cache should hold, how many sessions fit, how long a run will take."""

from dataclasses import dataclass

from bench.errors import BenchError
from bench.model import Geometry, geometry
from bench.recipe import Launch
from bench.workload import Workload

# Shares of the card's peak, from the study's own figures on an L4: 5.2K tokens/s of prefill, 26.9 ms a decoded token.
PREFILL_SHARE = 0.31
DECODE_SHARE = 0.70
# vLLM's 4-bit TurboQuant: bytes of one head's key or value (head_dim 128), and layers at either end left in bf16.
TQ4_BYTES_PER_ELEMENT = 134 / 2 / 128
TQ4_PLAIN_LAYERS = 2


def kv_bytes_per_token(model: Geometry, dtype: str) -> float | None:
    """Of all layers together; None for a layout we have not checked against vLLM."""
    elements = 2 * model.kv_heads * model.head_dim
    if dtype in ("auto", "bfloat16", "float16"):
        return elements * 2.0 * model.layers
    if dtype in ("fp8", "fp8_e4m3", "fp8_e5m2"):
        return elements * 1.0 * model.layers
    if dtype == "turboquant_4bit_nc":
        plain = min(model.layers, 2 * TQ4_PLAIN_LAYERS)
        return elements * (plain * 2 + (model.layers - plain) * TQ4_BYTES_PER_ELEMENT)
    return None


@dataclass(frozen=True, slots=True)
class Capacity:
    """From the card's memory to tokens. GB are 10^9 bytes; None where something is not known before the server says."""

    tokens: int | None
    why: str
    memory_gb: float | None = None
    usable_gb: float | None = None
    weights_gb: float | None = None
    other_gb: float | None = None
    pool_gb: float | None = None
    bytes_per_token: float | None = None


@dataclass(frozen=True, slots=True)
class Forecast:
    """What is known of one variant before it runs."""

    capacity: Capacity
    sessions: float | None  # that fit
    duration_s: float | None


def expected(launch: Launch) -> Capacity:
    blocks, size = launch.number("--num-gpu-blocks-override"), launch.number("--block-size")
    if blocks and size:
        return Capacity(int(blocks * size), f"pinned: {blocks:.0f} blocks of {size:.0f} tokens")
    card, model = launch.file.card, _geometry(launch)
    if card is None or card.other_gb is None or model is None:
        unknown = "the card's memory" if card is None else "the model's geometry"
        return Capacity(None, f"not known before the server reports it: {unknown} is not at hand")
    usable = card.memory_gb.value * launch.utilization * launch.tp
    weights, other = model.weights_bytes / 1e9, card.other_gb.value * launch.tp
    each = kv_bytes_per_token(model, launch.precision.dtype)
    if each is None:
        return Capacity(None, f"not known before the server reports it: no layout on file for {launch.precision.dtype}")
    pool = usable - weights - other
    if pool <= 0:
        raise BenchError(
            f"{launch.model} does not fit: {weights:.1f} GB of weights and {other:.1f} GB besides are {-pool:.1f} GB"
            f" more than {usable:.1f} GB, {launch.utilization:g} of the memory of {launch.tp} x {card.name}",
            "give a higher --tp, a larger card or a smaller model",
        )
    return Capacity(
        tokens=int(pool * 1e9 / each),
        why=f"({card.memory_gb.value * launch.tp:.1f} GB x {launch.utilization:g} - {weights:.1f} weights"
        f" - {other:.1f} other) / {each:,.0f} B a token",
        memory_gb=card.memory_gb.value * launch.tp,
        usable_gb=usable,
        weights_gb=weights,
        other_gb=other,
        pool_gb=pool,
        bytes_per_token=each,
    )


def _geometry(launch: Launch) -> Geometry | None:
    return geometry(launch.model, fp8_weights=launch.flag("--quantization") == "fp8")


def sessions_that_fit(tokens: int, workload: Workload, seed: int = 0) -> float:
    """The knee in lockstep: (capacity - shared) / what one session adds at its deepest, its last answer included."""
    typical = workload.typical(seed)
    return fit(tokens, workload.file.shared_tokens, typical.own_tokens + typical.output_tokens)


def fit(tokens: int, shared: float, each: float) -> float:
    return max(0.0, (tokens - shared) / each)


@dataclass(frozen=True, slots=True)
class Pace:
    """First-order speed of one request; only the expected duration rests on it."""

    prefill_tokens_s: float
    decode_s: float


def pace(launch: Launch) -> Pace | None:
    if launch.file.speed is not None:
        return Pace(launch.file.speed.prefill_tokens_s.value, launch.file.speed.decode_s.value)
    card, model = launch.file.card, _geometry(launch)
    if card is None or model is None:
        return None
    prefill = PREFILL_SHARE * card.bf16_tflops.value * 1e12 * launch.tp / (2 * model.linear_parameters)
    decode = model.weights_bytes / (DECODE_SHARE * card.bandwidth_gb_s.value * 1e9 * launch.tp)
    return Pace(prefill, decode)


def level_duration_s(
    pace: Pace, workload: Workload, case: str, concurrency: int, requests: int, sessions_fit: float | None
) -> float:
    """Prefill is serial, decode is shared by all who are decoding; past the knee half the history is paid again."""
    typical, bounds = workload.typical(), workload.file.bounds
    new = {"best": float(bounds.fresh_tokens), "worst": typical.own_tokens}.get(case, typical.turn_tokens)
    if case in ("realistic", "openai") and sessions_fit is not None and concurrency > sessions_fit:
        new += typical.own_tokens / 4
    return requests * (new / pace.prefill_tokens_s + typical.output_tokens * pace.decode_s / concurrency)
