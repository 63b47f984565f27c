"""A level that one event loop cannot truthfully carry: several processes play it, each with connections of its own.

Every process plays its share of the sessions, from one agreed moment on; their records are put in order of time here.
"""

import asyncio
import contextlib
import math
import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import Any

from bench import client, connection, pulse
from bench.client import Client, Target
from bench.errors import BenchError
from bench.load import ALL, Level, Performance, Send, Share, Stage, WallClock
from bench.official import Sdk
from bench.pulse import Pulse
from bench.records import TurnRecord
from bench.workload import Content, Workload

CARRIED = 512  # sessions, by one loop: as many as `make bench-client` shows it to be truthful with
SHIP_S = 0.25
SLACK_S = 1.0  # no record takes longer from its end until it is made
STOP_S = 5.0
SOON_S = 0.2

Keep = Callable[[TurnRecord], None]


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
    share: Share = ALL

    def sender(self) -> Client | Sdk:
        return Sdk(self.target) if self.level.case == "openai" else Client(self.target)

    def performance(self, send: Send) -> Performance:
        stage = Stage(self.content, self.block_size, send, WallClock(self.target.epoch))
        return Performance(self.level, self.workload, stage, self.seed, self.share)


async def play(part: Part, processes: int, keep: Keep, felt: Callable[[Pulse], None]) -> list[TurnRecord]:
    """Every record is handed to `keep` soon after its end, in order of time."""
    processes = min(processes, part.level.concurrency)
    if processes == 1:
        return await _alone(part, keep, felt)
    order = Order(processes, keep)
    with contextlib.ExitStack() as stack:
        shares = [replace(part, share=Share(number, processes)) for number in range(processes)]
        actors = [stack.enter_context(contextlib.closing(Actor(share, order, felt))) for share in shares]
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
        finally:
            order.flush()
    return order.records


async def _alone(part: Part, keep: Keep, felt: Callable[[Pulse], None]) -> list[TurnRecord]:
    async with contextlib.aclosing(part.sender()) as sender:
        performance = part.performance(client.keeping(sender, keep))
        await performance.warm_up()
        await sender.open(part.level.concurrency)
        async with pulse.felt(felt):
            await performance.run(performance.stage.clock.now())
    return performance.records


async def _cut(actors: "Sequence[Actor]") -> None:
    """What is under way goes on file as cut."""
    for actor in actors:
        actor.cue(None)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(STOP_S):
            await asyncio.gather(*(actor.ended.wait() for actor in actors))


class Order:
    """The records of several processes in order of time: held back until none can come that ended before."""

    def __init__(self, processes: int, keep: Keep) -> None:
        self.records: list[TurnRecord] = []
        self._keep = keep
        self._until = [-math.inf] * processes
        self._held: list[TurnRecord] = []

    def add(self, number: int, until: float, records: Sequence[TurnRecord]) -> None:
        """Of one process, all that ended before `until` and have not been added yet."""
        self._held += records
        self._until[number] = until
        self._release(min(self._until))

    def flush(self) -> None:
        self._release(math.inf)

    def _release(self, until: float) -> None:
        ready = sorted((record for record in self._held if record.end_s < until), key=lambda record: record.end_s)
        self._held = [record for record in self._held if record.end_s >= until]
        self.records += ready
        for record in ready:
            self._keep(record)


class Actor:
    """One of the processes, as the first one sees it."""

    def __init__(self, part: Part, order: Order, felt: Callable[[Pulse], None]) -> None:
        self._number, self._order, self._felt = part.share.number, order, felt
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
            case (until, records):
                self._order.add(self._number, until, records)
            case _:
                self._said.put_nowait(said)

    def close(self) -> None:
        self._loop.remove_reader(self._pipe.fileno())
        self._process.terminate()
        self._process.join(STOP_S)
        self._process.kill()
        self._pipe.close()


def _act(pipe: Connection, part: Part) -> None:
    """The life of such a process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first one says when to stop
    connection.run(_perform(pipe, part))


async def _perform(pipe: Connection, part: Part) -> None:
    ended: list[TurnRecord] = []
    cues = _cues(pipe)
    clock = WallClock(part.target.epoch)

    def tell(what: Any) -> None:
        with contextlib.suppress(OSError):  # the first one is gone
            pipe.send(what)

    def ship(until: float) -> None:
        tell((until, ended))
        ended.clear()

    async def keep_shipping() -> None:
        while True:
            await asyncio.sleep(SHIP_S)
            ship(clock.now() - SLACK_S)

    shipping = asyncio.create_task(keep_shipping())
    try:
        async with contextlib.aclosing(part.sender()) as sender:
            performance = part.performance(client.keeping(sender, ended.append))
            await cues.get()
            await performance.warm_up()
            tell("warm")
            await cues.get()
            await sender.open(part.share.size(part.level.concurrency))
            async with pulse.felt(tell):
                tell("ready")
                await performance.run(await cues.get())
            await asyncio.sleep(0)  # the last records are kept one turn of the loop after their turns
    except asyncio.CancelledError:
        pass
    finally:
        shipping.cancel()
        ship(math.inf)
    tell("end")


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
