"""A turn answered by a model of vLLM: its scheduler step by step, its cache block by block, its speed by few constants.

Continuous batching under a token budget, chunked prefill, admission of whole prompts, preemption of the last: as vLLM's
scheduler has them. Behind the same `send` and clock as a real server, so that what plays sessions cannot tell.
"""

import asyncio
from collections import deque
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field

import numpy as np

from bench.blocks import Blocks, Ids, Text, Texts
from bench.errors import BenchError
from bench.records import TurnRecord
from bench.speed import Speed
from bench.virtual import Clock
from bench.workload import Prompt, Turn

OF_ALL = (0, 3)  # parts of the name of a text that several sessions share: the run's, a level's
ENDLESS = 1 << 40


@dataclass(frozen=True, slots=True)
class Span:
    """So many tokens of one text: words nobody reads need not be made."""

    text: tuple[int, ...]
    tokens: int

    def __len__(self) -> int:
        return self.tokens

    def __getitem__(self, which: slice) -> "Span":
        return Span(self.text, len(range(*which.indices(self.tokens))))


class Outline:
    """Prompts as a simulated server takes them."""

    width = 1

    def text(self, *identity: int, tokens: int) -> Span:
        return Span(identity, tokens)

    def said(self, answer: bytes, tokens: int) -> Span:
        return Span((), tokens)

    def extend(self, prompt: Prompt, text: Span) -> Prompt:
        return (*prompt, text) if len(text) else prompt


@dataclass(frozen=True, slots=True)
class Setup:
    """What of a server's arguments its scheduler goes by."""

    block_size: int
    blocks: int
    budget: int  # tokens a step
    most_sequences: int
    chunked: bool = True
    caching: bool = True
    threshold: int = 0  # tokens that one prompt may take of a step while there are others; 0: all


@dataclass(slots=True, eq=False)
class Request:
    turn: Turn
    texts: Texts
    done: "asyncio.Future[None]"
    came_s: float = 0.0  # to the scheduler, which looks between two steps
    blocks: Ids = field(default_factory=lambda: np.empty(0, np.int64))
    tokens: int = 0  # known: the prompt's, and those answered
    computed: int = 0
    cached: int | None = None  # when it was first scheduled
    scheduled_s: float = 0.0
    first_s: float = 0.0
    last_s: float = 0.0

    @property
    def answered(self) -> int:
        return self.tokens - self.turn.prompt_tokens


Batch = list[tuple[Request, int]]


class Scheduler:
    """vLLM's, not its async one: those that run go on first, then those that wait are let in, as they came."""

    def __init__(self, setup: Setup) -> None:
        self.setup, self.blocks = setup, Blocks(setup.blocks, setup.caching)
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []
        self.preemptions = self.queried = self.hit = self.steps = 0

    def step(self, now: float) -> Batch:
        budget, batch, before, limit = self.setup.budget, Batch(), self.preemptions, self._limit()
        for request in self.running:  # a victim leaves at its end
            if not budget:
                break
            wanted = min(request.tokens - request.computed, limit, budget)
            if not self._make_room(request, wanted):
                break
            budget -= wanted
            batch.append((request, wanted))
        while self.preemptions == before and self.waiting and budget and len(self.running) < self.setup.most_sequences:
            wanted = self._admit(self.waiting[0], limit, budget, now)
            if not wanted:
                break
            budget -= wanted
            batch.append((self.waiting.popleft(), wanted))
            self.running.append(batch[-1][0])
        return batch

    def _limit(self) -> int:
        """Tokens that one prompt may take of this step; who is alone keeps nobody waiting."""
        several = len(self.running) + len(self.waiting) > 1
        return self.setup.threshold if several and self.setup.threshold else ENDLESS

    def _make_room(self, request: Request, wanted: int) -> bool:
        """At the cost of those that came last, itself in the end."""
        while not self._grow(request, wanted):
            victim = self.running.pop()
            self._preempt(victim)
            if victim is request:
                return False
        return True

    def _grow(self, request: Request, wanted: int) -> bool:
        size, known = self.setup.block_size, request.computed // self.setup.block_size
        missing = -(-(request.computed + wanted) // size) - len(request.blocks)
        if missing > self.blocks.free:
            return False
        if missing:
            request.blocks = np.concatenate([request.blocks, self.blocks.take(missing)])
        if (full := (request.computed + wanted) // size) > known:
            self.blocks.fill(request.texts, request.blocks, full, known)
        return True

    def _preempt(self, request: Request) -> None:
        self.preemptions += 1
        self._let_go(request)
        request.computed = 0
        self.waiting.appendleft(request)

    def _let_go(self, request: Request) -> None:
        self.blocks.release(request.blocks)
        request.blocks = request.blocks[:0]

    def _admit(self, request: Request, limit: int, budget: int, now: float) -> int:
        """How much of it is computed in this step; nothing while the whole of it would find no room."""
        size = self.setup.block_size
        found = self.blocks.found(request.texts)[: (request.tokens - 1) // size]
        wanted = min(request.tokens - len(found) * size, limit)
        if not self.setup.chunked and wanted > budget:
            return 0
        if -(-request.tokens // size) - len(found) + self.blocks.unused(found) > self.blocks.free:
            return 0
        wanted = min(wanted, budget)
        self.blocks.use(found)
        request.blocks, request.computed = found, len(found) * size
        if request.cached is None:
            request.cached, request.scheduled_s = request.computed, now
            self.queried += request.tokens if self.setup.caching else 0
            self.hit += request.computed
        self._grow(request, wanted)
        return wanted

    def finish(self, batch: Batch, now: float) -> list[Request]:
        """What has been computed is known; a sequence whose tokens all are has one more. Those that are done."""
        done = []
        for request, computed in batch:
            request.computed += computed
        ready = [request for request, _ in batch if request.computed >= request.tokens]
        self.steps += bool(ready)
        for request in ready:
            request.tokens += 1
            if request.answered == 1 and not request.first_s:
                request.first_s = now
            if request.answered >= request.turn.output_tokens:
                request.last_s = now
                done.append(request)
        for request in done:
            self.running.remove(request)
            self._let_go(request)
        return done


class Door:
    """The process that takes requests in, one after the other: those who come together reach the engine apart."""

    def __init__(self) -> None:
        self._free_s = 0.0

    async def through(self, work_s: float) -> None:
        loop = asyncio.get_running_loop()
        self._free_s = max(self._free_s, loop.time()) + work_s
        await asyncio.sleep(self._free_s - loop.time())


class Engine:
    """The scheduler in time. Runs only while there is something to run."""

    def __init__(self, setup: Setup, speed: Speed) -> None:
        self.setup, self.speed, self.clock = setup, speed, Clock()
        self.scheduler = Scheduler(setup)
        self._texts: dict[Hashable, Text] = {}
        self._door = Door()
        self._come: list[Request] = []
        self._running: asyncio.Task[None] | None = None
        self.generated = self.prompted = 0

    async def send(self, turn: Turn) -> TurnRecord:
        sent = self.clock.now()
        await self._door.through(self.speed.request_s + turn.prompt_tokens * self.speed.said_s)
        await asyncio.sleep(self.speed.way_s)
        request = Request(turn, self.texts(turn), asyncio.get_running_loop().create_future(), tokens=turn.prompt_tokens)
        self._come.append(request)
        if self._running is None:
            self._running = asyncio.create_task(self._run())
        await request.done
        return _record(request, sent)

    async def _run(self) -> None:
        scheduler = self.scheduler
        try:
            while scheduler.running or scheduler.waiting or self._come:
                now = self.clock.now()
                for request in self._come:
                    request.came_s = now
                scheduler.waiting += self._come
                self._come.clear()
                batch = scheduler.step(now)
                if not batch and not scheduler.running:
                    raise BenchError("a prompt is larger than the whole cache", "vLLM would not start with it")
                await self.clock.sleep_until(now + self._duration(batch))
                for request in scheduler.finish(batch, self.clock.now()):
                    self.prompted += request.turn.prompt_tokens
                    self.generated += request.answered
                    request.done.set_result(None)
        except BenchError as problem:
            for request in (*scheduler.waiting, *self._come):
                request.done.set_exception(problem)
        finally:
            self._running = None

    def _duration(self, batch: Batch) -> float:
        tokens = read = 0
        attended = 0.0
        for request, wanted in batch:
            tokens += wanted
            if wanted == 1:
                read += request.computed
            else:
                attended += wanted * (request.computed + wanted / 2)
        return self.speed.step(tokens, attended, read, len(batch))

    def texts(self, turn: Turn) -> Texts:
        """In whole blocks: one in which two texts meet belongs to the later."""
        return tuple(self._parts(turn))

    def _parts(self, turn: Turn) -> Iterator[tuple[Text, int]]:
        size, tokens, blocks = self.setup.block_size, 0, 0
        path: tuple[Hashable, ...] = ()
        for span in turn.prompt:
            if len(span.text) not in OF_ALL:
                path = (span.text,)  # all that follows is this session's own
                break
            path = (*path, span.text)
            tokens += span.tokens
            yield self._text(path), tokens // size - blocks
            blocks = tokens // size
        else:
            path = ((*path, turn.session, turn.number),)
        yield self._text(path), ENDLESS

    def _text(self, path: Hashable) -> Text:
        return self._texts.setdefault(path, Text(len(self._texts)))

    def sample(self) -> dict[str, float | None]:
        """As its metrics page would tell."""
        scheduler = self.scheduler
        return {
            "prefix_queries": scheduler.queried,
            "prefix_hits": scheduler.hit,
            "preemptions": scheduler.preemptions,
            "kv_usage": 1 - scheduler.blocks.free / scheduler.blocks.count,
            "running": len(scheduler.running),
            "waiting": len(scheduler.waiting),
            "prompt_tokens": self.prompted,
            "generated_tokens": self.generated,
            "steps": scheduler.steps,
        }


def _record(request: Request, sent: float) -> TurnRecord:
    turn = request.turn
    return TurnRecord(
        variant=turn.variant,
        case=turn.case,
        concurrency=turn.concurrency,
        repeat=turn.repeat,
        session=turn.session,
        turn=turn.number,
        status="ok",
        intended_s=turn.intended_s,
        sent_s=sent,
        first_s=request.first_s,
        last_s=request.last_s,
        end_s=request.last_s,
        planned_prompt_tokens=turn.prompt_tokens,
        planned_output_tokens=turn.output_tokens,
        prompt_tokens=turn.prompt_tokens,
        output_tokens=request.answered,
        cached_tokens=request.cached,
        eligible_tokens=turn.eligible_tokens,
        finish_reason="length",
        queue_s=request.scheduled_s - request.came_s,
        prefill_s=request.first_s - request.scheduled_s,
    )
