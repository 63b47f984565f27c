"""The pen: scales, axes and marks as SVG text. Knows nothing of what is drawn.

Written by hand and not by a plotting library, for a figure has to follow the reader's light or dark theme, answer to
hover and keyboard inside one file, and stay small enough to be kept under version control.
"""

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

WIDTH = 760
STYLE = (Path(__file__).parent / "figure.css").read_text()


def clean(text: object) -> str:
    """Safe in text and in attributes, whoever chose it."""
    return escape(re.sub(r"[^\t\n\x20-\x7e\xa0-\ud7ff\ue000-\ufffd]", "", str(text)), quote=True)


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


def text(x: float, y: float, words: object, class_: str | None = None, anchor: str | None = None) -> str:
    return tag("text", clean(words), x=float(x), y=float(y), class_=class_, text_anchor=anchor)


@dataclass(frozen=True, slots=True)
class Scale:
    """From values to pixels."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, value = (math.log(v) for v in (self.low, self.high, value)) if self.log else (
            self.low, self.high, value)  # fmt: skip
        return self.start + (value - low) / ((high - low) or 1) * (self.end - self.start)

    def ticks(self) -> list[float]:
        return _decades(self.low, self.high) if self.log else _round_steps(self.low, self.high)


def _decades(low: float, high: float) -> list[float]:
    """1, 2, 5 in each decade, fewer of them over many decades."""
    within = [1, 2, 5] if high / low < 1000 else [1]
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [digit * 10.0**power for power in powers for digit in within if low <= digit * 10.0**power <= high]


def _round_steps(low: float, high: float) -> list[float]:
    span = (high - low) or 1
    step = 10.0 ** math.floor(math.log10(span / 4))
    step *= next((digit for digit in (1, 2, 5) if span / (step * digit) <= 5), 10)
    return [step * n for n in range(math.ceil(low / step), math.floor(high / step + 1e-9) + 1)]


@dataclass(frozen=True, slots=True)
class Panel:
    x: Scale
    y: Scale

    @property
    def middle(self) -> float:
        return (self.x.start + self.x.end) / 2


def frame(panel: Panel, label: str, form: Callable[[float], str]) -> str:
    """The vertical axis with its grid, and the line at the bottom."""
    x, y = panel.x, panel.y
    parts = [text(x.start - 44, y.end - 8, label, "soft")]
    for value in y.ticks():
        parts.append(tag("line", x1=x.start, x2=x.end, y1=y(value), y2=y(value), class_="grid"))
        parts.append(text(x.start - 6, y(value) + 4, form(value), "soft", "end"))
    parts.append(tag("line", x1=x.start, x2=x.end, y1=y.start, y2=y.start, class_="axis"))
    return "".join(parts)


def floor_labels(panel: Panel, values: Sequence[float], label: str, apart: float = 24) -> str:
    """The horizontal axis: a tick at each value, a number where there is room for one."""
    at, last = panel.y.start, -math.inf
    parts = [text(panel.middle, at + 34, label, "soft", "middle")] if label else []
    for value in values:
        x = panel.x(value)
        parts.append(tag("line", x1=x, x2=x, y1=at, y2=at + 4, class_="axis"))
        if x - last >= apart:
            parts.append(text(x, at + 17, f"{value:g}", "soft", "middle"))
            last = x
    return "".join(parts)


def curve(points: Sequence[tuple[float, float]], class_: str, dash: str | None = None) -> str:
    path = "M" + "L".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return tag("path", d=path, class_=f"curve {class_}", stroke_dasharray=dash) if len(points) > 1 else ""


def area(upper: Sequence[tuple[float, float]], lower: Sequence[tuple[float, float]], class_: str) -> str:
    path = "M" + "L".join(f"{x:.1f},{y:.1f}" for x, y in [*upper, *reversed(lower)]) + "Z"
    return tag("path", d=path, class_=f"band {class_}") if len(upper) > 1 else ""


SHAPES = {
    "circle": "M{x} {y}m-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0",
    "square": "M{x} {y}m-4-4h8v8h-8z",
    "triangle": "M{x} {y}m0-5l5 9h-10z",
    "diamond": "M{x} {y}m0-5l5 5-5 5-5-5z",
    "cross": "M{x} {y}m-4-4l8 8m0-8l-8 8",
}


def mark(x: float, y: float, shape: str, class_: str, tip: str, **data: object) -> str:
    """A point that can be hovered, focused and selected."""
    inner = [
        tag("title", clean(tip)),
        tag("circle", cx=x, cy=y, r=11.0, class_="hit"),
        tag("path", d=SHAPES[shape].format(x=f"{x:.1f}", y=f"{y:.1f}"), class_=class_, stroke_width="1.6"),
    ]
    return tag("g", *inner, class_="mark", tabindex=0, data_tip=tip, **data)


def end_labels(x: float, labels: Iterable[tuple[float, str, str]], apart: float = 14) -> str:
    """Names at the ends of their lines, pushed apart where they would touch."""
    parts, last = [], -math.inf
    for y, words, class_ in sorted(labels):
        last = max(y + 4, last + apart)
        parts.append(text(x, last, words, class_))
    return "".join(parts)


def figure(name: str, title: str, told: str, height: float, *body: str) -> str:
    """A whole picture, which stands alone and can be part of a page."""
    ids = re.sub(r"\W", "-", name)
    return tag(
        "svg",
        tag("title", clean(title), id=f"{ids}-title"),
        tag("desc", clean(told), id=f"{ids}-desc"),
        f"<style>{STYLE}</style>",
        tag("rect", width=WIDTH, height=height, style="fill:var(--paper)"),
        text(8, 20, title, "head"),
        text(8, 38, told, "soft"),
        *body,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {WIDTH} {height:g}",
        class_="fig",
        role="img",
        aria_labelledby=f"{ids}-title {ids}-desc",
    )
