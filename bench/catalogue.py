"""The published results in one table: what each card holds, what it answers there, what a thousand tasks cost."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any
from urllib.parse import quote

from bench.page import cell, document, sortable
from bench.stats import LevelRow, rate
from bench.svg import clean, tag
from bench.words import plain

HEADS = ("card", "model", "KV", "workload", "knee", "ceiling", "promise", "req/s there", "$ per 1,000 tasks", "date",
         "vLLM", "departs")  # fmt: skip
FILTERS = {"card": 0, "model": 1, "KV": 2}


@dataclass(frozen=True, slots=True)
class Entry:
    """One variant of one published run."""

    card: str
    model: str
    precision: str
    workload: str
    knee: tuple[int, int] | None
    highest: int | None
    ceiling: int | None
    slo: str
    req_per_s: float | None
    usd_per_1000_tasks: float | None
    date: str
    vllm: str
    departures: str
    place: PurePath  # of its folder, below results/


def entries(run: Mapping[str, Any], rows: Sequence[LevelRow], place: PurePath) -> Iterator[Entry]:
    for name, facts in run["variants"].items():
        verdict = run["verdict"]["variants"][name]
        launch = facts["launch"] or {}
        at = [
            row for row in rows if (row.variant, row.case, row.concurrency) == (name, "realistic", verdict["ceiling"])
        ]
        answered = at[0].req_per_s if at else None
        gpus = run["machine"]["gpus"]
        yield Entry(
            card=launch.get("name") or (gpus[0]["name"] if gpus else "endpoint"),
            model=facts["server"]["model"],
            precision=name,
            workload=run["workload"]["name"],
            knee=tuple(verdict["knee"]) if verdict["knee"] else None,
            highest=verdict["highest"],
            ceiling=verdict["ceiling"],
            slo=verdict["slo"],
            req_per_s=answered,
            usd_per_1000_tasks=_price(launch, answered, run["typical"]["turns"]),
            date=run["started"][:10],
            vllm=str(facts["server"]["version"]),
            departures="; ".join(run["verdict"].get("departures", [])),
            place=place,
        )


def _price(launch: Mapping[str, Any], req_per_s: float | None, turns: float) -> float | None:
    """A task is a whole session. None for a machine without a price."""
    card = (launch.get("file") or {}).get("card")
    if card is None or not req_per_s:
        return None
    usd_per_s = card["price_usd_h"]["value"] * launch["tp"] / 3600
    return float(usd_per_s * turns / req_per_s * 1000)


def _texts(entry: Entry) -> tuple[str, ...]:
    knee = f"{entry.knee[0]} to {entry.knee[1]}" if entry.knee else f"none up to {entry.highest}"
    price = "-" if entry.usd_per_1000_tasks is None else f"{entry.usd_per_1000_tasks:.2f}"
    answered = "-" if entry.req_per_s is None else rate(entry.req_per_s)
    ceiling = "-" if entry.ceiling is None else str(entry.ceiling)
    words = (entry.card, entry.model, entry.precision, entry.workload, knee, ceiling, entry.slo, answered, price,
             entry.date, entry.vllm, entry.departures or "no")  # fmt: skip
    return tuple(plain(text) for text in words)


def _values(entry: Entry) -> tuple[object, ...]:
    """What each column is sorted by, where that is not its text."""
    knee = entry.knee[0] if entry.knee else entry.highest
    return (*[None] * 4, knee, entry.ceiling, None, entry.req_per_s, entry.usd_per_1000_tasks, *[None] * 3)


def index_html(found: Sequence[Entry]) -> str:
    title = "How many coding agents does a card hold?"
    inner = [
        tag("header", tag("h1", title), tag("p", "Published runs of bench; each card's name leads to its report.")),
        tag("main", _filters(found), sortable(HEADS, [_row(entry) for entry in found], [""] * len(HEADS))),
    ]
    return document(title, "".join(inner), "page.js")


def _filters(found: Sequence[Entry]) -> str:
    made = [tag("label", "Any word ", tag("input", type="search", data_filter=""))]
    for name, column in FILTERS.items():
        choices = sorted({_texts(entry)[column] for entry in found})
        options = [tag("option", "all", value=""), *(tag("option", clean(one), value=one) for one in choices)]
        made.append(tag("label", f"{name} ", tag("select", *options, data_filter=column)))
    return tag("div", *made, class_="filters", role="search")


def _row(entry: Entry) -> str:
    first, *rest = zip(_texts(entry), _values(entry), strict=True)
    link = tag("a", clean(first[0]), href=_link(entry, "report.html"))
    return tag("tr", tag("th", link, scope="row"), *(cell(text, value) for text, value in rest))


def _link(entry: Entry, file: str) -> str:
    return quote(str(PurePath(entry.place, file)))


def index_markdown(found: Sequence[Entry]) -> str:
    lines = [
        "# Results",
        "",
        "Published runs, put here by `bench publish RUN`, which makes this page and `index.html` anew (which sorts and",
        "filters). What a sweep writes lies in `runs/`, which is not tracked. A task is a whole session.",
        "",
        f"| {' | '.join(HEADS)} |",
        f"|{'|'.join(['---'] * len(HEADS))}|",
    ]
    for entry in found:
        card, *rest = (text.replace("|", "\\|") for text in _texts(entry))
        link = f"[{card}]({_link(entry, 'table.md')})"
        lines.append(f"| {' | '.join([link, *rest])} |")
    return "\n".join([*lines, ""])
