"""Sockets: requests leave without being copied together, and what comes back keeps the time at which it arrived.

Written by hand because a load client must not add its own milliseconds, and no library tells when the kernel had them.
"""

import asyncio
import contextlib
import selectors
import socket
import ssl
import struct
import time
from collections.abc import Coroutine, Sequence
from contextvars import ContextVar, copy_context
from functools import partial
from typing import Any, Protocol, TypeVar

from bench.wire import Response, Stamp, Told

READ = 1 << 16
PIECES = 1024  # that the kernel takes in one call
SO_TIMESTAMPNS = 35  # Linux; the socket module does not name it
TIMESPEC = struct.Struct("@ll")
TOLD = socket.CMSG_SPACE(TIMESPEC.size) if hasattr(socket, "CMSG_SPACE") else 0
T = TypeVar("T")
Pieces = Sequence[bytes | memoryview]
Address = tuple[Any, ...]  # as getaddrinfo has it
ABSURD_S = 60.0  # the wall clock was set between arrival and reading


class Way(Protocol):
    """How bytes leave."""

    def write(self, pieces: Pieces) -> None: ...

    def close(self) -> None: ...

    @property
    def open(self) -> bool: ...


class Connection:
    """A kept-alive connection with one request on it at a time."""

    def __init__(self) -> None:
        self.response = Response()
        self.idle_since = 0.0
        self.way: Way | None = None
        self._ended: asyncio.Future[Response] | None = None

    @property
    def open(self) -> bool:
        return self.way is not None and self.way.open

    async def ask(self, request: Pieces) -> Response:
        assert self.way is not None
        self.response = Response()
        self._ended = asyncio.get_running_loop().create_future()
        self.way.write(request)
        return await self._ended

    def received(self, came: Told, data: bytes) -> None:
        try:
            if self.response.feed(came, data):
                self._end(None)
        except ValueError as error:
            self._end(ConnectionError(f"garbage instead of HTTP: {error}"))
            self.close()

    def lost(self) -> None:
        self.response.closed()
        self._end(None if self.response.whole else ConnectionError("the server closed the connection in mid-answer"))
        self.close()

    def _end(self, error: Exception | None) -> None:
        if self._ended is None or self._ended.done():
            return
        if error is None:
            self._ended.set_result(self.response)
        else:
            self._ended.set_exception(error)

    def close(self) -> None:
        if self.way is not None:
            self.way.close()


class Ear(selectors.DefaultSelector):
    """The selector of an event loop that reads plain connections itself, at once and before anything else: to take each
    read through the loop's own bookkeeping would cost more than the read."""

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        others = []
        for key, mask in super().select(timeout):
            if isinstance(key.data, Line):
                key.data.stirs(mask)
            else:
                others.append((key, mask))
        return others


HEARING: ContextVar[Ear] = ContextVar("HEARING")


def run(main: Coroutine[Any, Any, T]) -> T:
    """As asyncio.run does, on a loop that hears plain connections first."""
    ear = Ear()
    context = copy_context()
    context.run(HEARING.set, ear)
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(ear)) as runner:
        return runner.run(main, context=context)


class Line:
    """A plain socket."""

    def __init__(self, made: socket.socket, ear: Ear, connection: Connection) -> None:
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with contextlib.suppress(OSError):
            made.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        self._socket, self._ear, self._connection = made, ear, connection
        self._unsent = memoryview(b"")
        ear.register(made, selectors.EVENT_READ, self)

    @property
    def open(self) -> bool:
        return self._socket.fileno() >= 0

    def write(self, pieces: Pieces) -> None:
        try:
            sent = self._socket.sendmsg(pieces[:PIECES])
        except BlockingIOError:
            sent = 0
        if sent < sum(map(len, pieces)):
            self._unsent = memoryview(b"".join(pieces))[sent:]
            self._ear.modify(self._socket, selectors.EVENT_READ | selectors.EVENT_WRITE, self)

    def stirs(self, mask: int) -> None:
        try:
            if mask & selectors.EVENT_READ:
                self._read()
            if mask & selectors.EVENT_WRITE and self.open:
                self._write_on()
        except BlockingIOError:
            pass
        except OSError:
            self._connection.lost()

    def _write_on(self) -> None:
        self._unsent = self._unsent[self._socket.send(self._unsent) :]
        if not self._unsent:
            self._ear.modify(self._socket, selectors.EVENT_READ, self)

    def _read(self) -> None:
        data, told, _, _ = self._socket.recvmsg(READ, TOLD)
        read, wall = time.perf_counter(), time.time()
        if data:
            self._connection.received(partial(_stamp, read, wall, told), data)
        else:
            self._connection.lost()

    def close(self) -> None:
        if self.open:
            self._ear.unregister(self._socket)
            self._socket.close()


def _stamp(read: float, wall: float, told: list[tuple[int, int, bytes]]) -> Stamp:
    """By how long what was read had been there, the last of it."""
    for _, kind, stamp in told:
        if kind == SO_TIMESTAMPNS:
            seconds, nanoseconds = TIMESPEC.unpack(stamp)
            waited = wall - seconds - nanoseconds * 1e-9
            return Stamp(read - waited if 0 < waited < ABSURD_S else read, read)
    return Stamp(read, read)


class Streamed(asyncio.Protocol):
    """By asyncio's own transport, for TLS; what it brings is stamped when it is read."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._transport: asyncio.Transport | None = None

    @property
    def open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        read = time.perf_counter()
        self._connection.received(partial(Stamp, read, read), data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._connection.lost()

    def write(self, pieces: Pieces) -> None:
        assert self._transport is not None
        self._transport.writelines(pieces)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()


class Dialer:
    """Makes connections to one host."""

    def __init__(self, host: str, port: int, tls: bool) -> None:
        self._host, self._port = host, port
        self._tls = ssl.create_default_context() if tls else None
        self._addresses: list[Address] = []

    async def connect(self) -> Connection:
        made = Connection()
        ear = HEARING.get(None)
        if self._tls is None and ear is not None:
            made.way = Line(await self._dial(), ear, made)
        else:
            make = asyncio.get_running_loop().create_connection
            _, made.way = await make(lambda: Streamed(made), self._host, self._port, ssl=self._tls)
        return made

    async def _dial(self) -> socket.socket:
        """The name is looked up once: in mid-level that would be somebody's TTFT."""
        self._addresses = self._addresses or socket.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
        problem = OSError(f"{self._host} has no address")
        for family, kind, protocol, _, address in self._addresses:
            made = socket.socket(family, kind, protocol)
            made.setblocking(False)
            try:
                await asyncio.get_running_loop().sock_connect(made, address)
                return made
            except OSError as error:
                made.close()
                problem = error
            except BaseException:
                made.close()
                raise
        raise problem
