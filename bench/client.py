"""One streamed turn over HTTP: bytes are stamped as they arrive and understood once the answer is whole.

Written by hand because a load client must not add its own milliseconds: general HTTP clients queue, decode and parse
between the arrival of a token and the moment it can be stamped.
"""

import asyncio
import json
import re
import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal
from urllib.parse import urlsplit

import httpx

from bench import scrape
from bench.errors import BenchError, Exit
from bench.records import Status, TurnRecord
from bench.wire import Response, events
from bench.workload import Turn

KEEP_IDLE_S = 4.0  # vLLM's server closes an idle connection after 5

# Frequent words that common tokenizers hold as one token each when a space stands before them.
COMMON = (
    "the of and to in is that for it as was with be by on not he his but at are this have from or had an they which "
    "one you were her all she there would their we him been has when who will more no if out so said what up its "
    "about into than them can only other new some could time these two may then do first any my now such like our "
    "over man me even most made after also did many before must through back years where much your way well down "
    "should because each just those people how too little state good very make world still own see men work long "
    "get here between both life being under never day same another know while last might us great old year off come "
    "since against go came right used take three "
).split()

# Fields of an event that make it worth parsing; the others only carry text, which is copied as it stands.
TELLING = re.compile(rb'"finish_reason":\s*"|"usage":\s*\{|"error"')
TEXT = re.compile(rb'"(?:text|content|reasoning_content)":\s*"((?:[^"\\]|\\.)*)"')
IDS = re.compile(rb'"token_ids":\s*\[([\d,\s]+)\]')


@dataclass(frozen=True, slots=True)
class Dialect:
    """How a target takes prompts and gives answers. Found out by asking, and part of the record of a run."""

    name: str
    path: str
    opening: bytes  # of the JSON around the prompt
    closing: bytes
    words: tuple[bytes, ...]  # each one token, in the target's notation
    separator: bytes
    answers: Literal["word", "id", "text"]
    forced: bool  # output length can be forced
    reports_cached: bool = False

    def head(self, model: str) -> bytes:
        return b'{"model":' + json.dumps(model).encode() + b"," + self.opening

    def tail(self, output_tokens: int) -> bytes:
        asked: dict[str, Any] = {"max_tokens": output_tokens, "temperature": 0, "stream": True}
        asked["stream_options"] = {"include_usage": True}
        if self.forced:
            asked |= {"min_tokens": output_tokens, "ignore_eos": True}
        if self.answers == "id":
            asked["return_token_ids"] = True
        if self.answers == "word":
            asked["skip_special_tokens"] = False
        return self.closing + b"," + json.dumps(asked, separators=(",", ":")).encode()[1:]

    def answer(self, said: bytes) -> bytes:
        """What was generated, as the next prompt has to repeat it: copied out of the events, escapes and all."""
        if self.answers == "id":
            return b",".join(IDS.findall(said))
        text = b"".join(TEXT.findall(said)).strip()
        return text if self.answers == "text" else b",".join(re.findall(rb"w(\d+)", text))


def _text(choice: dict[str, Any]) -> str:
    delta = choice.get("delta") or {}
    return choice.get("text") or delta.get("content") or delta.get("reasoning_content") or ""


def _is_token(choice: dict[str, Any]) -> bool:
    """Chat servers open with an event that only names the role: not a token yet. vLLM never sends an empty one."""
    return "text" in choice or bool(_text(choice)) or bool((choice.get("delta") or {}).get("tool_calls"))


@dataclass(slots=True)
class Answer:
    """What a stream said, read after its end."""

    said: bytes = b""
    first_at: float | None = None
    last_at: float | None = None
    done: bool = False
    finish_reason: str | None = None
    usage: dict[str, Any] | None = None
    timing: dict[str, Any] = field(default_factory=dict)  # vLLM's --enable-per-request-metrics
    error: str | None = None


def understand(pieces: list[tuple[float, bytes]]) -> Answer:
    answer = Answer()
    said = []
    for at, data in events(pieces):
        said.append(data)
        if data == b"[DONE]":
            answer.done = True
        elif answer.first_at is None or TELLING.search(data):
            _take_in(answer, at, json.loads(data))
    answer.said = b"\n".join(said)
    return answer


def _take_in(answer: Answer, at: float, event: dict[str, Any]) -> None:
    if event.get("error"):
        answer.error = _error_text(event)
    answer.usage = event.get("usage") or answer.usage
    answer.timing = event.get("metrics") or answer.timing
    for choice in event.get("choices") or ():
        if answer.first_at is None and _is_token(choice):
            answer.first_at = at
        if choice.get("finish_reason"):
            answer.finish_reason, answer.last_at = choice["finish_reason"], at


def _seconds(ms: float | None) -> float | None:
    return None if ms is None else ms / 1e3


def _error_text(body: Any) -> str:
    error = body.get("error", body) if isinstance(body, dict) else body
    return str(error.get("message", error) if isinstance(error, dict) else error)[:500]


class Connection(asyncio.Protocol):
    """A kept-alive connection with one request on it at a time."""

    def __init__(self) -> None:
        self.response = Response()
        self.idle_since = 0.0
        self._transport: asyncio.Transport | None = None
        self._ended: asyncio.Future[Response] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    @property
    def open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    async def ask(self, request: bytes) -> Response:
        assert self._transport is not None
        self.response = Response()
        self._ended = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._ended

    def data_received(self, data: bytes) -> None:
        at = time.perf_counter()
        try:
            self.response.feed(at, data)
        except ValueError as error:
            self._end(ConnectionError(f"garbage instead of HTTP: {error}"))
            self.close()
        if self.response.whole:
            self._end(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self.response.closed()
        self._end(None if self.response.whole else ConnectionError("the server closed the connection in mid-answer"))

    def _end(self, error: Exception | None) -> None:
        if self._ended is None or self._ended.done():
            return
        if error is None:
            self._ended.set_result(self.response)
        else:
            self._ended.set_exception(error)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()


class Client:
    """`send` over HTTP."""

    def __init__(
        self,
        base_url: str,
        model: str,
        dialect: Dialect,
        epoch: float,
        timeout_s: float = 600,
        key: str | None = None,
    ) -> None:
        self.dialect, self.epoch, self.timeout_s = dialect, epoch, timeout_s
        url = urlsplit(base_url)
        self._host, self._tls = url.hostname or "127.0.0.1", url.scheme == "https"
        self._port = url.port or (443 if self._tls else 80)
        authorization = f"Authorization: Bearer {key}\r\n" if key else ""
        self._headers = (
            f"POST {url.path.rstrip('/')}{dialect.path} HTTP/1.1\r\nHost: {url.netloc}\r\n{authorization}"
            "Content-Type: application/json\r\nAccept: text/event-stream\r\nContent-Length: "
        ).encode()
        self._head = dialect.head(model)
        self._idle: list[Connection] = []

    async def send(self, turn: Turn) -> TurnRecord:
        body = b"".join((self._head, turn.prompt, self.dialect.tail(turn.output_tokens)))
        request = b"".join((self._headers, str(len(body)).encode(), b"\r\n\r\n", body))
        sent_at = time.perf_counter()
        response, answer = Response(), Answer()
        status: Status = "failed"
        try:
            async with asyncio.timeout(self.timeout_s):
                response = await self._exchange(request)
            answer = self._read(response)
            status, error = judge(answer)
        except TimeoutError:
            status, error = "timeout", f"no whole answer within {self.timeout_s:g} s"
        except (OSError, ValueError) as problem:
            error = str(problem) or type(problem).__name__
        ended_at = time.perf_counter() if response.ended_at is None else response.ended_at
        return self._record(turn, answer, status, error, sent_at, ended_at)

    def cut(self, turn: Turn) -> TurnRecord:
        """A turn that we ourselves gave up."""
        now = time.perf_counter()
        return self._record(turn, Answer(), "cut", "interrupted", now, now)

    async def _exchange(self, request: bytes) -> Response:
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
                break  # closed while it lay idle: nothing was answered, so asking again is safe
        context = ssl.create_default_context() if self._tls else None
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(Connection, self._host, self._port, ssl=context)
        return await self._ask(connection, request)

    async def _ask(self, connection: Connection, request: bytes) -> Response:
        try:
            response = await connection.ask(request)
        except BaseException:
            connection.close()
            raise
        if response.reusable:
            connection.idle_since = time.perf_counter()
            self._idle.append(connection)
        else:
            connection.close()
        return response

    def _read(self, response: Response) -> Answer:
        if response.status != 200:
            body = b"".join(piece for _, piece in response.pieces).decode(errors="replace")
            try:
                text = _error_text(json.loads(body))
            except json.JSONDecodeError:
                text = body[:500]
            return Answer(error=f"HTTP {response.status}: {text}")
        return understand(response.pieces)

    def _record(
        self, turn: Turn, answer: Answer, status: Status, error: str | None, sent_at: float, ended_at: float
    ) -> TurnRecord:
        usage = answer.usage or {}
        details = usage.get("prompt_tokens_details") or {}
        absent = 0 if self.dialect.reports_cached and answer.usage else None
        return TurnRecord(
            variant=turn.variant,
            case=turn.case,
            concurrency=turn.concurrency,
            repeat=turn.repeat,
            session=turn.session,
            turn=turn.number,
            status=status,
            intended_s=turn.intended_s,
            sent_s=sent_at - self.epoch,
            first_s=None if answer.first_at is None else answer.first_at - self.epoch,
            last_s=None if answer.last_at is None else answer.last_at - self.epoch,
            end_s=ended_at - self.epoch,
            planned_prompt_tokens=turn.prompt_tokens,
            planned_output_tokens=turn.output_tokens,
            prompt_tokens=usage.get("prompt_tokens"),
            output_tokens=usage.get("completion_tokens"),
            cached_tokens=details.get("cached_tokens", absent),
            eligible_tokens=turn.eligible_tokens,
            finish_reason=answer.finish_reason,
            error=error,
            queue_s=_seconds(answer.timing.get("queue_time_ms")),
            prefill_s=_seconds(answer.timing.get("time_to_first_token_ms")),
            answer=self.dialect.answer(answer.said),
        )

    def close(self) -> None:
        for connection in self._idle:
            connection.close()
        self._idle.clear()


def judge(answer: Answer) -> tuple[Status, str | None]:
    """A stream that merely stopped is not a success."""
    if answer.error is not None:
        return "failed", answer.error
    if answer.first_at is None:
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
            answer = understand([(0.0, response.content)]) if response.status_code == 200 else Answer()
            if answer.first_at is not None and not answer.error and candidate.answer(answer.said):
                details = (answer.usage or {}).get("prompt_tokens_details")
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
