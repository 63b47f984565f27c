"""Bytes as they arrive become an HTTP response, and its body server-sent events; each keeps its time of arrival."""

from collections.abc import Callable, Iterator

HEAD_LIMIT = 1 << 16


class Response:
    """An HTTP/1.1 response out of bytes split anywhere; `pieces` is its body with the time each piece arrived."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.pieces: list[tuple[float, bytes]] = []
        self.whole = False
        self.ended_at: float | None = None
        self.touched = False
        self._buffer = bytearray()
        self._left: int | None = None  # bytes left of the body or chunk; None: until the connection closes
        self._step: Callable[[float], bool] = self._read_head

    def feed(self, at: float, data: bytes) -> None:
        self.touched = True
        self._buffer += data
        while not self.whole and self._step(at):
            pass
        if self.whole:
            self.ended_at = at

    def closed(self) -> None:
        """The peer is gone: the end of a body that nothing else delimits, a cut in any other."""
        if self._step == self._read_body and self._left is None:
            self.whole = True

    @property
    def reusable(self) -> bool:
        return self.whole and self._left is not None and self.headers.get("connection", "").lower() != "close"

    def _read_head(self, at: float) -> bool:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            if len(self._buffer) > HEAD_LIMIT:
                raise ValueError(f"response headers larger than {HEAD_LIMIT} bytes")
            return False
        lines = self._take(end + 4).decode("latin-1").split("\r\n")
        version, _, rest = lines[0].partition(" ")
        if not version.startswith("HTTP/1.") or not rest[:3].isdigit():
            raise ValueError(f"not an HTTP response: {lines[0][:80]!r}")
        self.status = int(rest[:3])
        pairs = (line.partition(":") for line in lines[1:] if line)
        self.headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
        if self.status < 200:
            return True  # 100 Continue and its like: the real one follows
        self._step = self._read_body
        if "chunked" in self.headers.get("transfer-encoding", "").lower():
            self._left, self._step = 0, self._read_chunk_size
        elif self.status in (204, 304):
            self._left, self.whole = 0, True
        elif "content-length" in self.headers:
            self._left = int(self.headers["content-length"])
            self.whole = self._left == 0
        return True

    def _read_body(self, at: float) -> bool:
        self._emit(at)
        self.whole = self._left == 0
        return False

    def _read_chunk_size(self, at: float) -> bool:
        end = self._buffer.find(b"\r\n")
        if end < 0:
            return False
        self._left = int(self._take(end + 2).split(b";")[0], 16)
        self._step = self._read_chunk if self._left else self._read_trailer
        return True

    def _read_chunk(self, at: float) -> bool:
        if self._left:
            self._emit(at)
        if self._left or len(self._buffer) < 2:
            return False
        self._take(2)
        self._step = self._read_chunk_size
        return True

    def _read_trailer(self, at: float) -> bool:
        end = self._buffer.find(b"\r\n")
        if end < 0:
            return False
        self.whole = not self._take(end + 2).strip()
        return True

    def _emit(self, at: float) -> None:
        size = len(self._buffer) if self._left is None else min(self._left, len(self._buffer))
        if size:
            self.pieces.append((at, self._take(size)))
            if self._left is not None:
                self._left -= size

    def _take(self, size: int) -> bytes:
        taken = bytes(self._buffer[:size])
        del self._buffer[:size]
        return taken


def events(pieces: list[tuple[float, bytes]]) -> Iterator[tuple[float, bytes]]:
    """Server-sent events, each with the arrival of the piece that completed it."""
    rest, data = b"", list[bytes]()
    for at, piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            line = line.rstrip(b"\r")
            if line.startswith(b"data:"):
                data.append(line[5:].removeprefix(b" "))
            elif not line and data:
                yield at, b"\n".join(data)
                data = []
