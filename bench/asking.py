"""One question to a server and its whole answer, or an OSError: within a time and a size, whatever the server does.

Not by httpx: its limits are for each read, and a page that drips has as many reads as bytes; it unpacks what a server
chose to compress.
"""

import asyncio
import json
import ssl
from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult, urlsplit

from bench.wire import Response

LARGEST = 1 << 24
AT_ONCE = 1 << 16


@dataclass(frozen=True, slots=True)
class Reply:
    status: int
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode(errors="replace")

    def json(self) -> Any:
        """Raises ValueError."""
        try:
            return json.loads(self.body)
        except RecursionError:
            raise ValueError("nested too deep") from None


async def reply_later(url: str, key: str | None = None, limit_s: float = 60, content: bytes | None = None) -> Reply:
    """Content is posted. Others have the processor meanwhile, and a user who wants to stop is heard."""
    response = Response(most=LARGEST)
    try:
        at = _place(url)
        async with asyncio.timeout(limit_s):
            tls = ssl.create_default_context() if at.scheme == "https" else None
            reader, writer = await asyncio.open_connection(at.hostname, _port(at), ssl=tls)
            try:
                writer.write(_question(at, key, content))
                while not response.whole:
                    _take(response, await reader.read(AT_ONCE))
            finally:
                writer.transport.abort()
    except TimeoutError:
        told = f"no whole answer within {limit_s:g} s: --limit control=SECONDS sets how long to wait"
        raise TimeoutError(told) from None
    except ValueError as error:
        raise ConnectionError(str(error)) from None
    return Reply(response.status, response.body)


def _place(url: str) -> SplitResult:
    at = urlsplit(url)
    if not at.hostname:
        raise ValueError(f"{url!r} names no host")
    return at


def _port(at: SplitResult) -> int:
    return at.port or (443 if at.scheme == "https" else 80)


def _question(at: SplitResult, key: str | None, content: bytes | None) -> bytes:
    lines = [
        f"{'GET' if content is None else 'POST'} {at.path or '/'} HTTP/1.1",
        f"Host: {at.netloc.rpartition('@')[2]}",
        "Accept-Encoding: identity",
        "Connection: close",
    ]
    if key:
        lines.append(f"Authorization: Bearer {key}")
    if content is not None:
        lines += ["Content-Type: application/json", f"Content-Length: {len(content)}"]
    return "\r\n".join([*lines, "", ""]).encode() + (content or b"")


def _take(response: Response, data: bytes) -> None:
    if data:
        response.feed((0.0, 0.0, []), data)
        return
    response.closed()
    if not response.whole:
        raise ConnectionError("the server closed the connection in mid-answer")
