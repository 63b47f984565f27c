"""Bytes as choices: what a fuzzer or hypothesis draws changes a document that was valid, at any depth."""

import copy
import json
from collections.abc import Iterator
from typing import Any

NASTY: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 0.5, -0.0, 1e-300, 1e308, 1e999, 2**53, 2**63, 10**400, "", "x", "0", "=1+1",
    "../../../etc/passwd", "/dev/null", "a\x00b", "\x1b[2J\x1b]0;x\x07", "</script><img src=x onerror=alert(1)>",
    "\u202egnp.exe", "\ud800", "a|b`c\n# d", "2026-11-21", "9999-12-31T23:59:59+00:00", "x" * 5000, [], [None], {},
    {"": {}}, [[[[[]]]]], {"x": [1, "y", None]},
)  # fmt: skip


class Choices:
    """Read from bytes, and 0 when they are spent."""

    def __init__(self, data: bytes) -> None:
        self._data = iter(data)

    def pick(self, many: int) -> int:
        byte = next(self._data, 0)
        return (byte if many <= 256 else byte << 8 | next(self._data, 0)) % many

    def rest(self) -> bytes:
        return bytes(self._data)


def places(document: Any) -> Iterator[tuple[Any, Any]]:
    """Of every value in it: what it lies in, and under which key."""
    items = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    for key, value in items:
        yield document, key
        yield from places(value)


def mutated(document: Any, choices: Choices, times: int = 4) -> Any:
    document = copy.deepcopy(document)
    for _ in range(choices.pick(times)):
        found = list(places(document))
        if not found:
            return NASTY[choices.pick(len(NASTY))]
        _change(*found[choices.pick(len(found))], found, choices)
    return document


def _change(inside: Any, key: Any, found: list[tuple[Any, Any]], choices: Choices) -> None:
    match choices.pick(6):
        case 0 | 1:
            inside[key] = copy.deepcopy(NASTY[choices.pick(len(NASTY))])
        case 2:
            del inside[key]
        case 3:
            there, other = found[choices.pick(len(found))]
            inside[key] = copy.deepcopy(there[other])
        case 4 if isinstance(inside, dict):
            inside[str(NASTY[choices.pick(len(NASTY))])] = inside.pop(key)
        case 4:
            inside.insert(0, copy.deepcopy(inside[key]))
        case 5 if isinstance(inside[key], int | float):
            inside[key] = inside[key] * (choices.pick(5) - 2)
        case _:
            inside[key] = str(inside[key])


def scratched(text: bytes, choices: Choices) -> bytes:
    """Three times of four as it was; else cut, overwritten or with something inside."""
    at = choices.pick(65536) % (len(text) + 1)
    match choices.pick(16):
        case 1:
            return text[:at]
        case 2:
            return text[:at] + choices.rest() + text[at:]
        case 3:
            rest = choices.rest()
            return text[:at] + rest + text[at + len(rest) :]
        case 4:
            return text[:at] + b"[" * 100_000 + text[at:]
    return text


def dumped(document: Any) -> bytes:
    return json.dumps(document).encode()
