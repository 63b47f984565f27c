"""What happened: one immutable record a request, appended and flushed as it ends, and the folder a run lives in."""

import errno
import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import MISSING, dataclass, fields
from itertools import starmap
from operator import attrgetter, itemgetter
from pathlib import Path
from typing import Any, BinaryIO, Literal, get_args, get_origin, get_type_hints

from bench import bounded, manifest, shape
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
    def play(self) -> "Play":
        return self.variant, self.case, self.concurrency, self.repeat

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


Play = tuple[str, str, int, int]  # a level, once: variant, case, concurrency, repeat


def play_of(row: dict[str, Any]) -> Play:
    return row["variant"], row["case"], row["concurrency"], row["repeat"]


def attempts(records: Sequence[TurnRecord]) -> dict[Play, int]:
    """Which attempt at each play is the last."""
    last: dict[Play, int] = {}
    for one in records:
        last[one.play] = max(last.get(one.play, 0), one.attempt)
    return last


def is_last(last: dict[Play, int], one: TurnRecord) -> bool:
    return last[one.play] == one.attempt


KEPT = tuple(field.name for field in fields(TurnRecord) if field.name != "answer")
LINES = ("requests.jsonl", "server.jsonl", "client.jsonl", "journal.jsonl")  # all that a run cannot do without
HELD = ".held"  # locked while a run is made; and as large as a run's last words are, should the disk be full
LAST_WORDS = 1 << 20
AT_ONCE = 1 << 18  # bytes read and parsed together: more of them are slower again
LONGEST_S = 1e9  # no run takes thirty years
MEND = "nothing is said of a run whose records cannot be trusted: take a copy of it, or run it again"
LEAST = {"concurrency": 1, "session": -100_000}  # a warm-up's: one for each beginning that others find cached
OF_LEVEL = {"variant": str, "case": str, "concurrency": int, "repeat": int}  # of every sample
OWN: dict[str, dict[str, shape.Shape]] = {
    "server.jsonl": {"t_s": float},
    "client.jsonl": {"wall_s": float, "cpu_s": float},
    "journal.jsonl": {"t_s": float, "what": str, "attempt": int, "why": (str, None)},
}


def _kinds(hint: Any) -> frozenset[type]:
    """What JSON may say for it: a whole number is a number too."""
    if get_origin(hint) is Literal:
        return frozenset({str})
    said = set(get_args(hint) or (hint,))
    return frozenset(said | {int} if float in said else said)


KINDS = {name: _kinds(hint) for name, hint in get_type_hints(TurnRecord).items()}
DEFAULTS = {field.name: field.default for field in fields(TurnRecord)}
NEEDED = itemgetter(*(name for name, default in DEFAULTS.items() if default is MISSING))  # which are the first
MORE = {name: default for name, default in DEFAULTS.items() if default is not MISSING}
ALL = itemgetter(*DEFAULTS)
values_of = attrgetter(*DEFAULTS)


def _values(rows: Sequence[dict[str, Any]]) -> list[tuple[Any, ...]]:
    """In the order of the fields; of an older version one by one, for it lacks some."""
    for row in rows:
        row["answer"] = b""
    try:
        return [*map(ALL, rows)]
    except KeyError:
        return [(*NEEDED(row), *map(row.get, MORE, MORE.values())) for row in rows]


def unsound(values: Sequence[tuple[Any, ...]]) -> str | None:
    """Which field of records holds what no request can have; column by column, which is fast."""
    for name, column in zip(DEFAULTS, zip(*values, strict=True), strict=False):
        if not (set(map(type, column)) <= KINDS[name] and _in_range(name, column)):
            return name
    return None


def _in_range(name: str, column: Sequence[Any]) -> bool:
    kinds = KINDS[name]
    if int not in kinds:
        return name != "status" or set(column) <= set(get_args(Status))
    told = column if type(None) not in kinds else [value for value in column if value is not None]
    least, most = (-LONGEST_S, LONGEST_S) if float in kinds else (LEAST.get(name, 0), shape.MOST)
    return not told or bool(least <= min(told) and max(told) <= most)


def _together(lines: str, number: int) -> list[dict[str, Any]]:
    """What so many lines say, in one go, which is faster; nothing if one of them is damaged."""
    try:
        rows: list[dict[str, Any]] = bounded.parse(f"[{lines.removesuffix(chr(10)).replace(chr(10), ',')}]")
    except ValueError:
        return []
    return rows if len(rows) == number and set(map(type, rows)) == {dict} else []


def _row(line: str) -> dict[str, Any]:
    row = bounded.parse(line)
    if not isinstance(row, dict):
        raise ValueError("not a row")
    return row


def _mend(lines: BinaryIO) -> bool:
    """The last one is whole afterwards; true if it was not."""
    if not (end := lines.seek(0, os.SEEK_END)):
        return False
    lines.seek(end - 1)
    if lines.read(1) == b"\n":
        return False
    start = lines.seek(max(0, end - bounded.LONGEST))
    _, before, torn = lines.read().rpartition(b"\n")
    if start and not before:
        raise BenchError(f"{lines.name} is damaged: {bounded.TOO_LONG}", exit=Exit.INVALID)
    try:
        _row(torn.decode())
        lines.write(b"\n")
    except ValueError:
        lines.truncate(end - len(torn))
    return True


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
                    file.truncate(0)  # not removed: who has it open already would hold another one than who comes later
        except BlockingIOError:
            raise BenchError(f"another bench is writing to {self.path}", "wait for its end, or end it") from None

    def mend(self) -> list[str]:
        """Finish or take away the last lines that a crash or a full disk has torn, so that more can follow."""
        return [file for file in LINES if (self.path / file).is_file() and self._mended(file)]

    def _mended(self, file: str) -> bool:
        with (self.path / file).open("ab+") as lines:
            return _mend(lines)

    def append(self, file: str, row: dict[str, Any]) -> None:
        """Flushed at once, by one process after another: what has ended stays, and whole lines follow whole ones."""
        try:
            with (self.path / file).open("ab+") as out:
                fcntl.flock(out, fcntl.LOCK_EX)
                _mend(out)
                out.write(json.dumps(row, separators=(",", ":")).encode() + b"\n")
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
        """In order of time: several processes write them, each as its turns end."""
        found: list[TurnRecord] = []
        for number, rows in self._batches("requests.jsonl", start):
            try:
                values = _values(rows)
            except KeyError as error:
                raise self._damaged("requests.jsonl", number, f"a request without {error}") from None
            if name := unsound(values):
                at = next(at for at, one in enumerate(values) if unsound([one]))
                raise self._damaged("requests.jsonl", number + at, f"no request has {rows[at][name]!r:.80} for {name}")
            found += starmap(TurnRecord, values)  # by place: half the time by name
        found.sort(key=attrgetter("end_s"))
        return found

    def rows(self, file: str, start: int = 0) -> Iterator[dict[str, Any]]:
        """From the line that begins at that byte; of server, client and journal each holds what it should."""
        wanted: dict[str, shape.Shape] = {**OF_LEVEL, **OWN[file]} if file in OWN else {}
        for number, rows in self._batches(file, start):
            for at, row in enumerate(rows if wanted else ()):
                for name in (*wanted, *row):
                    if not shape.holds(row.get(name), wanted.get(name, (float, None))):
                        raise self._damaged(file, number + at, f"none has {row.get(name)!r:.80} for {name:.80}")
            yield from rows

    def _damaged(self, file: str, number: int, why: str) -> BenchError:
        return BenchError(f"{self.path / file} is damaged from line {number} on: {why}", MEND, Exit.INVALID)

    def torn(self, file: str) -> bool:
        """Its last line is not whole, and left out: whoever wrote it was killed, or the disk was full."""
        try:
            _row((bounded.last_line(self.path / file) if (self.path / file).is_file() else "") or "{}")
        except ValueError:
            return True
        return False

    def _batches(self, file: str, start: int = 0) -> Iterator[tuple[int, list[dict[str, Any]]]]:
        """With the number of the first line of each."""
        if not (self.path / file).is_file():
            return
        number = 1
        chunks = bounded.lines(self.path / file, AT_ONCE, start)
        some = next(chunks, "")
        while some:
            following = next(chunks, "")
            lines = some.count("\n") + (not some.endswith("\n"))
            yield number, _together(some, lines) or self._one_by_one(file, number, some, last=not following)
            number, some = number + lines, following

    def _one_by_one(self, file: str, number: int, some: str, last: bool) -> list[dict[str, Any]]:
        rows = []
        lines = some.removesuffix("\n").split("\n")
        for at, line in enumerate(lines, 1):
            try:
                rows.append(_row(line))
            except ValueError:
                if not last or at < len(lines):  # the last may be torn by a crash; else it is damage
                    where = f"{self.path / file}: line {number + at - 1}"
                    raise BenchError(f"{where} is not JSON", MEND, Exit.INVALID) from None
        return rows

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
        run = bounded.document(file)
        told = run.get("schema") if isinstance(run, dict) else None
        if type(told) is not int or told not in READABLE:
            raise BenchError(f"{file} has schema {told!r:.80}, this bench reads {READABLE[0]} to {SCHEMA}")
        manifest.check(run, str(file))
        known: dict[str, Any] = run
        return known

    def published(self) -> dict[str, Any]:
        """The manifest of a run whose verdict is not made again."""
        run = self.manifest()
        manifest.check_published(run, str(self.path / "run.json"))
        return run

    def write_manifest(self, run: dict[str, Any]) -> None:
        self.write("run.json", json.dumps(run, indent=2) + "\n")
