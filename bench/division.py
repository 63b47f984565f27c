"""A model and its cache over the GPUs of one server: who holds how much, and what is left for the cache."""

from collections.abc import Iterator
from dataclasses import dataclass

from bench import kv
from bench.errors import BenchError
from bench.geometry import Geometry, Unknown
from bench.model import shapes
from bench.recipe import Launch

BLOCK = {"cuda": 16, "cpu": 128}  # tokens, unless --block-size says otherwise
UNEVEN = 0.05  # of the room for the cache that one stage may have less than another without a word


@dataclass(frozen=True, slots=True)
class Division:
    """Bytes are those of one GPU of each stage."""

    model: Geometry
    dtype: str
    tp: int
    weights: tuple[float, ...]
    pools: tuple[float, ...]  # what weights and the rest leave; below zero where they do not fit
    slot_bytes: tuple[float, ...]

    @property
    def slots(self) -> float:
        """Of the stage that has the fewest."""
        return min(pool / each for pool, each in zip(self.pools, self.slot_bytes, strict=True))

    def all_gb(self, each: tuple[float, ...]) -> float:
        """Of all GPUs together."""
        return sum(each) * self.tp / 1e9

    def notes(self) -> Iterator[str]:
        """What a reader would not expect."""
        model, heads = self.model, self.model.kv_heads
        if self.dtype in kv.TURBOQUANT:
            plain = min(model.layers, 2 * kv.PLAIN_LAYERS)
            yield f"{self.dtype} keeps {plain} of {model.layers} layers in 16 bit"
        if model.latent is None and self.tp > heads:
            yield f"{heads} key-value heads on {self.tp} GPUs: each is kept {self.tp // heads} times"
        if model.latent is not None and self.tp > 1:
            yield f"the latent vector of a token is whole on each of {self.tp} GPUs: the cache is kept {self.tp} times"
        yield from self._of_windows()
        if max(self.pools) - min(self.pools) > UNEVEN * max(self.pools):
            least, most = min(self.pools) / 1e9, max(self.pools) / 1e9
            yield f"the stages leave {least:.1f} to {most:.1f} GB a GPU to the cache: the least counts"

    def _of_windows(self) -> Iterator[str]:
        seen = [window for window in self.model.windows if window]
        if seen:
            yield (
                f"{len(seen)} of {self.model.layers} layers keep the last {max(seen):,} tokens of a session:"
                " how many tokens vLLM says it holds depends on --max-model-len"
            )
        sizes = [len(group) for group in kv.groups(self.model)]
        if lost := sum(max(sizes) - size for size in sizes):
            yield f"the room of {lost} layers stays empty: vLLM fills groups of layers up to one size"


def shapes_of(launch: Launch) -> Geometry:
    method = launch.flag("--quantization") or launch.flag("-q")
    if method not in (None, "fp8"):
        raise Unknown(f"weights of {method:.80} are not on file")
    return shapes(launch.model, fp8_weights=method == "fp8")


def parts(launch: Launch) -> tuple[int, int]:
    """How many GPUs share each layer, and how many stages share the layers."""
    return launch.tp, max(1, int(launch.number("--pipeline-parallel-size") or 1))


def divided(launch: Launch) -> Division:
    card, model, (tp, pp) = launch.file.card, shapes_of(launch), parts(launch)
    if card is None or card.other_gb is None:
        raise Unknown("the card's memory is not at hand")
    if not model.divides(tp, pp):
        raise BenchError(
            f"{launch.model} has {model.heads} heads, {model.kv_heads} of keys and values, in {model.layers} layers:"
            f" vLLM cannot divide it by --tp {tp} and {pp} stages",
            "give a --tp that divides the heads, and no more stages than layers",
        )
    weights = model.stage_bytes(tp, pp)
    room = (card.memory_gb.value * launch.utilization - card.other_gb.value) * 1e9
    return Division(
        model,
        launch.precision.dtype,
        tp,
        weights,
        tuple(room - one for one in weights),
        kv.slot_bytes(model, launch.precision.dtype, tp, pp),
    )


def context(launch: Launch) -> int:
    return launch.context or shapes_of(launch).context


def admission(launch: Launch) -> kv.Admission:
    batches = parts(launch)[1] + (launch.file.device == "cuda")  # there the next one is prepared while the others run
    return kv.Admission(
        context=context(launch),
        block=int(launch.number("--block-size") or BLOCK[launch.file.device]),
        in_flight=batches * int(launch.number("--max-num-batched-tokens") or 0),
    )
