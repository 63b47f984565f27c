"""Sockets: requests leave without being copied together, and what comes back keeps the time at which it arrived.

Written by hand because a load client must not add its own milliseconds, and no library tells when the kernel had them.
"""

import asyncio
import contextlib
import resource
import select
import selectors
import socket
import ssl
import struct
import sys
import time
from collections.abc import Coroutine, Sequence
from contextvars import Context, ContextVar, copy_context
from typing import Any, Protocol, TypeVar

from bench import interrupt
from bench.wire import Came, Response, Stamp

READ = 1 << 13  # at a time: a streamed token takes some hundred bytes
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

    @property
    def drained(self) -> bool:
        """Nothing of a request is left to be sent."""


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

    @property
    def drained(self) -> bool:
        return self.way is not None and self.way.drained

    async def ask(self, request: Pieces, timeout_s: float) -> Response:
        assert self.way is not None
        loop = asyncio.get_running_loop()
        self.response = Response(_stamp)
        self._ended = loop.create_future()
        self.way.write(request)
        alarm = loop.call_later(timeout_s, self._end, TimeoutError())
        try:
            return await self._ended
        finally:
            alarm.cancel()

    def received(self, came: Came, data: bytes) -> bool:
        """True at the end."""
        try:
            if not self.response.feed(came, data):
                return False
            self._end(None)
        except ValueError as error:
            self._end(ConnectionError(f"garbage instead of HTTP: {error}"))
            self.close()
        return True

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


class Ear(selectors.BaseSelector):
    """The selector of an event loop that reads plain connections itself, at once and before anything else: to take each
    read through the loop's own bookkeeping would cost more than the read."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._keys: dict[int, selectors.SelectorKey] = {}
        self._lines: dict[int, Line] = {}

    def attend(self, line: "Line", number: int, mask: int) -> None:
        if number in self._lines:
            self._epoll.modify(number, mask)
        else:
            self._lines[number] = line
            self._epoll.register(number, mask)

    def forget(self, number: int) -> None:
        if self._lines.pop(number, None):
            self._epoll.unregister(number)

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """As long as answers only grow, the loop has nothing to do and is not told."""
        until = None if timeout is None else time.monotonic() + timeout
        while True:
            others, ended = [], False
            for number, mask in self._epoll.poll(timeout):
                if line := self._lines.get(number):
                    ended |= line.stirs(mask)
                elif key := self._keys.get(number):
                    others.append((key, key.events & _events(mask)))
            if until is not None:
                timeout = max(0.0, until - time.monotonic())
            if ended or others or timeout == 0:
                return others

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        number = fileobj if isinstance(fileobj, int) else fileobj.fileno()
        reads, writes = bool(events & selectors.EVENT_READ), bool(events & selectors.EVENT_WRITE)
        self._epoll.register(number, reads * select.EPOLLIN | writes * select.EPOLLOUT)
        self._keys[number] = selectors.SelectorKey(fileobj, number, events, data)
        return self._keys[number]

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        number = fileobj if isinstance(fileobj, int) else fileobj.fileno()
        with contextlib.suppress(OSError):  # closed already
            self._epoll.unregister(number)
        return self._keys.pop(number)

    def get_map(self) -> dict[Any, selectors.SelectorKey]:
        return self._keys

    def close(self) -> None:
        self._epoll.close()


def _events(mask: int) -> int:
    """An error stirs whoever waits."""
    reads, writes = bool(mask & ~select.EPOLLOUT), bool(mask & ~select.EPOLLIN)
    return reads * selectors.EVENT_READ | writes * selectors.EVENT_WRITE


HEARING: ContextVar[Ear] = ContextVar("HEARING")


def run(main: Coroutine[Any, Any, T]) -> T:
    """As asyncio.run does, on a loop that hears plain connections first, where the system has what that takes."""
    if not sys.platform.startswith("linux"):
        return asyncio.run(main)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # a connection a session
    ear = Ear()
    context = copy_context()
    context.run(HEARING.set, ear)
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(ear)) as runner:
        return _interruptible(runner.get_loop(), main, context)


def _interruptible(loop: asyncio.AbstractEventLoop, main: Coroutine[Any, Any, T], context: Context) -> T:
    """Asked once to stop, it is cancelled and puts on file what is under way; asked twice, it is left as it is."""
    task = loop.create_task(main, context=context)
    try:
        with interrupt.instead(lambda: loop.call_soon_threadsafe(task.cancel)):
            done = loop.run_until_complete(task)
    except asyncio.CancelledError:
        if not interrupt.times():
            raise
    except KeyboardInterrupt:
        loop.set_exception_handler(lambda *_: None)  # what it tears is no news
        raise
    if interrupt.times():  # be it that the word came when all was done
        raise KeyboardInterrupt
    return done


class Line:
    """A plain socket."""

    def __init__(self, made: socket.socket, ear: Ear, connection: Connection) -> None:
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        made.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        self._socket, self._ear, self._connection = made, ear, connection
        self._unsent = memoryview(b"")
        ear.attend(self, made.fileno(), select.EPOLLIN)

    @property
    def open(self) -> bool:
        return self._socket.fileno() >= 0

    @property
    def drained(self) -> bool:
        return not self._unsent

    def write(self, pieces: Pieces) -> None:
        try:
            sent = self._socket.sendmsg(pieces[:PIECES])
        except BlockingIOError:
            sent = 0
        if sent < sum(map(len, pieces)):
            self._unsent = memoryview(b"".join(pieces))[sent:]
            self._ear.attend(self, self._socket.fileno(), select.EPOLLIN | select.EPOLLOUT)

    def stirs(self, mask: int) -> bool:
        """True if whoever asked has to be told."""
        try:
            if mask & select.EPOLLOUT and self._unsent:
                self._write_on()
            return mask != select.EPOLLOUT and self._read()
        except BlockingIOError:
            return False
        except OSError:
            self._connection.lost()
            return True

    def _write_on(self) -> None:
        try:
            self._unsent = self._unsent[self._socket.send(self._unsent) :]
        except ConnectionError:
            self._unsent = memoryview(b"")  # they want no more of it, and may have said why
        if not self._unsent:
            self._ear.attend(self, self._socket.fileno(), select.EPOLLIN)

    def _read(self) -> bool:
        data, told, _, _ = self._socket.recvmsg(READ, TOLD)
        wall = time.time()  # first: whatever comes between the two makes a stamp later, and never earlier than it was
        read = time.perf_counter()
        if data:
            return self._connection.received((read, wall, told), data)
        self._connection.lost()
        return True

    def close(self) -> None:
        self._unsent = memoryview(b"")
        if self.open:
            self._ear.forget(self._socket.fileno())
            self._socket.close()


def _stamp(came: Came) -> Stamp:
    """By how long what was read had been there, the last of it."""
    read, wall, told = came
    for _, kind, stamp in told:
        if kind == SO_TIMESTAMPNS:
            seconds, nanoseconds = TIMESPEC.unpack(stamp)
            waited = wall - seconds - nanoseconds * 1e-9
            return Stamp(read - waited if 0 < waited < ABSURD_S else read, read)
    return Stamp(read, read)


class Streamed(asyncio.Protocol):
    """By asyncio's own transport, for TLS and other systems; what it brings is stamped when it is read."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._transport: asyncio.Transport | None = None

    @property
    def open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    @property
    def drained(self) -> bool:
        return self._transport is not None and not self._transport.get_write_buffer_size()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        read = time.perf_counter()
        self._connection.received((read, 0.0, []), data)

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
