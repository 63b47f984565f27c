"""An HTML file that fetches nothing: its policy, style and script; and tables that can be sorted and copied."""

import base64
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from bench.svg import clean, tag

HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Column:
    title: str
    meaning: str = ""
    unit: str | None = None  # of its exact values, which CSV gets; None: it holds text


def document(title: str, *body: str) -> str:
    """The policy names our script by its hash, so no other runs; style is free, for figures bring their own."""
    style, script = ((HERE / name).read_text() for name in ("page.css", "page.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'"
    )
    head = [
        '<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{escape(policy)}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="color-scheme" content="light dark">',
        '<link rel="icon" href="data:,">',  # a browser would ask the server for one
        tag("title", clean(title)),
        tag("style", style),
    ]
    live = [
        tag("div", "", id="tip", aria_hidden="true", hidden="hidden"),  # each mark says the same by its label
        tag("p", "", id="said", role="status", class_="unseen"),
    ]
    inner = [tag("head", *head), tag("body", *body, *live, tag("script", script))]
    return f"<!doctype html>\n{tag('html', *inner, lang='en')}\n"


def sortable(name: str, columns: Sequence[Column], rows: Iterable[str]) -> str:
    """A table sorted by its headers, copied by its buttons, scrolling sideways in a place of its own."""
    heads = [
        tag("th", tag("button", clean(one.title), type="button", title=one.meaning or None), scope="col",
            data_unit=one.unit, class_="text" if one.unit is None else None)
        for one in columns
    ]  # fmt: skip
    copies = [
        tag("button", f"Copy as {form}", type="button", data_copy=form.lower(), aria_label=f"Copy as {form}: {name}")
        for form in ("Markdown", "CSV")
    ]
    inner = tag("table", tag("thead", tag("tr", *heads)), tag("tbody", "", *rows))
    scroll = tag("div", inner, class_="scroll", tabindex=0, role="region", aria_label=name)
    return tag("div", scroll, tag("p", *copies, class_="live"), class_="copied")


def cell(text: str, value: object = None, note: str | None = None) -> str:
    """`value` is what it is sorted by, exactly; a dash and nothing to sort by where nothing was measured."""
    return tag("td", clean(text), data_value=None if value is None else str(value), title=note)


def worded(text: str, value: object = None) -> str:
    """A cell of words, sorted by `value` where that is not their order."""
    return tag("td", clean(text), data_value=value, class_="text")


def legend(columns: Iterable[Column]) -> str:
    told = [tag("dt", clean(one.title)) + tag("dd", clean(one.meaning)) for one in columns if one.meaning]
    return tag("details", tag("summary", "What the columns say"), tag("dl", "", *told))


def command(text: str, name: str) -> str:
    """Ready to be copied."""
    button = tag("button", "Copy", type="button", data_copy="text", class_="live", aria_label=f"Copy {name}")
    return tag("div", tag("pre", tag("code", clean(text)), tabindex=0), button, class_="copied command")
