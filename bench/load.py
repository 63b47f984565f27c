"""Sessions become records: C coroutines, each awaiting one turn after another. Knows neither HTTP nor the simulator."""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Protocol

import numpy as np

from bench.records import Play, TurnRecord
from bench.workload import Part, Prompt, Session, Turn, Workload

Send = Callable[[Turn], Awaitable[TurnRecord]]

CASES = {"realistic": 0, "best": 1, "worst": 2, "openai": 4_000_000}  # beyond those of any miss rate
OF_SESSIONS = ("realistic", "openai")  # the same ones, through the official SDK


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
    attempt: int = 0

    @property
    def identity(self) -> tuple[int, ...]:
        """Seeds the content, so that no level ever sends what another has sent, nor what was sent when it was cut."""
        return (*self.part, self.attempt) if self.attempt else self.part

    @property
    def play(self) -> Play:
        return self.variant, self.case, self.concurrency, self.repeat

    @property
    def tags(self) -> dict[str, Any]:
        """Of whatever is noted while it is played."""
        return {name: getattr(self, name) for name in ("variant", "case", "concurrency", "repeat", "attempt")}

    @property
    def part(self) -> tuple[int, ...]:
        """Seeds what is the same however often it is begun."""
        case = CASES[self.case] if self.case in CASES else 3 + round(1e6 * miss_rate(self.case))
        return (case, self.concurrency, self.repeat)


def miss_rate(case: str) -> float:
    """Of the single-request cases."""
    return {"best": 0.0, "worst": 1.0}[case] if case in CASES else float(case.removeprefix("miss="))


class Notation(Protocol):
    """What prompts are made of: the words of a real one, or no more than how many they would be."""

    @property
    def width(self) -> int: ...

    def text(self, *identity: int, tokens: int) -> Any: ...

    def said(self, answer: bytes, tokens: int) -> Any: ...

    def extend(self, prompt: Prompt, text: Any) -> Prompt: ...


@dataclass(frozen=True, slots=True)
class Stage:
    """What a level is played on: the target's block size and notation, the way to send, the clock."""

    content: Notation
    block_size: int
    send: Send
    clock: Clock


class Script:
    """A session with its words made: preparing them between two turns would be time taken from the server."""

    def __init__(self, content: Notation, level: Level, session: Session, common: dict[tuple[int, ...], Any]) -> None:
        own = [part.tokens for part in session.opening if part.owner == "session"]
        own += [step.new_tokens for step in session.steps]
        self.session = session
        self._width = content.width
        self._words = content.text(*level.identity, session.index, tokens=sum(own))
        self._used = 0
        self.opening: Prompt = ()
        self.cached: Prompt = ()  # as much of the opening as the cache shall hold before the first turn
        for at, part in enumerate(session.opening):
            words = self.own(part.tokens) if part.owner == "session" else _shared(part, level, content, common)
            self.opening = content.extend(self.opening, words)
            self.cached = self.opening if at < session.cached_parts else self.cached

    def own(self, tokens: int, instead: int = 0) -> Any:
        """The session's next words; the first `instead` give way to an answer."""
        start, self._used = self._used + instead, self._used + tokens
        return self._words[start * self._width : self._used * self._width]


def _shared(part: Part, level: Level, content: Notation, common: dict[tuple[int, ...], Any]) -> Any:
    """The shared prompt is one for the run, a common context one for the level."""
    owner = () if part.owner == "shared" else level.identity
    known = (*owner, part.tokens)
    if known not in common:
        common[known] = content.text(*owner, tokens=part.tokens)
    return common[known]


@dataclass(frozen=True, slots=True)
class Share:
    """Of a level's sessions, slots and requests: every `of`-th."""

    number: int = 0
    of: int = 1

    def size(self, whole: int) -> int:
        return len(range(self.number, whole, self.of))

    def requests(self, level: Level) -> int:
        """As many for each slot, whosoever it is."""
        rounds, rest = divmod(level.requests, level.concurrency)
        return rounds * self.size(level.concurrency) + self.size(rest)

    def take(self, endless: Iterator[Any]) -> Iterator[Any]:
        return islice(endless, self.number, None, self.of)


ALL = Share()


def sessions(workload: Workload, level: Level, seed: int) -> Iterator[Session]:
    if level.case in OF_SESSIONS:
        return workload.sessions(seed, level.concurrency)
    return workload.single_shots(seed, miss_rate(level.case))


Enough = Callable[[TurnRecord], bool | None]  # of a record: need no more turns be begun?


async def play(
    level: Level, workload: Workload, stage: Stage, seed: int, enough: Enough = lambda _: False
) -> list[TurnRecord]:
    """Warm up what the case presumes cached, then send `level.requests` turns; in the order in which they ended."""
    records: list[TurnRecord] = []

    async def send(turn: Turn) -> TurnRecord:
        records.append(await stage.send(turn))
        if enough(records[-1]):
            performance.end()
        return records[-1]

    performance = Performance(level, workload, replace(stage, send=send), seed)
    await performance.warm_up()
    await performance.run(stage.clock.now())
    return records


class Performance:
    """One level being played, or a share of it. Keeps no record: it may last for days."""

    def __init__(self, level: Level, workload: Workload, stage: Stage, seed: int, share: Share = ALL) -> None:
        self.level, self.stage, self.seed, self.share = level, stage, seed, share
        self.rate = workload.file.arrivals.sessions_per_s if level.case in OF_SESSIONS else None
        self._slots = share.size(level.concurrency)
        self._left = share.requests(level)
        self._common: dict[tuple[int, ...], Any] = {}
        cast = share.take(sessions(workload, level, seed))
        self._scripts = (Script(stage.content, level, session, self._common) for session in cast)
        self._waiting = deque(islice(self._scripts, self._slots))  # in the wings, ready to go on

    async def run(self, start: float) -> None:
        await self.stage.clock.sleep_until(start)
        try:
            if self.rate is None:
                await self._closed_loop(start)
            else:
                arrivals = _poisson(self.rate, [self.seed, *self.level.part], start)
                await self._open_loop(self.share.take(arrivals))
        except BaseExceptionGroup as several:  # what ends one session ends all: one of them tells it
            raise several.exceptions[0] from None

    def end(self) -> None:
        """No further turn is begun; those under way end."""
        self._left = 0

    def _understudy(self) -> None:
        if self._left > 0 and len(self._waiting) < self._slots:
            self._waiting.append(next(self._scripts))

    def _next(self) -> Script:
        return self._waiting.popleft() if self._waiting else next(self._scripts)

    async def warm_up(self) -> None:
        """Send once, with one token of answer, every distinct beginning that the first turns shall find cached."""
        beginnings = {script.cached: script.session.cached_tokens for script in self._waiting}
        for number, (prompt, tokens) in enumerate(beginnings.items()):
            turn = self._turn(-1 - number, 0, prompt, tokens, 0, 1, self.stage.clock.now())
            await self.stage.send(turn)

    async def _closed_loop(self, start: float) -> None:
        """C slots; where a session ends the next begins."""

        async def slot() -> None:
            due = start
            while self._left > 0:
                due = await self._perform(self._next(), due)

        async with asyncio.TaskGroup() as group:
            for _ in range(self._slots):
                group.create_task(slot())

    async def _open_loop(self, arrivals: Iterator[float]) -> None:
        """Sessions begin on an absolute schedule; one that finds C under way waits, and its wait counts."""
        free = asyncio.Semaphore(self._slots)

        async def guest(due: float) -> None:
            try:
                await self._perform(self._next(), due)
            finally:
                free.release()

        async with asyncio.TaskGroup() as group:
            for due in arrivals:
                await self.stage.clock.sleep_until(due)
                await free.acquire()
                if self._left <= 0:
                    break
                group.create_task(guest(due))

    async def _perform(self, script: Script, due: float) -> float:
        """One session: each turn extends the exact prompt before it with the real answer. Returns when it ended."""
        session, content = script.session, self.stage.content
        prompt, tokens = script.opening, sum(part.tokens for part in session.opening)
        known = session.cached_tokens
        answered = 0
        for at, step in enumerate(session.steps):
            if self._left <= 0:
                return due
            self._left -= 1
            # A turn's growth includes the answer before it: that much of the prepared text is left out.
            prompt = content.extend(prompt, script.own(step.new_tokens, answered))
            tokens += step.new_tokens - answered
            turn = self._turn(session.index, session.first_turn + at, prompt, tokens, known, step.output_tokens, due)
            if at == len(session.steps) - 1:
                asyncio.get_running_loop().call_soon(self._understudy)  # once this turn is under way
            record = await self.stage.send(turn)
            due = record.end_s
            if record.status != "ok":
                return due
            answered = record.output_tokens if record.output_tokens is not None else step.output_tokens
            prompt = content.extend(prompt, content.said(record.answer, answered))
            tokens += answered
            known = tokens - 1  # the last token of an answer was never fed back: the server has no KV of it
        return due

    def _turn(
        self, session: int, number: int, prompt: Prompt, tokens: int, known: int, output: int, due: float
    ) -> Turn:
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
            attempt=level.attempt,
        )


def _poisson(rate: float, identity: list[int], start: float) -> Iterator[float]:
    rng = np.random.default_rng(identity)
    while True:
        start += float(rng.exponential(1 / rate))
        yield start
