"""A TOML file into frozen dataclasses: every key known, every number in range, every error naming file and key."""

import hashlib
import re
import tomllib
import types
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from bench import bounded
from bench.errors import BenchError

LARGEST = 1 << 20  # bytes of a file that somebody wrote by hand
MOST = 1e15  # nothing here is counted so far, and a whole number is still exact as a float
T = TypeVar("T")
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
HERE = Path(__file__).parent


def find(folder: str, name: str, suffix: str = ".toml") -> Path:
    """The file a name stands for; a path wins over a shipped name."""
    given = Path(name)
    if given.suffix == suffix and given.is_file():
        return given
    for home in _homes(folder):
        if (home / f"{name}{suffix}").is_file():
            return home / f"{name}{suffix}"
    known = ", ".join(shipped(folder, suffix))
    raise BenchError(
        f"no file {folder}/{name}{suffix}",
        f"shipped: {known}; or give the path of a {suffix} file of your own",
    )


def shipped(folder: str, suffix: str = ".toml") -> list[str]:
    return sorted({path.stem for home in _homes(folder) for path in home.glob(f"*{suffix}")})


def _homes(folder: str) -> tuple[Path, Path]:
    """In the wheel, and in a checkout."""
    return HERE / "shipped" / folder, HERE.parent / folder


def slug(text: str) -> str:
    """A name that any file system takes, whoever chose it."""
    short = re.sub(r"[^\w.+-]+", "-", text).strip("-.").encode()[:80].decode(errors="ignore")  # one takes 255 bytes
    return short or "unnamed"


def digests(folder: str, name: str, suffix: str = ".toml") -> set[str]:
    """Of the shipped files of that name."""
    files = [home / f"{name}{suffix}" for home in _homes(folder) if "/" not in name]
    return {digest(file.read_bytes()) for file in files if file.is_file()}


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def read(path: Path, into: type[T]) -> tuple[T, str]:
    """The file's content as `into`, and the hash of its bytes."""
    data = bounded.data(path, LARGEST)
    try:
        table = tomllib.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise BenchError(f"{path}: not a TOML file: {error}") from None
    return convert(table, into, str(path)), digest(data)


def convert(value: Any, into: Any, where: str) -> Any:
    """`value` as the type `into`; `where` is the path of file and keys that an error names."""
    origin = get_origin(into)
    if is_dataclass(into) and isinstance(into, type):
        return _dataclass(value, into, where)
    if origin in (Union, types.UnionType):
        return _union(value, get_args(into), where)
    if origin is Literal:
        _require(value in get_args(into), where, f"one of {', '.join(get_args(into))}", value)
        return value
    if origin is dict:
        _require(isinstance(value, dict), where, "a table", value)
        return {
            convert(key, str, where): convert(one, get_args(into)[1], f"{where}: {key}") for key, one in value.items()
        }
    if origin is tuple:
        _require(isinstance(value, list), where, "a list", value)
        return tuple(convert(item, get_args(into)[0], where) for item in value)
    return _scalar(value, into, where)


def _dataclass(value: Any, into: Any, where: str) -> Any:
    _require(isinstance(value, dict), where, "a table", value)
    known = {field.name: field for field in fields(into)}
    if unknown := sorted(set(value) - set(known)):
        raise BenchError(f"{where}: unknown key '{unknown[0]:.80}'", f"known keys: {', '.join(known)}")
    hints = get_type_hints(into)
    for name, field in known.items():
        if name not in value and field.default is MISSING and field.default_factory is MISSING:
            raise BenchError(f"{where}: the key '{name}' is missing")
    made = {name: convert(item, hints[name], f"{where}: {name}") for name, item in value.items()}
    try:
        return into(**made)
    except ValueError as error:
        raise BenchError(f"{where}: {error}") from None


def _union(value: Any, choices: tuple[Any, ...], where: str) -> Any:
    """A table becomes the dataclass among the choices, anything else the plain type; what JSON leaves out is None."""
    if value is None and types.NoneType in choices:
        return None
    tables = [choice for choice in choices if is_dataclass(choice)]
    plain = [choice for choice in choices if choice is not types.NoneType and choice not in tables]
    return convert(value, tables[0] if tables and (isinstance(value, dict) or not plain) else plain[0], where)


def _scalar(value: Any, into: type, where: str) -> Any:
    names = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
    _require(type(value) is into or (into is float and type(value) is int), where, names.get(into, str(into)), value)
    if into is str and CONTROL.search(value):
        raise BenchError(f"{where} has a control character in it")
    if into in (int, float) and value < 0:
        raise BenchError(f"{where} is {value:.6g}: it cannot be negative")
    if into in (int, float) and not value <= MOST:
        raise BenchError(f"{where} should be a number up to {MOST:.0e}")
    return into(value)


def _require(holds: bool, where: str, wanted: str, value: object) -> None:
    if not holds:
        raise BenchError(f"{where} should be {wanted}, not {value!r:.80}")
