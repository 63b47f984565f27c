"""The figures of all passes as one Markdown table."""

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

LATE_MS = 0.3
DASH, MINUS = "\N{EN DASH}", "\N{MINUS SIGN}"

COLUMNS = {
    "cpu_ms": "CPU a request, ms",
    "bias_ms": f"reported {MINUS} true TTFT p99, ms",
    "matched_ms": "one by one, p99, ms",
    "gap_ms": "idle gap p99, ms",
    "load": "load carried",
    "lag_ms": "server's own lag p99, ms",
}


@dataclass(frozen=True, slots=True)
class Row:
    """One client at one level in one pass; None: not to be had."""

    client: str
    concurrency: int
    cpu_ms: float | None = None
    bias_ms: float | None = None
    due_bias_ms: float | None = None  # of TTFT from when the turn was due
    matched_ms: float | None = None
    gap_ms: float | None = None
    load: float | None = None
    lag_ms: float | None = None
    problem: str | None = None

    @property
    def doubt(self) -> str | None:
        late = self.lag_ms is not None and self.lag_ms > LATE_MS
        return "the server itself was late: was the machine busy?" if late else None

    def brief(self) -> str:
        told = [f"{title} {cell([self], name)}" for name, title in COLUMNS.items() if getattr(self, name) is not None]
        return " · ".join([*told, *filter(None, [self.problem or self.doubt])])


def number(value: float) -> str:
    digits = 2 if abs(value) < 1 else 1 if abs(value) < 20 else 0
    return f"{value:,.{digits}f}".replace("-", MINUS)


def figure(name: str, values: Sequence[float]) -> str:
    """Median, and the spread where there is one."""
    show = (lambda value: f"{100 * value:.0f} %") if name == "load" else number
    told, low, high = (show(reduce(values)) for reduce in (statistics.median, min, max))
    return told if low == high else f"{told} ({low} to {high})"


def cell(rows: Sequence[Row], name: str) -> str:
    values = [value for row in rows if (value := getattr(row, name)) is not None]
    told = figure(name, values) if values else DASH
    late = [row.due_bias_ms for row in rows if row.due_bias_ms is not None]
    return f"{told}; from when due {figure(name, late)}" if name == "bias_ms" and late else told


def markdown(rows: Sequence[Row], facts: dict[str, Any]) -> str:
    titles = ["C", "client", *COLUMNS.values(), ""]
    lines = [f"| {' | '.join(titles)} |", "|" + "---|" * len(titles)]
    for concurrency in sorted({row.concurrency for row in rows}):
        for client in dict.fromkeys(row.client for row in rows):
            these = [row for row in rows if (row.concurrency, row.client) == (concurrency, client)]
            if these:
                lines.append(line(concurrency, client, these))
    return "\n".join([*lines, "", *footnotes(rows, facts), ""])


def line(concurrency: int, client: str, rows: Sequence[Row]) -> str:
    remarks = dict.fromkeys(remark for row in rows if (remark := row.problem or row.doubt))
    figures = (cell(rows, name) for name in COLUMNS)
    return f"| {' | '.join([str(concurrency), client, *figures, '; '.join(remarks)])} |"


def footnotes(rows: Sequence[Row], facts: dict[str, Any]) -> list[str]:
    passes = max(Counter((row.client, row.concurrency) for row in rows).values(), default=0)
    versions = ", ".join(f"{name} {version or 'not installed'}" for name, version in facts["versions"].items())
    machine = f"{facts['cores']} cores of {facts['processor']}, Linux {facts['kernel']}, Python {facts['python']}"
    taken = f"Median (lowest to highest) of up to {passes} passes; {facts['date']}, commit {facts['commit']}"
    return [f"{taken}; {machine}.", "", f"{versions}."]
