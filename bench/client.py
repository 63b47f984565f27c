"""One streamed turn over HTTP: bytes are stamped as they arrive and understood once the answer is whole."""

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol
from urllib.parse import urlsplit

import httpx

from bench import scrape
from bench.connection import Connection, Dialer, Pieces
from bench.dialect import Answer, Dialect, error_text, understand
from bench.errors import BenchError, Exit
from bench.records import Status, TurnRecord
from bench.wire import Response, Stamp
from bench.workload import Turn

KEEP_IDLE_S = 4.0  # vLLM's server closes an idle connection after 5
NEVER = Stamp(0.0, 0.0)

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
    timeout_s: float = 600
    key: str | None = None


class Client:
    """`send` over HTTP."""

    def __init__(self, target: Target) -> None:
        self.target, self.dialect, self.timeout_s = target, target.dialect, target.timeout_s
        url = urlsplit(target.base_url)
        tls = url.scheme == "https"
        self._dialer = Dialer(url.hostname or "127.0.0.1", url.port or (443 if tls else 80), tls)
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
        connection.idle_since = time.perf_counter()
        self._idle.append(connection)

    async def send(self, turn: Turn) -> TurnRecord:
        request = self._request(turn)
        response, answer = Response(), Answer()
        status: Status = "failed"
        sent_at = time.perf_counter()
        try:
            response = await self._exchange(request)
            answer = _read(response)
            status, error = judge(answer)
        except TimeoutError:
            status, error = "timeout", f"no whole answer within {self.timeout_s:g} s"
        except (OSError, ValueError) as problem:
            error = str(problem) or type(problem).__name__
        ended_at = time.perf_counter() if response.last is None else response.last.arrived
        said = self.dialect.answer(response.body) if status == "ok" else b""
        return record(turn, self.target, answer, status, error, sent_at, ended_at, said)

    def _request(self, turn: Turn) -> Pieces:
        """In pieces: what a session has said before is neither copied nor made again."""
        output = turn.output_tokens
        tail = self._tails.get(output) or self._tails.setdefault(output, self.dialect.tail(output))
        size = len(self._head) + sum(map(len, turn.prompt)) + len(tail)
        return (b"%b%d\r\n\r\n%b" % (self._headers, size, self._head), *turn.prompt, tail)

    async def _exchange(self, request: Pieces) -> Response:
        while self._idle:
            connection = self._idle.pop()
            if not connection.open or time.perf_counter() - connection.idle_since > KEEP_IDLE_S:
                connection.close()
                continue
            try:
                return await self._ask(connection, request)
            except ConnectionError:
                if connection.response.touched:
                    raise
                break  # closed while it lay idle, most likely: nothing was answered, so it is asked again
        async with asyncio.timeout(self.timeout_s):
            connection = await self._dialer.connect()
        return await self._ask(connection, request)

    async def _ask(self, connection: Connection, request: Pieces) -> Response:
        try:
            response = await connection.ask(request, self.timeout_s)
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
    said: bytes = b"",
) -> TurnRecord:
    details = answer.usage.get("prompt_tokens_details") or {}
    absent = 0 if target.dialect.reports_cached and answer.usage else None
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
        prompt_tokens=answer.usage.get("prompt_tokens"),
        output_tokens=answer.usage.get("completion_tokens"),
        cached_tokens=details.get("cached_tokens", absent),
        eligible_tokens=turn.eligible_tokens,
        finish_reason=answer.finish_reason,
        error=error,
        queue_s=_seconds(answer.timing.get("queue_time_ms")),
        prefill_s=_seconds(answer.timing.get("time_to_first_token_ms")),
        read_late_s=None if first is None or first.read == first.arrived else first.read - first.arrived,
        attempt=turn.attempt,
        answer=said,
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


def _read(response: Response) -> Answer:
    if response.status == 200:
        return understand(response.body, response.when)
    try:
        text = error_text(json.loads(response.body))
    except ValueError:
        text = response.body.decode(errors="replace")[:500]
    return Answer(error=f"HTTP {response.status}: {text}")


def _seconds(ms: float | None) -> float | None:
    return None if ms is None else ms / 1e3


def judge(answer: Answer) -> tuple[Status, str | None]:
    """A stream that merely stopped is not a success."""
    if answer.error is not None:
        return "failed", answer.error
    if answer.first is None:
        return "failed", "the stream ended without a token"
    if not answer.done:
        return "truncated", "the stream ended without [DONE]"
    if answer.finish_reason is None:
        return "truncated", "the stream ended without a finish reason"
    return "ok", None


def probe(base_url: str, model: str, key: str | None, vocabulary: int | None) -> Dialect:
    """Ask the target how it takes prompts; `vocabulary` is the size of our own synthetic tokenizer's, if it is that."""
    with httpx.Client(base_url=base_url, headers=scrape.bearer(key), timeout=120, trust_env=False) as http:
        problems: list[str] = []
        for candidate in _candidates(http, model, vocabulary):
            asked = b"".join((candidate.head(model), _sample(candidate), candidate.tail(4)))
            for _ in range(2):  # the second finds the first one's blocks
                response = http.post(candidate.path, content=asked, headers={"Content-Type": "application/json"})
            answer = understand(response.content, lambda _: NEVER) if response.status_code == 200 else Answer()
            if answer.first is not None and not answer.error and candidate.answer(response.content):
                details = answer.usage.get("prompt_tokens_details")
                return replace(candidate, reports_cached=bool(details and details.get("cached_tokens")))
            problems.append(
                f"{candidate.path} with {candidate.name}: HTTP {response.status_code} {response.text[:120]}"
            )
    raise BenchError(f"{base_url} answers none of the ways bench can ask", "; ".join(problems), Exit.SERVER)


def _sample(dialect: Dialect) -> bytes:
    return dialect.separator.join((dialect.words * 600)[:600])


def _candidates(http: httpx.Client, model: str, vocabulary: int | None) -> Iterator[Dialect]:
    """From exact to approximate."""
    completions, chat = "/v1/completions", "/v1/chat/completions"
    if vocabulary:
        words = tuple(str(token).encode() for token in range(min(vocabulary - 8, 1 << 16)))
        yield Dialect("token ids", completions, b'"prompt":[', b"]", words, b",", "word", True)
        return
    if ids := _token_ids(http, model):
        words = tuple(str(token).encode() for token in ids)
        yield Dialect("token ids, answers by id", completions, b'"prompt":[', b"]", words, b",", "id", True)
    words = tuple(word.encode() for word in COMMON)
    for forced in (True, False):
        yield Dialect("text", completions, b'"prompt":"', b'"', words, b" ", "text", forced)
    for forced in (True, False):
        opening = b'"messages":[{"role":"user","content":"'
        yield Dialect("chat text", chat, opening, b'"}]', words, b" ", "text", forced)


def _token_ids(http: httpx.Client, model: str) -> list[int]:
    response = http.post("/tokenize", json={"model": model, "prompt": " ".join(COMMON), "add_special_tokens": False})
    if response.status_code != 200:
        return []
    known = sorted(set(response.json().get("tokens", [])))
    # A tokenizer without our words makes one unknown word of them all, and equal prompts would hit each other's blocks.
    return known if len(known) > len(COMMON) / 2 else list(range(256, 1280))
