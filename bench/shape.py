"""Whether JSON of others has the shape that its readers rely on: asked once, where it is read."""

from collections.abc import Iterator
from typing import Any

from bench.errors import BenchError, Exit

MOST = 1 << 53  # a number past it has lost digits to many who read JSON
NAMES = {
    str: "a text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    dict: "a table",
    list: "a list",
}

# A type; a test; (null, or another); [of each]; {test of a key: of each}; {"key": of it, "key?": of it where it is}.
Shape = Any


def check(value: object, shape: Shape, where: str) -> None:
    if found := misfit(value, shape):
        raise BenchError(f"{where} is damaged: {found}", exit=Exit.INVALID)


def misfit(value: object, shape: Shape) -> str | None:
    """The first thing that is not as it should be."""
    return next(_misfits(value, shape, ""), None)


def holds(value: object, shape: Shape) -> bool:
    """Of a single value: True is no number, a whole number is a number, and no whole one is below zero."""
    if isinstance(shape, tuple):
        return any(holds(value, one) for one in shape)
    if shape is None:
        return value is None
    if not isinstance(shape, type):
        return bool(shape(value))
    if shape is float and isinstance(value, int | float) and not isinstance(value, bool):
        return -MOST < value < MOST
    return type(value) is shape and (not isinstance(value, int) or 0 <= value < MOST)


def positive(value: object) -> bool:
    return type(value) is int and 0 < value < MOST


def _misfits(value: object, shape: Shape, where: str) -> Iterator[str]:
    if isinstance(shape, tuple):
        shape = None if value is None else next(one for one in shape if one is not None)
    if isinstance(shape, dict) and isinstance(value, dict):
        yield from _of_table(value, shape, where)
    elif isinstance(shape, list) and isinstance(value, list):
        for number, one in enumerate(value, 1):
            yield from _misfits(one, shape[0], f"{where}{number}: ")
    elif isinstance(shape, dict | list) or not holds(value, shape):
        kind = type(shape) if isinstance(shape, dict | list) else shape
        yield f"{where}{NAMES.get(kind) or f'a {kind.__name__}'} should stand there, not {value!r:.80}"


def _of_table(value: dict[str, object], shape: dict[Shape, Shape], where: str) -> Iterator[str]:
    for key, inner in shape.items():
        if not isinstance(key, str):
            for said, one in value.items():
                yield from _misfits(said, key, f"{where}a key: ")
                yield from _misfits(one, inner, f"{where}{said:.80}: ")
        elif key.rstrip("?") in value:
            yield from _misfits(value[key.rstrip("?")], inner, f"{where}{key.rstrip('?')}: ")
        elif not key.endswith("?"):
            yield f"{where}it has no '{key}'"
