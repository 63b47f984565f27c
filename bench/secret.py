"""What must not be written: the keys that this process holds, and whatever looks like one."""

import mmap
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from errno import ENOENT
from functools import cache
from pathlib import Path
from typing import TypeVar, cast

KEY, KEY_FILE = "BENCH_API_KEY", "BENCH_API_KEY_FILE"
SHORT = 8  # characters; nothing shorter is a secret, and half of all words have it in them
INSTEAD = "***"
# Names of flags, variables and fields end like this where what follows is a secret: --api-key, HF_TOKEN, "password".
ENDING = r"(?:key|token|secret|passw(?:or)?d|credentials?|auth|authorization)"
NUMBER = r"\d{1,7}(?:\.\d+)?"  # no key is one: --limit first-token=30
NAME = r"[\w.-]{0,60}" + ENDING
GIVEN = re.compile(
    rf"""(?<!\S)(--?{NAME})\s+[^\s-]|({NAME})(?:=|["']\s*:\s*["'])["']?(?!{NUMBER}(?!\S))[^\s"']""", re.IGNORECASE
)
LOOKS = re.compile(
    r"(?<![\w-])(?:(?:hf|gh[a-z])_[A-Za-z0-9]{20,}|(?:sk|glpat|nvapi)-[\w-]{16,}|AKIA[A-Z0-9]{16})"
    r"|(?<=://)[^\s/@'\"]+(?=@)"
)
T = TypeVar("T")


def betrayed(words: Sequence[str]) -> str | None:
    """What gives a secret away in a command line, without saying it."""
    line = " ".join(words)
    if given := GIVEN.search(line):
        return given[1] or given[2]
    return "a word that looks like a key" if LOOKS.search(line) else None


def held() -> list[str]:
    """What this process knows of secrets: by the names of its variables, and out of the file of its key."""
    named = {value for name, value in os.environ.items() if re.search(f"{ENDING}$", name, re.IGNORECASE)}
    found = {value for value in named if not re.match(r"[/~]|\w+://", value)}  # where a secret lies is none
    with suppress(OSError, ValueError):  # that it cannot be read is told where the key is asked for
        found.add(filed(os.environ.get(KEY_FILE, "")))
    return sorted((secret for secret in found if len(secret) >= SHORT), key=len, reverse=True)


@cache
def filed(file: str) -> str:
    """The key in a file, as it was first: by and by it may be another. Of a pipe it could be had but once."""
    if not Path(file).is_file():
        raise FileNotFoundError(ENOENT, "no such file", file)
    return Path(file).read_text().strip()


def without(value: T) -> T:
    """The same without secrets, also those of which the end was cut off."""
    if isinstance(value, dict):
        return cast(T, {name: without(inner) for name, inner in value.items()})
    if isinstance(value, list):
        return cast(T, [without(inner) for inner in value])
    if not isinstance(value, str):
        return value
    text: str = value
    for secret in held():
        while (at := text.find(secret[:SHORT])) >= 0:
            size = next(n for n in range(len(secret), 0, -1) if text.startswith(secret[:n], at))
            text = text[:at] + INSTEAD + text[at + size :]
    return cast(T, LOOKS.sub(INSTEAD, text))


def blot(log: Path) -> None:
    """In place and to the same length: others may still write to it."""
    hidden = re.compile("|".join([*map(re.escape, held()), LOOKS.pattern]).encode())
    with log.open("r+b") as file:
        if not os.fstat(file.fileno()).st_size:
            return
        with mmap.mmap(file.fileno(), 0) as text:
            for start, end in [found.span() for found in hidden.finditer(text)]:
                text[start:end] = b"*" * (end - start)
