"""A run as one HTML file: the verdict first, then curve, table, cause and conditions; nothing is fetched."""

import base64
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from bench import table, words
from bench.stats import METRICS, PERCENTILES, LevelRow, more_sessions, seconds, share, show
from bench.svg import clean, tag

HERE = Path(__file__).parent
LUCK = tuple(f"{cohort}_{name}_s" for cohort in ("lucky", "unlucky") for name in PERCENTILES)
OUTCOMES = {"ok": "answered", "failed": "failed", "truncated": "truncated", "timeout": "given up", "cut": "cut by us",
            "never_sent": "never sent"}  # fmt: skip


def page(run: Mapping[str, Any], rows: Sequence[LevelRow], figures: Mapping[str, str]) -> str:
    said = words.sentences(dict(run))
    body = [
        tag("header", tag("p", clean(words.title(dict(run))), class_="over"), _headline(said), _stamp(run)),
        tag(
            "main",
            _section("verdict", "In short", tag("ul", *(tag("li", clean(text)) for text in said[1:]))),
            _section("curve", "The curve", _chips(rows), *_pictures(figures, "curve")),
            _section("table", "The table", *_tables(rows)),
            _section("cause", "Why", *_causes(run), *_pictures(figures, "waits", "luck"), *_luck(rows),
                     *_pictures(figures, "timeline", "server")),
            _section("predicted", "Predicted, and worth", *_pictures(figures, "memory", "band", "precisions")),
            _section("conditions", "Everything needed to repeat it", *_conditions(run)),
            _section("checks", "Reasons to believe it, or not", *_checks(run)),
        ),
        tag("footer", tag("p", "Beside this file lie levels.csv and run.json; bench report makes all of it again "
                          "from the records alone.")),
    ]  # fmt: skip
    return document(words.title(dict(run)), "".join(body), "page.js")


def document(title: str, body: str, script: str) -> str:
    """Nothing is fetched and no other script runs: the policy names ours by its hash."""
    code = (HERE / script).read_text()
    allowed = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{allowed}'"
    head = [
        '<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{escape(policy)}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="color-scheme" content="light dark">',
        tag("title", clean(title)),
        f"<style>{(HERE / 'page.css').read_text()}</style>",
    ]
    tip = '<div id="tip" role="status" hidden></div>'
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n{"".join(head)}\n</head>\n'
        f"<body>\n{body}\n{tip}\n<script>{code}</script>\n</body>\n</html>\n"
    )


def _section(name: str, title: str, *inner: str) -> str:
    return tag("section", tag("h2", title, id=name), *inner, aria_labelledby=name) if any(inner) else ""


def _headline(said: Sequence[str]) -> str:
    return tag("h1", clean(said[0]) if said else "Nothing was measured")


def _stamp(run: Mapping[str, Any]) -> str:
    valid = run["verdict"]["valid"]
    return tag("p", clean(words.stamp(dict(run))), class_="stamp valid" if valid else "stamp invalid")


def _pictures(figures: Mapping[str, str], *names: str) -> Iterator[str]:
    """A picture of each variant, in the order asked for."""
    for name in names:
        for file, picture in figures.items():
            if file == f"{name}.svg" or file.startswith(f"{name}-"):
                yield f"<figure>{picture}</figure>"


def _chips(rows: Sequence[LevelRow]) -> str:
    """Buttons that pick levels out of all pictures and tables."""
    levels = sorted({row.concurrency for row in rows})
    chips = [tag("button", str(level), type="button", data_pick=level, aria_pressed="false") for level in levels]
    every = tag("button", "all", type="button", data_pick="", aria_pressed="true")
    return tag("div", tag("span", "Sessions at once: "), every, *chips, class_="chips", role="group",
               aria_label="Pick levels out")  # fmt: skip


def _tables(rows: Sequence[LevelRow]) -> Iterator[str]:
    for title, group in table.groups(rows):
        yield tag("h3", clean(title))
        yield sortable(("C", *(METRICS[name].title for name in table.ALL_COLUMNS)), map(_row, group), _meanings())
    if below := words.limits(rows):
        yield tag("p", clean(below), class_="note")
    told = (f"{metric.title}: {metric.meaning}" for name in table.ALL_COLUMNS if (metric := METRICS[name]).meaning)
    yield tag("details", tag("summary", "What the columns say"), tag("ul", *(tag("li", clean(one)) for one in told)))


def _meanings() -> list[str]:
    return ["sessions at once", *(METRICS[name].meaning for name in table.ALL_COLUMNS)]


def _row(row: LevelRow) -> str:
    cells = [cell(str(row.concurrency), row.concurrency, head=True)]
    for name in table.ALL_COLUMNS:
        lacks = more_sessions(row, name)
        cells.append(cell(show(row, name), getattr(row, name), table.cell(row, name) if lacks else None))
    return tag("tr", *cells, data_level=row.concurrency)


def cell(text: str, value: object, title: str | None = None, head: bool = False) -> str:
    """`value` is what a column is sorted by."""
    exact = None if value is None else str(value).replace("inf", "Infinity")
    return tag("th" if head else "td", clean(text), data_value=exact, title=title, scope="row" if head else None)


def sortable(heads: Sequence[str], rows: Iterable[str], meanings: Sequence[str]) -> str:
    """Sortable by its headers, copied as Markdown or CSV by its buttons."""
    buttons = [
        tag("th", tag("button", clean(head), type="button", title=meaning or None), scope="col")
        for head, meaning in zip(heads, meanings, strict=True)
    ]
    copy = [tag("button", f"Copy as {form}", type="button", data_copy=form.lower()) for form in ("Markdown", "CSV")]
    inner = tag("table", tag("thead", tag("tr", *buttons)), tag("tbody", *rows))
    scroll = tag("div", inner, class_="scroll", tabindex=0, role="region", aria_label="Table, scrolls sideways")
    return tag("div", scroll, tag("p", *copy, class_="copy"), class_="table")


def _causes(run: Mapping[str, Any]) -> Iterator[str]:
    for name, verdict in run["verdict"]["variants"].items():
        shares = verdict.get("shares")
        if verdict.get("cause"):
            yield tag("p", clean(f"{name}: {verdict['cause']}."))
        if shares and verdict.get("binding"):
            parts = sorted(((part, of) for part, of in shares.items() if of > 0.005), key=lambda one: -one[1])
            told = ", ".join(f"{METRICS[f'wait_{part}_s'].title} {of * 100:.0f} %" for part, of in parts)
            lo, hi = verdict["compared"]
            yield tag("p", clean(f"The wait added between {lo} and {hi} sessions went to: {told}."))


def _luck(rows: Sequence[LevelRow]) -> Iterator[str]:
    for variant in dict.fromkeys(row.variant for row in rows):
        own = [row for row in rows if row.variant == variant and row.case == "realistic" and row.unlucky is not None]
        if own:
            yield tag("h3", clean(f"{variant}: those who kept their history, and those who lost it"))
            heads = ["C", "unlucky", *(f"{name.split('_')[0]} {name.split('_')[1]}" for name in LUCK), "first at turn"]
            yield sortable(heads, [_luck_row(row) for row in own], [""] * len(heads))


def _luck_row(row: LevelRow) -> str:
    part = (row.unlucky or 0) / row.requests
    values = [getattr(row, name) for name in LUCK]
    cells = [cell("-" if value is None else seconds(value), value) for value in values]
    first = row.first_unlucky_turn
    return tag(
        "tr",
        cell(str(row.concurrency), row.concurrency, head=True),
        cell(share(part), part),
        *cells,
        cell("-" if first is None else str(first), first),
        data_level=row.concurrency,
    )


def _conditions(run: Mapping[str, Any]) -> Iterator[str]:
    yield tag("ul", *(tag("li", _code(text)) for text in words.conditions(dict(run))), class_="conditions")


def _code(text: str) -> str:
    """What stands between backticks is a command."""
    plain, *rest = text.split("`", 2)
    return clean(plain) + (tag("code", clean(rest[0])) + clean("".join(rest[1:])) if rest else "")


def _checks(run: Mapping[str, Any]) -> Iterator[str]:
    verdict = run["verdict"]
    mark = {True: ("✓", "passed"), False: ("✗", "failed"), None: ("?", "not known")}
    items = []
    for check in verdict.get("checks", []):
        sign, spoken = mark[check["passed"]]
        detail = f": {check['detail']}" if check["detail"] else ""
        items.append(tag("li", tag("span", sign, aria_label=spoken), " ", clean(check["name"] + detail), class_=spoken))
    yield tag("ul", *items, class_="checks") if items else ""
    if ledger := verdict.get("ledger"):
        told = ", ".join(f"{ledger[name]:,} {word}" for name, word in OUTCOMES.items() if ledger.get(name))
        yield tag("p", clean(f"Of {ledger['planned']:,} planned requests: {told}."))
    advice = [
        tag("li", clean(f"{one['what']}: {one['why']}. Try: {one['try_next']}.")) for one in verdict.get("warnings", [])
    ]
    yield tag("h3", "Warnings") + tag("ul", *advice) if advice else ""
