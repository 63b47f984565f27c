"""Bytes to answers: responses split anywhere, connections kept and broken, streams that are not what they seem."""

import asyncio
import json
import socket
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from bench import connection
from bench.client import Client, Target, judge, record
from bench.dialect import Answer, Dialect
from bench.dialect import understand as read
from bench.records import TurnRecord
from bench.wire import Stamp
from bench.workload import Turn

WORDS = Dialect("token ids", "/v1/completions", b'"prompt":[', b"]", (b"1",), b",", "word", True, True)


def token(text: str, finish: str | None = None) -> bytes:
    return sse({"choices": [{"index": 0, "text": text, "finish_reason": finish}]})


def sse(event: object) -> bytes:
    return b"data: " + json.dumps(event).encode() + b"\n\n"


USAGE = sse(
    {
        "choices": [],
        "usage": {"prompt_tokens": 9, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 4}},
    }
)
DONE = b"data: [DONE]\n\n"
STREAM = [token(" w5"), token(" w17", "length"), USAGE, DONE]


def chunked(*pieces: bytes) -> bytes:
    body = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + body + b"0\r\n\r\n"


def understand(body: bytes) -> Answer:
    """The event that ends n bytes into the body came at second 1, 2, 3 ..."""
    return read(body, lambda end: Stamp(float(body[:end].count(b"\n\n")), float(body[:end].count(b"\n\n"))))


def test_a_role_without_a_word_is_no_token_but_a_thought_is() -> None:
    role = sse({"choices": [{"delta": {"role": "assistant", "content": ""}, "finish_reason": None}]})
    thought = sse({"choices": [{"delta": {"reasoning_content": "hm"}, "finish_reason": None}]})
    assert understand(role + thought).first == Stamp(2.0, 2.0)


def test_answers_are_copied_in_the_notation_of_the_prompt() -> None:
    assert WORDS.answer(b"".join(STREAM)) == b"5,17"
    assert WORDS.answer(b'{"id":"cmpl-w9","text":" w5 w6"}\n{"text":" w7"}') == b"5,6,7", "a busy server merges tokens"
    text = Dialect("text", "/v1/completions", b"", b"", (b"a",), b" ", "text", True)
    assert text.answer(b'{"text":" say \\"hi\\""}\n{"text":" there"}') == b'say \\"hi\\" there'
    ids = Dialect("ids", "/v1/completions", b"", b"", (b"1",), b",", "id", True)
    assert ids.answer(b'{"token_ids":[3, 4],"prompt_token_ids":null}\n{"token_ids":[5]}').replace(b" ", b"") == b"3,4,5"


@pytest.mark.parametrize(
    ("stream", "status", "says"),
    [
        (STREAM, "ok", None),
        (STREAM[:3], "truncated", "without [DONE]"),
        ([token(" w5"), DONE], "truncated", "finish reason"),
        ([USAGE, DONE], "failed", "without a token"),
        ([token(" w5"), sse({"error": {"message": "out of blocks"}}), DONE], "failed", "out of blocks"),
    ],
)
def test_a_stream_that_merely_stopped_is_no_success(stream: list[bytes], status: str, says: str | None) -> None:
    found, error = judge(understand(b"".join(stream)))
    assert found == status
    assert (says is None) == (error is None)
    assert says is None or says in (error or "")


# --- against a socket ---

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter, int], Awaitable[None]]


async def request_of(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    size = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
    return await reader.readexactly(size)


def turn(*prompt: bytes) -> Turn:
    return Turn("v", "realistic", 1, 0, 0, 1, prompt or (b"1,", b"2,3"), 9, 8, 2, 0.0)


def ask(
    handler: Handler,
    times: int = 1,
    timeout_s: float = 5,
    asked: Turn | None = None,
    run: Callable[..., Any] = connection.run,
) -> tuple[list[TurnRecord], int]:
    """The records of `times` requests to a server that serves connection k with handler(…, k), and how many came."""

    async def go() -> tuple[list[TurnRecord], int]:
        connections = 0

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal connections
            connections += 1
            try:
                await handler(reader, writer, connections)
            except (asyncio.IncompleteReadError, ConnectionError):
                pass
            finally:
                writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        client = Client(Target(f"http://127.0.0.1:{port}", "m", WORDS, 0.0, timeout_s))
        records = [await client.send(asked or turn()) for _ in range(times)]
        await client.aclose()
        server.close()
        await asyncio.sleep(0)
        return records, connections

    result: tuple[list[TurnRecord], int] = run(go())
    return result


def test_a_connection_is_used_again() -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, _: int) -> None:
        while True:
            sent = json.loads(await request_of(reader))
            assert sent["prompt"] == [1, 2, 3]
            assert sent["min_tokens"] == sent["max_tokens"] == 2
            writer.write(chunked(*STREAM))

    records, connections = ask(handler, times=3)
    assert connections == 1
    assert {record.status for record in records} == {"ok"}
    one = records[0]
    assert (one.prompt_tokens, one.output_tokens, one.cached_tokens, one.answer) == (9, 2, 4, b"5,17")
    assert one.first_s is not None
    assert one.sent_s <= one.first_s <= one.end_s


def test_a_connection_closed_while_idle_is_replaced_unseen() -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, _: int) -> None:
        await request_of(reader)
        writer.write(chunked(*STREAM))
        await writer.drain()

    records, connections = ask(handler, times=2)
    assert connections == 2
    assert {record.status for record in records} == {"ok"}


def test_a_connection_closed_in_mid_answer_is_a_failure_and_not_asked_again() -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, _: int) -> None:
        await request_of(reader)
        writer.write(chunked(*STREAM)[:-40])
        await writer.drain()

    records, connections = ask(handler)
    assert connections == 1
    assert records[0].status == "failed"
    assert records[0].ttft_s is None
    assert "closed the connection" in (records[0].error or "")


def test_an_error_status_carries_the_servers_words() -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, _: int) -> None:
        await request_of(reader)
        text = b'{"error":{"message":"prompt too long"}}'
        writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: %d\r\n\r\n%s" % (len(text), text))
        await writer.drain()

    assert ask(handler)[0][0].error == "HTTP 400: prompt too long"


def test_a_server_that_never_answers_is_given_up() -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, _: int) -> None:
        await request_of(reader)
        await reader.read()

    assert ask(handler, timeout_s=0.2)[0][0].status == "timeout"


@pytest.mark.parametrize("stamps", [(5.0, 6.0, 7.0), (9.0, 6.0, 7.0), (12.0, 11.0, 9.5), (12.0, 13.0, 5.0)])
def test_a_stamp_that_a_set_wall_clock_moved_is_never_before_what_was_before_it(
    stamps: tuple[float, float, float],
) -> None:
    """The request was sent at second 10, and the kernel's stamps say otherwise."""
    first, last, ended = stamps
    turn = Turn("v", "realistic", 1, 0, 0, 1, (b"1",), 1, 2, 0, 9.0)
    target = Target("http://127.0.0.1:1", "m", WORDS, 0.0)
    answer = Answer(first=Stamp(first, 14.0), last=Stamp(last, 14.0), done=True, finish_reason="length")
    kept = record(turn, target, answer, "ok", None, 10.0, ended)
    assert kept.first_s is not None
    assert kept.last_s is not None
    assert kept.intended_s <= kept.sent_s <= kept.first_s <= kept.last_s <= kept.end_s
    assert kept.first_s + (kept.read_late_s or 0.0) == 14.0
    assert record(turn, target, Answer(), "timeout", None, 10.0, 8.0).end_s == 10.0


def test_no_server_is_a_record_too() -> None:
    record = connection.run(Client(Target("http://127.0.0.1:9", "m", WORDS, 0.0, 5)).send(turn()))
    assert record.status == "failed"
    assert record.error


@pytest.fixture
def stamping() -> Iterator[None]:
    """The kernel begins to stamp packets some time after the first socket has asked for it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, connection.SO_TIMESTAMPNS, 1)
        probe.bind(("127.0.0.1", 0))
        waited = 0.0
        while waited < 0.01:
            probe.sendto(b"", probe.getsockname())
            time.sleep(0.02)
            _, ((_, _, stamp),), _, _ = probe.recvmsg(1, connection.TOLD)
            seconds, nanoseconds = connection.TIMESPEC.unpack(stamp)
            waited = time.time() - seconds - nanoseconds * 1e-9
        yield


@pytest.mark.usefixtures("stamping")
def test_a_first_token_that_lies_unread_is_stamped_when_it_came() -> None:
    """The loop is held up for two seconds; the token had come long before."""

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, _: int) -> None:
        await request_of(reader)
        writer.write(chunked(*STREAM))
        await writer.drain()
        time.sleep(2.0)  # noqa: ASYNC251  server and client share this loop

    (record,), _ = ask(handler)
    assert record.status == "ok"
    assert record.first_s is not None
    assert record.read_late_s is not None
    assert record.read_late_s > 1.0
    assert record.first_s - record.sent_s < 1.0
    assert record.end_s - record.sent_s < 1.0


def test_a_prompt_larger_than_the_socket_takes_goes_out_whole() -> None:
    large = [b"1" * 4_000_000 + b",", *[b"2,"] * 3_000, b"3"]

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, _: int) -> None:
        body = await request_of(reader)
        assert b"".join(large) in body
        writer.write(chunked(*STREAM))

    (record,), _ = ask(handler, asked=turn(*large))
    assert record.status == "ok", record.error


def test_an_answer_that_comes_before_the_prompt_is_read_is_taken() -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, _: int) -> None:
        await reader.readuntil(b"\r\n\r\n")
        text = b'{"error":{"message":"too large"}}'
        writer.write(b"HTTP/1.1 413 Too Large\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(text), text))
        await writer.drain()
        await asyncio.sleep(0.2)

    (record,), _ = ask(handler, asked=turn(b"1" * 8_000_000))
    assert record.error == "HTTP 413: too large"


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_what_comes_in_pieces_over_a_socket_is_put_together(size: int) -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, _: int) -> None:
        await request_of(reader)
        raw = chunked(*STREAM)
        for start in range(0, len(raw), size):
            writer.write(raw[start : start + size])
            await writer.drain()
            await asyncio.sleep(0)

    (record,), _ = ask(handler)
    assert (record.status, record.answer) == ("ok", b"5,17")


def test_the_same_is_said_over_asyncios_own_transport() -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, _: int) -> None:
        await request_of(reader)
        writer.write(chunked(*STREAM))

    (plain,), _ = ask(handler)
    (other,), _ = ask(handler, run=asyncio.run)
    assert (plain.status, plain.answer, plain.cached_tokens) == (other.status, other.answer, other.cached_tokens)


@pytest.mark.parametrize("event", [b"null", b"5", b'{"choices":[null]}', b"{"])
def test_an_event_that_is_no_completion_fails_its_turn_and_no_more(event: bytes) -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, _: int) -> None:
        await request_of(reader)
        writer.write(chunked(b"data: " + event + b"\n\n", *STREAM))

    assert ask(handler)[0][0].status == "failed"


def test_a_connection_that_has_not_sent_all_is_not_used_again() -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        await reader.readuntil(b"\r\n\r\n")
        text = b'{"error":{"message":"too large"}}'
        writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: %d\r\n\r\n%s" % (len(text), text))
        await writer.drain()
        await asyncio.sleep(0.2)

    records, connections = ask(handler, times=2, asked=turn(b"1" * 16_000_000))
    assert [record.error for record in records] == ["HTTP 413: too large"] * 2
    assert connections == 2


def test_a_thought_that_is_sent_under_two_names_is_one() -> None:
    chat = Dialect("chat text", "/v1/chat/completions", b"", b"", (b"a",), b" ", "text", True)
    both = b'{"delta":{"reasoning":"hm","reasoning_content":"hm"}}{"delta":{"content":" yes"}}'
    assert chat.answer(both) == b"hm yes"
    assert chat.answer(b'{"delta":{"reasoning_content":"hm"}}') == b"hm"
