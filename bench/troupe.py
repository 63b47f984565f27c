"""A level that one event loop cannot truthfully carry: several processes play it, each with connections of its own.

Every process plays its share of the sessions, from one agreed moment on, and writes its records itself: whatever
becomes of the others, what has ended is on file. The first one is told of them soon after.
"""

import asyncio
import contextlib
import math
import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

from bench import connection, interrupt, pulse
from bench.client import Client, Keeping, Target
from bench.errors import BenchError
from bench.load import ALL, Level, Performance, Send, Share, Stage, WallClock
from bench.official import Sdk
from bench.pulse import Pulse
from bench.records import Folder, TurnRecord
from bench.workload import Content, Workload

CARRIED = 512  # sessions, by one loop: as many as `make bench-client` shows it to be truthful with
SHIP_S = 0.25
STOP_S = 5.0
SOON_S = 0.2
ENOUGH = "enough"  # said to those who play: begin no further turn

Ended = Callable[[TurnRecord], bool | None]  # True: that is enough


def needed(sessions: int) -> int:
    """Processes: one for as many as it carries, and never more than there are cores."""
    return max(1, min(math.ceil(sessions / CARRIED), os.cpu_count() or 1))


@dataclass(frozen=True, slots=True)
class Part:
    """All that a process needs to know of what it plays."""

    level: Level
    workload: Workload
    content: Content
    block_size: int
    target: Target
    seed: int
    folder: Folder
    share: Share = ALL

    def sender(self) -> Client | Sdk:
        return Sdk(self.target) if self.level.case == "openai" else Client(self.target)

    def performance(self, send: Send) -> Performance:
        stage = Stage(self.content, self.block_size, send, WallClock(self.target.epoch))
        return Performance(self.level, self.workload, stage, self.seed, self.share)


async def play(part: Part, processes: int, ended: Ended, felt: Callable[[Pulse], None]) -> None:
    """Every record is on file when its turn has ended, and handed to `ended` soon after."""
    processes = min(processes, part.level.concurrency)
    if processes == 1:
        return await _alone(part, ended, felt)
    with contextlib.ExitStack() as stack:
        shares = [replace(part, share=Share(number, processes)) for number in range(processes)]
        actors: list[Actor] = []
        told = partial(_pass_on, actors, ended)
        actors += [stack.enter_context(contextlib.closing(Actor(share, told, felt))) for share in shares]
        try:
            for actor in actors:  # one after another: who comes later finds the shared prompt cached
                actor.cue("warm up")
                await actor.heard("warm")
            for actor in actors:
                actor.cue("open")
            for actor in actors:
                await actor.heard("ready")
            start = WallClock(part.target.epoch).now() + SOON_S
            for actor in actors:
                actor.cue(start)
            await asyncio.gather(*(actor.heard("end") for actor in actors))
        except BaseException:
            await _cut(actors)
            raise


async def _alone(part: Part, ended: Ended, felt: Callable[[Pulse], None]) -> None:
    def keep(record: TurnRecord) -> None:
        part.folder.keep(record)
        if ended(record):
            performance.end()

    async with contextlib.aclosing(part.sender()) as sender:
        keeping = Keeping(sender, keep)
        performance = part.performance(keeping.send)
        await performance.warm_up()
        await sender.open(part.level.concurrency)
        async with pulse.felt(felt):
            await performance.run(performance.stage.clock.now())
        await keeping.settle()


def _pass_on(actors: "Sequence[Actor]", ended: Ended, record: TurnRecord) -> None:
    """What one of them told; and to all of them, when it was enough."""
    if ended(record):
        for actor in actors:
            actor.cue(ENOUGH)


async def _cut(actors: "Sequence[Actor]") -> None:
    """What is under way goes on file as cut."""
    for actor in actors:
        actor.cue(None)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(STOP_S):
            await asyncio.gather(*(actor.ended.wait() for actor in actors))


class Actor:
    """One of the processes, as the first one sees it."""

    def __init__(self, part: Part, told: Ended, felt: Callable[[Pulse], None]) -> None:
        self._told, self._felt = told, felt
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_act, args=(theirs, part), daemon=True)
        self._process.start()
        theirs.close()
        self._said: asyncio.Queue[str | Exception | None] = asyncio.Queue()
        self.ended = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._pipe.fileno(), self._hear)

    def cue(self, what: Any) -> None:
        with contextlib.suppress(OSError):  # it is gone, which `heard` will tell
            self._pipe.send(what)

    async def heard(self, wanted: str) -> None:
        said = await self._said.get()
        if isinstance(said, Exception):
            raise said
        if said != wanted:
            raise BenchError(f"a client process ended with exit code {self._process.exitcode}", "see what it printed")

    def _hear(self) -> None:
        try:
            said = self._pipe.recv()
        except (EOFError, OSError):
            self._loop.remove_reader(self._pipe.fileno())
            self._process.join(STOP_S)
            said = None
        try:
            self._take(said)
        except Exception as problem:  # no disk, say: nobody waits for this call
            self._said.put_nowait(problem)

    def _take(self, said: Any) -> None:
        if said is None or said == "end":
            self.ended.set()
        match said:
            case Pulse():
                self._felt(said)
            case list():
                for record in said:
                    self._told(record)
            case _:
                self._said.put_nowait(said)

    def close(self) -> None:
        self._loop.remove_reader(self._pipe.fileno())
        self._process.kill()
        self._process.join(STOP_S)
        self._pipe.close()


def _act(pipe: Connection, part: Part) -> None:
    """The life of such a process."""
    for number in interrupt.ASKED:  # a whole group may be asked; the first one says when to stop
        signal.signal(number, signal.SIG_IGN)
    connection.run(_perform(pipe, part))


async def _perform(pipe: Connection, part: Part) -> None:
    ended: list[TurnRecord] = []
    cues = _cues(pipe)

    def keep(record: TurnRecord) -> None:
        part.folder.keep(record)
        ended.append(record)

    def tell(what: Any) -> None:
        with contextlib.suppress(OSError):  # the first one is gone
            pipe.send(what)

    def ship() -> None:
        tell(ended)
        ended.clear()

    async def keep_shipping() -> None:
        while True:
            await asyncio.sleep(SHIP_S)
            ship()

    shipping = asyncio.create_task(keep_shipping())
    try:
        async with contextlib.aclosing(part.sender()) as sender:
            keeping = Keeping(sender, keep)
            performance = part.performance(keeping.send)
            await cues.get()
            await performance.warm_up()
            tell("warm")
            await cues.get()
            await sender.open(part.share.size(part.level.concurrency))
            async with pulse.felt(tell):
                tell("ready")
                start = await cues.get()
                ending = asyncio.create_task(_end(performance, cues))
                await performance.run(start)
                ending.cancel()
            await keeping.settle()
    except asyncio.CancelledError:
        pass
    except BenchError as problem:  # no disk, say
        tell(problem)
    finally:
        shipping.cancel()
        ship()
    tell("end")


async def _end(performance: Performance, cues: "asyncio.Queue[Any]") -> None:
    while await cues.get() != ENOUGH:
        pass
    performance.end()


def _cues(pipe: Connection) -> "asyncio.Queue[Any]":
    """What the first process says; its end, or its word to stop, ends the play."""
    cues: asyncio.Queue[Any] = asyncio.Queue()
    loop, play = asyncio.get_running_loop(), asyncio.current_task()

    def hear() -> None:
        try:
            said = pipe.recv()
        except (EOFError, OSError):
            said = None
        if said is None:
            assert play is not None
            loop.remove_reader(pipe.fileno())
            play.cancel()
        cues.put_nowait(said)

    loop.add_reader(pipe.fileno(), hear)
    return cues
