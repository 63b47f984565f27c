import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from bench import bounded, records
from bench.errors import BenchError
from bench.records import Folder
from tests.test_stats import ONE


def test_a_record_comes_back_as_it_went_but_for_its_answer(tmp_path: Path) -> None:
    folder = Folder.create(tmp_path / "run")
    folder.keep(replace(ONE, answer=b"1,2,3"))
    assert folder.records() == [replace(ONE, answer=b"")]


@pytest.mark.parametrize("at_once", [1, records.AT_ONCE])
def test_a_torn_last_line_is_left_out_and_a_torn_middle_is_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(records, "AT_ONCE", at_once)
    folder = Folder.create(tmp_path / "run")
    folder.keep(ONE)
    file = folder.path / "requests.jsonl"
    whole = file.read_text()
    file.write_text(whole + whole[:50])
    assert folder.records() == [ONE]
    file.write_text(whole[:50] + "\n" + whole)
    with pytest.raises(BenchError, match="line 1 is not JSON"):
        folder.records()
    file.write_text(2 * whole + whole[:50] + "\n" + whole)
    with pytest.raises(BenchError, match="line 3 is not JSON"):
        folder.records()


def test_two_halves_of_a_line_are_damage_and_not_one_line(tmp_path: Path) -> None:
    folder = Folder.create(tmp_path / "run")
    (folder.path / "server.jsonl").write_text('{"a": 1\n"b": 2}\n')
    with pytest.raises(BenchError, match="line 1 is not JSON"):
        list(folder.rows("server.jsonl"))


@contextmanager
def room(size: int) -> Iterator[None]:
    """No file grows past this size, as if the disk was full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_what_a_full_disk_has_torn_does_not_spoil_what_follows_once_there_is_room(tmp_path: Path) -> None:
    folder = Folder.create(tmp_path / "run")
    folder.keep(ONE)
    line = folder.size("requests.jsonl")
    for more in range(1, line):
        folder = Folder.create(tmp_path / f"run-{more}")
        folder.keep(ONE)
        with room(line + more):
            for _ in range(2):
                with pytest.raises(BenchError, match="cannot write to"):
                    folder.keep(ONE)
        folder.keep(ONE)
        folder.keep(ONE)
        whole = 4 if more == line - 1 else 3  # but for its end, a line is all there
        assert folder.records() == [ONE] * whole


@pytest.mark.parametrize("tail", [b"[" * 200_000, b'{"variant":"v\xff'])
def test_a_tail_that_is_no_line_is_taken_away(tmp_path: Path, tail: bytes) -> None:
    folder = Folder.create(tmp_path / "run")
    folder.keep(ONE)
    with (folder.path / "requests.jsonl").open("ab") as file:
        file.write(tail)
    assert folder.mend() == ["requests.jsonl"]
    assert folder.records() == [ONE]


def test_a_tail_longer_than_any_line_is_damage_and_stays(tmp_path: Path) -> None:
    folder = Folder.create(tmp_path / "run")
    folder.keep(ONE)
    size = folder.size("requests.jsonl") + 2 * bounded.LONGEST
    os.truncate(folder.path / "requests.jsonl", size)
    with pytest.raises(BenchError, match="a line of more than 1 MiB"):
        folder.mend()
    assert folder.size("requests.jsonl") == size


def test_a_field_of_a_later_version_does_not_hinder(tmp_path: Path) -> None:
    folder = Folder.create(tmp_path / "run")
    folder.keep(ONE)
    file = folder.path / "requests.jsonl"
    file.write_text(file.read_text().replace("{", '{"new_thing": 1, ', 1))
    assert folder.records() == [ONE]


def test_a_run_never_overwrites_another(tmp_path: Path) -> None:
    Folder.create(tmp_path / "run").write("run.json", "{}")
    with pytest.raises(BenchError, match="exists already"):
        Folder.create(tmp_path / "run")


def test_a_folder_in_which_a_bench_was_killed_before_it_began_can_be_taken(tmp_path: Path) -> None:
    folder = Folder.create(tmp_path / "run")
    with folder.held():
        Folder.create(tmp_path / "run")


def test_only_a_runs_folder_of_a_known_schema_is_opened(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="is not the folder of a run"):
        Folder.open(tmp_path)
    (tmp_path / "run.json").write_text('{"schema": 99}')
    with pytest.raises(BenchError, match="has schema 99"):
        Folder.open(tmp_path).manifest()


@pytest.mark.parametrize("text", ["xx", "[]", "{}", '{"schema": 1}'])
def test_a_damaged_manifest_is_said_to_be_one(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(BenchError, match=r"is damaged|has schema"):
        Folder.open(tmp_path).manifest()
