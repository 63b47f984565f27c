"""A server whose times are known: it streams like vLLM, on one core, and writes down when it did what.

    python -m tests.clients.truth --log TIMES.jsonl

Prints its port once it listens, then "busy" and "idle" as requests come and run out. An answer begins `first` seconds
after its request was whole (give or take `spread`) and has `chunks` events, `gap` seconds apart. Its own lateness is in
its log, for no client can be judged better than that. When a request was whole is the kernel's word where that is to be
had, and not when this process came to read it.
"""

import argparse
import gc
import heapq
import json
import random
import select
import signal
import socket
import struct
import time
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

MARK = 2048  # bytes at the end of a request's body that tell it from any other
STAMP = getattr(socket, "SO_TIMESTAMPNS", 35)  # Python does not know its name everywhere
QUIET_S = 0.002  # without a request for so long: idle
AWAKE_S = 0.001  # before an event is due: an idle core takes its time to wake
HEAD = (
    b"HTTP/1.1 200 OK\r\nserver: truth\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)


def mark(body: bytes) -> int:
    return zlib.crc32(body[-MARK:])


def chunk(event: bytes) -> bytes:
    data = b"data: " + event + b"\n\n"
    return b"%x\r\n%b\r\n" % (len(data), data)


def event(text: str, chat: bool, reason: str | None = None) -> bytes:
    content = {"delta": {"content": text}} if chat else {"text": text}
    choice = {"index": 0, **content, "logprobs": None, "finish_reason": reason, "stop_reason": None}
    kind = "chat.completion.chunk" if chat else "text_completion"
    told = {"id": "cmpl-0123456789abcdef0123456789abcdef", "object": kind, "created": 1, "model": "truth"}
    return json.dumps(told | {"choices": [choice]}, separators=(",", ":")).encode()


def ending(chat: bool, prompt: int, output: int) -> bytes:
    counted = {"prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output}
    kind = "chat.completion.chunk" if chat else "text_completion"
    told = {"id": "cmpl-0123456789abcdef0123456789abcdef", "object": kind, "created": 1, "model": "truth"}
    usage = json.dumps(told | {"choices": [], "usage": counted}, separators=(",", ":")).encode()
    return chunk(usage) + chunk(b"[DONE]") + b"0\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Answered:
    """Seconds of the monotonic clock, which all processes of a machine share."""

    arrived: float  # the last byte of the request, with the kernel
    unread: float  # and lay there for so long
    due: float  # the first event
    first: float
    ended: float
    late: float  # the event that was worst
    mark: int


@dataclass(slots=True)
class Connection:
    socket: socket.socket
    head: bytearray = field(default_factory=bytearray)  # until it is whole
    tail: bytes = b""  # the last bytes of the body, as far as it came
    left: int = 0  # bytes of the body still to come
    get: bool = False
    chat: bool = False
    arrived: float = 0.0
    unread: float = 0.0
    mark: int = 0
    sent: int = 0  # events of the answer under way
    first_due: float = 0.0
    due: float = 0.0
    first: float = 0.0
    late: float = 0.0


Queue = list[tuple[float, int, Connection]]  # a heap: what is due first


@dataclass(frozen=True, slots=True)
class Pace:
    chunks: int = 75
    first: float = 0.2
    spread: float = 0.05
    gap: float = 0.02
    prompt_tokens: int = 22_800


CROWD = Pace(first=3.0, spread=2.0, gap=0.1)  # of thousands, for one core could not send so many in time
CROWDED = 1000  # sessions


def pace(sessions: int) -> Pace:
    return Pace() if sessions < CROWDED else CROWD


class Truth:
    def __init__(self, pace: Pace, port: int = 0) -> None:
        self.pace = pace
        self.listener = socket.create_server(("127.0.0.1", port), backlog=4096)
        self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)  # a request fits, read or not
        self.listener.setblocking(False)
        self.port = self.listener.getsockname()[1]
        self.epoll = select.epoll()
        self.epoll.register(self.listener.fileno(), select.EPOLLIN)
        self.connections: dict[int, Connection] = {}
        self.firsts: Queue = []
        self.others: Queue = []
        self.log: list[Answered] = []
        self.buffer = memoryview(bytearray(1 << 20))
        self.ahead = time.time() - time.perf_counter()  # of the kernel's stamps
        self.under_way = 0
        self.quiet_since: float | None = None
        self.idle = True
        self.random = random.Random(1)
        self.stopped = False
        self.events = {c: [chunk(event(f" w{n}", c)) for n in range(1000, 1000 + pace.chunks - 1)] for c in (0, 1)}
        self.last = {c: chunk(event(" w7", c, "length")) + ending(c, pace.prompt_tokens, pace.chunks) for c in (0, 1)}

    def run(self) -> None:
        while not self.stopped:
            # Not epoll's own timeout, which is in whole milliseconds.
            select.select([self.epoll], [], [], self._wait())
            for descriptor, _ in self.epoll.poll(0):
                if descriptor == self.listener.fileno():
                    self._accept()
                elif one := self.connections.get(descriptor):
                    self._read(one)
                self._send_due()
            self._send_due()
            self._tell_idle()

    def _wait(self) -> float:
        now = time.perf_counter()
        if self.firsts or self.others:
            next_due = min(queue[0][0] for queue in (self.firsts, self.others) if queue)
            return max(0.0, next_due - now - AWAKE_S)
        if self.quiet_since is not None and not self.idle:
            return max(0.0, self.quiet_since + QUIET_S - now)
        return 0.2

    def _send_due(self) -> None:
        while queue := self._ready():
            self._send(heapq.heappop(queue)[2])

    def _ready(self) -> Queue | None:
        """First events before others: clients are judged by those."""
        now = time.perf_counter()
        return next((queue for queue in (self.firsts, self.others) if queue and queue[0][0] <= now), None)

    def _tell_idle(self) -> None:
        quiet = self.quiet_since is not None and time.perf_counter() - self.quiet_since >= QUIET_S
        if quiet and not self.idle:
            self.idle = True
            print("idle", flush=True)

    def _accept(self) -> None:
        while True:
            try:
                made, _ = self.listener.accept()
            except BlockingIOError:
                return
            made.setblocking(False)
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            made.setsockopt(socket.SOL_SOCKET, STAMP, 1)
            self.connections[made.fileno()] = Connection(made)
            self.epoll.register(made.fileno(), select.EPOLLIN)

    def _read(self, one: Connection) -> None:
        try:
            size, stamps, _, _ = one.socket.recvmsg_into([self.buffer], 64)
        except BlockingIOError:
            return
        except OSError:
            size = 0
        if not size:
            self._close(one)
            return
        one.arrived = self._stamp(stamps)
        if one.left:
            self._body(one, self.buffer[:size])
        else:
            one.head += self.buffer[:size]
            self._head(one)

    def _stamp(self, stamps: list[tuple[int, int, bytes]]) -> float:
        for _, kind, data in stamps:
            if kind == STAMP:
                seconds, nanoseconds = struct.unpack("qq", data[:16])
                return seconds + nanoseconds / 1e9 - self.ahead
        return time.perf_counter()

    def _close(self, one: Connection) -> None:
        self.epoll.unregister(one.socket.fileno())
        del self.connections[one.socket.fileno()]
        one.socket.close()
        if one.due:
            self._over(one)

    def _over(self, one: Connection) -> None:
        one.due = 0.0
        self.under_way -= 1
        if self.under_way == 0:
            self.quiet_since = time.perf_counter()

    def _head(self, one: Connection) -> None:
        end = one.head.find(b"\r\n\r\n")
        if end < 0:
            return
        head, rest = bytes(one.head[:end]).lower(), bytes(one.head[end + 4 :])
        one.head.clear()
        one.left = int(head.partition(b"content-length:")[2].split(b"\r\n")[0].strip() or b"0")
        one.get, one.chat, one.tail = head.startswith(b"get"), b"/chat/" in head.split(b"\r\n")[0], b""
        if b"expect: 100-continue" in head:
            one.socket.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._body(one, memoryview(rest))

    def _body(self, one: Connection, data: memoryview) -> None:
        one.left -= len(data)
        one.tail = (one.tail + data[-MARK:])[-MARK:]
        if not one.left:
            self._begin(one)

    def _begin(self, one: Connection) -> None:
        if one.get:
            self._tell(one)
            return
        one.unread = time.perf_counter() - one.arrived
        one.mark, one.sent, one.late = mark(one.tail), 0, 0.0
        one.due = one.first_due = one.arrived + self.pace.first + self.pace.spread * self.random.uniform(-1, 1)
        heapq.heappush(self.firsts, (one.due, id(one), one))
        self.under_way += 1
        self.quiet_since = None
        if self.idle:
            self.idle = False
            print("busy", flush=True)

    def _tell(self, one: Connection) -> None:
        """Health and models, which some clients ask first."""
        body = json.dumps({"object": "list", "data": [{"id": "truth", "object": "model", "max_model_len": 65536}]})
        head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        one.socket.send((head + body).encode())

    def _send(self, one: Connection) -> None:
        if not one.due:  # its client has gone
            return
        data = self.events[one.chat][one.sent] if one.sent < self.pace.chunks - 1 else self.last[one.chat]
        # Stamped before the call: sending wakes the client, which may run before the call returns.
        now = time.perf_counter()
        try:
            one.socket.send(HEAD + data if one.sent == 0 else data)
        except OSError:
            self._close(one)
            return
        if one.sent == 0:
            one.first = now
        one.late = max(one.late, now - one.due)
        one.sent += 1
        if one.sent == self.pace.chunks:
            self.log.append(Answered(one.arrived, one.unread, one.first_due, one.first, now, one.late, one.mark))
            self._over(one)
            return
        one.due += self.pace.gap
        heapq.heappush(self.others, (one.due, id(one), one))


def read_log(path: Path) -> Iterator[Answered]:
    return (Answered(**json.loads(line)) for line in path.read_text().splitlines())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--port", type=int, default=0)
    for name, value in (("chunks", 75), ("first", 0.2), ("spread", 0.05), ("gap", 0.02)):
        parser.add_argument(f"--{name}", type=type(value), default=value)
    asked = parser.parse_args()
    truth = Truth(Pace(asked.chunks, asked.first, asked.spread, asked.gap), asked.port)
    signal.signal(signal.SIGTERM, lambda *_: setattr(truth, "stopped", True))
    print(truth.port, flush=True)
    gc.disable()
    truth.run()
    asked.log.write_text("".join(json.dumps(asdict(answered)) + "\n" for answered in truth.log))


if __name__ == "__main__":
    main()
