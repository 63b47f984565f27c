"""One streamed turn over HTTP: bytes are stamped as they arrive and understood once the answer is whole."""

import asyncio
import json
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol
from urllib.parse import urlsplit

from bench import asking, secret
from bench.asking import Reply
from bench.connection import Connection, Dialer, Pieces, Untaken
from bench.dialect import NEVER, SAID, Answer, Dialect, begun, cached, count, error_text, said, understand
from bench.errors import BenchError, Exit
from bench.limits import Limits, Overdue
from bench.records import Status, TurnRecord
from bench.wire import Response, Stamp
from bench.workload import Turn

KEEP_IDLE_S = 4.0  # vLLM's server closes an idle connection after 5
Problem = tuple[Status, str]
Ask = Callable[[str, bytes], Awaitable[Reply]]

# Frequent words of one length that common tokenizers hold as one token each when a space stands before them.
COMMON = (
    "that this with have from they will said when your them some time than then more very what know just into over "
    "also such make made most even back good much well down only come work year long life each last take used must "
    "many like been were"
).split()


@dataclass(frozen=True, slots=True)
class Target:
    """Who is asked, and how; times are told from `epoch`."""

    base_url: str
    model: str
    dialect: Dialect
    epoch: float
    limits: Limits = field(default_factory=Limits)
    key: str | None = None


class Client:
    """`send` over HTTP."""

    def __init__(self, target: Target) -> None:
        self.target, self.dialect, self.limits = target, target.dialect, target.limits
        url = urlsplit(target.base_url)
        tls = url.scheme == "https"
        self._dialer = Dialer(url.hostname or "127.0.0.1", url.port or (443 if tls else 80), tls, self.limits.connect_s)
        authorization = f"Authorization: Bearer {target.key}\r\n" if target.key else ""
        self._headers = (
            f"POST {url.path.rstrip('/')}{self.dialect.path} HTTP/1.1\r\nHost: {url.netloc}\r\n{authorization}"
            "Content-Type: application/json\r\nAccept: text/event-stream\r\nContent-Length: "
        ).encode()
        self._head = self.dialect.head(target.model)
        self._tails: dict[int, bytes] = {}
        self._idle: list[Connection] = []

    async def open(self, connections: int) -> None:
        """Ahead of the first turns, whose TTFT it would be. What cannot be opened, a turn will tell."""
        wanted = range(connections - len(self._idle))
        made = await asyncio.gather(*(self._dialer.connect() for _ in wanted), return_exceptions=True)
        for connection in made:
            if isinstance(connection, Connection):
                self._rest(connection)

    def _rest(self, connection: Connection) -> None:
        connection.rest()
        self._idle.append(connection)

    async def send(self, turn: Turn) -> TurnRecord:
        request = self._request(turn)
        sent_at = time.perf_counter()
        response, problem = await self._exchange(request)
        answer = _read(response)
        stamps = [] if problem else [stamp.arrived for stamp in (answer.first, answer.last, response.last) if stamp]
        ended_at = max(stamps, default=time.perf_counter())  # a stamp may be late by what lies between two clocks
        words = self.dialect.answer(response.body) if problem is None and answer.error is None else b""
        status, error = problem or judge(answer, turn, self.dialect, words)
        return record(turn, self.target, answer, status, error, sent_at, ended_at, words if status == "ok" else b"")

    def _request(self, turn: Turn) -> Pieces:
        """In pieces: what a session has said before is neither copied nor made again."""
        output = turn.output_tokens
        tail = self._tails.get(output) or self._tails.setdefault(output, self.dialect.tail(output))
        size = len(self._head) + sum(map(len, turn.prompt)) + len(tail)
        return (b"%b%d\r\n\r\n%b" % (self._headers, size, self._head), *turn.prompt, tail)

    async def _exchange(self, request: Pieces) -> tuple[Response, Problem | None]:
        """What came, and what kept the rest from coming."""
        connection = Connection()
        try:
            connection = self._rested() or await self._dialer.connect()
            used = connection.idle_since > 0
            try:
                return await self._ask(connection, request), None
            except Untaken:
                if not used:
                    raise
            connection = await self._dialer.connect()  # the other was closed while it lay idle
            return await self._ask(connection, request), None
        except Overdue as over:
            return connection.response, ("timeout", str(over))
        except (OSError, ValueError) as problem:
            why = getattr(problem, "strerror", None) or str(problem) or type(problem).__name__
            return connection.response, ("failed", why)

    def _rested(self) -> Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.open and time.perf_counter() - connection.idle_since < KEEP_IDLE_S:
                return connection
            connection.close()
        return None

    async def _ask(self, connection: Connection, request: Pieces) -> Response:
        try:
            response = await connection.ask(request, self.limits, _begun)
        except BaseException:
            connection.close()
            raise
        if response.reusable and connection.drained:
            self._rest(connection)
        else:
            connection.close()
        return response

    async def aclose(self) -> None:
        for connection in self._idle:
            connection.close()
        self._idle.clear()


def record(
    turn: Turn,
    target: Target,
    answer: Answer,
    status: Status,
    error: str | None,
    sent_at: float,
    ended_at: float,
    words: bytes = b"",
) -> TurnRecord:
    details = cached(answer.usage)
    absent = 0 if target.dialect.reports_cached and answer.usage and "cached_tokens" not in details else None
    first, last, epoch = answer.first, answer.last, target.epoch
    # A wall clock that was set between arrival and reading moves a stamp, but never before what was before it.
    first = first and Stamp(max(sent_at, first.arrived), first.read)
    last = last and Stamp(max(first.arrived if first else sent_at, last.arrived), last.read)
    ended_at = max(sent_at, ended_at, *(stamp.arrived for stamp in (first, last) if stamp))
    return TurnRecord(
        variant=turn.variant,
        case=turn.case,
        concurrency=turn.concurrency,
        repeat=turn.repeat,
        session=turn.session,
        turn=turn.number,
        status=status,
        intended_s=turn.intended_s,
        sent_s=sent_at - epoch,
        first_s=None if first is None else first.arrived - epoch,
        last_s=None if last is None else last.arrived - epoch,
        end_s=ended_at - epoch,
        planned_prompt_tokens=turn.prompt_tokens,
        planned_output_tokens=turn.output_tokens,
        prompt_tokens=count(answer.usage, "prompt_tokens"),
        output_tokens=count(answer.usage, "completion_tokens"),
        cached_tokens=count(details, "cached_tokens") if absent is None else absent,
        eligible_tokens=turn.eligible_tokens,
        finish_reason=secret.without(answer.finish_reason),
        error=secret.without(error),  # a server may quote what it was sent
        queue_s=_seconds(answer.timing.get("queue_time_ms")),
        prefill_s=_seconds(answer.timing.get("time_to_first_token_ms")),
        read_late_s=None if first is None or first.read == first.arrived else first.read - first.arrived,
        attempt=turn.attempt,
        answer=words,
    )


class Sender(Protocol):
    target: Target

    async def send(self, turn: Turn) -> TurnRecord: ...


class Keeping:
    """`send` that hands over every record, after the next turn is sent; that of a turn we gave up, too."""

    def __init__(self, sender: Sender, keep: Callable[[TurnRecord], None]) -> None:
        self._sender, self._keep = sender, keep
        self._problem: Exception | None = None

    async def send(self, turn: Turn) -> TurnRecord:
        if self._problem:
            raise self._problem
        began = time.perf_counter()
        try:
            told = await self._sender.send(turn)
        except asyncio.CancelledError:
            self._keep(record(turn, self._sender.target, Answer(), "cut", "interrupted", began, time.perf_counter()))
            raise
        asyncio.get_running_loop().call_soon(self._keep_later, told)
        return told

    def _keep_later(self, told: TurnRecord) -> None:
        try:
            self._keep(told)
        except Exception as problem:  # no disk, say: nobody waits for this call, so the next turn raises it
            self._problem = problem

    async def settle(self) -> None:
        """Until the last one is handed over."""
        await asyncio.sleep(0)
        if self._problem:
            raise self._problem


def _begun(response: Response) -> bool:
    return response.status == 200 and begun(response.so_far())


def _read(response: Response) -> Answer:
    if response.status in (0, 200):
        answer = understand(response.body, response.when)
        kind = response.headers.get("content-type", "")
        if answer.first is None and ("json" in kind or "html" in kind):
            answer.error = answer.error or f"{said(kind)} instead of a stream of events: {_words(response.body)}"
        return answer
    return Answer(error=f"HTTP {response.status}: {_words(response.body) or 'and not a word why'}")


def _words(body: bytes) -> str:
    try:
        return error_text(json.loads(body))
    except (ValueError, RecursionError):
        return said(body[: 4 * SAID].decode(errors="replace"))


def _seconds(ms: object) -> float | None:
    """A server's own time, if it is one."""
    return ms / 1e3 if isinstance(ms, int | float) and 0 <= ms < math.inf else None


def judge(answer: Answer, turn: Turn, dialect: Dialect, words: bytes) -> tuple[Status, str | None]:
    """A stream that merely stopped is not a success, nor is one that contradicts itself."""
    if answer.error is not None:
        return "failed", answer.error
    if answer.first is None:
        return "failed", "the stream ended without a token"
    if not answer.done:
        return "truncated", "the stream ended without [DONE]"
    if answer.finish_reason is None:
        return "truncated", "the stream ended without a finish reason"
    if dialect.reports_usage and not answer.usage:
        return "truncated", "the stream ended without usage, which this server gave when it was first asked"
    wrong = _contradiction(answer.usage, turn.output_tokens, dialect.forced, dialect.tokens(words))
    return ("failed", wrong) if wrong else ("ok", None)


def _contradiction(usage: dict[str, Any], asked: int, forced: bool, came: int | None) -> str | None:
    for told, name in ((usage, "prompt_tokens"), (usage, "completion_tokens"), (cached(usage), "cached_tokens")):
        if told.get(name) is not None and count(told, name) is None:
            return f"the usage is no count: {name} is {said(told[name])[:40]!r}"
    prompt, output = count(usage, "prompt_tokens"), count(usage, "completion_tokens")
    if prompt is not None and (count(cached(usage), "cached_tokens") or 0) > prompt:
        return f"the usage contradicts itself: more tokens cached than the prompt's {prompt}"
    if output is None:
        return None
    if output != asked if forced else not 0 < output <= asked:
        return f"the server counted {output} tokens in its answer, and was asked for {asked}"
    if came is not None and came != output:
        return f"the server counted {output} tokens in its answer, and {came} came"
    return None


async def probe(base_url: str, model: str, key: str | None, vocabulary: int | None, limit_s: float = 60) -> Dialect:
    """Ask the target how it takes prompts; `vocabulary` is the size of our own synthetic tokenizer's, if it is that."""

    async def ask(path: str, content: bytes) -> Reply:
        return await asking.reply_later(f"{base_url}{path}", key, limit_s, content)

    problems: list[str] = []
    async for candidate in _candidates(ask, model, vocabulary):
        asked = b"".join((candidate.head(model), _sample(candidate), candidate.tail(4)))
        try:
            for _ in range(2):  # the second finds the first one's blocks
                reply = await ask(candidate.path, asked)
        except OSError as problem:
            problems.append(f"{candidate.path} with {candidate.name}: {problem}")
            continue
        answer = understand(reply.body, lambda _: NEVER) if reply.status == 200 else Answer()
        if answer.first is not None and not answer.error and candidate.answer(reply.body):
            reports_cached = bool(count(cached(answer.usage), "cached_tokens"))
            return replace(candidate, reports_cached=reports_cached, reports_usage=bool(answer.usage))
        why = answer.error or _words(reply.body)[:120]
        problems.append(f"{candidate.path} with {candidate.name}: HTTP {reply.status} {why}")
    raise BenchError(f"{base_url} answers none of the ways bench can ask", "; ".join(problems), Exit.SERVER)


def _sample(dialect: Dialect) -> bytes:
    return dialect.separator.join((dialect.words * 600)[:600])


async def _candidates(ask: Ask, model: str, vocabulary: int | None) -> AsyncIterator[Dialect]:
    """From exact to approximate."""
    completions, chat = "/v1/completions", "/v1/chat/completions"
    if vocabulary:
        words = tuple(str(token).encode() for token in range(min(vocabulary - 8, 1 << 16)))
        yield Dialect("token ids", completions, b'"prompt":[', b"]", words, b",", "word", True)
        return
    if ids := await _token_ids(ask, model):
        words = tuple(str(token).encode() for token in ids)
        yield Dialect("token ids, answers by id", completions, b'"prompt":[', b"]", words, b",", "id", True)
    words = tuple(word.encode() for word in COMMON)
    for forced in (True, False):
        yield Dialect("text", completions, b'"prompt":"', b'"', words, b" ", "text", forced)
    for forced in (True, False):
        opening = b'"messages":[{"role":"user","content":"'
        yield Dialect("chat text", chat, opening, b'"}]', words, b" ", "text", forced)


async def _token_ids(ask: Ask, model: str) -> list[int]:
    wanted = {"model": model, "prompt": " ".join(COMMON), "add_special_tokens": False}
    try:
        reply = await ask("/tokenize", json.dumps(wanted).encode())
        told = json.loads(reply.body)["tokens"] if reply.status == 200 else []
        known = sorted({token for token in told if type(token) is int and token >= 0})
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return []
    if not known:
        return []
    # A tokenizer without our words makes one unknown word of them all, and equal prompts would hit each other's blocks.
    return known if len(known) > len(COMMON) / 2 else list(range(256, 1280))
