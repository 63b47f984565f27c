"""The variants of one run beside each other, a line each: which of them holds how many?"""

from collections.abc import Sequence
from typing import Any

from bench import stats
from bench.stats import LevelRow
from bench.words import bracket, plain

HEADS = ("variant", "sessions fit", "knee", "ceiling", "TTFT p99 there", "req/s there")

Line = tuple[str, ...]


def lines(run: dict[str, Any], rows: Sequence[LevelRow]) -> list[Line]:
    """Of a single variant nothing: all of it is told already."""
    verdicts = run["verdict"]["variants"]
    return [_line(name, verdict, rows) for name, verdict in verdicts.items()] if len(verdicts) > 1 else []


def _line(name: str, verdict: dict[str, Any], rows: Sequence[LevelRow]) -> Line:
    fits, ceiling = verdict.get("predicted_knee"), verdict["ceiling"]
    top = next((row for row in rows if (row.variant, row.case, row.concurrency) == (name, "realistic", ceiling)), None)
    there = ["-", "-"] if top is None else [stats.show(top, "ttft_p99_s"), stats.show(top, "req_per_s")]
    return plain(name), "-" if fits is None else f"{fits:.1f}", bracket(verdict), str(ceiling or "-"), *there


def text(found: Sequence[Line]) -> str:
    widths = [max(map(len, column)) for column in zip(HEADS, *found, strict=True)]
    aligned = (
        [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))]
        for line in (HEADS, *found)
    )
    return "\n".join("  ".join(cells) for cells in aligned) + "\n" if found else ""
