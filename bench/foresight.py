"""A run that has not happened: the same sessions on a simulated server, on file as a real run's would be.

What comes of it is concluded and reported by the same code; run.json says `simulated`, and whatever is made of it too.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from bench import capacity, load, stats, virtual
from bench.errors import BenchError
from bench.load import Level, Stage
from bench.recipe import Launch
from bench.records import TurnRecord
from bench.simulate import Engine, Outline, Setup
from bench.speed import Speed
from bench.stats import LevelRow
from bench.workload import Workload

MOST_FORETOLD = 20_000  # requests in all: some 8 s, in which the server has nothing to do
GPU_BLOCK = 16  # tokens, where nothing says otherwise: vLLM's default on a card
SAMPLE_S = 1.0


@dataclass(frozen=True, slots=True)
class Simulated:
    """One server that there could be."""

    name: str
    launch: Launch
    setup: Setup
    speed: Speed

    @property
    def tokens(self) -> int:
        return (self.setup.blocks + 1) * self.setup.block_size


def simulated(name: str, launch: Launch, speed: Speed | None = None, tokens: int | None = None) -> Simulated:
    """`speed`: as fitted; `tokens`: of its cache, where a server has said so. Else what is on file."""
    if launch.number("--data-parallel-size"):
        raise BenchError(f"{name}: replicas are not simulated", "plan one of them: each has its own cache and sessions")
    found = capacity.expected(launch)
    tokens = tokens if tokens is not None else found.tokens
    if tokens is None:
        raise BenchError(f"{name}: {found.why}", "name a model and a card whose sizes are on file")
    if found.windows != (None,):
        hint = "bench sweep --dry-run counts how many sessions fit"
        raise BenchError(f"{name}: layers that keep no more than a window of each session are not simulated", hint)
    speed = speed or capacity.speed(launch)
    if speed is None:
        raise BenchError(f"{name}: nobody knows how fast it is", "bench plan --calibrate RUN fits that to a real run")
    size = _least_one(launch, "--block-size", GPU_BLOCK)
    setup = Setup(
        block_size=size,
        blocks=tokens // size - 1,  # vLLM keeps the first for itself
        budget=_least_one(launch, "--max-num-batched-tokens", 2048),
        most_sequences=_least_one(launch, "--max-num-seqs", 256),
        chunked=launch.file.serve.chunked_prefill and "--no-enable-chunked-prefill" not in launch.extra,
        caching=launch.prefix_caching,
        threshold=int(launch.number("--long-prefill-token-threshold") or 0),
    )
    return Simulated(name, launch, setup, speed)


def _least_one(launch: Launch, flag: str, default: int) -> int:
    value = launch.number(flag)
    if value is not None and value < 1:
        raise BenchError(f"{flag} {value:g}: vLLM would not start", "it has to be at least 1")
    return default if value is None else int(value)


@dataclass(frozen=True, slots=True)
class Played:
    """One level, warm-ups and samples included."""

    records: list[TurnRecord]
    samples: list[dict[str, Any]]


def play(
    server: Simulated,
    level: Level,
    workload: Workload,
    seed: int,
    start_s: float = 0.0,
    enough: load.Enough = lambda _: False,
) -> Played:
    """On a cold cache, as every level begins; from `start_s` of the run's time on."""
    engine, samples = Engine(server.setup, server.speed), list[dict[str, Any]]()

    async def look() -> None:
        while True:
            samples.append({**level.tags, "t_s": start_s + engine.clock.now(), **engine.sample()})
            await asyncio.sleep(SAMPLE_S)

    async def go() -> list[TurnRecord]:
        looking = asyncio.create_task(look())
        stage = Stage(Outline(), server.setup.block_size, engine.send, engine.clock)
        played = await load.play(level, workload, stage, seed, enough)
        looking.cancel()
        samples.append({**level.tags, "t_s": start_s + engine.clock.now(), **engine.sample()})
        return played

    return Played([_later(one, start_s) for one in virtual.run(go())], samples)


def _later(one: TurnRecord, by: float) -> TurnRecord:
    if one.first_s is None or one.last_s is None or not by:
        return one
    return replace(
        one,
        intended_s=one.intended_s + by,
        sent_s=one.sent_s + by,
        first_s=one.first_s + by,
        last_s=one.last_s + by,
        end_s=one.end_s + by,
    )


def facts(server: Simulated) -> dict[str, Any]:
    """What run.json keeps of a server that was up; of this one, what it was made from."""
    cache: dict[str, Any] = {
        "block_size": server.setup.block_size,
        "blocks": server.setup.blocks + 1,
        "tokens": server.tokens,
    }
    cache["dtype"] = server.launch.precision.dtype
    told = {"cache": cache, "version": None, "models": [server.launch.model]}
    return {
        "server": {
            "base_url": "simulated",
            "model": server.launch.model,
            "version": None,
            "cache": cache,
            "started_by_us": False,
            "log": None,
            "command": " ".join(server.launch.arguments(server.launch.model)),
        },
        "started_s": 0.0,
        "settings": [told, told],
        "dialect": {"name": "simulated", "reports_cached": True},
        "capacity": asdict(capacity.expected(server.launch)),
        "roof": asdict(roof) if (roof := capacity.roof(server.launch)) else None,
        "simulated": {"setup": asdict(server.setup), "speed": asdict(server.speed)},
    }


def foretell(
    name: str, launch: Launch, tokens: int | None, levels: Sequence[Level], workload: Workload, seed: int
) -> dict[str, Any] | None:
    """What a real run is expected to show, for run.json: None of what is not simulated, or would take too long."""
    told = [level for level in levels if level.case != "openai"]  # which is no property of a server
    if sum(level.requests for level in told) > MOST_FORETOLD:
        return None
    try:
        server = simulated(name, launch, tokens=tokens)
        rows = [row(server, level, workload, seed) for level in told]
    except BenchError:
        return None
    return {
        "source": server.speed.source,
        "levels": [
            {"case": one.case, "concurrency": one.concurrency, **{name: getattr(one, name) for name in stats.HEADLINE}}
            for one in rows
        ],
    }


def row(server: Simulated, level: Level, workload: Workload, seed: int) -> LevelRow:
    own = [record for record in play(server, level, workload, seed).records if record.turn > 0]
    return stats.reduce(own, [], workload.file.shared_tokens)
