"""The same turns through the official SDK: what its users see, with all that it takes to hand over each token.

A finding in itself, and no way to measure a server: its own milliseconds are in every number.
"""

import asyncio
import json
import time
from dataclasses import dataclass, field, replace
from typing import Any

from bench.client import Target, judge, record
from bench.dialect import WORD, Answer
from bench.dialect import said as cleaned
from bench.errors import BenchError
from bench.limits import Overdue, Watch
from bench.records import Status, TurnRecord
from bench.wire import Stamp
from bench.workload import Turn

OF_THE_SDK = ("model", "prompt", "messages", "max_tokens", "temperature", "stream", "stream_options")
TEXTS = ("text", "content", "reasoning", "reasoning_content")


def check() -> None:
    try:
        import openai  # noqa: F401
    except ImportError:
        hint = "pip install openai, or leave --client out"
        raise BenchError("--client openai needs the openai package, which is not installed here", hint) from None


@dataclass(slots=True)
class Said:
    """What the SDK handed over. It does not tell whether [DONE] came."""

    answer: Answer = field(default_factory=lambda: Answer(done=True))
    text: list[str] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    heard: float | None = None

    def add(self, event: Any) -> None:
        """As little as a program would look at: what bench does besides must not be laid at the SDK's door."""
        self.heard = now = time.perf_counter()
        for choice in event.choices:
            text = _text(choice)
            if text:
                self.text.append(text)
            if self.answer.first is None and (text or hasattr(choice, "text")):
                self.answer.first = Stamp(now, now)
            if ids := (choice.model_extra or {}).get("token_ids"):
                self.ids += ids
            if choice.finish_reason:
                self.answer.finish_reason, self.answer.last = choice.finish_reason, Stamp(now, now)
        if event.usage:
            self.answer.usage = event.usage.model_dump()
            timing = (event.model_extra or {}).get("metrics")
            self.answer.timing = timing if isinstance(timing, dict) else {}

    def notation(self, kind: str) -> bytes:
        """As the next prompt has to repeat it."""
        text = "".join(self.text).strip()
        if kind == "id":
            return b",".join(b"%d" % number for number in self.ids)
        return b",".join(WORD.findall(text.encode())) if kind == "word" else json.dumps(text)[1:-1].encode()


def _text(choice: Any) -> str:
    said = choice if hasattr(choice, "text") else choice.delta
    return next((text for name in TEXTS if (text := getattr(said, name, None))), "")


class Sdk:
    """`send` as a program has it that uses the SDK."""

    def __init__(self, target: Target) -> None:
        from openai import AsyncOpenAI, DefaultAsyncHttpxClient, Timeout  # takes half a second

        self.target = target
        self._sdk = AsyncOpenAI(
            base_url=f"{target.base_url.rstrip('/')}/v1",
            api_key=target.key or "none",
            max_retries=0,  # a second try would hide the first
            timeout=Timeout(None, connect=target.limits.connect_s),  # all else is watched here
            http_client=DefaultAsyncHttpxClient(trust_env=False),  # no proxy: what it adds is not the server's
        )

    async def send(self, turn: Turn) -> TurnRecord:
        began = time.perf_counter()
        asked = self._asked(turn)
        sent_at = time.perf_counter()
        # A program has its prompt at hand: to make ours into it is not the SDK's time.
        turn = replace(turn, intended_s=turn.intended_s + sent_at - began)
        said = Said()
        status: Status = "ok"
        error: str | None = None
        try:
            await self._within_limits(asked, said)
        except Overdue as over:
            status, error = "timeout", str(over)
        except Exception as problem:
            theirs = type(problem).__module__.startswith(("openai", "httpx", "httpcore"))  # newer ones: httpx2
            if not theirs and not isinstance(problem, ValueError):  # of an event that is no JSON
                raise
            # The SDK is given no limit of its own but that for a connection.
            status = "timeout" if type(problem).__name__ == "APITimeoutError" else "failed"
            error = cleaned(f"{type(problem).__name__}: {problem}")
        answer = said.notation(self.target.dialect.answers)
        if error is None:
            status, error = judge(said.answer, turn, self.target.dialect, answer)
        told = record(turn, self.target, said.answer, status, error, sent_at, time.perf_counter(), answer)
        return replace(told, read_late_s=None)  # when the kernel had it, the SDK does not tell

    def _asked(self, turn: Turn) -> dict[str, Any]:
        dialect = self.target.dialect
        prompt = b"".join(turn.prompt)
        body = json.loads(dialect.head(self.target.model) + prompt + dialect.tail(turn.output_tokens))
        return {name: body.pop(name) for name in OF_THE_SDK if name in body} | {"extra_body": body}

    async def _within_limits(self, asked: dict[str, Any], said: Said) -> None:
        loop, ran_out = asyncio.get_running_loop(), list[Overdue]()

        def give_up(over: Overdue) -> None:
            ran_out.append(over)
            limit.reschedule(loop.time())

        try:
            async with asyncio.timeout(None) as limit:
                watch = Watch(
                    self.target.limits, loop, lambda: said.heard, lambda: said.answer.first is not None, give_up
                )
                try:
                    await self._listen(asked, said)
                finally:
                    watch.stop()
        except TimeoutError:
            raise ran_out[0] from None

    async def _listen(self, asked: dict[str, Any], said: Said) -> None:
        create: Any = (self._sdk.chat if "messages" in asked else self._sdk).completions.create
        async for event in await create(**asked):
            try:
                said.add(event)
            except (AttributeError, TypeError) as problem:  # the SDK does not look at what it hands over
                raise ValueError(f"an event that is no completion: {problem}") from None

    async def open(self, connections: int) -> None:
        """It opens its own."""

    async def aclose(self) -> None:
        await self._sdk.close()
