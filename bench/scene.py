"""What the pictures are drawn from: one variant of a run, and what all of them do alike."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.records import TurnRecord
from bench.stats import LevelRow
from bench.svg import figure

LEFT, RIGHT = 64.0, 636.0
Data = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Seen:
    """One variant: what its pictures are drawn from."""

    run: Mapping[str, Any]
    variant: str
    rows: Sequence[LevelRow]
    turns: Mapping[int, Sequence[TurnRecord]]  # of the realistic case, by level
    number: int

    @property
    def facts(self) -> Mapping[str, Any]:
        return part_of(self.run["variants"], self.variant)

    @property
    def verdict(self) -> Mapping[str, Any]:
        return part_of(self.run["verdict"]["variants"], self.variant)

    @property
    def tokens(self) -> int | None:
        """Of KV cache, by the server's word."""
        found: int | None = part_of(part_of(self.facts, "server"), "cache").get("tokens")
        return found

    @property
    def knee(self) -> tuple[int, int] | None:
        found = self.verdict.get("knee")
        return (found[0], found[1]) if found else None

    def case(self, name: str) -> list[LevelRow]:
        return sorted((row for row in self.rows if row.case == name), key=lambda row: row.concurrency)

    def figure(self, name: str, title: str, told: str, height: float, *body: str) -> str:
        several = len(self.run["variants"]) > 1
        named = f"{short(self.variant)}: {title}" if several or "(simulated)" in self.variant else title
        return figure(self.key(name), named, told, height, *body)

    def key(self, name: str) -> str:
        """By number, for a variant's name may hold anything."""
        return f"{name}-{self.number}"


def by_level(records: Iterable[TurnRecord], variant: str) -> dict[int, list[TurnRecord]]:
    found: dict[int, list[TurnRecord]] = {}
    for record in records:
        if record.turn > 0 and record.case == "realistic" and record.variant == variant:
            found.setdefault(record.concurrency, []).append(record)
    return found


def part_of(whole: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    return whole.get(name) or {}


def short(name: str, most: int = 18) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}\u2026"


def data_of(row: LevelRow) -> Data:
    return {"data_level": row.concurrency, "data_variant": row.variant, "data_case": row.case}


def positive(values: Iterable[float | None]) -> list[float]:
    """Those that a logarithmic axis can hold: neither absent nor infinite."""
    return [value for value in values if value is not None and 0 < value < math.inf]


def tick(value: float) -> str:
    """A tick of a time axis."""
    return f"{value:g} s" if value >= 1 else f"{value * 1000:g} ms"


def at_level(rows: Iterable[LevelRow], level: float) -> LevelRow | None:
    return next((row for row in rows if row.concurrency == level), None)
