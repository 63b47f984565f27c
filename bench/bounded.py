"""How much of a file from outside is read: nobody's file takes our memory, and what is no text or no JSON is said."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from bench.errors import BenchError, Exit

WHOLE = 16 << 20  # bytes of a file that is read in one piece
LONGEST = 1 << 20  # of a line
TOO_LONG = f"it has a line of more than {LONGEST >> 20} MiB"
EACH_END = 4 << 20  # of a log, of which the beginning and the end tell


def data(path: Path, most: int = WHOLE) -> bytes:
    with path.open("rb") as file:
        found = file.read(most + 1)
    if len(found) > most:
        raise BenchError(f"{path} is larger than {most >> 20} MiB", "is it the file you meant?")
    return found


def text(path: Path, most: int = WHOLE) -> str:
    try:
        return data(path, most).decode()
    except UnicodeDecodeError:
        raise BenchError(f"{path} is damaged: it is not text", exit=Exit.INVALID) from None


def ends(path: Path, each: int = EACH_END) -> str:
    """All of a small file; of a large one how it begins and how it ends."""
    with path.open("rb") as file:
        begins = file.read(2 * each)
        at = file.seek(0, 2)
        if at <= len(begins):
            return begins.decode(errors="replace")
        file.seek(at - each)
        return b"\n".join((begins[:each], file.read(each))).decode(errors="replace")


def last_line(path: Path) -> str:
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, 2) - LONGEST - 1))
        return file.read(LONGEST + 1).removesuffix(b"\n").rpartition(b"\n")[2].decode(errors="replace")


def lines(path: Path, at_once: int, start: int = 0) -> Iterator[str]:
    """Many at a time, each with its end; only the last of all may lack it. From that byte on."""
    with path.open("rb") as file:
        file.seek(start)
        try:
            for some in _whole_lines(file, at_once):
                yield some.decode()
        except ValueError as error:
            why = "it is not text" if isinstance(error, UnicodeDecodeError) else str(error)
            raise BenchError(f"{path} is damaged: {why}", exit=Exit.INVALID) from None


def _whole_lines(file: BinaryIO, at_once: int) -> Iterator[bytes]:
    rest = b""
    while some := file.read(at_once):
        whole, end, begun = some.rpartition(b"\n")
        if end:
            yield rest + whole + end
            rest = begun
        else:
            rest += some
        if len(rest) > LONGEST:
            raise ValueError(TOO_LONG)
    if rest:
        yield rest


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is not a number")


_DECODER = json.JSONDecoder(parse_constant=_no_number)


def parse(text: str) -> Any:
    """JSON, which knows neither infinity nor NaN; whatever is wrong with it is a ValueError."""
    try:
        return _DECODER.decode(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def document(path: Path, most: int = WHOLE, exit: Exit = Exit.INVALID) -> Any:
    try:
        return parse(text(path, most))
    except ValueError as error:
        raise BenchError(f"{path} is damaged: {error}", exit=exit) from None
