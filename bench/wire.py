"""Bytes as they arrive become an HTTP response, and its body server-sent events; each keeps its time of arrival."""

import contextlib
import re
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

HEAD_LIMIT = 1 << 16
ANSWER_LIMIT = 1 << 26  # bytes
PIECES_LIMIT = 1 << 19  # each takes memory, however small it is
OFTEN = 16  # pieces, after which they are looked into
LINE_LIMIT = 1 << 12  # of a chunk's size with its extensions
BLANK = re.compile(
    rb"(?>\r\n|\r|\n){2}"
)  # the line that ends an event; atomic, for \r\n is one end of line and not two


@dataclass(frozen=True, slots=True, order=True)
class Stamp:
    arrived: float  # at this machine: by the kernel's clock where it tells, else when it was read
    read: float


Came = tuple[float, float, list[tuple[int, int, bytes]]]  # when read, by both clocks, and what the kernel told


def plain(came: Came) -> Stamp:
    return Stamp(came[0], came[0])


class Response:
    """An HTTP/1.1 response out of bytes split anywhere, looked into as little as may be until it is whole."""

    def __init__(self, stamp: Callable[[Came], Stamp] = plain, most: int = ANSWER_LIMIT) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.whole = False
        self._stamp = stamp  # worked out for the few that are asked for
        self._most = most
        self._came: list[Came] = []
        self._pieces: list[bytes] = []  # that came with each
        self._joined = 0  # so many of them
        self._counted = 0  # of a chunk that is waited for
        self._lacks = 0  # bytes
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
        try:
            if self._waits():
                return
            self._rest = b"".join((self._rest, *self._pieces[self._joined :]))
            self._joined = len(self._pieces)
            if self._passed + len(self._rest) > self._most or self._joined > PIECES_LIMIT:
                raise ValueError(f"an answer of more than {self._most:,} bytes or {PIECES_LIMIT:,} pieces")
            while not self.whole and self._step(self):
                pass
        except ValueError:
            self._step = Response._read_no_more
            raise

    def _waits(self) -> bool:
        """For the end of a chunk; to join what came of a large one again and again would take ever longer."""
        if self._lacks <= 0:
            return False
        self._lacks -= sum(map(len, self._pieces[self._counted :]))
        self._counted = len(self._pieces)
        return self._lacks > 0 and self._counted <= PIECES_LIMIT

    def so_far(self) -> bytes:
        """Of the body, while it grows or after it was cut."""
        with contextlib.suppress(ValueError):  # is raised again where more comes
            self._look()
        return b"".join(self._parts)

    def closed(self) -> None:
        """The peer is gone: the end of a body that nothing else delimits, a cut in any other."""
        if self._step is Response._read_body and self._left is None:
            self.whole = True

    @property
    def touched(self) -> bool:
        return bool(self._came)

    @property
    def reusable(self) -> bool:
        delimited = self.whole and self._left is not None and not self._rest
        return delimited and self.headers.get("connection", "").lower() != "close"

    @property
    def heard(self) -> float | None:
        """When something came last, or rather was read."""
        return self._came[-1][0] if self._came else None

    @property
    def last(self) -> Stamp | None:
        return self._stamp(self._came[-1]) if self._came else None

    @cached_property
    def body(self) -> bytes:
        """Once nothing more is to come."""
        return self.so_far()

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
        if len(head) > HEAD_LIMIT:
            raise ValueError(f"response headers larger than {HEAD_LIMIT} bytes")
        if not end:
            return False
        self._passed += len(head) + 4
        self._rest = rest
        first, *lines = head.decode("latin-1").split("\r\n")
        version, _, told = first.partition(" ")
        if not version.startswith("HTTP/1.") or not (told[:3].isascii() and told[:3].isdigit()):
            raise ValueError(f"not an HTTP response: {first[:80]!r}")
        self.status = int(told[:3])
        pairs = [(name.strip().lower(), value.strip()) for name, _, value in (line.partition(":") for line in lines)]
        if len({value for name, value in pairs if name == "content-length"}) > 1:
            raise ValueError("response headers with two lengths")
        self.headers = dict(pairs)
        if version == "HTTP/1.0":
            self.headers["connection"] = "close"
        if 100 <= self.status < 200 and self.status != 101:
            return True  # 100 Continue and its like: the real one follows
        self._delimit()
        return True

    def _delimit(self) -> None:
        """Find out where the body ends; one in a form that nobody asked for is not unpacked."""
        unasked = self.headers.get("content-encoding", "identity").lower()
        if self.status == 101 or unasked not in ("", "identity"):
            raise ValueError(f"an HTTP response in a form that was not asked for: {unasked[:40]!r}, {self.status}")
        transfer = self.headers.get("transfer-encoding", "").lower()
        if transfer not in ("", "identity", "chunked"):
            raise ValueError(f"an HTTP response in a form that was not asked for: {transfer[:40]!r}")
        self._chunked = transfer == "chunked"
        if self._chunked:
            self._left, self._step = 0, Response._read_chunks
        else:
            length = "0" if self.status in (204, 304) else self.headers.get("content-length")
            self._left, self._step = None if length is None else self._length(length), Response._read_body

    def _length(self, told: str) -> int:
        if not (told.isascii() and told.isdigit()) or len(told) > 18 or int(told) > self._most:
            raise ValueError(f"an HTTP response with a length of {told[:40]!r}")
        return int(told)

    def _read_no_more(self) -> bool:
        """What came was refused."""
        return False

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
                trailer = rest.find(b"\r\n\r\n", end)
                self.whole, at = trailer >= 0, trailer + 4 if trailer >= 0 else at
                break
            behind = start + size
            if len(rest) < behind + 2:
                self._wait(size, behind + 2 - len(rest))
                break
            starts.append(passed + start)
            parts.append(rest[start:behind])
            at = behind + 2
        self._passed += at
        self._rest = rest[at:]
        if len(self._rest) > (LINE_LIMIT if end < 0 else HEAD_LIMIT) and not self.whole and self._lacks <= 0:
            raise ValueError("a chunk without a size" if end < 0 else "a trailer without an end")
        return False

    def _wait(self, size: int, lacks: int) -> None:
        if size > self._most:
            raise ValueError(f"a chunk with a size of {size:,}")
        self._lacks, self._counted = lacks, self._joined


def _size(line: bytes) -> int:
    """Of a chunk, whatever extensions follow it. One that lies makes the next begin with something else than a size."""
    digits = line if line.isalnum() else line.partition(b";")[0].rstrip()
    if not digits.isalnum():
        raise ValueError(f"a chunk with a size of {line[:40]!r}")
    return int(digits, 16)


Span = tuple[int, int]


class Events:
    """The server-sent events of a body, found where they are asked for; one that is not whole is none."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self._ends = [match.end() for match in BLANK.finditer(body)] if b"\r" in body else None

    def tidy(self) -> bool:
        """Nothing but JSON objects, as it seems, and [DONE] behind them: found by counting, for most are like that."""
        body = self._body
        if self._ends is not None or not body.startswith(b"data: {") or not body.endswith(b"}\n\ndata: [DONE]\n\n"):
            return False
        return body.count(b"\n") == 2 * body.count(b"}\n\ndata: {") + 4

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

    def data(self, span: Span) -> bytes | None:
        """None for a comment."""
        block = self._body[span[0] : span[1]].rstrip(b"\r\n")
        if block.startswith(b"data: ") and b"\n" not in block and b"\r" not in block:
            return block[6:]
        lines = [line[5:].removeprefix(b" ") for line in block.splitlines() if line.startswith(b"data:")]
        return b"\n".join(lines) if lines else None
