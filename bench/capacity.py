"""Arithmetic before the run: how many tokens the cache should hold, how many sessions fit, how long a run will take.

What each figure rests on, and where it departs from the printed ones: docs/arithmetic.md.
"""

import math
from dataclasses import dataclass, replace
from itertools import accumulate, islice

import numpy as np

from bench import division, kv, recipe, tables, workload
from bench.errors import BenchError
from bench.geometry import Geometry, Unknown
from bench.recipe import Card, Launch, Roof
from bench.speed import Speed
from bench.workload import Workload

# Shares of a card's peak that are reached, from the study's L4: 2.5 s for 12.8K tokens behind 10K, 57 ms for 200 behind
# 22.8K, 26.9 ms a decoded token.
MATRIX_SHARE = 0.31
ATTENTION_SHARE = 0.81
BANDWIDTH_SHARE = 0.70
UNSEEN = 2.0  # the factor by which a precision that was not fitted may be off
REQUEST_S = 0.005  # assumed: HTTP, JSON and the way to the engine
SIZES = (1, 2, 4, 8)  # of a group of GPUs that is worth proposing
SESSIONS = 64  # that a mean is taken over
ONE_IN_100 = 2.33  # standard deviations: what is exceeded one time in a hundred, as a knee is


def kv_bytes_per_token(model: Geometry, dtype: str) -> float | None:
    """Of all layers together; None for a layout we have not checked against vLLM."""
    try:
        return sum(kv.layer_bytes(model, dtype))
    except Unknown:
        return None


@dataclass(frozen=True, slots=True)
class Capacity:
    """From memory to tokens, of all GPUs together. GB are 10^9 bytes; None is not known before the server says."""

    tokens: int | None  # as vLLM counts them: of requests as long as --max-model-len
    why: str
    memory_gb: float | None = None
    usable_gb: float | None = None
    weights_gb: float | None = None
    other_gb: float | None = None
    pool_gb: float | None = None
    bytes_per_token: float | None = None  # of a context as long as --max-model-len
    gpus: int = 1
    slots: float | None = None  # a token takes one for each group of layers that keeps it
    windows: tuple[int | None, ...] = (None,)  # of each group; None keeps every token
    notes: tuple[str, ...] = ()  # what a reader would not expect


@dataclass(frozen=True, slots=True)
class Forecast:
    """What is known of one variant before it runs."""

    capacity: Capacity
    sessions: float | None  # that fit
    duration_s: float | None


def expected(launch: Launch) -> Capacity:
    blocks, size = launch.number("--num-gpu-blocks-override"), launch.number("--block-size")
    if blocks and size:
        return _pinned(launch, int(blocks), int(size))
    try:
        return _from_memory(launch, division.divided(launch))
    except Unknown as reason:
        return Capacity(None, f"not known before the server reports it: {reason}")


def _pinned(launch: Launch, blocks: int, size: int) -> Capacity:
    slots, why = blocks * size, f"pinned: {blocks} blocks of {size} tokens"
    try:
        windows = kv.windows(division.shapes_of(launch))
    except Unknown:
        return Capacity(slots, why)
    tokens = slots if windows == (None,) else _counted(launch, slots, windows)
    return Capacity(tokens, why, slots=slots, windows=windows)


def _from_memory(launch: Launch, found: division.Division) -> Capacity:
    card = launch.file.card
    if card is None or card.other_gb is None:
        raise Unknown("the card's memory is not at hand")
    gpus, windows = found.tp * len(found.pools), kv.windows(found.model)
    memory, weights, other = card.memory_gb.value * gpus, found.all_gb(found.weights), card.other_gb.value * gpus
    if found.slots <= 0:
        raise BenchError(
            f"{launch.model} does not fit: {weights:.1f} GB of weights and {other:.1f} GB besides are"
            f" {-min(found.pools) / 1e9:.1f} GB a GPU more than {launch.utilization:g} of the memory of"
            f" {gpus} x {card.name}",
            would_fit(launch),
        )
    share = division.admission(launch).slots(windows) / division.context(launch)
    each = found.all_gb(found.slot_bytes) * 1e9 * share
    return Capacity(
        tokens=_counted(launch, found.slots, windows),
        why=f"({memory:.1f} GB x {launch.utilization:g} - {weights:.1f} weights"
        f" - {other:.1f} other) / {each:,.0f} B a token",
        memory_gb=memory,
        usable_gb=memory * launch.utilization,
        weights_gb=weights,
        other_gb=other,
        pool_gb=found.all_gb(found.pools),
        bytes_per_token=each,
        gpus=gpus,
        slots=found.slots,
        windows=windows,
        notes=tuple(found.notes()),
    )


def _counted(launch: Launch, slots: float, windows: tuple[int | None, ...]) -> int:
    """What vLLM reports as the size of its cache: requests of the longest context, times that context."""
    return int(slots * division.context(launch) / division.admission(launch).slots(windows))


def would_fit(launch: Launch) -> str:
    """A hint: the least --tp on this card, and the shipped cards, that would hold one request of --max-model-len."""
    parts = [f"--tp {tp}" for tp in SIZES if tp > launch.tp and _holds(replace(launch, tp=tp))]
    cards = {name: recipe.load(name)[1].card for name in tables.shipped("launch") if name != launch.name}
    others = [
        f"--gpu {name}"
        for name, card in cards.items()
        if card and _holds(replace(launch, file=replace(launch.file, card=card)))
    ]
    if not parts and not others:
        return "no shipped card holds it at this precision, nor eight of this one: give a smaller model"
    return f"{' or '.join([*parts[:1], *others])} would hold it"


def _holds(launch: Launch) -> bool:
    try:
        found = division.divided(launch)
        return found.slots >= division.admission(launch).slots(kv.windows(found.model))
    except (Unknown, BenchError):
        return False


def check_context(launch: Launch, work: Workload) -> None:
    """The deepest prompt and its answer against --max-model-len, and that against the model and the cache."""
    try:
        longest = division.shapes_of(launch).context
    except Unknown:
        longest = launch.context
    if context := launch.context or longest:
        workload.fits(work, context)
    if launch.context > longest:
        raise BenchError(
            f"--max-model-len {launch.context:,} is more than the {longest:,} tokens {launch.model} was made for",
            f"give --max-model-len {longest} behind --, or another model",
        )
    tokens = expected(launch).tokens
    if tokens is not None and tokens < launch.context:
        raise BenchError(
            f"the cache would hold {tokens:,} tokens, and vLLM does not start unless one request of --max-model-len"
            f" {launch.context:,} fits",
            f"lower --max-model-len behind --; {would_fit(launch)}",
        )


def sessions_that_fit(tokens: int, workload: Workload, seed: int = 0) -> float:
    """The knee in lockstep: (capacity - shared) / what one session adds at its deepest, its last answer included."""
    typical = workload.typical(seed)
    return fit(tokens, workload.file.shared_tokens, typical.own_tokens + typical.output_tokens)


def fit(tokens: int, shared: float, each: float) -> float:
    return max(0.0, (tokens - shared) / each)


def sessions(found: Capacity, work: Workload, seed: int = 0) -> float | None:
    """As `sessions_that_fit`, for a cache of which some layers keep no more than a window of each session."""
    if found.slots is None:
        return None
    typical, shared = work.typical(seed), work.file.shared_tokens
    own = typical.own_tokens + typical.output_tokens
    once = shared * found.windows.count(None)
    each = kv.held(found.windows, shared + own, typical.turn_tokens) - once
    return max(0.0, (found.slots - once) / each)


def mixed_depth_fit(tokens: int, work: Workload, seed: int = 0, spread: float = ONE_IN_100) -> float:
    """The knee when sessions are met at random depths: the number of them that is too much one time in a hundred.

    A session that has ended stays in the cache until all the others have had their turn, so it counts until then.
    """
    lives = [_depths(session.steps) for session in islice(work.sessions(seed, 0), SESSIONS)]
    depths = [depth for life in lives for depth in life]
    ended = sum(life[-1] for life in lives) / len(depths)
    mean, deviation = float(np.mean(depths)) + ended, float(np.std(depths))
    room = max(0.0, float(tokens - work.file.shared_tokens))
    # room = n mean + spread deviation sqrt(n)
    half = spread * deviation / (2 * mean)
    return (math.sqrt(half**2 + room / mean) - half) ** 2


def _depths(steps: tuple[workload.Step, ...]) -> list[float]:
    """Tokens of its own that a session holds after each of its turns."""
    grown = accumulate(step.new_tokens for step in steps)
    return [float(own + step.output_tokens) for own, step in zip(grown, steps, strict=True)]


def speed(launch: Launch) -> Speed | None:
    """As fitted to a run of that machine, else by the card's data sheet; None where neither is at hand."""
    fitted = launch.file.speed
    if fitted is not None and (fitted.model or launch.model, fitted.tp) == (launch.model, launch.tp):
        unseen = fitted.kv not in ("", launch.kv)  # another precision is read at another speed
        return replace(fitted, below=max(fitted.below, UNSEEN), past=max(fitted.past, UNSEEN)) if unseen else fitted
    card = launch.file.card
    if card is None or (peak := _peak(launch, card, division.parts(launch)[0])) is None:
        return None
    return replace(
        peak,
        weights_s=peak.weights_s / BANDWIDTH_SHARE,
        token_s=peak.token_s / MATRIX_SHARE,
        attend_s=peak.attend_s / ATTENTION_SHARE,
        read_s=peak.read_s / BANDWIDTH_SHARE,
        sequence_s=0.0,
        request_s=REQUEST_S,
        source=f"the data sheet of {card.name}, and the shares of it that the study's L4 reached",
    )


def roof(launch: Launch) -> Speed | None:
    """No server on these cards is faster: as was measured on such a machine, else by the card's data sheet."""
    seen, card, model = launch.file.roof, launch.file.card, _shapes(launch)
    if model is None or model.latent or any(model.windows):  # whose attention is another sum
        return None
    if seen is not None:
        if seen.fp8_tflops is None and card is not None:
            seen = replace(seen, fp8_tflops=card.fp8_tflops)
        told = (seen.bf16_tflops, seen.fp8_tflops, seen.bandwidth_gb_s)
        return _peak(launch, seen, launch.cards, "; ".join(dict.fromkeys(fact.source for fact in told if fact)))
    return _peak(launch, card, launch.cards, f"the data sheet of {card.name}") if card is not None else None


def _shapes(launch: Launch) -> Geometry | None:
    try:
        return division.shapes_of(launch)
    except Unknown:
        return None


def _peak(launch: Launch, of: Card | Roof, gpus: int, source: str = "") -> Speed | None:
    """With nothing lost on the way: None where the model's shapes or the cache's layout are not known."""
    if (model := _shapes(launch)) is None:
        return None
    each = kv_bytes_per_token(model, launch.precision.dtype)
    if each is None:
        return None
    narrow = of.fp8_tflops if model.weight_bytes <= 1 else None
    rate, attention = (narrow or of.bf16_tflops).value * 1e12 * gpus, of.bf16_tflops.value * 1e12 * gpus
    bandwidth = of.bandwidth_gb_s.value * 1e9 * gpus
    return Speed(
        step_s=0.0,
        weights_s=model.active_bytes / bandwidth,
        token_s=2 * model.active_parameters / rate,
        attend_s=4 * model.layers * model.heads * model.head_dim / attention,
        read_s=each / bandwidth,
        sequence_s=model.head_operations / attention,
        request_s=0.0,
        said_s=0.0,
        source=source,
    )


def level_duration_s(
    speed: Speed, workload: Workload, case: str, concurrency: int, requests: int, sessions_fit: float | None
) -> float:
    """Prefill is serial, decode is shared by all who are decoding; past the knee half the history is paid again."""
    typical, bounds, shared = workload.typical(), workload.file.bounds, workload.file.shared_tokens
    new = {"best": float(bounds.fresh_tokens), "worst": typical.own_tokens}.get(case, typical.turn_tokens)
    if case in ("realistic", "openai") and sessions_fit is not None and concurrency > sessions_fit:
        new += typical.own_tokens / 4
    depth = shared + typical.own_tokens / 2
    prefill = speed.step(round(new), new * depth, 0, 1)
    decode = speed.step(concurrency, 0.0, round(concurrency * depth), concurrency) / concurrency
    come = speed.request_s + speed.way_s / concurrency
    return requests * (come + depth * speed.said_s + prefill + typical.output_tokens * decode)
