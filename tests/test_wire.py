"""Responses split anywhere, and the events in them."""

import pytest

from bench.wire import Response, events
from tests.test_client import STREAM, chunked


def body(response: Response) -> bytes:
    return b"".join(piece for _, piece in response.pieces)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 50, 10_000])
def test_a_chunked_response_is_read_whatever_way_it_is_split(size: int) -> None:
    raw = b"HTTP/1.1 100 Continue\r\n\r\n" + chunked(*STREAM)
    response = Response()
    for at in range(0, len(raw), size):
        assert not response.whole
        response.feed(float(at), raw[at : at + size])
    assert response.whole
    assert response.reusable
    assert body(response) == b"".join(STREAM)


def test_bodies_with_a_length_without_one_and_none_at_all() -> None:
    sized, closing, empty = Response(), Response(), Response()
    sized.feed(0, b"HTTP/1.1 404 Not Found\r\ncontent-length: 3\r\n\r\nab")
    assert not sized.whole
    sized.feed(0, b"c")
    assert sized.whole
    closing.feed(0, b"HTTP/1.1 200 OK\r\n\r\nabc")
    assert not closing.whole
    closing.closed()
    assert closing.whole
    assert not closing.reusable
    empty.feed(0, b"HTTP/1.1 204 No Content\r\n\r\n")
    assert empty.whole


def test_a_chunk_extension_and_a_trailer_are_passed_over() -> None:
    response = Response()
    response.feed(0, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n0\r\nT: 1\r\n\r\n")
    assert response.whole
    assert body(response) == b"abc"


@pytest.mark.parametrize("garbage", [b"SSH-2.0-OpenSSH\r\n\r\n", b"HTTP/1.1 xyz\r\n\r\n", b"x" * 70_000])
def test_garbage_is_an_error(garbage: bytes) -> None:
    with pytest.raises(ValueError, match=r"HTTP|headers"):
        Response().feed(0, garbage)


def test_an_event_is_stamped_when_its_last_byte_came() -> None:
    stream = b"".join(STREAM)
    cut = stream.index(b"\n\n") + 1
    found = list(events([(1.0, stream[:cut]), (2.0, stream[cut:])]))
    assert [at for at, _ in found] == [2.0] * 4


def test_comments_and_windows_line_ends_and_events_of_several_lines() -> None:
    found = list(events([(0.0, b": ping\r\n\r\ndata: a\r\ndata: b\r\n\r\nevent: x\ndata:c\n\n")]))
    assert [data for _, data in found] == [b"a\nb", b"c"]
