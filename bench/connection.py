"""Sockets: requests leave without being copied together, and what comes back keeps the time at which it arrived.

Written by hand because a load client must not add its own milliseconds, and no library tells when the kernel had them.
"""

import asyncio
import contextlib
import fcntl
import resource
import select
import selectors
import socket
import ssl
import struct
import sys
import termios
import time
from collections.abc import Callable, Coroutine, Sequence
from contextvars import Context, ContextVar, copy_context
from typing import Any, Protocol, TypeVar

from bench import interrupt
from bench.errors import BenchError
from bench.limits import Limits, Overdue, Watch
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
RACE_S = 1.0  # in which a server's end of an idle connection and our request may have crossed


class Way(Protocol):
    """How bytes leave."""

    def write(self, pieces: Pieces) -> None: ...

    def close(self) -> None: ...

    @property
    def open(self) -> bool: ...

    @property
    def drained(self) -> bool:
        """Nothing of a request is left to be sent."""

    @property
    def untaken(self) -> bool:
        """Nothing of the last request has reached the peer's machine."""


class Untaken(ConnectionError):
    """The connection ended, and the peer cannot have taken the request."""


class Unasked(Response):
    """Of a connection that lies idle: whatever comes is refused."""

    def feed(self, came: Came, data: bytes) -> bool:
        raise ValueError("bytes that nobody asked for")


class Connection:
    """A kept-alive connection with one request on it at a time."""

    def __init__(self) -> None:
        self.response = Response()
        self.idle_since = 0.0
        self._asked_at = 0.0
        self.way: Way | None = None
        self._ended: asyncio.Future[Response] | None = None

    @property
    def open(self) -> bool:
        return self.way is not None and self.way.open

    @property
    def drained(self) -> bool:
        return self.way is not None and self.way.drained

    async def ask(self, request: Pieces, limits: Limits, begun: Callable[[Response], bool]) -> Response:
        """`begun`: a token is among what has come."""
        assert self.way is not None
        loop = asyncio.get_running_loop()
        self.response = Response(_stamp)
        self._ended = loop.create_future()
        self._asked_at = time.perf_counter()
        self.way.write(request)
        watch = Watch(limits, loop, lambda: self.response.heard, lambda: begun(self.response), self._end)
        try:
            return await self._ended
        finally:
            watch.stop()

    def rest(self) -> None:
        """Until the next request."""
        self.response = Unasked()
        self.idle_since = time.perf_counter()

    def received(self, came: Came, data: bytes) -> bool:
        """True at the end."""
        try:
            if not self.response.feed(came, data):
                return False
            self._end(None)
        except ValueError as error:
            self._end(ConnectionError(f"what came is no answer: {error}"))
            self.close()
        return True

    def lost(self, problem: Exception | None = None) -> None:
        """`problem`: why, unless the server simply ended it."""
        if problem is None:
            self.response.closed()
        self._end(None if self.response.whole else self._loss(problem))
        self.close()

    def _loss(self, problem: Exception | None) -> ConnectionError:
        if self.response.touched:
            why = "the server closed the connection in mid-answer"
        else:
            why = "the server closed the connection without an answer"
        if problem is not None:
            why = f"the connection failed: {getattr(problem, 'strerror', None) or problem}"
        return Untaken(why) if self._untaken(problem) else ConnectionError(why)

    def _untaken(self, problem: Exception | None) -> bool:
        """A server that ends, or dies, once it has read a request closes in order; one that resets has not read all."""
        if self.response.touched or self.way is None:
            return False
        reset = isinstance(problem, ConnectionResetError | BrokenPipeError)
        return self.way.untaken or (reset and time.perf_counter() - self._asked_at < RACE_S)

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
    # Held, for a loop that is interrupted while it is made or ended tells that with a traceback.
    with interrupt.held(), asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(ear)) as runner:
        return _interruptible(runner.get_loop(), main, context)


def _interruptible(loop: asyncio.AbstractEventLoop, main: Coroutine[Any, Any, T], context: Context) -> T:
    """Asked once to stop, it is cancelled and puts on file what is under way; asked twice, it is left as it is."""
    task = loop.create_task(main, context=context)
    try:
        with interrupt.instead(lambda: loop.call_soon_threadsafe(task.cancel)), interrupt.free():
            done = loop.run_until_complete(task)
    except (asyncio.CancelledError, BenchError):  # who was asked to stop does not go on for what happened meanwhile
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
        self._asked = 0  # bytes
        ear.attend(self, made.fileno(), select.EPOLLIN)

    @property
    def open(self) -> bool:
        return self._socket.fileno() >= 0

    @property
    def drained(self) -> bool:
        return not self._unsent

    @property
    def untaken(self) -> bool:
        unacknowledged = fcntl.ioctl(self._socket.fileno(), termios.TIOCOUTQ, b"\0\0\0\0")
        return int.from_bytes(unacknowledged, sys.byteorder) + len(self._unsent) >= self._asked

    def write(self, pieces: Pieces) -> None:
        self._asked = sum(map(len, pieces))
        try:
            sent = self._socket.sendmsg(pieces[:PIECES])
        except BlockingIOError:
            sent = 0
        except OSError as error:
            raise Untaken(f"the connection failed: {error.strerror}") from None
        if sent < self._asked:
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
        except OSError as error:
            self._connection.lost(error)
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

    @property
    def untaken(self) -> bool:
        return False  # nobody tells

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        read = time.perf_counter()
        self._connection.received((read, 0.0, []), data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._connection.lost(exc)

    def write(self, pieces: Pieces) -> None:
        assert self._transport is not None
        self._transport.writelines(pieces)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()


class Dialer:
    """Makes connections to one host."""

    def __init__(self, host: str, port: int, tls: bool, limit_s: float) -> None:
        self._host, self._port, self._limit_s = host, port, limit_s
        self._tls = ssl.create_default_context() if tls else None
        self._addresses: list[Address] = []

    async def connect(self) -> Connection:
        made = Connection()
        try:
            async with asyncio.timeout(self._limit_s) as limit:
                made.way = await self._way(made)
        except TimeoutError:
            if limit.expired():
                raise Overdue(f"no connection within {self._limit_s:g} s", "connect") from None
            raise  # the kernel's own limit came first
        return made

    async def _way(self, made: Connection) -> Way:
        ear = HEARING.get(None)
        if self._tls is None and ear is not None:
            return Line(await self._dial(), ear, made)
        make = asyncio.get_running_loop().create_connection
        _, way = await make(lambda: Streamed(made), self._host, self._port, ssl=self._tls)
        return way

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
