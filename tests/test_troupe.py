"""A level played by several processes, against a server whose times are known."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest

from bench import connection, interrupt, troupe
from bench.client import Target
from bench.dialect import Dialect
from bench.errors import BenchError
from bench.load import Level, Share
from bench.pulse import Pulse
from bench.records import Folder, TurnRecord
from bench.troupe import Part
from bench.workload import Content, SessionShape, Workload, WorkloadFile

CHUNKS = 5  # of every answer, whatever is asked: a warm-up's one token is contradicted
WORDS = tuple(str(number).encode() for number in range(1000))
DIALECT = Dialect("token ids", "/v1/completions", b'"prompt":[', b"]", WORDS, b",", "word", True)


@contextlib.contextmanager
def truth(log: Path, first_s: float) -> Iterator[str]:
    pace = ["--first", str(first_s), "--spread", "0", "--gap", "0.002", "--chunks", str(CHUNKS)]
    words = [sys.executable, "-m", "tests.clients.truth", "--log", str(log), *pace]
    server = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    try:
        yield f"http://127.0.0.1:{int(server.stdout.readline())}"
    finally:
        server.terminate()
        server.communicate(timeout=20)


def part(folder: Path, url: str, requests: int) -> Part:
    content = Content(WORDS, b",", 0, 0)
    asked = Target(url, "truth", DIALECT, time.perf_counter())
    work = Workload("short", WorkloadFile("questions", 200, SessionShape(1, 1_800, CHUNKS)), "")
    level = Level("v", "realistic", 20, 0, requests)
    return Part(level, work, content, 16, asked, 0, Folder(folder))


def when(record: TurnRecord) -> tuple[float, int]:
    return record.end_s, record.session


def measured(records: list[TurnRecord]) -> list[TurnRecord]:
    return [record for record in records if record.turn > 0]


def test_two_processes_play_every_session_once_and_write_what_they_tell(tmp_path: Path) -> None:
    kept: list[TurnRecord] = []
    pulses: list[Pulse] = []
    with truth(tmp_path / "log", 0.05) as url:
        connection.run(troupe.play(part(tmp_path, url, 101), 2, kept.append, pulses.append))
    written = Folder(tmp_path).records()
    assert [record.end_s for record in written] == sorted(record.end_s for record in kept)
    assert sorted(written, key=when) == sorted((replace(record, answer=b"") for record in kept), key=when)
    turns = Counter((record.session, record.turn) for record in measured(kept))
    assert turns.total() == 101
    assert set(turns.values()) == {1}
    assert {record.status for record in measured(kept)} == {"ok"}
    assert {session for session, _ in turns} >= set(range(20))
    assert len(pulses) == 2


@pytest.mark.parametrize("processes", [1, 2])
def test_when_it_is_enough_none_of_them_begins_another_turn(tmp_path: Path, processes: int) -> None:
    kept: list[TurnRecord] = []

    def ended(record: TurnRecord) -> bool:
        kept.append(record)
        return len(measured(kept)) >= 40

    with truth(tmp_path / "log", 0.05) as url:
        connection.run(troupe.play(part(tmp_path, url, 2_000), processes, ended, lambda _: None))
    assert {record.status for record in measured(kept)} == {"ok"}, "those under way come to their end"
    assert 40 <= len(measured(kept)) < 1_000
    assert len(Folder(tmp_path).records()) == len(kept)


def test_what_each_record_says_is_what_the_server_did(tmp_path: Path) -> None:
    """A first token cannot have come before the server sent it."""
    kept: list[TurnRecord] = []
    work = part(tmp_path, "", 40)
    with truth(tmp_path / "log", 0.05) as url:
        connection.run(troupe.play(replace(work, target=replace(work.target, base_url=url)), 2, kept.append, print))
    sent = sorted(json.loads(line)["first"] for line in (tmp_path / "log").read_text().splitlines())
    came = sorted(work.target.epoch + record.first_s for record in kept if record.first_s is not None)
    assert len(sent) == len(came)
    assert all(left <= arrived for left, arrived in zip(sent, came, strict=True))


@pytest.mark.parametrize(("sessions", "requests"), [(1, 7), (3, 20), (20, 101), (5, 3)])
def test_shares_add_up_and_every_slot_has_as_much_to_do(sessions: int, requests: int) -> None:
    level = Level("v", "realistic", sessions, 0, requests)
    shares = [Share(number, 2) for number in range(2)]
    assert sum(share.requests(level) for share in shares) == requests
    each = [share.requests(level) / share.size(sessions) for share in shares if share.size(sessions)]
    assert max(each) - min(each) <= 1


def test_more_processes_than_sessions_are_not_needed(tmp_path: Path) -> None:
    kept: list[TurnRecord] = []
    work = part(tmp_path, "", 6)
    with truth(tmp_path / "log", 0.05) as url:
        alone = replace(work, level=replace(work.level, concurrency=1), target=replace(work.target, base_url=url))
        connection.run(troupe.play(alone, 2, kept.append, print))
    assert len(measured(kept)) == 6


@pytest.mark.parametrize("processes", [1, 2])
def test_records_that_cannot_be_kept_end_the_play(tmp_path: Path, processes: int) -> None:
    (tmp_path / "requests.jsonl").symlink_to("/dev/full")
    with truth(tmp_path / "log", 0.05) as url, pytest.raises(BenchError, match="No space left on device") as caught:
        connection.run(troupe.play(part(tmp_path, url, 2_000), processes, print, print))
    assert "--resume" in caught.value.hint
    assert not children()


def test_a_process_that_dies_is_an_error_and_leaves_none_behind(tmp_path: Path) -> None:
    kept: list[TurnRecord] = []

    async def go(url: str) -> None:
        enough = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            group.create_task(troupe.play(part(tmp_path, url, 10_000), 2, after(1, kept, enough), print))
            await enough.wait()
            os.kill(children()[0], signal.SIGKILL)

    with truth(tmp_path / "log", 0.05) as url, pytest.raises(ExceptionGroup) as caught:
        connection.run(go(url))
    assert caught.group_contains(BenchError, match="client process ended with exit code -9")
    assert not children()
    assert measured(kept), "what had ended stays"


def test_interrupted_requests_are_on_file_as_cut_though_the_whole_group_was_asked(tmp_path: Path) -> None:
    kept: list[TurnRecord] = []

    async def go(url: str) -> None:
        enough = asyncio.Event()
        playing = asyncio.create_task(troupe.play(part(tmp_path, url, 10_000), 2, after(20, kept, enough), print))
        await enough.wait()
        for child, number in product(children(), interrupt.ASKED):
            os.kill(child, number)
        playing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await playing

    with truth(tmp_path / "log", 0.5) as url:
        connection.run(go(url))
    written = Folder(tmp_path).records()
    assert sorted(written, key=when) == sorted((replace(record, answer=b"") for record in kept), key=when)
    assert {record.session % 2 for record in kept if record.status == "cut"} == {0, 1}, "of both processes"
    assert not children()


def after(turns: int, kept: list[TurnRecord], enough: asyncio.Event) -> Callable[[TurnRecord], None]:
    def keep(record: TurnRecord) -> None:
        kept.append(record)
        if len(measured(kept)) >= turns:
            enough.set()

    return keep


def children() -> list[int]:
    found = []
    for status in Path("/proc").glob("[0-9]*/status"):
        with contextlib.suppress(OSError):
            text = status.read_text()
            command = (status.parent / "cmdline").read_text()
            if f"PPid:\t{os.getpid()}\n" in text and "spawn_main" in command and "State:\tZ" not in text:
                found.append(int(status.parent.name))
    return found


@pytest.mark.parametrize(("sessions", "processes"), [(1, 1), (512, 1), (513, 2), (100_000, os.cpu_count())])
def test_one_process_until_it_takes_more(sessions: int, processes: int) -> None:
    assert troupe.needed(sessions) == min(processes, os.cpu_count() or 1)
