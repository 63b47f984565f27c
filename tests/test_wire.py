"""Responses split anywhere, and the events in them."""

import gc
import weakref

import pytest

from bench.wire import Came, Events, Response, Stamp
from tests.test_client import STREAM, chunked


def at(when: float) -> Came:
    return (when, 0.0, [])


def stamp(when: float) -> Stamp:
    return Stamp(when, when)


def fed(*pieces: bytes) -> Response:
    """Piece n came at second n."""
    response = Response()
    for number, piece in enumerate(pieces):
        response.feed(at(float(number)), piece)
    return response


@pytest.mark.parametrize("size", [1, 2, 3, 7, 50, 10_000])
def test_a_chunked_response_is_read_whatever_way_it_is_split(size: int) -> None:
    raw = b"HTTP/1.1 100 Continue\r\n\r\n" + chunked(*STREAM)
    response = Response()
    for start in range(0, len(raw), size):
        assert not response.whole
        response.feed(at(start), raw[start : start + size])
    assert response.whole
    assert response.reusable
    assert response.body == b"".join(STREAM)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 50, 10_000])
def test_every_byte_of_a_body_has_the_time_of_the_piece_that_brought_it(size: int) -> None:
    raw = chunked(*STREAM)
    response = fed(*(raw[start : start + size] for start in range(0, len(raw), size)))
    reached = 0
    for event in STREAM:
        reached += len(event)
        assert response.when(reached) == stamp(float((raw.index(event) + len(event) - 1) // size))


def test_bodies_with_a_length_without_one_and_none_at_all() -> None:
    sized = fed(b"HTTP/1.1 404 Not Found\r\ncontent-length: 3\r\n\r\nab")
    assert not sized.whole
    sized.feed(at(7), b"c")
    assert sized.whole
    assert (sized.body, sized.when(2), sized.when(3)) == (b"abc", stamp(0), stamp(7))
    closing = fed(b"HTTP/1.1 200 OK\r\n\r\nab", b"c")
    assert not closing.whole
    closing.closed()
    assert closing.whole
    assert not closing.reusable
    assert closing.body == b"abc"
    assert fed(b"HTTP/1.1 204 No Content\r\n\r\n").whole


def test_a_response_that_is_cut_is_not_whole() -> None:
    for raw in (chunked(*STREAM)[:-1], b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nab", b"HTTP/1.1 200"):
        cut = fed(raw)
        cut.closed()
        assert not cut.whole


def test_a_chunk_extension_and_a_trailer_are_passed_over() -> None:
    response = fed(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n0\r\nT: 1\r\n", b"\r\n")
    assert response.whole
    assert response.body == b"abc"


def test_headers_that_come_byte_by_byte_and_are_huge() -> None:
    raw = b"HTTP/1.1 200 OK\r\nX: " + b"x" * 60_000 + b"\r\nContent-Length: 1\r\n\r\na"
    assert fed(*(raw[start : start + 1] for start in range(len(raw)))).body == b"a"


@pytest.mark.parametrize(
    "garbage",
    [
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/1.1 xyz\r\n\r\n",
        b"x" * 70_000,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nhello\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1" * 5_000,
    ],
)
def test_garbage_is_an_error(garbage: bytes) -> None:
    with pytest.raises(ValueError, match=r"HTTP|headers|size|invalid literal"):
        fed(garbage)


def data(body: bytes) -> list[bytes | None]:
    events = Events(body)
    return [events.data(span) for span in events.forward()]


def test_comments_and_windows_line_ends_and_events_of_several_lines() -> None:
    assert data(b": ping\r\n\r\ndata: a\r\ndata: b\r\n\r\nevent: x\ndata:c\n\n") == [None, b"a\nb", b"c"]
    assert data(b": ping\n\ndata: a\ndata: b\n\nevent: x\ndata:c\n\n") == [None, b"a\nb", b"c"]
    assert data(b"") == []
    assert data(b"\n\n") == [None]


@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n", b"\r\r"])
def test_an_event_ends_at_its_blank_line_and_one_without_is_none(end: bytes) -> None:
    one = b"data: a" + end
    events = Events(one + one + b"data: c")
    size = len(one)
    assert [*events.forward()] == [(0, size), (size, 2 * size)]
    found = [events.around(offset) for offset in (0, 6, size, 2 * size)]
    assert found == [(0, size), (0, size), (size, 2 * size), None]


def test_an_answer_goes_as_soon_as_nobody_holds_it() -> None:
    """Garbage is not collected while a level is played."""
    gc.disable()
    try:
        gone = weakref.ref(fed(chunked(*STREAM)))
        assert gone() is None
    finally:
        gc.enable()


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def refused_after(response: Response, piece: bytes) -> int:
    """So many bytes."""
    for number in range(1, (4 << 20) // len(piece)):
        try:
            response.feed(at(1), piece)
        except ValueError:
            return number * len(piece)
    raise AssertionError("all was taken")


@pytest.mark.parametrize(
    ("head", "piece"),
    [
        (CHUNKED, b"2000\r\n" + b"x" * 8192 + b"\r\n"),
        (CHUNKED + b"FFFFF\r\n", b"x\r\n\r\n" * 1000),
        (CHUNKED + b"FFFFF\r\n", b"x"),
        (b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 8192),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    ],
    ids=["chunks", "one chunk", "single bytes", "no length", "interim answers"],
)
def test_what_never_ends_is_refused_before_it_takes_much_memory(head: bytes, piece: bytes) -> None:
    most = 1 << 20
    response = Response(most=most)
    response.feed(at(0), head)
    fed = refused_after(response, piece)
    assert fed <= most + 32 * len(piece)
    assert len(response.so_far()) <= most
