"""A run as one HTML file: the verdict first, then curve, table, cause and conditions; nothing is fetched."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bench import beside, foretold, table, tables, words
from bench.hypertext import Column, cell, command, document, legend, sortable, worded
from bench.sample import floor
from bench.stats import (
    HEADLINE,
    METRICS,
    NO_PERCENTILES,
    PERCENTILES,
    LevelRow,
    more_sessions,
    rate,
    seconds,
    seen,
    share,
    show,
)
from bench.svg import clean, tag

# What a verdict of an older version did not say.
UNSAID = ("knee", "knee_confidence", "ceiling", "ceiling_confidence", "highest", "cause", "binding", "shares",
          "compared", "worst_case", "prediction", "luck", "cache_worth", "sdk", "card", "foretold")  # fmt: skip
LEVEL = Column("C", "sessions at once", "")
BANDS = (LEVEL, Column("TTFT p50"), Column("TTFT p99"), Column("req/s"))
LEVERS = (
    Column("changed alone"),
    Column("sessions", "that fit, all at their deepest", ""),
    Column("$ an hour", "", ""),
)
OUTCOMES = {"ok": "answered", "failed": "failed", "truncated": "truncated", "timeout": "given up", "cut": "cut by us",
            "never_sent": "never sent"}  # fmt: skip
SIGNS = {True: ("✓", "passed"), False: ("✗", "failed"), None: ("?", "not known")}

Run = dict[str, Any]


def page(run: Run, rows: Sequence[LevelRow], figures: Mapping[str, str]) -> str:
    run = _whole(run)
    sections = {
        "verdict": ("In short", _short(run, rows)),
        "curve": ("The curve", "".join(_pictures(run, figures, "curve"))),
        "table": ("The table", "".join(_tables(run, rows))),
        "cause": ("Why", "".join([*_causes(run), *_pictures(run, figures, "waits", "luck"), *_luck(run, rows),
                                  *_pictures(run, figures, "timeline", "server")])),
        "predicted": ("Predicted and observed", "".join([*_predictions(run), *_foretold(run, rows),
                                                         *_pictures(run, figures, "memory", "precisions")])),
        "outlook": ("What would move it", "".join(_outlooks(run))),
        "worth": ("What the cache is worth", "".join(_pictures(run, figures, "band"))),
        "card": (table.card_title(rows), "".join(_cards(run, rows))),
        "conditions": ("To repeat it", "".join(_conditions(run))),
        "checks": ("Checks", "".join(_checks(run))),
    }  # fmt: skip
    kept = {name: said for name, said in sections.items() if said[1]}
    parts = [_section(name, title, inner) for name, (title, inner) in kept.items()]
    links = [tag("a", title, href=f"#{name}") for name, (title, _) in kept.items()]
    return document(
        words.title(run),
        tag("header", tag("p", clean(words.title(run)), class_="over"), tag("h1", clean(_headline(run))), *_stamp(run),
            tag("nav", *links, aria_label="Sections")),
        tag("main", parts[0], _picks(run, rows), *parts[1:]) if parts else tag("main", ""),
        _footer(run),
    )  # fmt: skip


def _whole(run: Run) -> Run:
    verdict = run["verdict"]
    variants = {name: dict.fromkeys(UNSAID) | one for name, one in verdict["variants"].items()}
    return {**run, "verdict": {"warnings": [], "checks": [], "departures": [], **verdict, "variants": variants}}


def _section(name: str, title: str, inner: str) -> str:
    return tag("section", tag("h2", title, id=name), inner, aria_labelledby=name)


# --- the verdict ---


def _headline(run: Run) -> str:
    """The first sentence; of several variants the knees side by side."""
    said = words.sentences(run)
    verdicts = run["verdict"]["variants"]
    if len(verdicts) < 2:
        return said[0] if said else "Nothing was measured."
    return words.plain(
        f"Knees: {', '.join(f'{name} {words.bracket(one)}' for name, one in verdicts.items())} sessions."
    )


def _stamp(run: Run) -> Iterator[str]:
    bare = {**run, "verdict": {**run["verdict"], "departures": []}}
    word, _, reasons = words.stamp(bare).partition(": ")
    word = word.rstrip(".")
    yield tag("p", tag("strong", word), clean(f" {reasons.rstrip('.')}"), class_=f"stamp {word.lower()}")
    if departs := run["verdict"]["departures"]:
        yield tag("p", clean(f"Departs from the published recipe: {'; '.join(departs)}."), class_="departs")


def _short(run: Run, rows: Sequence[LevelRow]) -> str:
    """Of several variants each under its name."""
    said, names = words.sentences(run), [words.plain(name) for name in run["verdict"]["variants"]]
    if len(names) < 2:
        return _list(said[1:])
    parts = [_beside(run, rows)]
    for name in names:
        own = [text for text in said if text.startswith(f"{name}: ")]
        said = [text for text in said if text not in own]
        told = _list([text.removeprefix(f"{name}: ") for text in own])
        parts.append(tag("div", tag("h3", clean(name)), told, data_variant=name))
    return "".join([*parts, _list(said)])


def _beside(run: Run, rows: Sequence[LevelRow]) -> str:
    lines = [tag("tr", tag("th", clean(name), scope="row", class_="text"), *map(worded, cells), data_variant=name)
             for name, *cells in beside.lines(run, rows)]  # fmt: skip
    return sortable("The variants beside each other", [Column(head, "", None) for head in beside.HEADS], lines)


def _list(said: Sequence[str]) -> str:
    return tag("ul", *map(_sentence, said), class_="short") if said else ""


def _sentence(text: str) -> str:
    """What it is about stands out."""
    match = re.match(r"[A-Z][A-Za-z ]{2,12}:", text)
    about = match[0] if match else ""
    return tag("li", tag("strong", about), clean(text.removeprefix(about)))


# --- what is shown of it: levels and variants are picked out of everything below ---


def _picks(run: Run, rows: Sequence[LevelRow]) -> str:
    levels = sorted({row.concurrency for row in rows})
    bars = [_chips("Sessions at once", "level", levels)] if levels else []
    if len(run["variants"]) > 1:
        bars.append(_chips("Precision", "variant", list(run["variants"])))
    return tag("div", *bars, class_="picks live") if bars else ""


def _chips(name: str, what: str, choices: Sequence[object]) -> str:
    every = tag("button", "all", type="button", data_pick="", aria_pressed="true")
    chips = [tag("button", clean(one), type="button", data_pick=one, aria_pressed="false") for one in choices]
    inner = [tag("span", name, id=f"pick-{what}"), every, *chips]
    return tag("div", *inner, class_="chips", role="toolbar", aria_labelledby=f"pick-{what}", data_of=what)


def _pictures(run: Run, figures: Mapping[str, str], *names: str) -> Iterator[str]:
    """In the order asked for, one of each variant where there are several."""
    for name in names:
        if f"{name}.svg" in figures:
            yield tag("figure", figures[f"{name}.svg"])
        for variant in run["variants"]:
            if picture := figures.get(f"{name}-{tables.slug(variant)}.svg"):
                yield tag("figure", picture, data_variant=variant)


# --- the table ---


def _tables(run: Run, rows: Sequence[LevelRow]) -> Iterator[str]:
    columns = [LEVEL, *(Column(METRICS[n].title, METRICS[n].meaning, METRICS[n].unit) for n in table.ALL_COLUMNS)]
    for title, group in table.groups(rows):
        knee = run["verdict"]["variants"].get(group[0].variant, {}).get("knee")
        over = knee[1] if knee and group[0].case == "realistic" else None
        inner = tag("h3", clean(title)) + sortable(title, columns, [_row(row, over) for row in group])
        yield tag("div", inner, data_variant=group[0].variant)
    for note in words.footnotes(rows):
        yield tag("p", clean(note), class_="note")
    if rows:
        yield legend(columns)


def _cards(run: Run, rows: Sequence[LevelRow]) -> Iterator[str]:
    """Of the cards, what is told of them."""
    names = table.of_card(rows)
    columns = [LEVEL, *(Column(METRICS[name].title, METRICS[name].meaning, METRICS[name].unit) for name in names)]
    for title, group in table.groups(rows) if names else ():
        lines = [_level(row, [_measured(row, name) for name in names]) for row in group]
        inner = tag("h3", clean(title)) + sortable(f"The card: {title}", columns, lines)
        yield tag("div", inner, data_variant=group[0].variant)
    if names:
        yield tag("p", clean(words.limits(run)), class_="note")
        yield legend(columns)


def _row(row: LevelRow, over: int | None) -> str:
    return _level(row, [_measured(row, name) for name in table.ALL_COLUMNS], over)


def _level(row: LevelRow, cells: Sequence[str], over: int | None = None) -> str:
    past = over is not None and row.concurrency >= over
    first = tag(
        "th", str(row.concurrency), scope="row", data_value=row.concurrency, title="past the knee" if past else None
    )
    return tag("tr", first, *cells, data_level=row.concurrency, class_="past" if past else None)


def _measured(row: LevelRow, name: str) -> str:
    """A limit is sorted and copied as the limit that it is, and says why; a percentile that is not there does, too."""
    lacks = more_sessions(row, name)
    value = getattr(row, f"{name.removesuffix('_s')}_lo_s") if lacks else getattr(row, name)
    text, whole = show(row, name), table.cell(row, name)
    why_none = row.why_none if name in NO_PERCENTILES else ""
    return cell(text, value, why_none or (whole if whole != text else None))


# --- the cause ---


def _causes(run: Run) -> Iterator[str]:
    for name, verdict in run["verdict"]["variants"].items():
        parts = [tag("p", clean(f"{verdict['cause']}."))] if verdict["cause"] else []
        if verdict["shares"] and verdict["binding"]:
            parts.append(_shares(verdict))
        if parts:
            yield tag("div", _of(run, name), *parts, data_variant=name)


def _of(run: Run, variant: str) -> str:
    """A heading where there are several."""
    return tag("h3", clean(variant)) if len(run["variants"]) > 1 else ""


def _shares(verdict: Mapping[str, Any]) -> str:
    lo, hi = verdict["compared"]
    ordered = sorted(verdict["shares"].items(), key=lambda one: -one[1])
    lines = [_share(METRICS[f"wait_{part}_s"].title, METRICS[f"wait_{part}_s"].meaning, of) for part, of in ordered]
    caption = tag("caption", f"Where the wait went that was added between {lo} and {hi} sessions")
    heads = [tag("th", head, scope="col") for head in ("spent on", "share", "", "which is the wait")]
    return tag("table", caption, tag("thead", tag("tr", *heads)), tag("tbody", *lines), class_="shares")


def _share(title: str, meaning: str, of: float) -> str:
    bar = tag("i", "", style=f"width:{of * 6:.2f}rem")
    return tag("tr", tag("th", title, scope="row"), tag("td", f"{of * 100:.0f} %"), tag("td", bar), tag("td", meaning))


def _luck(run: Run, rows: Sequence[LevelRow]) -> Iterator[str]:
    for variant in run["variants"]:
        own = [row for row in rows if row.variant == variant and row.case == "realistic" and row.unlucky is not None]
        if own:
            several = f"{variant}: " if len(run["variants"]) > 1 else ""
            title = f"{several}TTFT of those who kept their history, and of those who lost it"
            inner = [tag("h3", clean(title)), sortable(title, list(_luck_columns()), [_luck_row(row) for row in own])]
            yield tag("div", *inner, tag("p", _few(), class_="note"), data_variant=variant)


def _luck_columns() -> Iterator[Column]:
    yield LEVEL
    yield Column("unlucky", "share of the requests that lost over 1,000 tokens of their history", "")
    for cohort in ("lucky", "unlucky"):
        for name in PERCENTILES:
            yield Column(f"{cohort} {name}", f"{name} of their TTFT", "s")
    yield Column("first at turn", "the first turn at which a request was unlucky", "")


def _luck_row(row: LevelRow) -> str:
    unlucky = row.unlucky or 0
    part = unlucky / row.requests
    sizes = {"lucky": row.requests - unlucky, "unlucky": unlucky}
    cells = [_cohort(row, cohort, size, name) for cohort, size in sizes.items() for name in PERCENTILES]
    first = row.first_unlucky_turn
    return _level(row, [cell(share(part), part), *cells, cell("-" if first is None else str(first), first)])


def _cohort(row: LevelRow, cohort: str, size: int, name: str) -> str:
    """In brackets where the cohort is too small for that percentile, however independent its requests."""
    value = getattr(row, f"{cohort}_{name}_s")
    least = floor(PERCENTILES[name])
    if value is None or size >= least:
        return cell("-" if value is None else seconds(value), value)
    return cell(f"({seconds(value)})", value, f"seen; {size} requests are too few for a {name}, which needs {least}")


def _few() -> str:
    told = ", ".join(f"{name} {floor(part)}" for name, part in PERCENTILES.items())
    return f"In brackets: what was seen, of fewer requests than that percentile needs ({told})."


# --- what had been predicted ---


def _predictions(run: Run) -> Iterator[str]:
    for name, verdict in run["verdict"]["variants"].items():
        if said := verdict["prediction"]:
            lines = {
                "Predicted": f"{said['predicted']:.1f} sessions fit",
                "Observed": f"knee {words.bracket(verdict)}",
                "Error": _error(said["error"]),
                "Explained by": said["explanation"],
            }
            told = [tag("dt", head) + tag("dd", clean(text)) for head, text in lines.items()]
            yield tag("div", _of(run, name), tag("dl", *told), data_variant=name)


def _foretold(run: Run, rows: Sequence[LevelRow]) -> Iterator[str]:
    """Level by level: what a simulation had said before, what was seen, and how far that was off."""
    for name, facts in run["variants"].items():
        if (said := facts.get("foretold")) and run["verdict"]["variants"][name]["foretold"]:
            told = {(one["case"], one["concurrency"]): one for one in said["levels"]}
            own = [row for row in rows if row.variant == name and (row.case, row.concurrency) in told]
            for title, group in table.groups(own):
                lines = [_level(row, list(_compared(told[row.case, row.concurrency], row))) for row in group]
                inner = tag("h3", clean(f"Foretold: {title}"))
                inner += sortable(f"Foretold: {title}", list(_foretold_columns()), lines)
                yield tag("div", inner, data_variant=name)
            note = f"Simulated before the first level was played; constants: {said['source']}."
            yield tag("p", clean(note), class_="note", data_variant=name)


def _foretold_columns() -> Iterator[Column]:
    yield LEVEL
    for name in HEADLINE:
        metric = METRICS[name]
        yield Column(f"{metric.title}, foretold", "simulated before the level was played", metric.unit)
        yield Column("seen", "what came", metric.unit)
        yield Column("off", "foretold over seen, less one", "")


def _compared(told: Mapping[str, Any], row: LevelRow) -> Iterator[str]:
    for name in HEADLINE:
        said, value, off = told[name], getattr(row, name), foretold.error(told[name], row, name)
        yield cell("-" if said is None else METRICS[name].format(said), said)
        few = f"seen; {lacks} more sessions make it a percentile" if (lacks := more_sessions(row, name)) else None
        yield cell(f"({seen(row, name)})" if few else seen(row, name), value, few)
        yield cell("-" if off is None else f"{off * 100:+.0f} %", off)


def _outlooks(run: Run) -> Iterator[str]:
    """Of a simulated run."""
    for name, facts in run["variants"].items():
        if told := facts.get("outlook"):
            bands = sortable("Expected of a real run", BANDS, [_band(band) for band in told["bands"]])
            levers = sortable("What would move the knee", LEVERS, [_lever(lever) for lever in told["levers"]])
            inner = [tag("p", clean(words.cliff(told))), levers, tag("p", clean(words.banded(told))), bands]
            yield tag("div", _of(run, name), *inner, data_variant=name)


def _band(band: Mapping[str, Any]) -> str:
    first = tag("th", str(band["concurrency"]), scope="row", data_value=band["concurrency"])
    told = {"ttft_p50_s": seconds, "ttft_p99_s": seconds, "req_per_s": rate}
    cells = [worded(words.band(band[name], form), (band[name] or [None])[0]) for name, form in told.items()]
    return tag("tr", first, *cells, data_level=band["concurrency"])


def _lever(lever: Mapping[str, Any]) -> str:
    fits, usd_h = lever["sessions"], lever["price_usd_h"]
    cells = [cell("does not fit" if fits is None else f"{fits:.1f}", fits),
             cell("-" if usd_h is None else f"{usd_h:,.2f}", usd_h)]  # fmt: skip
    return tag("tr", tag("th", clean(lever["what"]), scope="row", class_="text"), *cells)


def _error(sessions: float | None) -> str:
    if sessions is None:
        return "-"
    side = "above" if sessions > 0 else "below"
    return f"{abs(sessions):.1f} sessions {side} the bracket" if sessions else "none: inside the bracket"


# --- conditions, checks ---


def _conditions(run: Run) -> Iterator[str]:
    yield tag("ul", *map(_condition, words.conditions(run)), class_="conditions")
    if ledger := run["verdict"].get("ledger"):
        told = ", ".join(f"{ledger[name]:,} {word}" for name, word in OUTCOMES.items() if ledger.get(name))
        yield tag("p", clean(f"Of {ledger['planned']:,} planned requests: {told or 'none sent'}."))


def _condition(text: str) -> str:
    """What stands between backticks is a command."""
    before, _, rest = text.partition("`")
    inside, tick, after = rest.rpartition("`")
    if not tick:
        return tag("li", clean(text))
    name = before.strip(" :") or "command"
    return tag("li", clean(before), command(inside, name), clean(after.removeprefix(", ")))


def _checks(run: Run) -> Iterator[str]:
    verdict = run["verdict"]
    if verdict["checks"]:
        yield tag("ul", *map(_check, verdict["checks"]), class_="checks")
    if verdict["warnings"]:
        yield tag("h3", "Warnings") + tag("ul", *map(_warning, verdict["warnings"]), class_="warnings")


def _check(check: Mapping[str, Any]) -> str:
    sign, spoken = SIGNS[check["passed"]]
    if check["passed"] and check["detail"]:
        sign, spoken = "!", "warned"
    detail = tag("span", clean(check["detail"]), class_="note") if check["detail"] else ""
    mark = tag("b", sign, role="img", aria_label=spoken)
    return tag("li", mark, tag("div", clean(check["name"]), " ", detail), class_=spoken.replace(" ", "-"))


def _warning(one: Mapping[str, Any]) -> str:
    mark = "INVALID: " if one["fatal"] else ""
    return tag("li", tag("strong", clean(f"{mark}{one['what']}:")), clean(f" {one['why']}. Try: {one['try_next']}."))


def _footer(run: Run) -> str:
    files = [tag("a", name, href=name) for name in ("levels.csv", "run.json")]
    return tag(
        "footer",
        tag("p", "Beside this file: ", ", ".join(files), "; where the run was made, its records requests.jsonl and "
            "server.jsonl too, of which ", tag("code", "bench report DIR"), " makes all of this again."),
        tag("p", clean(f"bench {run['machine'].get('bench', '')}")),
    )  # fmt: skip
