"""The official SDK tells of a turn what our own client tells, but for its times."""

import contextlib
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from bench import connection, official, troupe
from bench.client import Client, Target
from bench.dialect import Dialect
from bench.errors import BenchError
from bench.load import Level
from bench.official import Sdk
from bench.records import TurnRecord
from tests.test_client import turn
from tests.test_troupe import CHUNKS, measured, part, truth

CHAT = b'"messages":[{"role":"user","content":"'
DIALECTS = {
    "ids": Dialect("token ids", "/v1/completions", b'"prompt":[', b"]", (b"1",), b",", "word", True),
    "text": Dialect("text", "/v1/completions", b'"prompt":"', b'"', (b"word",), b" ", "text", True),
    "chat": Dialect("chat text", "/v1/chat/completions", CHAT, b'"}]', (b"word",), b" ", "text", False),
}


@pytest.mark.parametrize("dialect", DIALECTS.values(), ids=DIALECTS)
def test_both_clients_say_the_same_of_the_same_turn(
    dialect: Dialect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")  # nobody is there: neither goes by way of it

    async def go(url: str) -> list[TurnRecord]:
        asked = turn(b"7,", b"8") if dialect.answers == "word" else turn(b"say", b" it")
        asked = replace(asked, output_tokens=CHUNKS)
        target = Target(url, "truth", dialect, 0.0)
        async with contextlib.aclosing(Client(target)) as ours, contextlib.aclosing(Sdk(target)) as theirs:
            return [await sender.send(asked) for sender in (ours, theirs)]

    with truth(tmp_path / "log", 0.05) as url:
        ours, theirs = connection.run(go(url))
    assert theirs.status == "ok"
    assert theirs.first_s is not None
    assert theirs.sent_s <= theirs.first_s <= theirs.end_s
    times = ("intended_s", "sent_s", "first_s", "last_s", "end_s", "read_late_s")
    assert replace(theirs, **{name: getattr(ours, name) for name in times}) == ours


def test_what_the_sdk_raises_is_a_record() -> None:
    target = Target("http://127.0.0.1:9", "m", DIALECTS["ids"], 0.0)

    async def go() -> TurnRecord:
        async with contextlib.aclosing(Sdk(target)) as sdk:
            return await sdk.send(turn())

    record = connection.run(go())
    assert record.status == "failed"
    assert "APIConnectionError" in (record.error or "")


def test_the_same_sessions_are_played_through_it(tmp_path: Path) -> None:
    kept: list[TurnRecord] = []
    with truth(tmp_path / "log", 0.05) as url:
        for case in ("realistic", "openai"):
            played = replace(part(tmp_path, url, 30), level=Level("v", case, 5, 0, 30))
            connection.run(troupe.play(played, 1, kept.append, print))
    shapes = [
        sorted((r.session, r.turn, r.planned_prompt_tokens) for r in measured(kept) if r.case == case)
        for case in ("realistic", "openai")
    ]
    assert len(shapes[0]) == 30
    assert shapes[0] == shapes[1]


def test_without_the_package_the_message_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(BenchError, match="needs the openai package") as caught:
        official.check()
    assert "pip install" in (caught.value.hint or "")
