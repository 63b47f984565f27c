"""One fault at the N-th event of an answer, for every N: a turn ends as one record, and a right one."""

import asyncio
import contextlib
import json
import os
import socket
import struct
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import pytest

from bench import connection, load
from bench.client import Client, Target
from bench.dialect import Dialect
from bench.limits import Limits
from bench.load import Level, Stage, WallClock
from bench.official import Sdk
from bench.records import Folder, TurnRecord
from bench.workload import Content, SessionShape, Workload, WorkloadFile
from tests.test_cli import FAST, at, bench, fake
from tests.test_client import DONE, USAGE, WORDS, request_of, sse, token, turn

__all__ = ["at"]  # a fixture

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
ASKED = replace(turn(), output_tokens=4)
COUNTED = USAGE.replace(b'"completion_tokens": 2', b'"completion_tokens": 4')
EVENTS = [token(" w5"), token(" w6"), token(" w7"), token(" w8", "length"), COUNTED, DONE]
OPENED, FINISHED = 2, 5  # pieces, with which the first and the last token have come
SOON = 0.2


def chunk(event: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(event), event)


PIECES = [HEAD, *map(chunk, EVENTS), b"0\r\n\r\n"]
PLACES = range(len(PIECES))  # before the n-th piece


@dataclass(frozen=True, slots=True)
class Peer:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def say(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.writer.write(piece)
            await self.writer.drain()

    def reset(self) -> None:
        self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


Fault = Callable[[Peer, int], Awaitable[None]]


async def close(peer: Peer, place: int) -> None:
    await peer.say(*PIECES[:place])
    peer.writer.close()


async def reset(peer: Peer, place: int) -> None:
    await peer.say(*PIECES[:place])
    await asyncio.sleep(0.01)  # what is read before a reset counts
    peer.reset()


async def half_close(peer: Peer, place: int) -> None:
    await peer.say(*PIECES[:place])
    peer.writer.write_eof()


async def stall(peer: Peer, place: int) -> None:
    await peer.say(*PIECES[:place])


async def drip(peer: Peer, place: int) -> None:
    rest = b"".join(PIECES[place:])
    await peer.say(*PIECES[:place], *(rest[byte : byte + 1] for byte in range(len(rest))))


def instead(*pieces: bytes) -> Fault:
    async def act(peer: Peer, place: int) -> None:
        await peer.say(*PIECES[:place], *pieces, *PIECES[place:])

    return act


async def short_chunk(peer: Peer, place: int) -> None:
    await peer.say(*PIECES[:place], PIECES[place][:-9], *PIECES[place + 1 :])


def endless(piece: bytes) -> Fault:
    async def act(peer: Peer, place: int) -> None:
        await peer.say(*PIECES[:place])
        with contextlib.suppress(ConnectionError):
            while True:
                await peer.say(piece)
                await asyncio.sleep(0)

    return act


REFUSING, LASTING = instead(chunk(sse({"error": "no"}))), endless(b"x")


@contextlib.asynccontextmanager
async def serving(handler: Callable[[Peer], Awaitable[None]]) -> AsyncIterator[str]:
    """The URL of a server; at the end every connection to it has to be closed."""
    peers: set[asyncio.Task[Any]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peers.add(cast(asyncio.Task[Any], asyncio.current_task()))
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            await handler(Peer(reader, writer))
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    server.close()
    async with asyncio.timeout(20):
        await asyncio.gather(*peers)
        await server.wait_closed()


def client_of(url: str, limits: Limits | None = None, dialect: Dialect = WORDS) -> "contextlib.aclosing[Client]":
    return contextlib.aclosing(Client(Target(url, "m", dialect, 0.0, limits or Limits())))


Outcome = tuple[TurnRecord, TurnRecord]
Run = Callable[[Coroutine[Any, Any, Any]], Any]


def play(fault: Fault, place: int, limits: Limits, run: Run = connection.run) -> Outcome:
    """The record of a request that meets the fault, and of the next one; nothing is left open."""

    async def go() -> Outcome:
        open_before = len(os.listdir("/proc/self/fd"))
        met: list[int] = []

        async def handler(peer: Peer) -> None:
            while not peer.writer.is_closing():
                await request_of(peer.reader)
                met.append(place)
                await (peer.say(*PIECES) if len(met) > 1 else fault(peer, place))

        async with serving(handler) as url, client_of(url, limits) as client:
            told = await client.send(ASKED)
            assert len(met) == 1, "the fault was met, and nothing was asked twice"
            client.limits = Limits()
            after = await client.send(ASKED)
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert len(os.listdir("/proc/self/fd")) <= open_before, "others may have been closed meanwhile"
        return told, after

    outcome: Outcome = run(go())
    return outcome


def sound(*records: TurnRecord, folder: Path) -> None:
    """Times in order, and lines of a file that are read as they were written."""
    kept = Folder(folder)
    for record in records:
        in_order(record)
        kept.keep(record)
    assert kept.records()[-len(records) :] == [replace(record, answer=b"") for record in records]


def in_order(record: TurnRecord) -> None:
    times = [record.intended_s, record.sent_s, record.first_s, record.last_s, record.end_s]
    known = [seconds for seconds in times if seconds is not None]
    assert known == sorted(known)
    assert (record.status == "ok") == (record.error is None)
    assert len(record.error or "") <= 700
    assert (record.error or "").isprintable()


def check(fault: Fault, place: int, expected: str, folder: Path, limits: Limits | None = None) -> TurnRecord:
    """On both ways that bytes take; the record of the one that is measured with."""
    outcomes = [play(fault, place, limits or Limits(), run) for run in (asyncio.run, connection.run)]
    for told, after in outcomes:
        sound(told, after, folder=folder)
        assert told.status == expected, told.error
        assert (told.status == "ok") == bool(told.answer)
        assert (after.status, after.answer) == ("ok", b"5,6,7,8"), after.error
    told, _ = outcomes[-1]
    return told


def test_without_a_fault_all_is_well(tmp_path: Path) -> None:
    assert check(instead(), len(PIECES), "ok", tmp_path).output_tokens == 4


@pytest.mark.parametrize("fault", [close, reset, half_close])
@pytest.mark.parametrize("place", PLACES)
def test_a_connection_that_ends(fault: Fault, place: int, tmp_path: Path) -> None:
    told = check(fault, place, "failed", tmp_path)
    assert (told.first_s is None) == (place < OPENED), "what had come is kept"
    assert (told.last_s is None) == (place < FINISHED)
    assert "connection" in (told.error or "")


@pytest.mark.parametrize("place", PLACES)
def test_a_stall_is_given_up_by_the_limit_that_it_broke(place: int, tmp_path: Path) -> None:
    begun = place >= OPENED
    limits = Limits(gap_s=SOON) if begun else Limits(first_token_s=SOON)
    told = check(stall, place, "timeout", tmp_path, limits)
    assert ("--limit gap=" if begun else "--limit first-token=") in (told.error or "")
    assert (told.first_s is not None) == begun
    assert told.end_s - told.sent_s >= SOON


@pytest.mark.parametrize("place", PLACES)
def test_a_slow_drip_of_single_bytes_is_an_answer(place: int, tmp_path: Path) -> None:
    assert check(drip, place, "ok", tmp_path).output_tokens == 4


INSERTED = {
    "an error": (sse({"error": {"message": "out of\x1b[31m blocks"}}), "out of [31m blocks"),
    "an error beside nulls": (sse({"choices": [], "error": "no"}), "no"),
    "half an event": (b'data: {"choices":[{"tex\n\n', "cannot be read"),
    "half a usage": (b'data: {"usage":{"prompt_tok\n\n', "cannot be read"),
    "no object": (b"data: [1]\n\n", "cannot be read"),
    "a number": (b"data: 5\n\n", "cannot be read"),
    "deep nesting": (b'data: {"error":' + b"[" * 100_000 + b"}\n\n", "cannot be read"),
    "no UTF-8": (b'data: {"choices":[],"x":"\xff\xfe"}\n\n', "cannot be read"),
    "a NUL": (b'data: {"choices":[],"x":"\0"}\n\n', "cannot be read"),
    "a token too many": (token(" w9"), "counted 4 tokens"),
    "another end": (DONE, "after [DONE]"),
}


@pytest.mark.parametrize("place", PLACES[1:])
@pytest.mark.parametrize("case", INSERTED)
def test_what_does_not_belong_in_the_middle_is_a_failure(case: str, place: int, tmp_path: Path) -> None:
    event, says = INSERTED[case]
    told = check(instead(chunk(event)), place, "failed", tmp_path)
    after_the_end = place == len(PIECES) - 1 and "error" not in case
    assert says in (told.error or "") or after_the_end or "after [DONE]" in (told.error or ""), told.error


@pytest.mark.parametrize("place", PLACES[1:])
def test_a_chunk_that_is_shorter_than_it_says(place: int, tmp_path: Path) -> None:
    fault = short_chunk if place < len(PIECES) - 1 else close
    limits = Limits(gap_s=SOON, first_token_s=SOON)
    for told, after in (play(fault, place, limits, run) for run in (asyncio.run, connection.run)):
        sound(told, folder=tmp_path)
        assert told.status in ("failed", "timeout")
        assert after.status == "ok"


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("piece", [b": still here\n\n", EVENTS[1], b"x"], ids=["comments", "tokens", "drip"])
def test_a_stream_that_never_ends_is_given_up(piece: bytes, place: int, tmp_path: Path) -> None:
    told = play(endless(chunk(piece) if place and len(piece) > 1 else piece), place, Limits(request_s=SOON))[0]
    sound(told, folder=tmp_path)
    assert told.status in ("timeout", "failed")
    if told.status == "timeout":
        assert "--limit request=" in (told.error or "")


def test_every_byte_after_which_an_answer_can_be_cut(tmp_path: Path) -> None:
    """None of its beginnings is a success, and the whole is one."""
    whole = b"".join(PIECES)

    async def go() -> list[TurnRecord]:
        cuts = iter(range(len(whole) + 1))

        async def handler(peer: Peer) -> None:
            await request_of(peer.reader)
            await peer.say(whole[: next(cuts)])

        async with serving(handler) as url, client_of(url) as client:
            return [await client.send(ASKED) for _ in range(len(whole) + 1)]

    records = connection.run(go())
    assert Counter(record.status for record in records) == {"failed": len(whole), "ok": 1}
    assert records[-1].status == "ok"
    sound(*records, folder=tmp_path)


CONTRADICTED: dict[str, tuple[dict[str, Any], str]] = {
    "fewer tokens than asked": ({"completion_tokens": 3}, "counted 3 tokens"),
    "more tokens than asked": ({"completion_tokens": 5}, "counted 5 tokens"),
    "a negative count": ({"completion_tokens": -4}, "a whole number should stand there"),
    "a word for a count": ({"prompt_tokens": "nine"}, "a whole number should stand there"),
    "a fraction": ({"prompt_tokens": 9.5}, "a whole number should stand there"),
    "a truth": ({"completion_tokens": True}, "a whole number should stand there"),
    "more than there is": ({"prompt_tokens": 10**30}, "a whole number should stand there"),
    "more cached than sent": ({"prompt_tokens_details": {"cached_tokens": 10}}, "more tokens cached"),
    "a negative cache": ({"prompt_tokens_details": {"cached_tokens": -1}}, "a whole number should stand there"),
}


@pytest.mark.parametrize("case", CONTRADICTED)
def test_a_usage_that_cannot_be_is_a_failure(case: str, tmp_path: Path) -> None:
    wrong, says = CONTRADICTED[case]
    usage = sse({"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 4} | wrong})
    pieces = [HEAD, *map(chunk, [*EVENTS[:4], usage, DONE]), b"0\r\n\r\n"]

    async def fault(peer: Peer, _: int) -> None:
        await peer.say(*pieces)

    told = check(fault, 0, "failed", tmp_path)
    assert says in (told.error or "")
    counts = (told.prompt_tokens, told.output_tokens, told.cached_tokens)
    assert all(count is None or (isinstance(count, int) and count >= 0) for count in counts)


def sized(status: str, body: bytes, *headers: bytes) -> bytes:
    lines = [f"HTTP/1.1 {status}".encode(), b"content-length: %d" % len(body), *headers]
    return b"\r\n".join([*lines, b"", body])


STREAM = b"".join(EVENTS)
ODD = sse({"usage": {"prompt_tokens_details": [1]}, "metrics": [1]})
ANSWERS: dict[str, tuple[bytes, str, str]] = {
    "500 with a reason": (sized("500 X", b'{"error":{"message":"bo\\nom"}}'), "failed", "HTTP 500: bo om"),
    "500 with a page": (sized("500 X", b"<h1>" + b"x" * 9_000), "failed", "HTTP 500: <h1>xxx"),
    "503 without a word": (sized("503 X", b""), "failed", "HTTP 503: and not a word"),
    "429 nested deep": (sized("429 X", b"[" * 100_000), "failed", "HTTP 429: [[["),
    "a redirect": (sized("307 X", b"", b"location: http://127.0.0.1:1/"), "failed", "HTTP 307"),
    "not modified": (b"HTTP/1.1 304 X\r\n\r\n", "failed", "HTTP 304"),
    "another protocol": (sized("101 X", b""), "failed", "not asked for"),
    "a continue before": (b"HTTP/1.1 100 Continue\r\n\r\n" + sized("200 OK", STREAM), "ok", ""),
    "a web page": (sized("200 OK", b"<html>", b"content-type: text/html"), "failed", "text/html instead of a stream"),
    "an error of status 200": (
        sized("200 OK", b'{"error":"busy"}', b"content-type: application/json"), "failed", "stream of events: busy",
    ),
    "compressed": (sized("200 OK", STREAM, b"content-encoding: gzip"), "failed", "not asked for"),
    "compressed on the way": (b"HTTP/1.1 200 X\r\ntransfer-encoding: gzip, chunked\r\n\r\n", "failed", "not asked for"),
    "two lengths": (sized("200 OK", STREAM, b"content-length: 5"), "failed", "two lengths"),
    "a negative length": (b"HTTP/1.1 200 OK\r\ncontent-length: -5\r\n\r\n", "failed", "a length of '-5'"),
    "a huge length": (b"HTTP/1.1 200 OK\r\ncontent-length: 99999999999\r\n\r\n", "failed", "a length of"),
    "a negative chunk": (HEAD + b"-5\r\nabc\r\n", "failed", "a chunk with a size of"),
    "a huge chunk": (HEAD + b"FFFFFFFFFFFFFFF\r\nabc\r\n", "failed", "a chunk with a size of"),
    "no chunk": (HEAD + b"hello\r\nabc\r\n", "failed", "no answer"),
    "a chunk's size without end": (HEAD + b"1" * 10_000, "failed", "a chunk without a size"),
    "a trailer without end": (HEAD + b"0\r\n" + b"x: y\r\n" * 1_000_000, "failed", "a trailer without an end"),
    "a trailer": (b"".join(PIECES[:-1]) + b"0\r\nx: y\r\n\r\n", "ok", ""),
    "headers without end": (b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 20_000, "failed", "headers larger than"),
    "more than the answer": (b"".join(PIECES) + b"HTTP/1.1 200 OK\r\n\r\nmore", "ok", ""),
    "a shell": (b"SSH-2.0-OpenSSH_9.9\r\n\r\n", "failed", "not an HTTP response"),
    "an empty stream": (sized("200 OK", b""), "failed", "without a token"),
    "an odd usage": (sized("200 OK", b"".join([*EVENTS[:5], ODD, DONE])), "failed", "details: a table"),
    "odd choices": (sized("200 OK", sse({"choices": 5}) + STREAM), "failed", "choices: a list"),
    "an odd delta": (sized("200 OK", sse({"choices": [{"delta": [1]}]}) + STREAM), "failed", "delta: a table"),
    "no end mark": (sized("200 OK", STREAM[: -len(DONE)]), "truncated", "without [DONE]"),
    "half an end mark": (sized("200 OK", STREAM[:-1]), "truncated", "without [DONE]"),
    "no finish reason": (
        sized("200 OK", b"".join([*EVENTS[:3], token(" w8"), *EVENTS[4:]])), "truncated", "without a finish reason",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", ANSWERS)
def test_an_answer_that_is_not_what_it_should_be(case: str, tmp_path: Path) -> None:
    raw, status, says = ANSWERS[case]

    async def fault(peer: Peer, _: int) -> None:
        await peer.say(raw)

    told = check(fault, 0, status, tmp_path)
    assert says in (told.error or "")
    if status == "ok":
        assert told.output_tokens == 4


def test_an_answer_without_a_length_ends_with_its_connection(tmp_path: Path) -> None:
    async def fault(peer: Peer, place: int) -> None:
        await peer.say(b"HTTP/1.0 200 OK\r\n\r\n", *EVENTS[:place])
        peer.writer.close()

    assert check(fault, len(EVENTS), "ok", tmp_path).output_tokens == 4
    assert check(fault, len(EVENTS) - 1, "truncated", tmp_path).status == "truncated"


@pytest.mark.parametrize("end", ["closes", "resets"])
def test_a_prompt_that_was_read_is_not_sent_again_when_its_server_ends(end: str) -> None:
    """Its connection had lain idle, so it might have been closed in between: the server had the prompt all the same."""
    prompts: list[bytes] = []

    async def handler(peer: Peer) -> None:
        prompts.append(await request_of(peer.reader))
        await peer.say(*PIECES)
        prompts.append(await request_of(peer.reader))
        if end == "resets":
            await asyncio.sleep(connection.RACE_S)  # as if in prefill
            peer.reset()

    first, second = asked_of(handler, 2)
    assert (first.status, second.status) == ("ok", "failed"), second.error
    assert second.first_s is None
    assert len(prompts) == 2


def test_a_connection_that_is_closed_as_the_request_leaves_is_replaced() -> None:
    """The server's end and our request cross: its machine refuses what it never read."""
    connections: list[Peer] = []

    async def handler(peer: Peer) -> None:
        connections.append(peer)
        await request_of(peer.reader)
        await peer.say(*PIECES)
        while peer is not connections[0]:
            await request_of(peer.reader)
            await peer.say(*PIECES)

    records = asked_of(handler, 3)
    assert [record.status for record in records] == ["ok"] * 3, [record.error for record in records]
    assert len(connections) == 2


def test_bytes_that_nobody_asked_for_close_a_connection_that_lies_idle() -> None:
    async def handler(peer: Peer) -> None:
        while True:
            await request_of(peer.reader)
            await peer.say(*PIECES)
            await asyncio.sleep(0.05)
            await peer.say(sized("408 Timeout", b"too late"))

    records = asked_of(handler, 3, pause_s=0.1)
    assert [record.status for record in records] == ["ok"] * 3, [record.error for record in records]


def asked_of(handler: Callable[[Peer], Awaitable[None]], times: int, pause_s: float = 0) -> list[TurnRecord]:
    async def go() -> list[TurnRecord]:
        told = []
        async with serving(handler) as url, client_of(url) as client:
            for _ in range(times):
                told.append(await client.send(ASKED))
                await asyncio.sleep(pause_s)
        return told

    records: list[TurnRecord] = connection.run(go())
    return records


def test_a_server_that_does_not_take_connections_is_a_time_out_of_its_own() -> None:
    with contextlib.ExitStack() as stack:
        deaf, *fillers = (stack.enter_context(socket.socket()) for _ in range(5))
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(deaf.getsockname())
        url = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        told = connection.run(Client(Target(url, "m", WORDS, 0.0, Limits(connect_s=SOON))).send(ASKED))
    assert told.status == "timeout"
    assert "--limit connect=" in (told.error or "")


@pytest.mark.parametrize("number", range(1, 9))
@pytest.mark.parametrize("fault", [close, reset, REFUSING, LASTING], ids=["close", "reset", "error", "endless"])
def test_a_level_has_a_record_for_every_request_whichever_meets_the_fault(fault: Fault, number: int) -> None:
    """The session ends there, another takes its place, and the sum is right."""

    async def go() -> list[TurnRecord]:
        met: list[int] = []

        async def handler(peer: Peer) -> None:
            while not peer.writer.is_closing():
                await request_of(peer.reader)
                met.append(1)
                await (fault(peer, 3) if len(met) == number + 1 else peer.say(*PIECES))  # behind the warm-up

        limits = Limits(request_s=SOON) if fault is LASTING else Limits()
        work = Workload("w", WorkloadFile("w", 8, SessionShape(3, 9, 4)), "")
        async with serving(handler) as url, client_of(url, limits) as client:
            stage = Stage(Content((b"1", b"2"), b",", 0, 0), 16, client.send, WallClock(0.0))
            told = await load.play(Level("v", "realistic", 2, 0, 10), work, stage, 0)
        assert len(met) > number, "the fault was met"
        return told

    records = [record for record in connection.run(go()) if record.turn]
    assert len(records) == 10
    assert Counter((record.session, record.turn) for record in records).most_common(1)[0][1] == 1
    for record in records:
        in_order(record)
    assert [record.status for record in records].count("ok") <= 9


def test_usage_that_was_there_when_the_server_was_first_asked_is_missed() -> None:
    async def handler(peer: Peer) -> None:
        await request_of(peer.reader)
        await peer.say(sized("200 OK", b"".join([*EVENTS[:4], DONE])))

    async def go() -> list[TurnRecord]:
        told = []
        async with serving(handler) as url:
            for dialect in (WORDS, replace(WORDS, reports_usage=True)):
                async with client_of(url, dialect=dialect) as client:
                    told.append(await client.send(ASKED))
        return told

    silent, missed = connection.run(go())
    assert (silent.status, silent.output_tokens) == ("ok", None)
    assert missed.status == "truncated"
    assert "without usage" in (missed.error or "")


THROUGH_THE_SDK = {
    "a stall": b"".join(PIECES[:3]),
    "an error": b"".join([*PIECES[:3], chunk(sse({"error": {"message": "boom\x07"}})), *PIECES[3:]]),
    "half an event": b"".join([*PIECES[:3], chunk(b'data: {"choi\n\n'), *PIECES[3:]]),
    "half a stream": b"".join(PIECES[:3]),
    "wrong usage": b"".join([*PIECES[:5], chunk(COUNTED.replace(b" 4,", b" 3,")), *PIECES[6:]]),
    "odd choices": b"".join([*PIECES[:3], chunk(sse({"choices": 5})), *PIECES[3:]]),
}


@pytest.mark.parametrize("case", THROUGH_THE_SDK)
def test_through_the_sdk_a_fault_is_a_record_too(case: str, tmp_path: Path) -> None:
    stalls = case == "a stall"

    async def handler(peer: Peer) -> None:
        await request_of(peer.reader)
        await peer.say(THROUGH_THE_SDK[case])
        if stalls:
            await peer.reader.read()

    async def go() -> TurnRecord:
        target = Limits(gap_s=SOON) if stalls else Limits()
        async with serving(handler) as url, contextlib.aclosing(Sdk(Target(url, "m", WORDS, 0.0, target))) as sdk:
            return await sdk.send(ASKED)

    told = connection.run(go())
    sound(told, folder=tmp_path)
    assert told.status == ("timeout" if stalls else "failed"), told.error
    assert not stalls or "--limit gap=" in (told.error or "")


BRIEF = (*FAST, "--levels", "1", "--requests", "5", "--limit", "gap=1", "--limit", "control=9", "--timeout", "2")


@pytest.mark.parametrize("mode", ["stalls", "errors", "garbles", "halves", "drips"])
def test_a_sweep_ends_by_itself_whatever_its_server_says(at: Path, mode: str) -> None:
    ran = bench("sweep", *BRIEF, *fake(mode), "--out", "run")
    late = mode in ("stalls", "drips")  # of which the percentiles say what is known
    assert ran.returncode in ((0, 4) if late else (4,)), ran.stderr
    assert "of 5 requests were not answered" in ran.stderr or "requests failed" in ran.stderr
    assert "Traceback" not in ran.stderr
    records = Folder(at / "run").records()
    assert len([record for record in records if record.turn > 0]) == 5, "the ledger sums"
    statuses = Counter(record.status for record in records)
    assert statuses["ok"] == 4, "six answers, two of them to the questions before the first level"
    assert statuses["timeout" if late else "failed"] == 2
    run = json.loads((at / "run" / "run.json").read_text())
    assert run["limits"]["gap_s"] == 1
    assert run["timeout_s"] == run["limits"]["request_s"] == 2
