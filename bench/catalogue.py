"""The published results in one table: what each card holds, what it answers there, what a thousand tasks cost."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any
from urllib.parse import quote

from bench import cost, manifest
from bench.hypertext import Column, cell, document, legend, sortable, worded
from bench.stats import LevelRow, rate
from bench.svg import clean, tag
from bench.words import bracket, plain

COLUMNS = (
    Column("card"),
    Column("model"),
    Column("KV", "precision of the KV cache"),
    Column("workload"),
    Column("knee", "the last level without loss, and the first with it: sessions at once"),
    Column("sure", "how sure it is that the knee lies there", ""),
    Column("ceiling", "the most sessions at once that keep the promise", "sessions"),
    Column("promise"),
    Column("req/s", "answered requests a second at the ceiling", "1/s"),
    Column("$ / 1,000 tasks", "price of the machine while it answers a thousand whole sessions at the ceiling", "USD"),
    Column("MJ / 1,000 tasks", "what its cards draw meanwhile", "MJ"),
    Column("date"),
    Column("vLLM", "its version"),
    Column("bench", "its version"),
    Column("departs", "from the published recipe"),
)
FILTERS = {"card": 0, "model": 1, "KV": 2}
TITLE = "How many coding agents does a card hold?"


@dataclass(frozen=True, slots=True)
class Entry:
    """One variant of one published run."""

    card: str
    model: str
    precision: str
    workload: str
    knee: str
    knee_least: int | None  # sessions; sorts by
    knee_confidence: float | None
    ceiling: int | None
    slo: str
    req_per_s: float | None  # at the ceiling
    usd_per_1000_tasks: float | None
    joules_per_1000_tasks: float | None
    date: str
    vllm: str
    bench: str
    departures: str
    place: PurePath  # of its folder, below results/


def entries(run: Mapping[str, Any], rows: Sequence[LevelRow], place: PurePath) -> Iterator[Entry]:
    for name, verdict in run["verdict"]["variants"].items():
        facts = run["variants"][name]
        launch, server, here = facts["launch"] or {}, facts.get("server", {}), manifest.of(run, name)
        top, turns = _top(rows, name, verdict["ceiling"]), here["typical"]["turns"]
        answered = top.req_per_s if top else None
        yield Entry(
            card=_card(run, launch),
            model=server.get("model") or launch.get("model") or "-",
            precision=name,
            workload=here["workload"]["name"],
            knee=bracket(verdict),
            knee_least=verdict["knee"][0] if verdict["knee"] else verdict["highest"],
            knee_confidence=verdict.get("knee_confidence"),
            ceiling=verdict["ceiling"],
            slo=verdict["slo"],
            req_per_s=answered,
            usd_per_1000_tasks=cost.in_money(cost.usd_h(launch), answered, turns),
            joules_per_1000_tasks=cost.of_tasks(top.power_w if top else None, answered, turns),
            date=run["started"][:10],
            vllm=str(server.get("version") or "-"),
            bench=run["machine"]["bench"],
            departures="; ".join(run["verdict"].get("departures", [])),
            place=place,
        )


def _card(run: Mapping[str, Any], launch: Mapping[str, Any]) -> str:
    gpus = run["machine"]["gpus"]
    return str(launch.get("name") or (gpus[0]["name"] if gpus else "endpoint"))


def _top(rows: Sequence[LevelRow], variant: str, ceiling: int | None) -> LevelRow | None:
    at = (variant, "realistic", ceiling)
    return next((row for row in rows if (row.variant, row.case, row.concurrency) == at), None)


def _texts(entry: Entry) -> tuple[str, ...]:
    """In the order of COLUMNS."""
    energy = entry.joules_per_1000_tasks
    told = (entry.card, entry.model, entry.precision, entry.workload, entry.knee, _sure(entry.knee_confidence),
            _told(entry.ceiling, "{:d}"), entry.slo, "-" if entry.req_per_s is None else rate(entry.req_per_s),
            _told(entry.usd_per_1000_tasks, "{:,.2f}"), "-" if energy is None else f"{energy / 1e6:,.2f}", entry.date,
            entry.vllm, entry.bench, entry.departures or "no")  # fmt: skip
    return tuple(plain(text) for text in told)


def _told(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def _sure(confidence: float | None) -> str:
    return "-" if confidence is None else "> 99 %" if confidence > 0.99 else f"{confidence * 100:.0f} %"


def _values(entry: Entry) -> tuple[object, ...]:
    """What each column is sorted by, where that is not its text."""
    costs = (entry.req_per_s, entry.usd_per_1000_tasks, entry.joules_per_1000_tasks)
    return (*[None] * 4, entry.knee_least, entry.knee_confidence, entry.ceiling, None, *costs, *[None] * 4)


def index_html(found: Sequence[Entry]) -> str:
    told = (
        [_filters(found), sortable("Published results", COLUMNS, map(_row, found)), legend(COLUMNS)]
        if found
        else [tag("p", "Nothing is published yet: ", tag("code", "bench publish RUN"), " does it.")]
    )
    lead = "Published runs of bench, a line for each precision; the name of a card leads to the whole report."
    return document(TITLE, tag("header", tag("h1", TITLE), tag("p", lead)), tag("main", *told))


def _filters(found: Sequence[Entry]) -> str:
    made = [tag("label", "Any words ", tag("input", type="search", data_filter=""))]
    for name, column in FILTERS.items():
        choices = sorted({_texts(entry)[column] for entry in found})
        options = [tag("option", "all", value=""), *(tag("option", clean(one), value=one) for one in choices)]
        made.append(tag("label", f"{name} ", tag("select", *options, data_filter=column)))
    shown = tag("output", "", id="count")
    return tag("div", *made, shown, class_="filters live", role="search")


def _row(entry: Entry) -> str:
    (_, card, _), *rest = zip(COLUMNS, _texts(entry), _values(entry), strict=True)
    link = tag("a", clean(card), href=_link(entry, "report.html"))
    cells = [worded(text, value) if column.unit is None else cell(text, value) for column, text, value in rest]
    return tag("tr", tag("th", link, scope="row", class_="text"), *cells)


def _link(entry: Entry, file: str) -> str:
    return quote(PurePath(entry.place, file).as_posix())


def index_markdown(found: Sequence[Entry]) -> str:
    lines = [
        "# Results",
        "",
        "Published runs, put here by `bench publish RUN`, which makes this page and `index.html` anew (which sorts and",
        "filters). What a sweep writes lies in `runs/`, which is not tracked. A task is a whole session.",
        "",
        f"| {' | '.join(column.title for column in COLUMNS)} |",
        f"|{'|'.join('---' if column.unit is None else '---:' for column in COLUMNS)}|",
    ]
    for entry in found:
        card, *rest = map(_inert, _texts(entry))
        link = f"[{card}]({_link(entry, 'table.md')})"
        lines.append(f"| {' | '.join([link, *rest])} |")
    return "\n".join([*lines, ""])


def _inert(text: str) -> str:
    """Nothing in a name is Markdown or HTML."""
    return re.sub(r"([\\`*_\[\]|<>~#])", r"\\\1", text)
