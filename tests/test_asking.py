"""Whatever a server does with a plain question: an answer, or an OSError, within a time and a size."""

import asyncio
import contextlib
import gzip
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from bench import asking, client, connection, scrape, server
from bench.asking import Reply
from bench.errors import BenchError

SOON, AMPLE = 0.3, 20.0
Handler = Callable[[socket.socket], None]


@contextlib.contextmanager
def answering(handler: Handler) -> Iterator[str]:
    """The URL of a server whose every connection gets `handler`."""
    with socket.create_server(("127.0.0.1", 0)) as listener, contextlib.ExitStack() as stack:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    line = stack.enter_context(listener.accept()[0])
                    line.recv(1 << 16)
                    with contextlib.suppress(OSError):
                        handler(line)

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(20)
        assert not thread.is_alive()


def said(raw: bytes) -> Handler:
    def handler(line: socket.socket) -> None:
        line.sendall(raw)
        line.shutdown(socket.SHUT_WR)

    return handler


def silent(line: socket.socket) -> None:
    while line.recv(1 << 16):
        pass


def endless(piece: bytes) -> Handler:
    def handler(line: socket.socket) -> None:
        line.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            line.sendall(piece)

    return handler


def dripping(line: socket.socket) -> None:
    """A head that never ends: each byte comes soon enough."""
    line.sendall(b"HTTP/1.1 200 OK\r\nx: ")
    pause = threading.Event()
    while True:
        line.sendall(b"x")
        pause.wait(0.02)


def page(body: bytes, *headers: bytes) -> bytes:
    return b"\r\n".join([b"HTTP/1.1 200 OK", b"content-length: %d" % len(body), *headers, b"", body])


FAULTS: dict[str, tuple[Handler, str]] = {
    "silence": (silent, "--limit control="),
    "a head in drips": (dripping, "--limit control="),
    "a page without end": (endless(b"vllm:num_requests_running 1\n" * 4_000), "an answer of more than"),
    "a page of a gigabyte": (said(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000000\r\n\r\n"), "with a length of"),
    "a compressed bomb": (said(page(gzip.compress(b"x" * 10_000_000), b"content-encoding: gzip")), "not asked for"),
    "half a page": (said(page(b"x" * 100)[:-50]), "in mid-answer"),
    "nothing": (said(b""), "closed the connection"),
    "garbage": (said(b"\0\xff\r\n\r\n"), "not an HTTP response"),
}


def within(case: str) -> float:
    return SOON if "control=" in FAULTS[case][1] else AMPLE


@pytest.mark.parametrize("run", [asyncio.run, connection.run])
@pytest.mark.parametrize("case", FAULTS)
def test_a_bad_answer_is_an_error_that_says_why(case: str, run: Callable[[Any], Any]) -> None:
    handler, says = FAULTS[case]
    with answering(handler) as url, pytest.raises(OSError, match=says):
        run(asking.reply_later(url, limit_s=within(case)))


@pytest.mark.parametrize("case", FAULTS)
def test_without_a_page_there_is_no_sample(case: str) -> None:
    with answering(FAULTS[case][0]) as url:
        assert connection.run(scrape.fetch(url, limit_s=within(case))) is None


def test_a_redirect_is_not_followed() -> None:
    with answering(said(b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n")) as url:
        assert connection.run(asking.reply_later(url)) == Reply(302, b"")
        assert connection.run(scrape.fetch(url)) is None


@pytest.mark.parametrize("url", ["http://", "http://127.0.0.1:port", "http://[::1", "http://" + "a" * 70])
def test_what_is_no_address_is_an_error_too(url: str) -> None:
    with pytest.raises(OSError, match=r".+"):
        connection.run(asking.reply_later(url, limit_s=5))


@pytest.mark.parametrize("models", [b"[]", b'{"data":[]}', b'{"data":[{}]}', b"[" * 100_000, b"\xff"])
def test_an_endpoint_that_does_not_say_what_it_serves_is_refused(models: bytes) -> None:
    with answering(said(page(models))) as url, pytest.raises(BenchError, match="does not answer"):
        connection.run(server.connect(url, None, None, control_s=5))


def test_a_server_that_takes_the_key_no_more_is_not_said_to_be_gone() -> None:
    with answering(said(b"HTTP/1.1 401 Unauthorized\r\ncontent-length: 0\r\n\r\n")) as url:
        endpoint = server.Endpoint(url, "m", scrape.cache_facts(""), None, key="k")
        assert (connection.run(endpoint.silent()) or "").startswith("the server does not answer as it did: HTTP 401")
        with pytest.raises(BenchError, match="does not let us in without a key") as caught:
            connection.run(server.connect(url, None, None))
        assert caught.value.hint == "set BENCH_API_KEY or BENCH_API_KEY_FILE"


@pytest.mark.parametrize("case", FAULTS)
def test_a_server_that_cannot_be_asked_is_said_so(case: str) -> None:
    with answering(FAULTS[case][0]) as url, pytest.raises(BenchError, match="none of the ways"):
        connection.run(client.probe(url, "m", None, 1000, within(case)))


def test_metrics_are_watched_on_while_a_page_fails_and_stop_at_the_end() -> None:
    kept: list[scrape.Sample] = []
    pages = iter([b"", b"garbage", page(b"vllm:num_requests_running 3\n")])

    async def go(url: str) -> None:
        enough = asyncio.Event()

        def keep(_: float, sample: scrape.Sample) -> None:
            kept.append(sample)
            enough.set()

        async with scrape.watching(url, None, lambda: 0.0, keep, every_s=0.01, limit_s=SOON):
            await enough.wait()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    with answering(lambda line: said(next(pages, b""))(line)) as url:
        asyncio.run(go(url))
    assert [sample["running"] for sample in kept] == [3]
