"""A level while it is played: what is told meanwhile goes on file at once, and a server that is lost ends it."""

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from bench import load, scrape, stats, troupe
from bench.errors import BenchError, Exit
from bench.journal import Journal
from bench.load import Level
from bench.pulse import Pulse
from bench.records import LINES, Folder, TurnRecord
from bench.server import Endpoint
from bench.troupe import Part

DEAF = 3  # requests in a row without an answer, at least: as many as there are sessions
REFUSED = 20  # in a row, at least, until the server is asked whether it is there at all


class Minutes:
    """What is told while a level is played: on file at once, and nowhere else, for it may last for days."""

    def __init__(
        self,
        folder: Folder,
        journal: Journal,
        target: Endpoint,
        processes: int | None,
        told: Callable[[TurnRecord], None],
    ) -> None:
        self._folder, self._journal, self._target = folder, journal, target
        self._processes, self._told = processes, told  # `told` of each request as it ends
        self._starts = {file: folder.size(file) for file in LINES}
        self._level: Level | None = None
        self._playing: asyncio.Task[None] | None = None
        self._asking: asyncio.Task[None] | None = None  # whether the server is there at all
        self._misses = 0  # requests in a row that had no answer
        self._enough: load.Enough = lambda _: False
        self._answers = 0  # or what came in their place
        self._lost: str | None = None  # why the level is given up

    def row(self) -> stats.LevelRow:
        samples, pulses = (
            list(self._folder.rows(file, self._starts[file])) for file in ("server.jsonl", "client.jsonl")
        )
        return stats.reduce(self._folder.records(self._starts["requests.jsonl"]), samples, pulses=pulses)

    async def take(self, part: Part, enough: load.Enough) -> int:
        """One repeat, on a cold cache; how many requests it had, which are fewer where enough was known."""
        now, target = load.WallClock(part.target.epoch).now, self._target
        self._level, self._enough, self._answers = part.level, enough, 0

        async def look() -> bool:
            sample = await target.metrics()
            if sample:
                self._sampled(now(), sample)
            return bool(sample)

        await target.reset_cache()
        watch = scrape.watching(target.base_url, target.key, now, self._sampled, limit_s=target.control_s)
        async with watch if await look() else contextlib.nullcontext():
            await self._play(part)
        await look()
        return self._answers

    async def _play(self, part: Part) -> None:
        """Given up where the server is lost."""
        processes = self._processes or troupe.needed(part.level.concurrency)
        self._playing = asyncio.create_task(troupe.play(part, processes, self._ended, self._felt))
        try:
            await self._playing
        except asyncio.CancelledError:
            if self._lost is None:
                raise
        finally:
            if self._asking:
                self._asking.cancel()
                self._asking = None
        why = self._lost or self._target.alive() or (self._misses and await self._target.silent())
        if why:
            self._journal.lose(part.level.play, why)
            hint = f"its log: {self._target.log}" if self._target.log else "bench did not start it: see its own log"
            raise BenchError(f"at C = {part.level.concurrency}: {why}", hint, Exit.SERVER)

    def _ended(self, record: TurnRecord) -> bool:
        """Is enough known of this level?"""
        self._told(record)
        self._answers += record.turn > 0 and record.status != "cut"
        self._hear(record)
        return bool(self._enough(record))

    def _hear(self, record: TurnRecord) -> None:
        if record.status in ("ok", "cut"):
            self._misses = 0
            return
        self._misses += 1
        self._give_up(self._target.alive() or self._deaf(record))
        if record.status != "timeout" and self._misses % max(REFUSED, record.concurrency) == 0:
            self._asking = self._asking or asyncio.create_task(self._ask())

    def _deaf(self, record: TurnRecord) -> str | None:
        """A server that lives and does not answer."""
        deaf = record.status == "timeout" and self._misses >= max(DEAF, record.concurrency)
        return f"the server answered none of {self._misses} requests in a row: {record.error}" if deaf else None

    async def _ask(self) -> None:
        why = await self._target.silent()
        self._give_up(why if self._misses else None)
        self._asking = None

    def _give_up(self, why: str | None) -> None:
        if why and self._lost is None and self._playing:
            self._lost = why
            self._playing.cancel()

    def _sampled(self, at: float, sample: scrape.Sample) -> None:
        self._note("server.jsonl", {"t_s": at, **sample, "energy_j": self._target.joules()})

    def _felt(self, one: Pulse) -> None:
        self._note("client.jsonl", asdict(one))

    def _note(self, file: str, row: dict[str, Any]) -> None:
        assert self._level is not None
        self._folder.append(file, {**self._level.tags, **row})
