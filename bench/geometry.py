"""A model's shapes, and what its weights come to on each GPU. Norms and biases, under 0.1 % of them, are left out."""

from dataclasses import dataclass
from functools import cached_property

PADDED = 64  # vLLM rounds a vocabulary up to a multiple of it


class Unknown(ValueError):
    """Why something about a model cannot be told from its config.json."""


@dataclass(frozen=True, slots=True)
class Latent:
    """Attention of the DeepSeek kind (MLA): one compressed vector stands for the keys and values of all heads."""

    kv_rank: int
    rope: int
    nope: int
    value: int
    query_rank: int | None

    def parameters(self, hidden: int, heads: float) -> float:
        """With `heads` of them on a GPU; what leads into the compressed vectors is on every GPU whole."""
        query = self.query_rank or hidden
        down = (hidden * self.query_rank if self.query_rank else 0) + hidden * (self.kv_rank + self.rope)
        up = query * (self.nope + self.rope) + self.kv_rank * (self.nope + self.value) + self.value * hidden
        return down + up * heads


@dataclass(frozen=True, slots=True)
class Experts:
    count: int
    used: int  # by one token
    width: int
    shared: int  # width of what every token passes besides
    dense: frozenset[int]  # the layers that have none


@dataclass(frozen=True)
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
    weight_bytes: float  # of one parameter of a linear layer; embeddings and routers stay at 2
    expert_bytes: float
    windows: tuple[int | None, ...]  # of each layer: how many tokens back it sees, None is all
    tables_everywhere: bool = False  # vLLM puts both tables of words on every stage, used there or not
    latent: Latent | None = None
    experts: Experts | None = None

    @property
    def weights_bytes(self) -> float:
        return sum(self.stage_bytes())

    @cached_property
    def active_parameters(self) -> float:
        """Of the layers, those that one token passes."""
        return sum(sum(self._parameters(layer, 1, used_only=True)) for layer in range(self.layers))

    @cached_property
    def active_bytes(self) -> float:
        """What is read of the weights for one token."""
        return sum(self._layer_bytes(layer, 1, used_only=True) for layer in range(self.layers)) + self._table_bytes

    @property
    def head_operations(self) -> float:
        """To rate every word, for one token of an answer: a multiplication and an addition a parameter."""
        return 2.0 * self.vocabulary * self.hidden

    def stage_bytes(self, tp: int = 1, pp: int = 1) -> tuple[float, ...]:
        """On each GPU of each stage: the embedding is on the first, the head on the last."""
        table = self._table_bytes / tp
        found = [sum(self._layer_bytes(layer, tp) for layer in stage) for stage in self.stages(pp)]
        if self.tables_everywhere:
            return tuple(one + table * (1 if self.tied else 2) for one in found)
        found[0] += table
        if pp > 1 or not self.tied:
            found[-1] += table
        return tuple(found)

    def divides(self, tp: int, pp: int) -> bool:
        """Heads go whole to GPUs, or GPUs share each evenly."""
        shared = self.latent is not None or max(tp, self.kv_heads) % min(tp, self.kv_heads) == 0
        return self.heads % tp == 0 and shared and pp <= self.layers

    def stages(self, pp: int) -> list[range]:
        """vLLM's own split: what does not divide goes to the stages before the last."""
        each, left = divmod(self.layers, pp)
        sizes = [each + (1 <= pp - 1 - stage <= left) for stage in range(pp)]
        return [range(sum(sizes[:stage]), sum(sizes[: stage + 1])) for stage in range(pp)]

    @property
    def _table_bytes(self) -> float:
        return -(-self.vocabulary // PADDED) * PADDED * self.hidden * 2.0

    def _layer_bytes(self, layer: int, tp: int, used_only: bool = False) -> float:
        linear, experts, router = self._parameters(layer, tp, used_only)
        return linear * self.weight_bytes + experts * self.expert_bytes + router * 2

    def _parameters(self, layer: int, tp: int, used_only: bool = False) -> tuple[float, float, float]:
        """Of one GPU: linear layers, experts, router."""
        attention = self._attention(tp)
        if self.experts is None or layer in self.experts.dense:
            return attention + 3 * self.hidden * self.intermediate / tp, 0.0, 0.0
        count = self.experts.used if used_only else self.experts.count
        linear = attention + 3 * self.hidden * self.experts.shared / tp
        return linear, 3 * self.hidden * self.experts.width * count / tp, self.hidden * self.experts.count

    def _attention(self, tp: int) -> float:
        """A GPU has one key-value head at least: below that they are doubled."""
        if self.latent is not None:
            return self.latent.parameters(self.hidden, self.heads / tp)
        return 2 * self.hidden * self.head_dim * (self.heads / tp + max(1.0, self.kv_heads / tp))
