"""The least a client can do: the yardstick for all others, and no client anyone should use.

Sockets and epoll. Bytes are stamped before anything else and looked into only where an answer ends; its last events are
parsed, for they say how it went. Prompts and what they grow by are made beforehand.
"""

import gc
import json
import select
import socket
import time
from dataclasses import dataclass, field, replace

from tests.clients import turns
from tests.clients.turns import Asked, Told

HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: truth\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
OPENING = b'{"model":"truth","prompt":"'
CLOSING = b'","max_tokens":75,"temperature":0,"stream":true,"stream_options":{"include_usage":true}}'
END = b"\r\n0\r\n\r\n"


@dataclass(slots=True)
class Session:
    socket: socket.socket
    prompt: bytearray
    additions: list[bytes]
    unsent: memoryview = field(default_factory=lambda: memoryview(b""))
    said: list[bytes] = field(default_factory=list)
    due: float = 0.0
    sent: float = 0.0
    first: float = 0.0


class Floor:
    def __init__(self, asked: Asked) -> None:
        self.left, self.open = asked.requests, 0
        self.told: list[tuple[Told, bytes]] = []  # with the end of its body
        self.epoll = select.epoll()
        most = 3 * asked.requests // asked.concurrency
        made = (self._session(number, most, asked.port) for number in range(asked.concurrency))
        self.sessions = {session.socket.fileno(): session for session in made}

    def _session(self, number: int, most: int, port: int) -> Session:
        connection = socket.create_connection(("127.0.0.1", port))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setblocking(False)
        self.epoll.register(connection.fileno(), select.EPOLLIN)
        grown = [text.encode() for text, _ in zip(turns.additions(number), range(most), strict=False)]
        return Session(connection, bytearray(turns.opening(number).encode()), grown[::-1])

    def run(self) -> None:
        start = time.perf_counter()
        for session in self.sessions.values():
            self._send(session, start)
        while self.open:
            ready = self.epoll.poll()
            at = time.perf_counter()
            for descriptor, event in ready:
                session = self.sessions[descriptor]
                if event & select.EPOLLOUT:
                    self._write(session)
                if event & select.EPOLLIN:
                    self._read(session, at)

    def _send(self, session: Session, due: float) -> None:
        if not self.left:
            return
        self.left, self.open = self.left - 1, self.open + 1
        length = len(OPENING) + len(session.prompt) + len(CLOSING)
        session.unsent = memoryview(b"".join((HEAD % length, OPENING, session.prompt, CLOSING)))
        session.due, session.sent, session.first = due, time.perf_counter(), 0.0
        self._write(session)

    def _write(self, session: Session) -> None:
        whole = len(session.unsent) == (sent := session.socket.send(session.unsent))
        session.unsent = session.unsent[sent:]
        self.epoll.modify(session.socket.fileno(), select.EPOLLIN | (0 if whole else select.EPOLLOUT))

    def _read(self, session: Session, at: float) -> None:
        data = session.socket.recv(1 << 16)
        if not data:
            raise ConnectionError("the server closed a connection")
        session.first = session.first or at
        session.said.append(data)
        if data.endswith(END):
            self._end(session, at)

    def _end(self, session: Session, at: float) -> None:
        *_, last, usage, _ = b"".join(session.said[-3:]).rpartition(END)[0].split(b"data: ")
        assert json.loads(last.split(b"\n")[0])["choices"][0]["finish_reason"]
        assert json.loads(usage.split(b"\n")[0])["usage"]["completion_tokens"] == turns.OUTPUT_TOKENS
        self.open -= 1
        self.told.append((Told(session.due, session.sent, session.first, at), bytes(session.prompt[-turns.MARK :])))
        session.said.clear()
        session.prompt += session.additions.pop()
        self._send(session, at)


def main() -> None:
    asked = turns.asked()
    floor = Floor(asked)
    gc.collect()
    gc.disable()
    floor.run()
    turns.tell(asked.out, (replace(told, mark=turns.mark_of(end, CLOSING)) for told, end in floor.told))


if __name__ == "__main__":
    main()
