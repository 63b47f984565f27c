"""Where and how vLLM is served: a TOML file a machine, and the command line that its choices come to."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Literal

from bench import secret, tables
from bench.errors import BenchError
from bench.speed import Speed


@dataclass(frozen=True, slots=True)
class Fact:
    """A figure and where it comes from."""

    value: float
    source: str

    def __post_init__(self) -> None:
        if not self.value >= 1e-9:
            raise ValueError("value is nothing")
        if not self.source.strip():
            raise ValueError("source is nothing")


@dataclass(frozen=True, slots=True)
class Card:
    name: str
    memory_gb: Fact
    bandwidth_gb_s: Fact
    bf16_tflops: Fact
    price_usd_h: Fact
    fp8_tflops: Fact | None = None  # None: no such unit on the chip
    other_gb: Fact | None = None  # of the card's memory that is neither weights nor KV cache once vLLM is up


@dataclass(frozen=True, slots=True)
class Roof:
    """What a machine of this kind was seen to do at most: `make roof` measures it."""

    bf16_tflops: Fact
    bandwidth_gb_s: Fact
    fp8_tflops: Fact | None = None


@dataclass(frozen=True, slots=True)
class Serve:
    """Everything whose default moves between vLLM's versions is stated here, never left to it."""

    model: str
    max_model_len: int
    max_num_batched_tokens: int
    max_num_seqs: int
    gpu_memory_utilization: float
    start_s: float  # how long a start usually takes
    chunked_prefill: bool = True
    block_size: int | None = None
    before: tuple[str, ...] = ()  # words in front of the command
    args: tuple[str, ...] = ()
    env: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if wrong := [name for name in self.env if not re.fullmatch(r"[A-Za-z_]\w*", name)]:
            raise ValueError(f"env: {wrong[0]!r:.80} is not the name of a variable")


@dataclass(frozen=True, slots=True)
class Precision:
    dtype: str  # vLLM's own name
    gpu_memory_utilization: float | None = None
    tokens: int | None = None  # the cache's size where the recipe pins it, else as much as the memory gives
    source: str | None = None


@dataclass(frozen=True, slots=True)
class RecipeFile:
    summary: str
    device: Literal["cuda", "cpu"]
    serve: Serve
    kv: dict[str, Precision]
    card: Card | None = None
    roof: Roof | None = None  # None: the card's data sheet
    speed: Speed | None = None  # as fitted to a run there; None: by the card's data sheet
    caveat: str | None = None  # what a reader of the numbers must know


@dataclass(frozen=True, slots=True)
class Launch:
    """A recipe with the user's choices made: all that one server is started with."""

    name: str
    file: RecipeFile
    digest: str
    kv: str
    model: str
    tp: int = 1
    prefix_caching: bool = True
    telling: tuple[str, ...] = ()  # flags that make the vLLM at hand tell more of each request
    extra: tuple[str, ...] = ()  # the user's own flags, passed on unchanged; they win over ours

    def __post_init__(self) -> None:
        if not re.fullmatch(r"\w[\w.-]*", self.kv):
            raise BenchError(
                f"--kv {self.kv!r} is not the name of a precision", f"known here: {', '.join(self.file.kv)}"
            )

    @property
    def precision(self) -> Precision:
        by_dtype = {precision.dtype: precision for precision in self.file.kv.values()}
        return self.file.kv.get(self.kv) or by_dtype.get(self.kv) or Precision(dtype=self.kv)

    @property
    def cards(self) -> int:
        return cards(self.tp, self.extra)

    @property
    def utilization(self) -> float:
        return self.number("--gpu-memory-utilization") or 0.0

    @property
    def context(self) -> int:
        return int(self.number("--max-model-len") or 0)

    def number(self, name: str) -> float | None:
        """A flag's value as a number, in vLLM's notation (32k is 32,000, 32K is 32,768); None where it is not given."""
        text = self.flag(name)
        if text is None:
            return None
        try:
            value = float(text.rstrip("kKmM")) * {"k": 1e3, "K": 1 << 10, "m": 1e6, "M": 1 << 20}.get(text[-1:], 1)
        except ValueError:
            value = math.nan
        if not 0 <= value <= tables.MOST:
            raise BenchError(f"{name} {text} is not a number that vLLM could take")
        return value

    def flag(self, name: str) -> str | None:
        """The value a flag has on the final command line."""
        return value_of(name, [*self._ours(), *self.extra])

    def arguments(self, model: str, port: int | str = "FREE") -> list[str]:
        """What follows `vllm`; `model` is the folder or id to load, `port` ours to choose, once it starts."""
        return ["serve", model, *self._ours(port), *self.telling, *self.extra]

    def environment(self) -> dict[str, str]:
        env = {
            "VLLM_NO_USAGE_STATS": "1",
            "DO_NOT_TRACK": "1",
            "VLLM_SERVER_DEV_MODE": "1",
            **self.file.serve.env,
        }
        if self.model.startswith("synthetic:"):
            env["HF_HUB_OFFLINE"] = "1"
        if self.file.device == "cpu" and self.tp > 1:
            env["VLLM_CPU_OMP_THREADS_BIND"] = "|".join(str(core) for core in range(self.tp))
        return env

    def _ours(self, port: int | str = 0) -> list[str]:
        serve, precision = self.file.serve, self.precision
        flags: list[tuple[str, object]] = [
            ("--served-model-name", self.model),
            ("--host", "127.0.0.1"),
            ("--port", port),
            ("--max-model-len", serve.max_model_len),
            ("--max-num-batched-tokens", serve.max_num_batched_tokens),
            ("--max-num-seqs", serve.max_num_seqs),
            ("--gpu-memory-utilization", precision.gpu_memory_utilization or serve.gpu_memory_utilization),
            ("--kv-cache-dtype", precision.dtype),
            ("--tensor-parallel-size", self.tp),
            (_switch("enable-prefix-caching", self.prefix_caching), None),
            (_switch("enable-chunked-prefill", serve.chunked_prefill), None),
            ("--enable-prompt-tokens-details", None),
        ]
        if serve.block_size:
            flags.append(("--block-size", serve.block_size))
        if precision.tokens and serve.block_size:
            flags.append(("--num-gpu-blocks-override", precision.tokens // serve.block_size))
        if self.model.startswith("synthetic:"):
            flags.append(("--load-format", "dummy"))
            if self.model.lower().endswith("-fp8"):
                flags.append(("--quantization", "fp8"))
        theirs = {topic(word) for word in self.extra if word.startswith("-")}
        kept = [(name, value) for name, value in flags if topic(name) not in theirs]
        return [str(word) for pair in kept for word in pair if word is not None] + list(serve.args)


def value_of(name: str, line: Sequence[str]) -> str | None:
    """Of a flag, on a command line; the last word counts."""
    found = None
    for word, after in pairwise([*line, ""]):
        if word.startswith("-") and topic(word) == topic(name):
            found = word.partition("=")[2] or after
    return found


def cards(tp: int, extra: Sequence[str]) -> int:
    """That one `vllm serve` takes."""
    others = (value_of(name, extra) or "1" for name in ("--pipeline-parallel-size", "--data-parallel-size"))
    return tp * math.prod(int(number) for number in others if number.isdigit())


def _switch(name: str, on: bool) -> str:
    return f"--{name}" if on else f"--no-{name}"


SHORT = {"-tp": "tensor-parallel-size", "-pp": "pipeline-parallel-size", "-dp": "data-parallel-size"}


def topic(flag: str) -> str:
    """`--no-enable-x`, `--enable-x` and `--enable-x=1` speak of one thing; so do `-tp` and its long name."""
    name = flag.partition("=")[0].removeprefix("--no-").removeprefix("--").replace("_", "-")
    return SHORT.get(name, name)


def load(gpu: str) -> tuple[str, RecipeFile, str]:
    path = tables.find("launch", gpu)
    file, digest = tables.read(path, RecipeFile)
    words = [*(f"{name}={value}" for name, value in file.serve.env.items()), *file.serve.before, *file.serve.args]
    if given := secret.betrayed(words):
        raise BenchError(f"{path}: serve: {given}: no secret belongs in a file", "export it: vLLM inherits it")
    for name, precision in file.kv.items():
        if precision.tokens and not file.serve.block_size:
            raise BenchError(f"{path}: kv: {name}: tokens needs serve: block_size, for vLLM counts the cache in blocks")
    return Path(path).stem, file, digest


OPTIONS = {
    "kv-cache-dtype": "--kv",
    "tensor-parallel-size": "--tp",
    "enable-prefix-caching": "--prefix-caching or --no-prefix-caching",
}


def launch(gpu: str, kv: str, model: str | None, tp: int, prefix_caching: bool, extra: tuple[str, ...]) -> Launch:
    if ours := [word for word in extra if word.startswith("-") and topic(word) in OPTIONS]:
        raise BenchError(f"{ours[0]} behind --: bench counts with it", f"say it with {OPTIONS[topic(ours[0])]}")
    name, file, digest = load(gpu)
    return Launch(name, file, digest, kv, model or file.serve.model, tp, prefix_caching, extra=extra)
