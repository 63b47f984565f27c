"""Sessions become records: C coroutines, each awaiting one turn after another. Knows neither HTTP nor the simulator."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from typing import Protocol

import numpy as np

from bench.records import TurnRecord
from bench.workload import Arrivals, Content, Part, Session, Turn

Send = Callable[[Turn], Awaitable[TurnRecord]]

CASES = {"realistic": 0, "best": 1, "worst": 2}


class Clock(Protocol):
    def now(self) -> float: ...

    async def sleep_until(self, when: float) -> None: ...


@dataclass(frozen=True, slots=True)
class WallClock:
    """Seconds of the monotonic clock since `epoch`."""

    epoch: float

    def now(self) -> float:
        return time.perf_counter() - self.epoch

    async def sleep_until(self, when: float) -> None:
        await asyncio.sleep(max(0.0, when - self.now()))


@dataclass(frozen=True, slots=True)
class Level:
    """One concurrency of one case on one server."""

    variant: str
    case: str
    concurrency: int
    repeat: int
    requests: int

    @property
    def identity(self) -> tuple[int, ...]:
        """Seeds the content, so that no level ever sends what another has sent."""
        case = CASES[self.case] if self.case in CASES else 3 + round(1e6 * miss_rate(self.case))
        return (case, self.concurrency, self.repeat)


def miss_rate(case: str) -> float:
    """Of the single-request cases."""
    return {"best": 0.0, "worst": 1.0}[case] if case in CASES else float(case.removeprefix("miss="))


@dataclass(frozen=True, slots=True)
class Stage:
    """What a level is played on: the target's block size and notation, the way to send, the clock."""

    content: Content
    block_size: int
    send: Send
    clock: Clock


@dataclass(frozen=True, slots=True)
class Script:
    """A session with its words made: preparing them between two turns would be time taken from the server."""

    session: Session
    opening: bytes
    cached: bytes  # as much of the opening as the cache shall hold before the first turn
    additions: tuple[bytes, ...]


async def play(
    level: Level, sessions: Iterator[Session], arrivals: Arrivals, stage: Stage, seed: int
) -> list[TurnRecord]:
    """Warm up what the case presumes cached, then send `level.requests` turns; in the order in which they ended."""
    performance = Performance(level, stage)
    endless = (performance.script(session) for session in sessions)
    first = list(islice(endless, level.concurrency))
    spare = list(islice(endless, 1 + level.requests // max(1, len(first[0].additions))))
    cast = chain(first, spare, endless)
    await performance.warm_up(first)
    if arrivals.sessions_per_s is not None and level.case == "realistic":
        due = _poisson(arrivals.sessions_per_s, [seed, *level.identity], stage.clock.now())
        await performance.open_loop(cast, due)
    else:
        await performance.closed_loop(cast)
    return performance.records


def _poisson(rate: float, identity: list[int], start: float) -> Iterator[float]:
    rng = np.random.default_rng(identity)
    while True:
        start += float(rng.exponential(1 / rate))
        yield start


class Performance:
    """One level being played."""

    def __init__(self, level: Level, stage: Stage) -> None:
        self.level, self.stage = level, stage
        self.records: list[TurnRecord] = []
        self._left = level.requests

    def script(self, session: Session) -> Script:
        content, own = self.stage.content, (*self.level.identity, session.index)
        parts = [self._words(part, own, at) for at, part in enumerate(session.opening)]
        texts = [content.text(*own, 1000 + at, tokens=step.new_tokens) for at, step in enumerate(session.steps)]
        return Script(session, content.join(*parts), content.join(*parts[: session.cached_parts]), tuple(texts))

    def _words(self, part: Part, own: tuple[int, ...], at: int) -> bytes:
        """The shared prompt is one for the run, a common context one for the level, the rest the session's alone."""
        owner = {"shared": (), "level": self.level.identity, "session": (*own, at)}[part.owner]
        return self.stage.content.text(*owner, tokens=part.tokens)

    async def warm_up(self, first: list[Script]) -> None:
        """Send once, with one token of answer, every distinct beginning that the first turns shall find cached."""
        beginnings = {script.cached: script.session.cached_tokens for script in first}
        for number, (text, tokens) in enumerate(beginnings.items()):
            turn = self._turn(-1 - number, 0, text, tokens, 0, 1, self.stage.clock.now())
            self.records.append(await self.stage.send(turn))

    async def closed_loop(self, cast: Iterator[Script]) -> None:
        """C slots; where a session ends the next begins."""
        start = self.stage.clock.now()

        async def slot() -> None:
            due = start
            while self._left > 0:
                due = await self._perform(next(cast), due)

        async with asyncio.TaskGroup() as group:
            for _ in range(self.level.concurrency):
                group.create_task(slot())

    async def open_loop(self, cast: Iterator[Script], arrivals: Iterator[float]) -> None:
        """Sessions begin on an absolute schedule; one that finds C under way waits, and its wait counts."""
        free = asyncio.Semaphore(self.level.concurrency)

        async def guest(script: Script, due: float) -> None:
            try:
                await self._perform(script, due)
            finally:
                free.release()

        async with asyncio.TaskGroup() as group:
            for script, due in zip(cast, arrivals, strict=False):
                await self.stage.clock.sleep_until(due)
                await free.acquire()
                if self._left <= 0:
                    break
                group.create_task(guest(script, due))

    async def _perform(self, script: Script, due: float) -> float:
        """One session: each turn extends the exact prompt before it with the real answer. Returns when it ended."""
        session, content = script.session, self.stage.content
        prompt, tokens = script.opening, sum(part.tokens for part in session.opening)
        known = session.cached_tokens
        answered = 0
        for at, (step, text) in enumerate(zip(session.steps, script.additions, strict=True)):
            if self._left <= 0:
                return due
            self._left -= 1
            # A turn's growth includes the answer before it: that much of the prepared text is left out.
            added = content.last(text, step.new_tokens - answered)
            prompt = content.join(prompt, added)
            tokens += step.new_tokens - answered
            turn = self._turn(session.index, session.first_turn + at, prompt, tokens, known, step.output_tokens, due)
            record = await self.stage.send(turn)
            self.records.append(record)
            due = record.end_s
            if record.status != "ok":
                return due
            answered = record.output_tokens if record.output_tokens is not None else step.output_tokens
            prompt = content.join(prompt, record.answer)
            tokens += answered
            known = tokens - 1  # the last token of an answer was never fed back: the server has no KV of it
        return due

    def _turn(self, session: int, number: int, prompt: bytes, tokens: int, known: int, output: int, due: float) -> Turn:
        level, block = self.level, self.stage.block_size
        return Turn(
            variant=level.variant,
            case=level.case,
            concurrency=level.concurrency,
            repeat=level.repeat,
            session=session,
            number=number,
            prompt=prompt,
            prompt_tokens=tokens,
            eligible_tokens=known // block * block,
            output_tokens=output,
            intended_s=due,
        )
