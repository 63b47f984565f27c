"""Bytes as they arrive become an HTTP response, and its body server-sent events; each keeps its time of arrival."""

import re
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

HEAD_LIMIT = 1 << 16
OFTEN = 16  # pieces, after which they are looked into
LINE_LIMIT = 1 << 12  # of a chunk's size with its extensions
BLANK = re.compile(
    rb"(?>\r\n|\r|\n){2}"
)  # the line that ends an event; atomic, for \r\n is one end of line and not two


@dataclass(frozen=True, slots=True)
class Stamp:
    arrived: float  # at this machine: by the kernel's clock where it tells, else when it was read
    read: float


Came = tuple[float, float, list[tuple[int, int, bytes]]]  # when read, by both clocks, and what the kernel told


def plain(came: Came) -> Stamp:
    return Stamp(came[0], came[0])


class Response:
    """An HTTP/1.1 response out of bytes split anywhere, looked into as little as may be until it is whole."""

    def __init__(self, stamp: Callable[[Came], Stamp] = plain) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.whole = False
        self._stamp = stamp  # worked out for the few that are asked for
        self._came: list[Came] = []
        self._pieces: list[bytes] = []  # that came with each
        self._looked = 0  # into so many of them
        self._rest = b""  # was looked into, and is not understood yet
        self._passed = 0  # bytes before the rest
        self._chunked = False
        self._left: int | None = None  # bytes left of a body with a length; None: until the connection closes
        self._step = Response._read_head  # not bound: a cycle would outlive the level, whose garbage is not collected
        self._parts: list[bytes] = []  # of the body
        self._starts: list[int] = []  # of each, among all bytes

    def feed(self, came: Came, data: bytes) -> bool:
        """True when it is whole."""
        self._came.append(came)
        self._pieces.append(data)
        # The last of chunks ends in an empty line, and the end of one may come by itself. Now and then all the same: at
        # the end somebody waits for the next turn to be sent.
        if not self._chunked or len(data) < 4 or b"\r\n\r\n" in data or len(self._pieces) % OFTEN == 0:
            self._look()
        return self.whole

    def _look(self) -> None:
        self._rest = b"".join((self._rest, *self._pieces[self._looked :]))
        self._looked = len(self._pieces)
        while not self.whole and self._step(self):
            pass

    def closed(self) -> None:
        """The peer is gone: the end of a body that nothing else delimits, a cut in any other."""
        if self._step is Response._read_body and self._left is None:
            self.whole = True

    @property
    def touched(self) -> bool:
        return bool(self._came)

    @property
    def reusable(self) -> bool:
        return self.whole and self._left is not None and self.headers.get("connection", "").lower() != "close"

    @property
    def last(self) -> Stamp | None:
        return self._stamp(self._came[-1]) if self._came else None

    @cached_property
    def body(self) -> bytes:
        return b"".join(self._parts)

    @cached_property
    def _ends(self) -> list[int]:
        """Of what came, among all bytes."""
        return list(accumulate(map(len, self._pieces)))

    @cached_property
    def _part_ends(self) -> list[int]:
        return list(accumulate(map(len, self._parts)))

    def when(self, end: int) -> Stamp:
        """At which the body was here up to the byte before `end`."""
        part = bisect_right(self._part_ends, end - 1)
        before = self._part_ends[part - 1] if part else 0
        return self._stamp(self._came[bisect_right(self._ends, self._starts[part] + end - 1 - before)])

    def _read_head(self) -> bool:
        head, end, rest = self._rest.partition(b"\r\n\r\n")
        if not end:
            if len(head) > HEAD_LIMIT:
                raise ValueError(f"response headers larger than {HEAD_LIMIT} bytes")
            return False
        self._passed += len(head) + 4
        self._rest = rest
        first, *lines = head.decode("latin-1").split("\r\n")
        version, _, told = first.partition(" ")
        if not version.startswith("HTTP/1.") or not told[:3].isdigit():
            raise ValueError(f"not an HTTP response: {first[:80]!r}")
        self.status = int(told[:3])
        pairs = (line.partition(":") for line in lines)
        self.headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
        if self.status < 200:
            return True  # 100 Continue and its like: the real one follows
        self._chunked = "chunked" in self.headers.get("transfer-encoding", "").lower()
        if self._chunked:
            self._left, self._step = 0, Response._read_chunks
        else:
            length = "0" if self.status in (204, 304) else self.headers.get("content-length")
            self._left, self._step = None if length is None else int(length), Response._read_body
            if self._left is not None and self._left < 0:
                raise ValueError(f"a body of {length} bytes")
        return True

    def _read_body(self) -> bool:
        part = self._rest if self._left is None else self._rest[: self._left]
        if part:
            self._starts.append(self._passed)
            self._parts.append(part)
        self._passed += len(part)
        self._rest = self._rest[len(part) :]
        self._left = None if self._left is None else self._left - len(part)
        self.whole = self._left == 0
        return False

    def _read_chunks(self) -> bool:
        """As many as are whole."""
        rest, at, passed, starts, parts = self._rest, 0, self._passed, self._starts, self._parts
        while (end := rest.find(b"\r\n", at)) >= 0:
            size = _size(rest[at:end])
            start = end + 2
            if size == 0:
                self.whole = rest.find(b"\r\n\r\n", end) >= 0  # behind the trailer, if there is one
                break
            if len(rest) < start + size + 2:
                break
            starts.append(passed + start)
            parts.append(rest[start : start + size])
            at = start + size + 2
        if end < 0 and len(rest) - at > LINE_LIMIT:
            raise ValueError("a chunk without a size")
        self._passed += at
        self._rest = rest[at:]
        return False


def _size(line: bytes) -> int:
    """Of a chunk, whatever extensions follow it."""
    try:
        size = int(line, 16)
    except ValueError:
        size = int(line.partition(b";")[0], 16)
    if size < 0:  # would be read for ever
        raise ValueError("a chunk of less than nothing")
    return size


Span = tuple[int, int]


class Events:
    """The server-sent events of a body, found where they are asked for; one that is not whole is none."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self._ends = [match.end() for match in BLANK.finditer(body)] if b"\r" in body else None

    def around(self, offset: int) -> Span | None:
        """From where to where the event reaches that holds this byte."""
        if self._ends is not None:
            number = bisect_right(self._ends, offset)
            return (self._ends[number - 1] if number else 0, self._ends[number]) if number < len(self._ends) else None
        end = self._body.find(b"\n\n", offset)
        before = self._body.rfind(b"\n\n", 0, offset)
        return (before + 2 if before >= 0 else 0, end + 2) if end >= 0 else None

    def forward(self) -> Iterator[Span]:
        at = 0
        while span := self.around(at):
            yield span
            at = span[1]

    def backward(self) -> Iterator[Span]:
        at = len(self._body) - 2
        while at >= 0:
            span = self.around(at)
            if span:
                yield span
            at = span[0] - 2 if span else max(self._body.rfind(b"\n", 0, at), self._body.rfind(b"\r", 0, at))

    def data(self, span: Span) -> bytes | None:
        """None for a comment."""
        block = self._body[span[0] : span[1]].rstrip(b"\r\n")
        if block.startswith(b"data: ") and b"\n" not in block and b"\r" not in block:
            return block[6:]
        lines = [line[5:].removeprefix(b" ") for line in block.splitlines() if line.startswith(b"data:")]
        return b"\n".join(lines) if lines else None
