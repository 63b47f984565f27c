"""What the agents do: a TOML file and a seed become sessions, a session becomes turns."""

import json
import math
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from bench import tables
from bench.errors import BenchError

MOST_TURNS = 10_000
MOST_TOKENS = 100_000_000  # of a context: no model reads so many, and a slip of the pen must not fill the memory
Prompt = tuple[Any, ...]  # tokens in the target's own notation, in pieces that follow each other as they stand
Owner = Literal["shared", "level", "session"]


@dataclass(frozen=True, slots=True)
class Spread:
    """A size that varies: log-normal by its mean and standard deviation, uniform without one; cut to min and max."""

    min: int
    max: int
    mean: float | None = None
    std: float | None = None

    def __post_init__(self) -> None:
        if self.min > self.max:
            raise ValueError(f"min {self.min} is above max {self.max}")
        if (self.mean is None) != (self.std is None):
            raise ValueError("mean and std go together")
        if self.mean is not None and self.mean < 1:
            raise ValueError(f"mean {self.mean:.3g} is less than one")

    def draw(self, rng: np.random.Generator) -> int:
        if self.mean is None or self.std is None:
            return int(rng.integers(self.min, self.max + 1))
        variance = math.log(1 + (self.std / self.mean) ** 2)
        drawn = rng.lognormal(math.log(self.mean) - variance / 2, math.sqrt(variance))
        return min(self.max, max(self.min, round(drawn)))


Size = int | Spread


def _draw(size: Size, rng: np.random.Generator) -> int:
    return size.draw(rng) if isinstance(size, Spread) else size


def _largest(size: Size) -> int:
    return size.max if isinstance(size, Spread) else size


@dataclass(frozen=True, slots=True)
class SessionShape:
    turns: Size
    turn_tokens: Size  # what the context grows by each turn, the answer to the turn before included
    output_tokens: Size
    max_context: int | None = None  # a session ends before its context passes this

    def __post_init__(self) -> None:
        if _smallest(self.turns) < 1 or _smallest(self.output_tokens) < 1:
            raise ValueError("a session has at least one turn, and a turn at least one output token")
        if _largest(self.turns) > MOST_TURNS:
            raise ValueError(f"a session has at most {MOST_TURNS:,} turns")
        if _smallest(self.turn_tokens) <= _largest(self.output_tokens) and _largest(self.turns) > 1:
            raise ValueError("turn_tokens holds the answer before it, so it must be above output_tokens")


def _smallest(size: Size) -> int:
    return size.min if isinstance(size, Spread) else size


@dataclass(frozen=True, slots=True)
class Arrivals:
    """When sessions begin. Closed: one ends, the next begins. Poisson: at a rate, whatever the server does."""

    start: Literal["together", "spread"] = "together"
    sessions_per_s: float | None = None

    def __post_init__(self) -> None:
        if self.sessions_per_s == 0:
            raise ValueError("sessions_per_s is 0: no session would ever begin")


@dataclass(frozen=True, slots=True)
class Bounds:
    """Single requests at full depth that bracket the sessions: all cached, or nothing but the shared prompt."""

    fresh_tokens: int = 200  # of a hit: new behind the cached context
    bust_tokens: int = 32  # of a miss: between the shared prompt and the context, so that only the former hits
    miss_depth: Literal["peak", "uniform"] = "peak"  # how deep in its session a miss strikes


@dataclass(frozen=True, slots=True)
class WorkloadFile:
    summary: str
    shared_tokens: int
    session: SessionShape
    arrivals: Arrivals = Arrivals()
    bounds: Bounds = Bounds()


@dataclass(frozen=True, slots=True)
class Workload:
    name: str
    file: WorkloadFile
    digest: str

    def longest_context(self) -> int:
        """Tokens of the longest context any case can reach, its last answer included."""
        shape = self.file.session
        own = _largest(shape.turns) * _largest(shape.turn_tokens)
        if shape.max_context is not None:
            own = min(own, shape.max_context - self.file.shared_tokens)
        extra = max(self.file.bounds.fresh_tokens, self.file.bounds.bust_tokens)
        return self.file.shared_tokens + own + extra + _largest(shape.output_tokens)

    def typical(self, seed: int = 0, sessions: int = 64) -> "Typical":
        plans = [self._steps(seed, index) for index in range(sessions)]
        turns = sum(map(len, plans))
        return Typical(
            turns=turns / sessions,
            own_tokens=sum(step.new_tokens for steps in plans for step in steps) / sessions,
            turn_tokens=sum(step.new_tokens for steps in plans for step in steps) / turns,
            output_tokens=sum(step.output_tokens for steps in plans for step in steps) / turns,
        )

    def _steps(self, seed: int, index: int) -> tuple["Step", ...]:
        """Sizes depend on the seed and the session alone: runs and levels with one seed replay the same shapes."""
        shape = self.file.session
        rng = np.random.default_rng([seed, index])
        steps: list[Step] = []
        context = self.file.shared_tokens
        for _ in range(_draw(shape.turns, rng)):
            step = Step(_draw(shape.turn_tokens, rng), _draw(shape.output_tokens, rng))
            context += step.new_tokens
            if steps and shape.max_context is not None and context + step.output_tokens > shape.max_context:
                break
            steps.append(step)
        return tuple(steps)

    def sessions(self, seed: int, concurrency: int) -> Iterator["Session"]:
        """The realistic case, without end; with `spread` the first ones are met in the middle of their lives."""
        rng = np.random.default_rng([seed, concurrency, 1])
        index = 0
        while True:
            steps = self._steps(seed, index)
            spread = self.file.arrivals.start == "spread" and index < concurrency
            depth = int(rng.integers(len(steps))) if spread else 0
            history = sum(step.new_tokens for step in steps[:depth])
            opening = (Part("shared", self.file.shared_tokens), Part("session", history))
            yield Session(index, opening, steps[depth:], first_turn=depth + 1, cached_parts=2 if depth else 1)
            index += 1

    def single_shots(self, seed: int, miss_rate: float) -> Iterator["Session"]:
        """Requests at full depth, each a session of its own; a share `miss_rate` of them finds no context cached."""
        typical, bounds, shared = (
            self.typical(seed),
            self.file.bounds,
            Part("shared", self.file.shared_tokens),
        )
        rng = np.random.default_rng([seed, round(miss_rate * 1e6), 2])
        context, output = round(typical.own_tokens), round(typical.output_tokens)
        index = 0
        while True:
            turn = depth = max(1, round(typical.turns))
            if rng.random() < miss_rate:
                if bounds.miss_depth == "uniform":
                    depth = int(rng.integers(1, turn + 1))
                bust = Part("session", bounds.bust_tokens)
                opening: tuple[Part, ...] = (shared, bust, Part("level", context * depth // turn))
                yield Session(index, opening, (Step(0, output),), depth, cached_parts=1)
            else:
                opening = (shared, Part("level", context))
                yield Session(index, opening, (Step(bounds.fresh_tokens, output),), depth, cached_parts=2)
            index += 1


@dataclass(frozen=True, slots=True)
class Typical:
    """Means over sessions: what the arithmetic before a run works with."""

    turns: float
    own_tokens: float  # unique to a session at its last turn
    turn_tokens: float
    output_tokens: float


@dataclass(frozen=True, slots=True)
class Step:
    new_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True)
class Part:
    """A stretch of a prompt, the same for all who share its owner."""

    owner: Owner
    tokens: int


@dataclass(frozen=True, slots=True)
class Session:
    index: int
    opening: tuple[Part, ...]
    steps: tuple[Step, ...]
    first_turn: int
    cached_parts: int  # of the opening: how many stand in the cache before the first turn

    @property
    def cached_tokens(self) -> int:
        return sum(part.tokens for part in self.opening[: self.cached_parts])


@dataclass(frozen=True, slots=True)
class Turn:
    """One request to be sent."""

    variant: str
    case: str
    concurrency: int
    repeat: int
    session: int
    number: int  # 0: a warm-up, sent before the level is measured
    prompt: Prompt
    prompt_tokens: int
    eligible_tokens: int
    output_tokens: int
    intended_s: float
    attempt: int = 0  # at its level


@dataclass(frozen=True)
class Content:
    """Token sequences that nobody has sent before: unique to seed, run, level and session."""

    words: tuple[bytes, ...]
    separator: bytes
    seed: int
    salt: int  # of the run

    @cached_property
    def width(self) -> int:
        """Of every word, its separator included."""
        return len(self.separator) + max(map(len, self.words))

    @cached_property
    def _spelled(self) -> Any:
        """Words of one width can be drawn as rows of one array: one by one they would cost more than the request."""
        spelled = [self.separator + word.rjust(self.width - len(self.separator)) for word in self.words]
        return np.frombuffer(b"".join(spelled), np.uint8).reshape(len(spelled), self.width)

    def text(self, *identity: int, tokens: int) -> memoryview:
        """Each word behind a separator."""
        rng = np.random.default_rng([self.seed, self.salt, *identity])
        drawn = rng.integers(len(self.words), size=tokens, dtype=np.int32)
        return memoryview(self._spelled.take(drawn, axis=0).tobytes())

    def said(self, answer: bytes, tokens: int) -> memoryview:
        """An answer, as the next prompt repeats it."""
        return memoryview(self.separator + answer if answer else b"")

    def extend(self, prompt: Prompt, text: memoryview) -> Prompt:
        """What has been said stays where it is: nothing is copied."""
        return (*prompt, text if prompt else text[len(self.separator) :]) if text else prompt


def load(name: str) -> Workload:
    path = tables.find("workloads", name)
    file, digest = tables.read(path, WorkloadFile)
    return _readable(Workload(Path(path).stem, file, digest), str(path))


def _readable(workload: Workload, where: str) -> Workload:
    if (longest := workload.longest_context()) > MOST_TOKENS:
        raise BenchError(f"{where}: a session grows to {longest:,} tokens, which no model reads")
    return workload


def changed(base: Workload, keys: Sequence[str], value: str) -> Workload:
    """With one key of its file set, as `value` would be written there; a word needs no quotes here."""
    name = f"{base.name} with {'.'.join(keys)}={value}"
    try:
        told: Any = tomllib.loads(f"value = {value}")["value"]
    except ValueError:
        told = value
    file: dict[str, Any] = asdict(base.file)
    place = file
    for key in keys[:-1]:
        place = place.setdefault(key, {})
        if not isinstance(place, dict):
            raise BenchError(f"workload {name}: {key} has no keys of its own")
    place[keys[-1]] = told
    made: WorkloadFile = tables.convert(file, WorkloadFile, f"workload {name}")
    return _readable(Workload(name, made, tables.digest(json.dumps(file, sort_keys=True).encode())), name)


def fits(workload: Workload, context: int) -> None:
    if workload.longest_context() > context:
        raise BenchError(
            f"workload {workload.name}: its longest context is {workload.longest_context():,} tokens, "
            f"--max-model-len is {context:,}",
            "give --max-model-len behind --, a model with a longer context, or a workload with shorter sessions",
        )
