"""How far what was foretold of a run is from what came: level by level, and in the middle of them."""

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from bench.stats import HEADLINE, LevelRow

Told = Mapping[str, Any]


def errors(told: Sequence[Told], rows: Sequence[LevelRow]) -> list[dict[str, Any]]:
    """Foretold over seen, less one, of each level that was played to its end."""
    seen = {(row.case, row.concurrency): row for row in rows}
    pairs = [(one, seen[at]) for one in told if (at := (one["case"], one["concurrency"])) in seen]
    return [
        {"case": row.case, "concurrency": row.concurrency, **{name: error(one[name], row, name) for name in HEADLINE}}
        for one, row in pairs
    ]


def error(foretold: float | None, row: LevelRow, name: str) -> float | None:
    value = getattr(row, name)
    known = foretold is not None and value and math.isfinite(value)
    return foretold / value - 1 if foretold is not None and known else None


def typical(found: Sequence[Told], over: int | None) -> dict[str, dict[str, float | None]]:
    """How far off it was in the median, whichever way: of the sessions' levels below the knee, and of those past it."""
    levels = [one for one in found if one["case"] == "realistic"]
    below = [one for one in levels if over is None or one["concurrency"] < over]
    past = [one for one in levels if one not in below]
    return {side: {name: _middle(part, name) for name in HEADLINE} for side, part in (("below", below), ("past", past))}


def _middle(levels: Sequence[Told], name: str) -> float | None:
    values = [abs(one[name]) for one in levels if one[name] is not None]
    return median(values) if values else None
