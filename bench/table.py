"""A level as a line of text: on the screen, in Markdown, in CSV."""

import csv
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields
from itertools import groupby
from typing import Any

from bench import inert, stats
from bench.errors import BenchError, Exit
from bench.stats import METRICS, LevelRow

# On a screen of 80 characters; table.md has all of them.
COLUMNS = {
    "ttft_p50_s": 8,
    "ttft_p95_s": 7,
    "ttft_p99_s": 7,
    "req_per_s": 5,
    "eligible_hit_rate": 6,
    "lost_tokens": 5,
    "unlucky": 7,
    "errors": 6,
    "duration_s": 6,
}
ALL_COLUMNS = (*COLUMNS, "requests", "preemptions", "kv_usage_max", "prefix_hit_rate", "tpot_p50_s", "late_p99_s",
               "lag_p99_s", "client_cpu")  # fmt: skip

OF_CARD = ("prefill_tokens_per_s", "decode_tokens_per_s", "matrix_share", "bandwidth_share", "power_w")

CASE_TEXT = {
    "realistic": "sessions, each turn extending the one before",
    "openai": "the same sessions through the official SDK, whose own time is in every number",
    "best": "single requests at full depth, all but the newest tokens cached",
    "worst": "single requests at full depth, only the shared prompt cached",
    "miss": "single requests at full depth, that share of them with only the shared prompt cached",
}


def groups(rows: Sequence[LevelRow]) -> Iterator[tuple[str, list[LevelRow]]]:
    """Each case of each variant under its heading."""
    several = len({row.variant for row in rows}) > 1
    for (variant, case), group in groupby(rows, lambda row: (row.variant, row.case)):
        yield heading(variant if several else "", case), list(group)


def heading(variant: str, case: str) -> str:
    name = f"{variant}, {case}" if variant else case
    return f"{name}: {CASE_TEXT.get(case, CASE_TEXT['miss'])}"


def header() -> str:
    return "  ".join(["  C", *(METRICS[name].title.rjust(width) for name, width in COLUMNS.items())])


def line(row: LevelRow) -> str:
    return "  ".join([f"{row.concurrency:3}", *(stats.show(row, name).rjust(width) for name, width in COLUMNS.items())])


def text(rows: Sequence[LevelRow]) -> str:
    return "\n".join(part for title, group in groups(rows) for part in (title, header(), *map(line, group), ""))


def markdown(rows: Sequence[LevelRow]) -> str:
    titles = ["C", *(METRICS[name].title for name in ALL_COLUMNS)]
    parts: list[str] = []
    for title, group in groups(rows):
        parts += [f"## {inert.markup(title)}", "", cells(titles), cells(["---:"] * len(titles))]
        parts += [cells([str(row.concurrency), *(cell(row, name) for name in ALL_COLUMNS)]) for row in group]
        parts.append("")
    return "\n".join([*parts, *_card(rows)])


def of_card(rows: Sequence[LevelRow]) -> list[str]:
    """What is known of the cards at any level."""
    return [name for name in OF_CARD if any(getattr(row, name) is not None for row in rows)]


def card_title(rows: Sequence[LevelRow]) -> str:
    """There may be no limit to come close to."""
    return "How close to the card's limit" if "matrix_share" in of_card(rows) else "Tokens a second"


def _card(rows: Sequence[LevelRow]) -> Iterator[str]:
    if not (names := of_card(rows)):
        return
    several = len({row.variant for row in rows}) > 1
    titles = ["", "C", *(METRICS[name].title for name in names)]
    yield from (f"## {card_title(rows)}", "", cells(titles), cells(["---", *["---:"] * (len(names) + 1)]))
    for row in rows:
        name = inert.markup(f"{row.variant}, {row.case}" if several else row.case)
        yield cells([name, str(row.concurrency), *(cell(row, name) for name in names)])
    yield ""


def cell(row: LevelRow, name: str) -> str:
    """As on the screen; where that is only a limit, what was seen, what is lacking and who timed out, too."""
    text, missing = stats.show(row, name), stats.more_sessions(row, name)
    more = [f"{stats.seen(row, name)} seen, needs {missing} more sessions"] if missing else []
    more += [f"{row.timeouts} timed out"] if stats.is_limit(row, name) else []
    return f"{text} ({'; '.join(more)})" if more else text


def cells(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def from_csv(text: str, where: str = "levels.csv") -> list[LevelRow]:
    """What `to_csv` wrote; an empty cell was not measured, and a column it does not know is left out."""
    kinds = {field.name: field.type for field in fields(LevelRow)}
    rows = csv.DictReader(io.StringIO(text))
    try:
        return [
            LevelRow(**{name: _value(row[name], kind) for name, kind in kinds.items() if name in row}) for row in rows
        ]
    except (csv.Error, AttributeError, TypeError, ValueError) as error:
        raise BenchError(f"{where} is damaged: {error!s:.200}", "publish the run again", Exit.INVALID) from None


def _value(cell: str, kind: Any) -> Any:
    if kind is str:
        return inert.of_cell(cell)
    if cell == "":
        return None
    value = int(cell) if kind in (int, int | None) else float(cell)
    if math.isnan(value) or (kind in (int, int | None) and value > 1 << 53):
        raise ValueError(f"{cell:.80} is no measure")
    return value


def to_csv(rows: Sequence[LevelRow]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, [field.name for field in fields(LevelRow)], lineterminator="\n")
    writer.writeheader()
    writer.writerows({**asdict(row), "variant": inert.cell(row.variant), "case": inert.cell(row.case)} for row in rows)
    return out.getvalue()
