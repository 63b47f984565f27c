"""Plain loops, as one writes them with httpx, aiohttp or the openai SDK: `python -m tests.clients.loops NAME ...`."""

import asyncio
import importlib
import itertools
import json
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

from tests.clients import turns
from tests.clients.turns import OUTPUT_TOKENS, Asked, Told

Stream = Callable[[str], AsyncIterator[str]]  # a prompt to the texts of an answer
USAGE = {"stream_options": {"include_usage": True}}


def body(prompt: str) -> dict[str, Any]:
    return {"model": "truth", "prompt": prompt, "max_tokens": OUTPUT_TOKENS, "temperature": 0, "stream": True, **USAGE}


def text(line: str) -> str | None:
    """Of an event that has one."""
    if not line.startswith("data: ") or line == "data: [DONE]":
        return None
    choices = json.loads(line[6:])["choices"]
    return choices[0]["text"] if choices else None


async def with_httpx(asked: Asked, stack: AsyncExitStack) -> Stream:
    httpx = importlib.import_module("httpx")
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    client = await stack.enter_async_context(httpx.AsyncClient(base_url=asked.url, limits=limits, timeout=None))

    async def stream(prompt: str) -> AsyncIterator[str]:
        async with client.stream("POST", "/v1/completions", json=body(prompt)) as response:
            async for line in response.aiter_lines():
                if (found := text(line)) is not None:
                    yield found

    return stream


async def with_aiohttp(asked: Asked, stack: AsyncExitStack) -> Stream:
    aiohttp = importlib.import_module("aiohttp")
    timeout = aiohttp.ClientTimeout(total=None)
    made = aiohttp.ClientSession(asked.url, connector=aiohttp.TCPConnector(limit=0), timeout=timeout)
    client = await stack.enter_async_context(made)

    async def stream(prompt: str) -> AsyncIterator[str]:
        async with client.post("/v1/completions", json=body(prompt)) as response:
            async for line in response.content:
                if (found := text(line.decode().strip())) is not None:
                    yield found

    return stream


async def with_openai(asked: Asked, stack: AsyncExitStack) -> Stream:
    openai = importlib.import_module("openai")
    client = openai.AsyncOpenAI(base_url=f"{asked.url}/v1", api_key="none", max_retries=0, timeout=None)
    await stack.enter_async_context(client)

    async def stream(prompt: str) -> AsyncIterator[str]:
        async for event in await client.completions.create(**body(prompt)):
            if event.choices:
                yield event.choices[0].text

    return stream


CLIENTS: dict[str, Callable[[Asked, AsyncExitStack], Awaitable[Stream]]] = {
    "httpx": with_httpx,
    "aiohttp": with_aiohttp,
    "openai": with_openai,
}


async def play(asked: Asked, name: str) -> list[Told]:
    prompts = [turns.opening(session) for session in range(asked.concurrency)]
    told: list[Told] = []
    left = itertools.repeat(None, asked.requests)
    async with AsyncExitStack() as stack:
        stream = await CLIENTS[name](asked, stack)

        async def session(number: int, start: float) -> None:
            prompt, due, more = prompts[number], start, turns.additions(number)
            for _ in left:
                turn = await one(stream, prompt, due)
                told.append(turn)
                prompt, due = prompt + next(more), turn.ended

        start = time.perf_counter()
        await asyncio.gather(*(session(number, start) for number in range(asked.concurrency)))
    return told


async def one(stream: Stream, prompt: str, due: float) -> Told:
    sent, first = time.perf_counter(), 0.0
    tokens = 0
    async for _ in stream(prompt):
        first = first or time.perf_counter()
        tokens += 1
    assert tokens == OUTPUT_TOKENS, f"{tokens} events came"
    return Told(due, sent, first, time.perf_counter())


def main() -> None:
    name, *rest = sys.argv[1:]
    asked = turns.asked(rest)
    turns.tell(asked.out, asyncio.run(play(asked, name)))


if __name__ == "__main__":
    main()
