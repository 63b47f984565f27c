"""The pen: scales, axes and marks as SVG text. Knows nothing of what is drawn.

Written by hand and not by a plotting library, for a figure has to follow the reader's light or dark theme, answer to
hover and keyboard inside one file, and stay small enough to be kept under version control.
"""

import math
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby
from typing import Any

from bench import inert

WIDTH = 760
CHARACTER = 6.3  # pixels, of a letter of 12 px on average

# Okabe and Ito's hues, which the colour-blind tell apart, at luminances that differ in grey too: the lines a, b and c
# and the scale r0 to r4 stay apart when printed. Text in the colour of a line that is too pale to be read is darker.
STYLE = """
svg.fig { --ink:#1b1f24; --soft:#57606a; --line:#e1e6eb; --paper:#fff; --shade:#7d112817; --a:#2a78b8; --b:#d98a1f;
  --bt:#8f5600; --c:#7d1128; --d:#13806a; --e:#6b3a75; --r0:#b4c4d2; --r1:#e3b04f; --r2:#cf7a22; --r3:#a83d1a;
  --r4:#560a18; --thread:#c3ccd5; --t0:#dbe9f5; --t1:#b7d4ec; --s:#ecd0a0;
  font:12px system-ui,sans-serif; width:100%; max-width:760px; height:auto; background:var(--paper) }
@media (prefers-color-scheme: dark) { svg.fig { --ink:#e6edf3; --soft:#9aa5b1; --line:#262e37; --paper:#0d1117;
  --shade:#ffc4bc22; --a:#3f8fd6; --b:#d9952b; --bt:#e0a648; --c:#ffc4bc; --d:#4fc9a8; --e:#c79bd6; --r0:#435566;
  --r1:#7d5a1e; --r2:#b56f24; --r3:#ec9458; --r4:#ffdccb; --thread:#36424e; --t0:#1d3347; --t1:#2b4c6b; --s:#5f4a22 } }
.fig text { fill:var(--ink); paint-order:stroke; stroke:var(--paper); stroke-width:3px; stroke-linejoin:round }
.fig text.head { font-size:15px; font-weight:600 } .fig text.strong { font-weight:600 } .fig text.in { stroke:none }
.fig text.soft { fill:var(--soft) }
.fig .grid { stroke:var(--line) } .fig .axis { stroke:var(--soft) }
.fig .rule { stroke:var(--ink); stroke-width:1.2; stroke-dasharray:7 4 }
.fig .wall { stroke:var(--ink); stroke-width:2 }
.fig .shade { fill:var(--shade) } .fig .hit { fill:transparent; stroke:none }
.fig .a { stroke:var(--a); fill:var(--a) } .fig .b { stroke:var(--b); fill:var(--b) }
.fig .c { stroke:var(--c); fill:var(--c) } .fig .d { stroke:var(--d); fill:var(--d) }
.fig .e { stroke:var(--e); fill:var(--e) } .fig .ink { stroke:var(--ink); fill:var(--ink) }
.fig text.a,.fig text.b,.fig text.c,.fig text.d,.fig text.e { stroke:var(--paper) } .fig text.b { fill:var(--bt) }
.fig .curve { fill:none; stroke-width:2; stroke-linejoin:round } .fig .band { fill-opacity:.16; stroke:none }
.fig .whisker { stroke-width:1.2 } .fig .thin { stroke-width:1.2 }
.fig path.hollow { fill:var(--paper) } .fig path.line { fill:none }
.fig .r0 { fill:var(--r0) } .fig .r1 { fill:var(--r1) } .fig .r2 { fill:var(--r2) } .fig .r3 { fill:var(--r3) }
.fig .r4 { fill:var(--r4) }
.fig .t0 { fill:var(--t0) } .fig .t1 { fill:var(--t1) } .fig .s { fill:var(--s) }
.fig .thread { fill:var(--thread) }
.fig .soft { fill:var(--soft) } .fig .edge { stroke:var(--paper); stroke-width:1 } .fig .hatch { stroke:var(--paper) }
.fig .ghost { fill:none; stroke:var(--soft); stroke-dasharray:3 3 }
.fig .mark:focus { outline:2px solid var(--ink); outline-offset:2px }
"""

Point = tuple[float, float]


def clean(words: object) -> str:
    """Safe in text and in attributes, whoever chose it."""
    return escape(re.sub(r"[^\t\n\x20-\x7e\xa0-\ud7ff\ue000-\ufffd]", "", inert.screen(str(words))), quote=True)


def tag(name: str, *inner: str, **attributes: object) -> str:
    """An element; `class_` and `data_level` stand for class and data-level, None for an attribute that is not there."""
    words = [
        f' {key.rstrip("_").replace("_", "-")}="{_value(value)}"'
        for key, value in attributes.items()
        if value is not None
    ]
    return f"<{name}{''.join(words)}>{''.join(inner)}</{name}>" if inner else f"<{name}{''.join(words)}/>"


def _value(value: object) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else clean(value)


def number(value: float) -> str:
    """A coordinate in a path, to a tenth of a pixel."""
    return f"{value:.1f}".removesuffix(".0")


def text(x: float, y: float, words: object, class_: str | None = None, anchor: str | None = None) -> str:
    return tag("text", clean(words), x=float(x), y=float(y), class_=class_, text_anchor=anchor)


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> str:
    return tag("path", d=f"M{number(x1)} {number(y1)}L{number(x2)} {number(y2)}", class_=class_)


def box(x: float, y: float, wide: float, high: float, class_: str | None = None, **more: object) -> str:
    return tag("rect", x=float(x), y=float(y), width=float(wide), height=float(high), class_=class_, **more)


@dataclass(frozen=True, slots=True)
class Scale:
    """From values to pixels."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        return self.each((value,))[0]

    def each(self, values: Iterable[float]) -> list[float]:
        low, span, wide = self._on(self.low), self._span, self.end - self.start
        return [self.start + (self._on(value) - low) / span * wide for value in values]

    @property
    def _span(self) -> float:
        return (self._on(self.high) - self._on(self.low)) or 1.0

    def _on(self, value: float) -> float:
        return math.log(value) if self.log else value

    def holds(self, value: float | None) -> bool:
        return value is not None and self.low <= value <= self.high

    def within(self, value: float) -> float:
        """The nearest value that it holds."""
        return min(max(value, self.low), self.high)

    def ticks(self) -> list[float]:
        return _decades(self.low, self.high) if self.log else _round_steps(self.low, self.high)


def _decades(low: float, high: float) -> list[float]:
    """As many round numbers in each decade as there is room for."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for digits in ((1,), (1, 3), (1, 2, 5), (1, 2, 3, 5, 7)):
        found = [digit * 10.0**power for power in powers for digit in digits if low <= digit * 10.0**power <= high]
        if len(found) >= 4:
            break
    return found


def _round_steps(low: float, high: float) -> list[float]:
    span = (high - low) or 1.0
    step = 10.0 ** math.floor(math.log10(span / 4))
    step *= next((digit for digit in (1, 2, 5) if span / (step * digit) <= 6), 10)
    return [step * n for n in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


@dataclass(frozen=True, slots=True)
class Panel:
    x: Scale
    y: Scale

    @property
    def middle(self) -> float:
        return (self.x.start + self.x.end) / 2


def frame(panel: Panel, label: str, form: Callable[[float], str], apart: float = 13) -> str:
    """The vertical axis with its grid, and the line at the bottom."""
    x, y = panel.x, panel.y
    parts, last = [text(8, y.end - 10, label, "strong")], math.inf
    for value in y.ticks():
        parts.append(line(x.start, y(value), x.end, y(value), "grid"))
        if last - y(value) >= apart:
            parts.append(text(x.start - 8, y(value) + 4, form(value), "soft", "end"))
            last = y(value)
    return "".join([*parts, line(x.start, y.start, x.end, y.start, "axis")])


def ground(panel: Panel, values: Sequence[float], label: str, first: Sequence[float] = (), low: float = 36) -> str:
    """The horizontal axis: a tick at each value, a number where there is room for one, `first` before the others."""
    at = panel.y.start
    parts = [text(panel.middle, at + low, label, "soft", "middle")] if label else []
    parts.append(notches(panel, values))
    taken: list[Point] = []
    for value in [*first, *(value for value in values if value not in first)]:
        half = len(f"{value:g}") * CHARACTER / 2 + 3
        x = panel.x(value)
        if all(x + half <= left or x - half >= right for left, right in taken):
            taken.append((x - half, x + half))
            parts.append(text(x, at + 19, f"{value:g}", "soft", "middle"))
    return "".join(parts)


def notches(panel: Panel, values: Iterable[float]) -> str:
    at = panel.y.start
    return "".join(line(panel.x(value), at, panel.x(value), at + 4, "axis") for value in values)


def stretches(points: Iterable[Point | None]) -> Iterator[list[Point]]:
    """What hangs together: nothing is drawn across a point that was not measured."""
    for known, group in groupby(points, lambda point: point is not None):
        if known:
            yield [point for point in group if point is not None]


def curve(points: Iterable[Point | None], class_: str, dash: str | None = None) -> str:
    path = "".join("M" + _through(part) for part in stretches(points) if len(part) > 1)
    return tag("path", d=path, class_=f"curve {class_}", stroke_dasharray=dash) if path else ""


def area(edges: Iterable[tuple[float, float, float] | None], class_: str) -> str:
    """Between two curves, as x, upper and lower; a whisker where one stands alone."""
    parts = []
    for known, group in groupby(edges, lambda edge: edge is not None):
        part = [edge for edge in group if edge is not None]
        if known and len(part) == 1:
            [(x, upper, lower)] = part
            parts.append(line(x, upper, x, lower, f"whisker {class_}"))
        elif known:
            outline = [(x, upper) for x, upper, _ in part] + [(x, lower) for x, _, lower in reversed(part)]
            parts.append(tag("path", d=f"M{_through(outline)}Z", class_=f"band {class_}"))
    return "".join(parts)


def _through(points: Iterable[Point]) -> str:
    return "L".join(f"{number(x)} {number(y)}" for x, y in points)


SHAPES = {
    "circle": "m-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0",
    "dot": "m-2.5 0a2.5 2.5 0 1 0 5 0a2.5 2.5 0 1 0-5 0",
    "square": "m-4-4h8v8h-8z",
    "triangle": "m0-5.5l5 9h-10z",
    "diamond": "m0-5.5l5.5 5.5-5.5 5.5-5.5-5.5z",
    "cross": "m-4-4l8 8m0-8l-8 8",
    "up": "v-19m-4 5l4-5 4 5",
    "pointer": "l-4-8h8z",
}


def shape(x: float, y: float, name: str, class_: str) -> str:
    return tag("path", d=f"M{number(x)} {number(y)}{SHAPES[name]}", class_=class_, stroke_width="1.6")


def mark(x: float, y: float, name: str, class_: str, tip: str, **data: Any) -> str:
    """A point that can be hovered, focused and picked out."""
    hit = tag("circle", cx=float(x), cy=float(y), r=11, class_="hit")
    return touchable(tip, hit, shape(x, y, name, class_), **data)


def touchable(tip: str, *inner: str, tabindex: int | None = 0, **data: Any) -> str:
    return tag("g", tag("title", clean(tip)), *inner, class_="mark", tabindex=tabindex, data_tip=tip, **data)


def legend(x: float, y: float, entries: Iterable[tuple[str, str]]) -> str:
    """Signs drawn about the origin, 24 wide, and what each of them means."""
    parts = []
    for sign, words in entries:
        parts.append(tag("g", sign, transform=f"translate({number(x + 12)} {number(y - 4)})"))
        parts.append(text(x + 30, y, words, "soft"))
        x += 30 + len(words) * CHARACTER + 14
    return "".join(parts)


def stroke(class_: str, name: str, dash: str | None = None) -> str:
    """A line with its mark, as a sign for the legend."""
    return curve([(-12, 0), (12, 0)], class_, dash) + shape(0, 0, name, class_.removesuffix(" line"))


def swatch(class_: str, *over: str) -> str:
    return box(-10, -6, 20, 12, class_) + "".join(box(-10, -6, 20, 12, None, fill=fill) for fill in over)


def spread(heights: Sequence[float], apart: float, top: float, bottom: float) -> list[float]:
    """Moved as little as keeps them apart, and inside."""
    order = sorted(range(len(heights)), key=lambda at: heights[at])
    placed, last = list(heights), top - apart
    for at in order:
        last = placed[at] = max(placed[at], last + apart)
    last = bottom + apart
    for at in reversed(order):
        last = placed[at] = min(placed[at], last - apart)
    return placed


def end_labels(panel: Panel, labels: Sequence[tuple[float, str, str]]) -> str:
    """Names at the right ends of their lines, pushed apart where they would touch."""
    heights = spread([y for y, _, _ in labels], 14, panel.y.end, panel.y.start)
    return "".join(
        text(panel.x.end + 10, y + 4, words, class_) for y, (_, words, class_) in zip(heights, labels, strict=True)
    )


HATCHES = {"rising": "M0 6L6 0", "falling": "M0 0L6 6", "crossed": "M0 0L6 6M0 6L6 0", "level": "M0 3H6"}


def hatch(key: str, name: str) -> str:
    """A pattern to lay over a colour, for a reader who sees none; used as `url(#KEY-NAME)`."""
    stripes = tag("path", d=HATCHES[name], class_="hatch", stroke_width="1.3")
    return tag("pattern", stripes, id=f"{key}-{name}", width=6, height=6, patternUnits="userSpaceOnUse")


def figure(key: str, title: str, told: str, height: float, *body: str) -> str:
    """A whole picture, which stands alone and can be part of a page; `key` makes its ids its own."""
    lines = textwrap.wrap(told, 116)[:2]
    return tag(
        "svg",
        tag("title", clean(title), id=f"{key}-title"),
        tag("desc", clean(told), id=f"{key}-desc"),
        f"<style>{STYLE}</style>",
        box(0, 0, WIDTH, height, style="fill:var(--paper)"),
        text(8, 20, textwrap.shorten(title, 84, placeholder=" \u2026"), "head"),
        *(text(8, 39 + 16 * at, words, "soft") for at, words in enumerate(lines)),
        *body,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {WIDTH} {height:g}",
        class_="fig",
        role="img",
        aria_labelledby=f"{key}-title {key}-desc",
    )
