"""A server whose times are known: it streams like vLLM, on one core, and writes down when it did what.

    python -m tests.clients.truth --log TIMES.jsonl

Prints its port once it listens. An answer begins `first` seconds after its request was whole, give or take `spread`
and has `chunks` events, `gap` seconds apart. Its own lateness is in its log: no client can be judged better than that.
"""

import argparse
import heapq
import json
import random
import select
import signal
import socket
import time
import zlib
from dataclasses import dataclass, field
from pathlib import Path

MARK = 2048  # bytes at the end of a request's body that tell it from any other
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


@dataclass(slots=True)
class Connection:
    socket: socket.socket
    pending: bytearray = field(default_factory=bytearray)
    needed: int = 0  # bytes of the request under way, its head included; 0: its head is not whole yet
    chat: bool = False
    body_at: int = 0
    arrived: float = 0.0
    mark: int = 0
    sent: int = 0  # events of the answer under way
    due: float = 0.0
    first: float = 0.0


@dataclass(frozen=True, slots=True)
class Pace:
    chunks: int = 75
    first: float = 0.2
    spread: float = 0.05
    gap: float = 0.02
    prompt_tokens: int = 22_800


class Truth:
    def __init__(self, pace: Pace, port: int = 0) -> None:
        self.pace = pace
        self.listener = socket.create_server(("127.0.0.1", port), backlog=4096)
        self.listener.setblocking(False)
        self.port = self.listener.getsockname()[1]
        self.epoll = select.epoll()
        self.epoll.register(self.listener.fileno(), select.EPOLLIN)
        self.connections: dict[int, Connection] = {}
        self.due: list[tuple[float, int, Connection]] = []
        self.log: list[tuple[float, float, float, float, int]] = []  # arrived, first due, first sent, ended, mark
        self.random = random.Random(1)
        self.stopped = False
        self.events = {c: [chunk(event(f" w{n}", c)) for n in range(1000, 1000 + pace.chunks - 1)] for c in (0, 1)}
        self.last = {c: chunk(event(" w7", c, "length")) + ending(c, pace.prompt_tokens, pace.chunks) for c in (0, 1)}

    def run(self) -> None:
        while not self.stopped:
            wait = self.due[0][0] - time.perf_counter() if self.due else 0.2
            for descriptor, _ in self.epoll.poll(max(0.0, min(wait, 0.2))):
                if descriptor == self.listener.fileno():
                    self._accept()
                else:
                    self._read(self.connections[descriptor])
            now = time.perf_counter()
            while self.due and self.due[0][0] <= now:
                self._send(heapq.heappop(self.due)[2])

    def _accept(self) -> None:
        while True:
            try:
                made, _ = self.listener.accept()
            except BlockingIOError:
                return
            made.setblocking(False)
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.connections[made.fileno()] = Connection(made)
            self.epoll.register(made.fileno(), select.EPOLLIN)

    def _read(self, one: Connection) -> None:
        try:
            data = one.socket.recv(1 << 20)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.epoll.unregister(one.socket.fileno())
            del self.connections[one.socket.fileno()]
            one.socket.close()
            return
        one.pending += data
        if not one.needed:
            self._head(one)
        if one.needed and len(one.pending) >= one.needed:
            self._begin(one)

    def _head(self, one: Connection) -> None:
        end = one.pending.find(b"\r\n\r\n")
        if end < 0:
            return
        head = bytes(one.pending[:end]).lower()
        length = head.partition(b"content-length:")[2].split(b"\r\n")[0].strip()
        one.body_at = end + 4
        one.needed = end + 4 + int(length or b"0")
        one.chat = b"/chat/" in head.split(b"\r\n")[0]
        if b"expect: 100-continue" in head:
            one.socket.send(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _begin(self, one: Connection) -> None:
        if one.pending.startswith(b"GET"):
            self._tell(one)
            return
        one.arrived = time.perf_counter()
        one.mark = mark(bytes(one.pending[max(one.body_at, one.needed - MARK) : one.needed]))
        del one.pending[: one.needed]
        one.needed, one.sent = 0, 0
        one.due = one.arrived + self.pace.first + self.pace.spread * self.random.uniform(-1, 1)
        heapq.heappush(self.due, (one.due, id(one), one))

    def _tell(self, one: Connection) -> None:
        """Health and models, which some clients ask first."""
        del one.pending[: one.needed]
        one.needed = 0
        body = json.dumps({"object": "list", "data": [{"id": "truth", "object": "model", "max_model_len": 65536}]})
        head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        one.socket.send((head + body).encode())

    def _send(self, one: Connection) -> None:
        data = self.events[one.chat][one.sent] if one.sent < self.pace.chunks - 1 else self.last[one.chat]
        due = one.due
        try:
            # Stamped before the call: sending wakes the client, which on loopback may run before the call returns.
            now = time.perf_counter()
            one.socket.send(HEAD + data if one.sent == 0 else data)
        except OSError:
            return
        if one.sent == 0:
            one.first = now
        one.sent += 1
        if one.sent == self.pace.chunks:
            first_due = due - (self.pace.chunks - 1) * self.pace.gap
            self.log.append((one.arrived, first_due, one.first, time.perf_counter(), one.mark))
            return
        one.due = due + self.pace.gap
        heapq.heappush(self.due, (one.due, id(one), one))


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
    truth.run()
    names = ("arrived", "due", "first", "ended", "mark")
    asked.log.write_text("".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in truth.log))


if __name__ == "__main__":
    main()
