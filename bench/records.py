"""What happened: one immutable record a request, appended and flushed as it ends, and the folder a run lives in."""

import errno
import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import MISSING, dataclass, fields
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal, TextIO

from bench.errors import BenchError, Exit

# Schema history of run.json and requests.jsonl:
#   1  the first
#   2  a request's time in the server's queue and prefill; the server's own TTFT; its settings after the run
#   3  for how long a first token lay unread; what the client said of itself
#   4  which attempt at its level a request belongs to; the journal
SCHEMA = 4
READABLE = (1, 2, 3, 4)  # what an older one lacks is None

Status = Literal["ok", "failed", "truncated", "timeout", "cut"]


@dataclass(frozen=True, slots=True)
class TurnRecord:
    """Times are seconds of the monotonic clock since the run began; None is 'not measured'."""

    variant: str
    case: str
    concurrency: int
    repeat: int
    session: int
    turn: int  # 0: a warm-up
    status: Status
    intended_s: float
    sent_s: float
    first_s: float | None  # the first token came
    last_s: float | None  # the last token came
    end_s: float  # the response was whole, and the next turn due
    planned_prompt_tokens: int
    planned_output_tokens: int
    prompt_tokens: int | None
    output_tokens: int | None
    cached_tokens: int | None
    eligible_tokens: int
    finish_reason: str | None = None
    error: str | None = None
    queue_s: float | None = None  # by the engine's own clock: until it was scheduled
    prefill_s: float | None = None  # and from then until its first token
    read_late_s: float | None = None  # the first token lay unread, at least; where the kernel tells, and not in TTFT
    attempt: int = 0  # at its level, which is begun anew where a server or a run died in it
    answer: bytes = b""  # in the target's notation, for the next turn to extend; content, so not part of the file

    @property
    def ttft_s(self) -> float | None:
        """From the moment it was due, so that a late client shows as latency and not as a lighter load."""
        return None if self.first_s is None or self.status != "ok" else self.first_s - self.intended_s

    @property
    def lost_tokens(self) -> int | None:
        return None if self.cached_tokens is None else max(0, self.reusable_tokens - self.cached_tokens)

    @property
    def reusable_tokens(self) -> int:
        """Eligible ones as the server counts them: text becomes other tokens than planned."""
        read = self.prompt_tokens or self.planned_prompt_tokens
        if read == self.planned_prompt_tokens:
            return self.eligible_tokens
        return round(self.eligible_tokens * read / max(1, self.planned_prompt_tokens))

    @property
    def late_s(self) -> float:
        return self.sent_s - self.intended_s


Play = tuple[str, str, int, int]  # variant, case, concurrency, repeat


def play_of(row: dict[str, Any]) -> Play:
    return row["variant"], row["case"], row["concurrency"], row["repeat"]


def attempts(records: Sequence[TurnRecord]) -> dict[Play, int]:
    """Which attempt at each play is the last."""
    last: dict[Play, int] = {}
    for one in records:
        play = one.variant, one.case, one.concurrency, one.repeat
        last[play] = max(last.get(play, 0), one.attempt)
    return last


def is_last(last: dict[Play, int], one: TurnRecord) -> bool:
    return last[one.variant, one.case, one.concurrency, one.repeat] == one.attempt


KEPT = tuple(field.name for field in fields(TurnRecord) if field.name != "answer")
LINES = ("requests.jsonl", "server.jsonl", "client.jsonl", "journal.jsonl")  # all that a run cannot do without
HELD = ".held"  # locked while a run is made; and as large as a run's last words are, should the disk be full
LAST_WORDS = 1 << 20
AT_ONCE = 1 << 20  # characters read and parsed together


def _together(lines: Sequence[str]) -> list[dict[str, Any]]:
    """What they say, in one go, which is faster; nothing if one of them is damaged."""
    try:
        rows: list[dict[str, Any]] = json.loads(f"[{','.join(lines)}]")
    except json.JSONDecodeError:
        return []
    return rows if len(rows) == len(lines) else []


def _says_something(file: Path) -> bool:
    """Not so the empty files of a bench that was killed before it began."""
    return file.name != HELD and (file.is_dir() or file.stat().st_size > 0)


@dataclass(frozen=True, slots=True)
class Folder:
    """results/runs/NAME: run.json, the four files of lines, what is made of them, server logs."""

    path: Path

    @staticmethod
    def vacant(path: Path) -> None:
        if path.exists() and (not path.is_dir() or any(map(_says_something, path.iterdir()))):
            raise BenchError(f"{path} exists already", "a run never overwrites another: take a new folder")

    @classmethod
    def create(cls, path: Path) -> "Folder":
        cls.vacant(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
            (path / "requests.jsonl").touch()
        except OSError as error:
            raise BenchError(
                f"cannot write to {path}: {error.strerror}", "give --out a folder you can write to"
            ) from None
        return cls(path)

    @classmethod
    def open(cls, path: Path) -> "Folder":
        if not (path / "run.json").is_file():
            raise BenchError(f"{path} is not the folder of a run: it has no run.json", "runs lie in results/runs/")
        return cls(path)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Ours alone, for as long as the body runs."""
        try:
            with (self.path / HELD).open("ab") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.posix_fallocate(file.fileno(), 0, LAST_WORDS)
                try:
                    yield
                finally:
                    (self.path / HELD).unlink()
        except BlockingIOError:
            raise BenchError(f"another bench is writing to {self.path}", "wait for its end, or end it") from None

    def mend(self) -> list[str]:
        """Finish or take away the last lines that a crash or a full disk has torn, so that more can follow."""
        return [file for file in LINES if (self.path / file).is_file() and self._mend(self.path / file)]

    def _mend(self, file: Path) -> bool:
        with file.open("rb+") as lines:
            end = start = lines.seek(0, os.SEEK_END)
            torn = b""
            while start and b"\n" not in torn:
                start = max(0, start - AT_ONCE)
                lines.seek(start)
                torn = lines.read(end - start)
            whole = start + torn.rfind(b"\n") + 1
            if whole == end:
                return False
            try:
                json.loads(torn[whole - start :])
                lines.write(b"\n")
            except ValueError:
                lines.truncate(whole)
        return True

    def append(self, file: str, row: dict[str, Any]) -> None:
        """Flushed at once, and by one call, so that lines of several processes do not mix: what has ended stays."""
        try:
            with (self.path / file).open("a") as out:
                out.write(json.dumps(row, separators=(",", ":")) + "\n")
        except OSError as error:
            raise self._unwritable(file, error) from None

    def _unwritable(self, file: str, error: OSError) -> BenchError:
        hint = f"what was written stays: once it can be written again, go on with --resume {self.path}"
        return BenchError(f"cannot write to {self.path / file}: {error.strerror}", hint, Exit.INVALID)

    def settle(self) -> None:
        """What stands in the files stays even if the machine loses its power now."""
        for file in LINES:
            with suppress(FileNotFoundError), (self.path / file).open("rb") as lines:
                os.fsync(lines.fileno())

    def size(self, file: str) -> int:
        """In bytes: where the lines that follow will begin."""
        return (self.path / file).stat().st_size if (self.path / file).is_file() else 0

    def keep(self, record: TurnRecord) -> None:
        self.append("requests.jsonl", {name: getattr(record, name) for name in KEPT})

    def records(self, start: int = 0) -> list[TurnRecord]:
        defaults = {field.name: field.default for field in fields(TurnRecord)}
        needed = itemgetter(*(name for name, default in defaults.items() if default is MISSING))
        more = {name: default for name, default in defaults.items() if default is not MISSING}
        return [
            TurnRecord(*needed(row), *map(row.get, more, more.values()))  # by place: half the time by name
            for row in self.rows("requests.jsonl", start)
        ]

    def rows(self, file: str, start: int = 0) -> Iterator[dict[str, Any]]:
        """From the line that begins at that byte."""
        if not (self.path / file).is_file():
            return
        try:
            with (self.path / file).open() as lines:
                lines.seek(start)
                yield from self._rows(file, lines)
        except UnicodeDecodeError:
            raise BenchError(f"{self.path / file} is damaged: it is not text", exit=Exit.INVALID) from None

    def _rows(self, file: str, lines: TextIO) -> Iterator[dict[str, Any]]:
        before = 0
        while some := lines.readlines(AT_ONCE):
            rows = _together(some)
            for number, line in enumerate(() if rows else some, 1):
                try:
                    rows.append(json.loads(line))
                except json.JSONDecodeError:
                    if number < len(some) or lines.readline():  # the last may be torn by a crash; else it is damage
                        why = f"{self.path / file}: line {before + number} is not JSON"
                        raise BenchError(why, exit=Exit.INVALID) from None
            yield from rows
            before += len(some)

    def write(self, file: str, text: str) -> None:
        """Whole or not at all, at the cost of what was kept for the last words where the disk is full."""
        try:
            self._write(file, text)
        except OSError as error:
            if error.errno != errno.ENOSPC or not (self.path / HELD).is_file():
                raise self._unwritable(file, error) from None
            os.truncate(self.path / HELD, 0)
            self._write(file, text)

    def _write(self, file: str, text: str) -> None:
        draft = self.path / f".{file}.draft"
        try:
            with draft.open("w") as out:
                out.write(text)
                out.flush()
                os.fsync(out.fileno())
            os.replace(draft, self.path / file)
        finally:
            draft.unlink(missing_ok=True)

    def manifest(self) -> dict[str, Any]:
        file = self.path / "run.json"
        try:
            run: dict[str, Any] = json.loads(file.read_text())
        except ValueError as error:
            raise BenchError(f"{file} is damaged: {error}") from None
        if not isinstance(run, dict) or run.get("schema") not in READABLE:
            told = run.get("schema") if isinstance(run, dict) else None
            raise BenchError(f"{file} has schema {told}, this bench reads {READABLE[0]} to {SCHEMA}")
        if missing := sorted({"variants", "levels", "slo", "ended", "machine", "workload"} - set(run)):
            raise BenchError(f"{file} is damaged: it has no '{missing[0]}'")
        return run

    def write_manifest(self, run: dict[str, Any]) -> None:
        self.write("run.json", json.dumps(run, indent=2) + "\n")
