"""What happened: one immutable record a request, appended and flushed as it ends, and the folder a run lives in."""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, dataclass, fields
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal, TextIO

from bench.errors import BenchError, Exit

# Schema history of run.json and requests.jsonl:
#   1  the first
#   2  a request's time in the server's queue and prefill; the server's own TTFT; its settings after the run
#   3  for how long a first token lay unread; what the client said of itself
SCHEMA = 3
READABLE = (1, 2, 3)  # what an older one lacks is None

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


KEPT = tuple(field.name for field in fields(TurnRecord) if field.name != "answer")
AT_ONCE = 1 << 20  # characters read and parsed together


def _together(lines: Sequence[str]) -> list[dict[str, Any]]:
    """What they say, in one go, which is faster; nothing if one of them is damaged."""
    try:
        rows: list[dict[str, Any]] = json.loads(f"[{','.join(lines)}]")
    except json.JSONDecodeError:
        return []
    return rows if len(rows) == len(lines) else []


@dataclass(frozen=True, slots=True)
class Folder:
    """results/runs/NAME: run.json, requests.jsonl, server.jsonl, client.jsonl, what is made of them, server logs."""

    path: Path

    @staticmethod
    def vacant(path: Path) -> None:
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
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

    def append(self, file: str, row: dict[str, Any]) -> None:
        """Flushed at once: what has ended stays, whatever happens next."""
        with (self.path / file).open("a") as out:
            out.write(json.dumps(row, separators=(",", ":")) + "\n")

    def keep(self, record: TurnRecord) -> None:
        self.append("requests.jsonl", {name: getattr(record, name) for name in KEPT})

    def records(self) -> list[TurnRecord]:
        defaults = {field.name: field.default for field in fields(TurnRecord)}
        needed = itemgetter(*(name for name, default in defaults.items() if default is MISSING))
        more = {name: default for name, default in defaults.items() if default is not MISSING}
        return [
            TurnRecord(*needed(row), *map(row.get, more, more.values()))  # by place: half the time by name
            for row in self.rows("requests.jsonl")
        ]

    def rows(self, file: str) -> Iterator[dict[str, Any]]:
        if not (self.path / file).is_file():
            return
        try:
            with (self.path / file).open() as lines:
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
        """Whole or not at all."""
        draft = self.path / f".{file}.draft"
        draft.write_text(text)
        os.replace(draft, self.path / file)

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
