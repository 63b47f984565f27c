"""One question to a server and its whole answer, or an OSError: within a time and a size, whatever the server does.

Not by httpx: its limits are for each read, and a page that drips has as many reads as bytes; it unpacks what a server
chose to compress.
"""

import asyncio
import json
import socket
import ssl
import time
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


def reply(url: str, key: str | None = None, content: bytes | None = None, limit_s: float = 60) -> Reply:
    """Content is posted."""
    until = time.monotonic() + limit_s
    response = Response(most=LARGEST)
    try:
        at = _place(url)
        with _connected(at, limit_s) as line:
            line.sendall(_question(at, key, content))
            while not response.whole:
                line.settimeout(max(until - time.monotonic(), 1e-3))
                _take(response, line.recv(AT_ONCE))
                if time.monotonic() > until:
                    raise TimeoutError
    except TimeoutError:
        raise _late(limit_s) from None
    except ValueError as error:
        raise ConnectionError(str(error)) from None
    return Reply(response.status, response.body)


async def reply_later(url: str, key: str | None = None, limit_s: float = 60) -> Reply:
    """The same, while others have the processor."""
    response = Response(most=LARGEST)
    try:
        at = _place(url)
        async with asyncio.timeout(limit_s):
            tls = ssl.create_default_context() if at.scheme == "https" else None
            reader, writer = await asyncio.open_connection(at.hostname, _port(at), ssl=tls)
            try:
                writer.write(_question(at, key, None))
                while not response.whole:
                    _take(response, await reader.read(AT_ONCE))
            finally:
                writer.transport.abort()
    except TimeoutError:
        raise _late(limit_s) from None
    except ValueError as error:
        raise ConnectionError(str(error)) from None
    return Reply(response.status, response.body)


def _late(limit_s: float) -> TimeoutError:
    return TimeoutError(f"no whole answer within {limit_s:g} s: --limit control=SECONDS sets how long to wait")


def _place(url: str) -> SplitResult:
    at = urlsplit(url)
    if not at.hostname:
        raise ValueError(f"{url!r} names no host")
    return at


def _port(at: SplitResult) -> int:
    return at.port or (443 if at.scheme == "https" else 80)


def _connected(at: SplitResult, limit_s: float) -> socket.socket:
    line = socket.create_connection((at.hostname, _port(at)), limit_s)
    return ssl.create_default_context().wrap_socket(line, server_hostname=at.hostname) if at.scheme == "https" else line


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
