"""Numbers become pictures: each answers one question, in its title where a sentence can."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from bench import stats, svg, tables
from bench.records import TurnRecord
from bench.stats import COMPONENTS, METRICS, PERCENTILES, LevelRow, rate, seconds, share, tokens
from bench.svg import Panel, Scale, figure, tag, text

LEFT, RIGHT = 60.0, 660.0
LOOK = {"p50": ("a", "circle", None), "p95": ("b", "square", "5 3"), "p99": ("c", "triangle", None)}
CASES = {"best": ("d", "diamond", "2 3"), "realistic": ("a", "circle", None), "worst": ("c", "triangle", "6 3")}
LOSS = ((0, "nothing"), (1, "under 1K"), (1_000, "1K to 4K"), (4_000, "4K to 12K"), (12_000, "over 12K tokens"))
WAITS = {"compute": "r1", "lost": "r4", "slot": "r3", "blocks": "e", "preempted": "b", "client": "r0"}
BARS = 600  # as many requests as a timeline can show apart

Samples = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Seen:
    """One variant: what its pictures are drawn from."""

    run: Mapping[str, Any]
    variant: str
    rows: Sequence[LevelRow]
    records: Sequence[TurnRecord]

    @property
    def facts(self) -> Mapping[str, Any]:
        facts: Mapping[str, Any] = self.run["variants"][self.variant]
        return facts

    @property
    def verdict(self) -> Mapping[str, Any]:
        verdict: Mapping[str, Any] = self.run["verdict"]["variants"][self.variant]
        return verdict

    def case(self, name: str) -> list[LevelRow]:
        return sorted((row for row in self.rows if row.case == name), key=lambda row: row.concurrency)

    @property
    def capacity(self) -> int | None:
        tokens: int | None = self.facts.get("server", {}).get("cache", {}).get("tokens")
        return tokens


def draw(
    run: Mapping[str, Any], rows: Sequence[LevelRow], records: Sequence[TurnRecord], samples: Samples
) -> dict[str, str]:
    """File name -> picture, of those for which there is something to show."""
    del samples  # what the server told over time is in the rows
    made: dict[str, str] = {}
    several = len(run["variants"]) > 1
    for variant in run["variants"]:
        own = [row for row in rows if row.variant == variant]
        seen = Seen(run, variant, own, [record for record in records if record.variant == variant])
        for name, picture in PICTURES.items():
            file = f"{name}-{tables.slug(variant)}" if several else name
            if own and (drawn := picture(seen, file)):
                made[f"{file}.svg"] = drawn
    if several and (drawn := precisions(run)):
        made["precisions.svg"] = drawn
    return made


def _named(seen: Seen, title: str) -> str:
    return f"{seen.variant}: {title}" if len(seen.run["variants"]) > 1 else title


def _levels(rows: Sequence[LevelRow]) -> list[float]:
    return sorted({float(row.concurrency) for row in rows})


def _across(rows: Sequence[LevelRow]) -> Scale:
    levels = _levels(rows)
    room = max(0.5, (levels[-1] - levels[0]) * 0.03)
    return Scale(levels[0] - room, levels[-1] + room, LEFT, RIGHT)


def _finite(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None and math.isfinite(value) and value > 0]


def _up(values: Sequence[float], bottom: float, top: float, log: bool = True) -> Scale:
    if log:
        return Scale(min(values) / 1.25, max(values) * 1.25, bottom, top, log=True)
    return Scale(0, (max(values) or 1) * 1.1, bottom, top)


def _data(row: LevelRow) -> dict[str, object]:
    return {"data_level": row.concurrency, "data_variant": row.variant, "data_case": row.case}


def _cliff(panel: Panel, seen: Seen, label: bool = True) -> str:
    """The bracket shaded, and what the arithmetic had said as a tick below."""
    found, predicted = seen.verdict.get("knee"), seen.verdict.get("predicted_knee")
    parts = []
    if found:
        left, right = panel.x(found[0]), panel.x(found[1])
        wide = {"x": left, "width": right - left}
        parts.append(tag("rect", y=panel.y.end, height=panel.y.start - panel.y.end, class_="shade", **wide))
        if label:
            anchor = "end" if left > panel.middle else "start"
            at = left - 4 if anchor == "end" else right + 4
            parts.append(text(at, panel.y.end + 12, f"knee {found[0]} to {found[1]}", "c", anchor))
    if label and predicted is not None and panel.x.low <= predicted <= panel.x.high:
        x = panel.x(predicted)
        parts.append(tag("path", d=f"M{x:.1f} {panel.y.start:.1f}l-5 9h10z", class_="ink"))
        parts.append(text(x + 8, panel.y.start - 6, f"predicted {predicted:.1f}", "soft"))
    return "".join(parts)


def _promise(panel: Panel, seen: Seen) -> str:
    """The limit of a promise on TTFT, and the ceiling that it gives."""
    slo = seen.verdict["slo"]
    metric, _, limit = slo.partition("<")
    value = _limit_s(limit)
    if not metric.startswith("ttft") or value is None or not panel.y.low < value < panel.y.high:
        return ""
    y = panel.y(value)
    ceiling = seen.verdict.get("ceiling")
    kept = f"{slo}: kept up to {ceiling}" if ceiling else f"{slo}: never kept"
    line = tag("line", x1=panel.x.start, x2=panel.x.end, y1=y, y2=y, class_="rule")
    return line + text(panel.x.start + 4, y - 5, kept)


def _limit_s(words: str) -> float | None:
    number = words.strip(" =").removesuffix("s")
    scale = 1e-3 if number.endswith("m") else 1.0
    try:
        return float(number.removesuffix("m")) * scale
    except ValueError:
        return None


def _shown(row: LevelRow, name: str) -> str:
    """A percentile with its interval, and what it lacks."""
    low, high = (getattr(row, f"{name.removesuffix('_s')}_{end}_s", None) for end in ("lo", "hi"))
    between = f" ({seconds(low)} to {seconds(high)})" if low is not None and high is not None else ""
    lacks = stats.more_sessions(row, name)
    return f"{seconds(getattr(row, name))}{between}" + (f", needs {lacks} more sessions" if lacks else "")


def _tail(panel: Panel, rows: Sequence[LevelRow], name: str, class_: str, shape: str, dash: str | None) -> str:
    """One percentile over the levels: its interval a band, hollow without its floor, a cross where it failed."""
    column = f"ttft_{name}_s"
    good = [row for row in rows if (value := getattr(row, column)) is not None and math.isfinite(value)]
    at = {row.concurrency: (panel.x(row.concurrency), panel.y(getattr(row, column))) for row in good}
    limits = [(panel.x(row.concurrency), _edge(row, name, "hi", panel), _edge(row, name, "lo", panel)) for row in good]
    known = [(x, high, low) for x, high, low in limits if high is not None and low is not None]
    upper, lower = [(x, high) for x, high, _ in known], [(x, low) for x, _, low in known]
    parts = [svg.area(upper, lower, class_), svg.curve(list(at.values()), class_, dash)]
    for row in rows:
        value = getattr(row, column)
        if value is None:
            continue
        x, y = at.get(row.concurrency, (panel.x(row.concurrency), panel.y.end))
        failed = not math.isfinite(value)
        hollow = " hollow" if stats.more_sessions(row, column) and not failed else ""
        tip = f"C = {row.concurrency}: {name} {'failed' if failed else _shown(row, column)}"
        parts.append(svg.mark(x, y, "cross" if failed else shape, class_ + hollow, tip, **_data(row)))
    return "".join(parts)


def _edge(row: LevelRow, name: str, end: str, panel: Panel) -> float | None:
    """In pixels, inside the panel."""
    value = getattr(row, f"ttft_{name}_{end}_s")
    return None if value is None else panel.y(min(max(value, panel.y.low), panel.y.high))


def curve(seen: Seen, name: str) -> str | None:
    """Where does the tail leave the body, and what does it cost in throughput?"""
    rows = seen.case("realistic")
    values = _finite(
        [getattr(row, f"ttft_{p}_{end}") for row in rows for p in PERCENTILES for end in ("s", "lo_s", "hi_s")]
    )
    if not rows or not values:
        return None
    above = Panel(_across(rows), _up(values, 330, 70))
    rates = _finite([row.req_per_s for row in rows]) or [1.0]
    below = Panel(above.x, _up(rates, 470, 390, log=False))
    parts = [
        svg.frame(above, "TTFT", seconds),
        svg.frame(below, "req/s", rate),
        _cliff(above, seen),
        _cliff(below, seen, False),
    ]
    parts += [_promise(above, seen), *(_tail(above, rows, p, *look) for p, look in LOOK.items())]
    ends = [(above.y(v), p, LOOK[p][0]) for p in LOOK if (v := getattr(rows[-1], f"ttft_{p}_s")) and math.isfinite(v)]
    parts.append(svg.end_labels(RIGHT + 10, ends))
    points = [(row, below.x(row.concurrency), below.y(row.req_per_s)) for row in rows if row.req_per_s is not None]
    parts.append(svg.curve([(x, y) for _, x, y in points], "ink"))
    tip = "C = {}: {} requests a second"
    parts += [
        svg.mark(x, y, "circle", "ink", tip.format(r.concurrency, rate(r.req_per_s or 0)), **_data(r))
        for r, x, y in points
    ]
    parts += [
        svg.floor_labels(above, _levels(rows), ""),
        svg.floor_labels(below, _levels(rows), "sessions at once (C)"),
    ]
    found = seen.verdict.get("knee")
    title = (
        f"The tail leaves the body between {found[0]} and {found[1]} sessions"
        if found
        else "No cliff in what was measured"
    )
    told = "Time to the first token, log scale; bands: 95 % intervals; hollow: too few sessions for an upper limit"
    return figure(name, _named(seen, title), told, 515, *parts)


def band(seen: Seen, name: str) -> str | None:
    """How much of it is owed to the cache?"""
    cases = {case: rows for case in CASES if (rows := seen.case(case))}
    values = _finite([getattr(row, f"ttft_{p}_s") for rows in cases.values() for row in rows for p in ("p50", "p99")])
    if len(cases) < 2 or not values:
        return None
    everything = [row for rows in cases.values() for row in rows]
    panel = Panel(_across(everything), _up(values, 330, 70))
    parts = [svg.frame(panel, "TTFT", seconds), _cliff(panel, seen)]
    for case, rows in cases.items():
        class_, shape, dash = CASES[case]
        parts.append(f'<g class="light">{_tail(panel, rows, "p99", class_, "cross", dash)}</g>')
        parts.append(_tail(panel, rows, "p50", class_, shape, dash))
        if rows[0].ttft_p50_s and math.isfinite(rows[0].ttft_p50_s):
            below = 18 if case == "best" else -10
            parts.append(text(panel.x(rows[0].concurrency) + 8, panel.y(rows[0].ttft_p50_s) + below, case, class_))
    parts.append(svg.floor_labels(panel, _levels(everything), "sessions at once (C)"))
    worth = seen.verdict.get("cache_worth")
    title = "The best, the played and the worst case"
    if worth:
        times = worth["realistic"] / worth["worst"]
        title = f"At {worth['level']} sessions the cache lets {times:.1f} times the requests be answered"
    told = "p50 of TTFT as lines with marks, p99 lighter with crosses; worst: only the shared prompt is cached"
    return figure(name, _named(seen, title), told, 375, *parts)


def precisions(run: Mapping[str, Any]) -> str | None:
    """What does a smaller KV cache entry buy?"""
    verdicts = run["verdict"]["variants"]
    tops = [
        top
        for v in verdicts.values()
        for top in ((v.get("knee") or [0, 0])[1], v.get("predicted_knee") or 0, v.get("highest") or 0)
    ]
    if not any(v.get("knee") or v.get("predicted_knee") for v in verdicts.values()):
        return None
    scale = Scale(0, max(tops) * 1.05, 130, RIGHT)
    parts = []
    bottom = 60.0 + 44 * len(verdicts)
    panel = Panel(scale, Scale(0, 1, bottom, 50))
    for at, (variant, verdict) in enumerate(verdicts.items()):
        y = 76.0 + 44 * at
        held = run["variants"][variant].get("server", {}).get("cache", {}).get("tokens")
        parts.append(text(122, y - 2, variant, None, "end"))
        parts.append(text(122, y + 13, "" if held is None else f"{tokens(held)} tokens", "soft", "end"))
        parts.append(_bracket(scale, y, verdict, variant))
    parts.append(tag("line", x1=scale.start, x2=scale.end, y1=bottom, y2=bottom, class_="axis"))
    parts.append(svg.floor_labels(panel, scale.ticks(), "sessions at once (C)"))
    told = (
        "Solid: no eviction up to there; hatched edge: the bracket of the knee; triangle: what the arithmetic had said"
    )
    return figure("precisions", "Sessions that each KV precision holds", told, bottom + 46, *parts)


def _bracket(scale: Scale, y: float, verdict: Mapping[str, Any], variant: str) -> str:
    found, predicted, highest = verdict.get("knee"), verdict.get("predicted_knee"), verdict.get("highest") or 0
    lo, hi = found or (highest, highest)
    tip = f"{variant}: knee between {lo} and {hi}" if found else f"{variant}: no knee up to {highest}"
    inner = [
        tag("title", svg.clean(tip)),
        tag("rect", x=scale.start, width=scale(lo) - scale.start, y=y - 11, height=22.0, class_="r2"),
        tag("rect", x=scale(lo), width=scale(hi) - scale(lo), y=y - 11, height=22.0, class_="shade edge"),
    ]
    words = f"{lo} to {hi}" if found else f"over {highest}"
    parts = [tag("g", *inner, class_="mark", tabindex=0, data_tip=tip, data_variant=variant)]
    parts.append(text(scale(hi) + 8, y + 4, words))
    if predicted is not None:
        parts.append(tag("path", d=f"M{scale(predicted):.1f} {y + 11:.1f}l-5 9h10z", class_="ink"))
    return "".join(parts)


def memory(seen: Seen, name: str) -> str | None:
    """Where do the tokens come from, and how many sessions do they hold?"""
    held, typical = seen.capacity, seen.run["typical"]
    if held is None:
        return None
    steps = list(_memory_steps(seen.facts.get("capacity") or {}))
    parts = [_waterfall(steps, 60.0)] if steps else []
    top = 90.0 + 30 * len(steps)
    scale = Scale(0, held * 1.12, LEFT, 720)
    each = typical["own_tokens"] + typical["output_tokens"]
    fit = max(0.0, (held - typical["shared_tokens"]) / each)
    blocks = [("shared prompt", 0.0, float(typical["shared_tokens"]), "r3")]
    blocks += [
        (
            f"session {n + 1}",
            typical["shared_tokens"] + n * each,
            typical["shared_tokens"] + (n + 1) * each,
            f"r{n % 2}",
        )
        for n in range(min(math.ceil(fit), 400))
    ]
    for words, begin, end, class_ in blocks:
        tip = f"{words}: {tokens(end - begin)} tokens"
        wide = max(0.5, scale(min(end, held * 1.11)) - scale(begin))
        bar = tag("rect", x=scale(begin), width=wide, y=top, height=34.0, class_=f"{class_} edge")
        parts.append(tag("g", tag("title", svg.clean(tip)), bar, class_="mark", data_tip=tip))
    edge = scale(held)
    parts.append(tag("line", x1=edge, x2=edge, y1=top - 10, y2=top + 44, class_="rule"))
    parts.append(text(edge, top - 14, f"KV cache: {held:,} tokens", None, "end"))
    parts.append(
        text(
            LEFT,
            top + 54,
            f"shared prompt {tokens(typical['shared_tokens'])}, then sessions of {tokens(each)} at their deepest",
            "soft",
        )
    )
    told = "From the card's memory to tokens" if steps else "The size of the cache, as the server reported it"
    title = f"{fit:.1f} sessions fit into the KV cache"
    return figure(name, _named(seen, title), told, top + 70, *parts)


def _memory_steps(size: Mapping[str, Any]) -> Iterator[tuple[str, float, float, str]]:
    """Name, from, to, in GB."""
    if size.get("memory_gb") is None:
        return
    memory, usable, weights, other = (size[f"{part}_gb"] for part in ("memory", "usable", "weights", "other"))
    yield "memory of the card", 0.0, memory, "r0"
    yield "left to others", usable, memory, "r3"
    yield "weights", usable - weights, usable, "r2"
    yield "activations, graphs, other", usable - weights - other, usable - weights, "r1"
    yield "KV cache", 0.0, size["pool_gb"], "r4"


def _waterfall(steps: Sequence[tuple[str, float, float, str]], top: float) -> str:
    scale = Scale(0, steps[0][2], 230, 690)
    parts = []
    for at, (words, begin, end, class_) in enumerate(steps):
        y = top + 30 * at
        parts.append(text(222, y + 15, words, None, "end"))
        wide = max(1.0, scale(end) - scale(begin))
        parts.append(tag("rect", x=scale(begin), width=wide, y=y, height=20.0, class_=f"{class_} edge"))
        parts.append(text(scale(end) + 5, y + 15, f"{end - begin:.1f} GB", "soft"))
    return "".join(parts)


def luck(seen: Seen, name: str) -> str | None:
    """Who pays? The distribution of TTFT at each level, those who kept their history above, those who lost it below."""
    rows = [row for row in seen.case("realistic") if row.unlucky is not None]
    turns = [r for r in seen.records if r.case == "realistic" and r.turn > 0 and r.ttft_s]
    values = _finite([record.ttft_s for record in turns])
    if not rows or not values:
        return None
    across = Scale(min(values) / 1.2, max(values) * 1.2, 110, 600, log=True)
    parts = []
    for at, row in enumerate(rows):
        own = [record for record in turns if record.concurrency == row.concurrency]
        parts.append(_strip(across, 84.0 + 40 * at, row, own))
    bottom = 84.0 + 40 * len(rows) - 8
    panel = Panel(across, Scale(0, 1, bottom, 60))
    for value in across.ticks():
        x = across(value)
        parts.insert(
            0,
            tag("line", x1=x, x2=x, y1=58, y2=bottom, class_="grid")
            + text(x, bottom + 16, seconds(value), "soft", "middle"),
        )
    parts.append(tag("line", x1=110, x2=600, y1=bottom, y2=bottom, class_="axis"))
    parts.append(text(panel.middle, bottom + 34, "TTFT, log scale", "soft", "middle"))
    told = "A mark a request: above the line those who kept their history, crosses below it those who lost it"
    return figure(name, _named(seen, "The lucky and the unlucky"), told, bottom + 46, *parts)


def _strip(across: Scale, y: float, row: LevelRow, turns: Sequence[TurnRecord]) -> str:
    kept = [across(r.ttft_s or 1) for r in turns if not stats.is_unlucky(r)]
    gone = [across(r.ttft_s or 1) for r in turns if stats.is_unlucky(r)]
    unlucky, whole = row.unlucky or 0, row.requests
    tip = f"C = {row.concurrency}: {unlucky} of {whole} requests lost their history"
    inner = [
        tag("title", svg.clean(tip)),
        tag("rect", x=110, width=490, y=y - 18, height=34, class_="hit"),
        tag("line", x1=110, x2=600, y1=y, y2=y, class_="grid"),
        tag("path", d="".join(f"M{x:.1f} {y - 3:.1f}v-12" for x in kept), class_="a light", stroke_width="1")
        if kept
        else "",
        tag("path", d="".join(f"M{x - 3:.1f} {y + 4:.1f}l6 8m0-8l-6 8" for x in gone), class_="c", stroke_width="1.4")
        if gone
        else "",
    ]
    return (
        text(104, y + 4, f"C = {row.concurrency}", None, "end")
        + tag("g", *inner, class_="mark", tabindex=0, data_tip=tip, **_data(row))
        + text(610, y + 4, f"{share(unlucky / whole)} unlucky", "c" if unlucky else "soft")
    )


def timeline(seen: Seen, name: str) -> str | None:
    """When does it happen? A row a session, a bar a request, coloured by the tokens that it lost."""
    levels = seen.verdict.get("knee") or [seen.verdict.get("highest")]
    parts, top = [_loss_legend(58.0)], 92.0
    for level in levels:
        turns = [
            r for r in seen.records if r.case == "realistic" and r.concurrency == level and r.turn > 0 and r.repeat == 0
        ]
        if turns:
            drawn, top = _bars(sorted(turns, key=lambda r: r.sent_s)[:BARS], top)
            parts.append(drawn)
    if len(parts) == 1:
        return None
    told = "A row a session, a bar a request from sent to answered; the solid part is the wait for the first token"
    return figure(name, _named(seen, "Requests over time, by the history they lost"), told, top, *parts)


def _loss_class(record: TurnRecord) -> str:
    lost = record.lost_tokens or 0
    return f"r{sum(lost >= least for least, _ in LOSS) - 1}"


def _loss_legend(y: float) -> str:
    parts, x = [text(8, y + 10, "lost:", "soft")], 44.0
    for at, (_, words) in enumerate(LOSS):
        parts.append(
            tag("rect", x=x, y=y, width=16, height=12, class_=f"r{at} edge") + text(x + 21, y + 10, words, "soft")
        )
        x += 44 + 6.5 * len(words)
    return "".join(parts)


def _bars(turns: Sequence[TurnRecord], top: float) -> tuple[str, float]:
    """One level; and where the next may begin."""
    start = min(record.sent_s for record in turns)
    across = Scale(0, max(record.end_s for record in turns) - start, LEFT, 740)
    sessions = {session: at for at, session in enumerate(dict.fromkeys(record.session for record in turns))}
    high = min(12.0, max(4.0, 260 / len(sessions)))
    parts = [text(LEFT, top - 6, f"{turns[0].concurrency} sessions at once")]
    for record in turns:
        y = top + high * sessions[record.session]
        parts.append(_bar(record, across, start, y, high - 1.5))
    bottom = top + high * len(sessions) + 2
    parts.append(text(LEFT - 8, top + 10, "session", "soft", "end"))
    parts.append(tag("line", x1=LEFT, x2=740, y1=bottom, y2=bottom, class_="axis"))
    for value in across.ticks():
        parts.append(text(across(value), bottom + 16, f"{value:g} s", "soft", "middle"))
    return "".join(parts), bottom + 50


def _bar(record: TurnRecord, across: Scale, start: float, y: float, high: float) -> str:
    begin, end = across(record.sent_s - start), across(record.end_s - start)
    first = end if record.first_s is None else across(record.first_s - start)
    class_ = _loss_class(record)
    took = "failed" if record.ttft_s is None else f"TTFT {seconds(record.ttft_s)}"
    lost = "" if record.lost_tokens is None else f", lost {tokens(record.lost_tokens)} tokens"
    tip = f"C = {record.concurrency}, session {record.session}, turn {record.turn}: {took}{lost}"
    inner = [
        tag("title", svg.clean(tip)),
        tag("rect", x=begin, width=max(0.5, end - begin), y=y, height=high, class_=f"{class_} light"),
        tag("rect", x=begin, width=max(0.5, first - begin), y=y, height=high, class_=class_),
    ]
    return tag("g", *inner, data_tip=tip, data_level=record.concurrency, data_variant=record.variant)


@dataclass(frozen=True, slots=True)
class Strip:
    """A small panel of one or two columns over the levels."""

    label: str
    columns: tuple[str, ...]
    form: Callable[[float], str]
    top: float | None = None  # of the axis, where it is known


SERVER = (
    Strip("hit rate", ("eligible_hit_rate", "prefix_hit_rate"), share, 1.0),
    Strip("KV cache held", ("kv_usage_max",), share, 1.0),
    Strip("running, waiting", ("running_max", "waiting_max"), lambda value: f"{value:g}"),
    Strip("preemptions", ("preemptions",), lambda value: f"{value:g}"),
)


def server(seen: Seen, name: str) -> str | None:
    """What did the server itself see at each level?"""
    rows = seen.case("realistic")
    strips = [one for one in SERVER if any(getattr(row, column) is not None for row in rows for column in one.columns)]
    if not rows or not strips:
        return None
    parts, x = [], _across(rows)
    for at, one in enumerate(strips):
        top = 76.0 + 104 * at
        parts.append(_strip_panel(seen, rows, one, x, top))
    bottom = 76.0 + 104 * len(strips) - 34
    parts.append(svg.floor_labels(Panel(x, Scale(0, 1, bottom, 0)), _levels(rows), "sessions at once (C)"))
    told = "By its own counters and gauges, one sample a second; the knee is shaded"
    return figure(name, _named(seen, "What the server saw"), told, bottom + 48, *parts)


def _strip_panel(seen: Seen, rows: Sequence[LevelRow], one: Strip, x: Scale, top: float) -> str:
    values = [value for row in rows for column in one.columns if (value := getattr(row, column)) is not None]
    panel = Panel(x, Scale(0, (one.top or max(values) or 1) * 1.08, top + 70, top))
    parts = [svg.frame(panel, one.label, one.form), _cliff(panel, seen, False)]
    ends = []
    for column, (class_, shape, dash) in zip(one.columns, (LOOK["p50"], LOOK["p95"]), strict=False):
        points = [(row, x(row.concurrency), panel.y(v)) for row in rows if (v := getattr(row, column)) is not None]
        parts.append(svg.curve([(a, b) for _, a, b in points], class_, dash))
        words = METRICS[column].title if column in METRICS else column.removesuffix("_max")
        tip = "C = {}: {} {}"
        parts += [
            svg.mark(
                a, b, shape, class_, tip.format(row.concurrency, words, one.form(getattr(row, column))), **_data(row)
            )
            for row, a, b in points
        ]
        if points and len(one.columns) > 1:
            ends.append((points[-1][2], words, class_))
    return "".join([*parts, svg.end_labels(RIGHT + 10, ends)])


def waits(seen: Seen, name: str) -> str | None:
    """What was the time to the first token spent on?"""
    rows = [row for row in seen.case("realistic") if row.wait_compute_s is not None]
    if not rows:
        return None
    totals = {row.concurrency: sum(getattr(row, f"wait_{part}_s") or 0 for part in COMPONENTS) for row in rows}
    up = Scale(0, max(totals.values()) * 1.1, 330, 90)
    across = Scale(0, len(rows), LEFT, 560)
    panel = Panel(across, up)
    used = [part for part in WAITS if any((getattr(row, f"wait_{part}_s") or 0) > 0.005 * up.high for row in rows)]
    parts = [svg.frame(panel, "mean TTFT", seconds)]
    for at, row in enumerate(rows):
        parts.append(_stack(row, used, across(at) + 6, across(at + 1) - across(at) - 12, up))
        parts.append(text((across(at) + across(at + 1)) / 2, 348, row.concurrency, "soft", "middle"))
    for at, part in enumerate(used):
        y = 110.0 + 22 * at
        parts.append(tag("rect", x=576, y=y - 11, width=14, height=14, class_=f"{WAITS[part]} edge"))
        parts.append(text(596, y, METRICS[f"wait_{part}_s"].title))
    parts.append(text(panel.middle, 366, "sessions at once (C)", "soft", "middle"))
    told = "Mean TTFT of each level, by what the engine was doing while a request waited"
    return figure(name, _named(seen, _said(seen)), told, 378, *parts)


def _said(seen: Seen) -> str:
    shares, binding = seen.verdict.get("shares"), seen.verdict.get("binding")
    if not shares or not binding:
        return "What the wait was made of"
    return f"{shares[binding] * 100:.0f} % of the added wait: {METRICS[f'wait_{binding}_s'].title}"


def _stack(row: LevelRow, used: Sequence[str], x: float, wide: float, up: Scale) -> str:
    heights = [getattr(row, f"wait_{part}_s") or 0.0 for part in used]
    sums = [sum(heights[: at + 1]) for at in range(len(heights))]
    parts = []
    for part, (below, above) in zip(used, pairwise([0.0, *sums]), strict=True):
        tip = f"C = {row.concurrency}: {METRICS[f'wait_{part}_s'].title} {seconds(above - below)}"
        bar = tag(
            "rect", x=x, width=wide, y=up(above), height=max(0.0, up(below) - up(above)), class_=f"{WAITS[part]} edge"
        )
        parts.append(tag("g", tag("title", svg.clean(tip)), bar, class_="mark", tabindex=0, data_tip=tip, **_data(row)))
    return "".join(parts)


PICTURES: dict[str, Callable[[Seen, str], str | None]] = {
    "curve": curve,
    "band": band,
    "memory": memory,
    "luck": luck,
    "timeline": timeline,
    "server": server,
    "waits": waits,
}
