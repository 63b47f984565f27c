"""A comparison as it is read: its verdict in a sentence, a line for what differs, and what to know of both."""

import math
from collections.abc import Iterator, Sequence
from textwrap import fill

from bench import inert
from bench.compare import RELEVANT, SAME, TESTED, Comparison, Finding
from bench.stats import METRICS

HEADS = ("where", "what", "before", "after", "change", "95 % interval", "")
WIDTH = 100


def text(found: Comparison) -> str:
    lines = [fill(_sentence(found), WIDTH), *(fill(note, WIDTH, subsequent_indent="  ") for note in _loud(found))]
    for title, group in _grouped(found.findings):
        lines += ["", title, _line(HEADS), *(_line(_cells(one)) for one in group)]
    return "\n".join([*lines, "", *(fill(note, WIDTH, subsequent_indent="  ") for note in _remarks(found))])


def markdown(found: Comparison) -> str:
    parts = [f"**{_sentence(found)}**", "", *(f"- **{note}**" for note in _loud(found)), ""]
    for title, group in _grouped(found.findings):
        rows = [HEADS, ("---",) * 2 + ("---:",) * 4 + ("---",), *map(_cells, group)]
        parts += [f"## {title}", "", *(f"| {' | '.join(row)} |" for row in rows), ""]
    parts += [*(f"- {note}" for note in _remarks(found)), ""]
    return "\n".join(map(inert.markup, parts))


def _sentence(found: Comparison) -> str:
    """The verdict, and its surest reason."""
    wanted = {"regression": "slower", "improvement": "faster"}.get(found.headline)
    if wanted is None:
        seen = [f"{_title(one.metric)} {_share(one.could_have_seen)}" for one in _overall(found) if one.could_have_seen]
        return (
            f"No difference found. Could have seen, over all levels: {', '.join(seen)}."
            if seen
            else "No difference found."
        )
    reasons = [one for one in found.findings if one.verdict == wanted]
    first = min(reasons, key=lambda one: (one.concurrency is not None, one.p or 0.0))
    others = f", and {len(reasons) - 1} findings more" if len(reasons) > 1 else ""
    against = any(one.verdict == "faster" for one in found.findings) and wanted == "slower"
    return (
        f"{found.headline.capitalize()}: {_title(first.metric)} {_place(first)}, {_moved(first)}{others}"
        f"{'; elsewhere it is faster' if against else ''}."
    )


def _overall(found: Comparison) -> list[Finding]:
    return [one for one in found.findings if one.concurrency is None]


def _grouped(findings: Sequence[Finding]) -> Iterator[tuple[str, list[Finding]]]:
    several = len({one.variant for one in findings}) > 1
    for variant, case in dict.fromkeys((one.variant, one.case) for one in findings):
        name = case or "knee and ceiling"
        yield (
            f"{variant}, {name}" if several else name,
            [one for one in findings if (one.variant, one.case) == (variant, case)],
        )


def _title(metric: str) -> str:
    title = METRICS[metric].title if metric in METRICS else metric
    return f"TTFT {title}" if metric in TESTED and "TTFT" not in title else title


def _place(one: Finding) -> str:
    return f"at {one.concurrency}" if one.concurrency else "over all levels" if one.case else "of the whole run"


def _cells(one: Finding) -> tuple[str, ...]:
    interval = "" if one.low is None or one.high is None else f"{_change(one.low)} to {_change(one.high)}"
    unseen = one.verdict == SAME and one.could_have_seen is not None
    verdict = f"{one.verdict} ({_share(one.could_have_seen)})" if unseen else one.verdict
    where = str(one.concurrency or ("all levels" if one.case else ""))
    return where, _title(one.metric), _value(one, one.a), _value(one, one.b), _change(one.change), interval, verdict


def _value(one: Finding, value: float | None) -> str:
    if value is None:
        return "none" if not one.case else ""
    return METRICS[one.metric].format(value) if one.metric in METRICS else f"{value:g}"


def _moved(one: Finding) -> str:
    return f"{_value(one, one.a)} to {_value(one, one.b)}, {_change(one.change)}".removeprefix(" to , ")


def _change(change: float | None) -> str:
    """A factor where it is large, for "+734 %" says little."""
    if change is None:
        return ""
    return f"{change:+.0%}" if change < 2 else f"x{1 + change:.1f}" if math.isfinite(change) else "∞"


def _share(change: float | None) -> str:
    return "" if change is None else f"≥{change:.0%}" if change < 2 else f"≥x{1 + change:.1f}"


def _line(cells: Sequence[str]) -> str:
    widths = (-10, -8, 8, 8, 6, 15, -1)
    cut = [cell.ljust(-width) if width < 0 else cell.rjust(width) for cell, width in zip(cells, widths, strict=True)]
    return "  ".join(cut).rstrip()


def _remarks(found: Comparison) -> Iterator[str]:
    yield f"Before: {', '.join(found.a)}. After: {', '.join(found.b)}."
    yield (
        f"(≥): the smallest slowdown that four of five such comparisons find. Verdicts allow for all that is tested "
        f"at once, intervals do not; a change below {RELEVANT:.0%} is not called one."
    )
    if any(math.isinf(value) for one in found.findings if one.case for value in (one.a, one.b) if value is not None):
        yield "failed: so many requests failed or timed out that this percentile is no time; they rank as slowest."
    yield from (note for note in found.notes if note not in _loud(found))


def _loud(found: Comparison) -> list[str]:
    """What has to be read before the numbers."""
    return [note for note in found.notes if note.startswith("DIFFERS") or "NOT VALID" in note]
