"""Numbers become pictures, over the levels: each answers one question, and says the answer in its title if it can."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

from bench import manifest, stats, svg
from bench.lives import luck, memory, timeline
from bench.records import TurnRecord
from bench.scene import LEFT, RIGHT, Data, Seen, at_level, by_level, data_of, part_of, positive, short, tick
from bench.stats import COMPONENTS, METRICS, PERCENTILES, LevelRow, rate, seconds, share
from bench.svg import Panel, Scale, box, figure, line, text
from bench.tables import slug

C_AXIS = "sessions at once (C)"
DASH = "\N{EN DASH}"
BELOW = "\N{BLACK DOWN-POINTING TRIANGLE}"
MANY = 64  # the highest level over the lowest: from there on the axis doubles in equal steps


@dataclass(frozen=True, slots=True)
class Look:
    """Never colour alone: each line has its own mark and dash too."""

    class_: str
    shape: str
    dash: str | None = None


P50, P95, P99 = Look("a", "circle"), Look("b", "square", "6 3"), Look("c", "triangle")
TAILS = dict(zip(PERCENTILES, (P50, P95, P99), strict=True))
CASES = {"best": Look("d", "diamond", "2 3"), "realistic": P50, "worst": Look("c", "triangle", "7 3")}
CASE_TEXT = {
    "best": "best: all but the newest tokens cached",
    "realistic": "realistic",
    "worst": "worst: only the shared prompt cached",
}
# Colour and pattern, from the bottom of the stack.
WAITS: dict[str, tuple[str, str | None]] = {
    "compute": ("t1", None),
    "lost": ("r3", "rising"),
    "preempted": ("r4", "crossed"),
    "blocks": ("e", "falling"),
    "slot": ("b", "level"),
    "client": ("r0", None),
}
SPENT = {
    "compute": "computing new tokens",
    "lost": "re-reading lost history",
    "preempted": "re-reading preempted requests",
    "blocks": "waiting for free blocks",
    "slot": "waiting for a slot",
    "client": "what is outside the engine",
}


def draw(
    run: Mapping[str, Any],
    rows: Sequence[LevelRow],
    records: Sequence[TurnRecord],
    samples: Sequence[Mapping[str, Any]],
) -> dict[str, str]:
    """File name -> picture, of those for which there is something to show."""
    del samples  # what the server told over time is in the rows
    made: dict[str, str] = {}
    several = len(run["variants"]) > 1
    for at, variant in enumerate(run["variants"]):
        own = [row for row in rows if row.variant == variant]
        seen = Seen(manifest.of(run, variant), variant, own, by_level(records, variant), at)
        for name, picture in PICTURES.items():
            if drawn := picture(seen):
                file = f"{name}-{slug(variant)}" if several else name
                made[f"{file}-{at}.svg" if f"{file}.svg" in made else f"{file}.svg"] = drawn
    if several and (drawn := precisions(run)):
        made["precisions.svg"] = drawn
    return made


def _levels(rows: Iterable[LevelRow]) -> list[float]:
    return sorted({float(row.concurrency) for row in rows})


def _across(rows: Iterable[LevelRow]) -> Scale:
    levels = _levels(rows)
    if levels[-1] / levels[0] >= MANY:
        return Scale(levels[0] / 1.15, levels[-1] * 1.15, LEFT, RIGHT, log=True)
    room = max(0.5, (levels[-1] - levels[0]) * 0.03)
    return Scale(levels[0] - room, levels[-1] + room, LEFT, RIGHT)


def _times(values: Sequence[float], bottom: float, top: float) -> Scale:
    return Scale(min(values) / 1.3, max(values) * 1.3, bottom, top, log=True)


def _knee_shade(panel: Panel, seen: Seen, label: bool = False) -> str:
    if seen.knee is None:
        return ""
    left, right = (panel.x(panel.x.within(level)) for level in seen.knee)
    parts = [box(left, panel.y.end, right - left, panel.y.start - panel.y.end, "shade")]
    if label:
        words = f"knee {seen.knee[0]}{DASH}{seen.knee[1]}"
        half = len(words) * svg.CHARACTER / 2
        middle = min(max((left + right) / 2, panel.x.start + half), panel.x.end - half)
        parts.append(text(middle, panel.y.end - 22, words, "c strong", "middle"))
    return "".join(parts)


def _predicted(panel: Panel, seen: Seen, below: float) -> str:
    """What the arithmetic had said, as a mark on the axis; an arrow where that is beyond it."""
    fit = seen.verdict.get("predicted_knee")
    if fit is None:
        return ""
    x, y = panel.x(panel.x.within(fit)), panel.y.start
    beyond = "\N{RIGHTWARDS ARROW}" if fit > panel.x.high else "\N{LEFTWARDS ARROW}" if fit < panel.x.low else ""
    sign = "" if beyond else svg.shape(x, y - 2, "pointer", "ink")
    words = f"{beyond or BELOW} {fit:.1f} sessions fit, says the arithmetic"
    half = len(words) * svg.CHARACTER / 2
    return sign + text(min(max(x, panel.x.start + half - 8), panel.x.end - half), y + below, words, None, "middle")


def _limit_s(slo: str) -> float | None:
    """Of a promise on TTFT; None for any other."""
    metric, _, limit = slo.replace(" ", "").partition("<")
    number = limit.removeprefix("=").removesuffix("s")
    try:
        value = float(number.removesuffix("m")) * (1e-3 if number.endswith("m") else 1.0)
    except ValueError:
        return None
    return value if metric.startswith("ttft") and 0 < value < math.inf else None


def _promise(panel: Panel, seen: Seen) -> str:
    """The limit as a line, and the ceiling as a mark on it; their names stand in the margin."""
    limit, ceiling = _limit_s(seen.verdict.get("slo") or ""), seen.verdict.get("ceiling")
    if limit is None or not panel.y.holds(limit):
        return ""
    y = panel.y(limit)
    rule = line(panel.x.start, y, panel.x.end, y, "rule")
    if ceiling is None:
        return rule
    tip = f"C = {ceiling} \u00b7 the highest level up to which every level keeps {seen.verdict['slo']}"
    data: Data = {"data_level": ceiling, "data_variant": seen.variant, "data_case": "realistic"}
    return rule + svg.mark(panel.x(ceiling), y, "diamond", "ink", tip, **data)


def _series(
    panel: Panel,
    rows: Sequence[LevelRow],
    value_of: Callable[[LevelRow], float | None],
    look: Look,
    told: Callable[[LevelRow], str],
    hollow: Callable[[LevelRow], bool] = lambda row: False,
    limit: Callable[[LevelRow], bool] = lambda row: False,
) -> str:
    """A line over the levels, broken where nothing was measured; a failure stands as a cross at the top edge.

    Where `limit` says that this is only what it is at least, an arrow goes up from the mark.
    """
    values = [(row, value_of(row)) for row in rows]
    points = [
        (panel.x(row.concurrency), panel.y(v)) if v is not None and panel.y.holds(v) else None for row, v in values
    ]
    parts = [svg.curve(points, look.class_, look.dash)]
    for (row, value), point in zip(values, points, strict=True):
        if value is None:
            continue
        tip = f"C = {row.concurrency} \u00b7 {told(row)}"
        if math.isinf(value):
            x, y = panel.x(row.concurrency), panel.y.end
            parts.append(svg.mark(x, y, "cross", f"{look.class_} line", tip, **data_of(row)))
            parts.append(text(x, y - 8, "failed", None, "middle"))
        elif point is not None:
            class_ = look.class_ + (" hollow" if hollow(row) or limit(row) else "")
            parts += [svg.shape(*point, "up", f"{look.class_} line")] if limit(row) else []
            parts.append(svg.mark(*point, look.shape, class_, tip, **data_of(row)))
    return "".join(parts)


def _column(name: str) -> Callable[[LevelRow], float | None]:
    return lambda row: getattr(row, name)


def _percentile_text(name: str) -> Callable[[LevelRow], str]:
    """With its interval, what it lacks, and who was not answered."""

    def told(row: LevelRow) -> str:
        low, high = (getattr(row, f"ttft_{name}_{end}_s") for end in ("lo", "hi"))
        between = f" ({_span(low, high)})" if low is not None and high is not None else ""
        lacks = stats.more_sessions(row, f"ttft_{name}_s")
        lacking = f", needs {lacks} more sessions" if lacks else ""
        return f"{name} {stats.seen(row, f'ttft_{name}_s')}{between}{lacking}{_unanswered(row)}"

    return told


def _unanswered(row: LevelRow) -> str:
    late = row.timeouts or 0
    told = [f"{count} {what}" for count, what in ((row.errors - late, "failed"), (late, "timed out")) if count]
    return f"; of {row.requests} requests {', '.join(told)}" if told else ""


def _span(low: float, high: float) -> str:
    """The unit once, where both have the same."""
    if math.isinf(high) and not math.isinf(low):
        return f"{seconds(low)} or more"
    first, last = seconds(low), seconds(high)
    unit = first[-2:] if first[-2:] == last[-2:] else first[-3:] if first[-3:] == last[-3:] else ""
    return f"{first.removesuffix(unit).rstrip()}{DASH}{last}"


def _lacks(name: str) -> Callable[[LevelRow], bool]:
    return lambda row: bool(stats.more_sessions(row, f"ttft_{name}_s"))


def _limit(name: str) -> Callable[[LevelRow], bool]:
    return lambda row: stats.is_limit(row, f"ttft_{name}_s")


def _hollow_entry(rows: Iterable[LevelRow], names: Iterable[str], shape: str) -> Iterator[tuple[str, str]]:
    limits = any(_limit(name)(row) for row in rows for name in names)
    if any(_lacks(name)(row) for row in rows for name in names):
        why = "hollow: too few sessions"
        yield svg.shape(0, 0, shape, "ink hollow"), why if limits else f"{why} for an upper limit"
    if limits:
        yield svg.shape(0, 6, "up", "ink line") + svg.shape(0, 6, shape, "ink hollow"), "or more: requests timed out"


def _band(panel: Panel, rows: Sequence[LevelRow], name: str, look: Look) -> str:
    """The 95 % interval, cut off at the panel's edges; up to what was seen where it has no upper limit."""
    edges = []
    for row in rows:
        low, high = (getattr(row, f"ttft_{name}_{end}_s") for end in ("lo", "hi"))
        if stats.more_sessions(row, f"ttft_{name}_s"):
            high = getattr(row, f"ttft_{name}_s")
        known = low is not None and high is not None and low < math.inf
        x, y = panel.x(row.concurrency), panel.y
        edges.append((x, y(y.within(high)), y(y.within(low))) if known else None)
    return svg.area(edges, look.class_)


def curve(seen: Seen) -> str | None:
    """Where does the tail leave the body, and what does it cost in throughput?"""
    rows = seen.case("realistic")
    names = [f"ttft_{p}{end}" for p in PERCENTILES for end in ("_s", "_lo_s", "_hi_s")]
    values = positive(getattr(row, name) for row in rows for name in names)
    if not values:
        return None
    limit = _limit_s(seen.verdict.get("slo") or "")
    values += [min(values) / 1.5] if any(row.errors for row in rows) else []  # room for how many
    above = Panel(_across(rows), _times([*values, *positive([limit])], 336, 104))
    below = Panel(above.x, Scale(0, max(positive(row.req_per_s for row in rows), default=1) * 1.15, 470, 396))
    parts = [svg.frame(above, "TTFT", tick), svg.frame(below, "req/s", lambda value: f"{value:g}", 20)]
    parts += [_knee_shade(above, seen, label=True), _knee_shade(below, seen)]
    parts += [_band(above, rows, name, look) for name, look in TAILS.items()]
    parts.append(_promise(above, seen))
    for name, look in TAILS.items():
        parts.append(
            _series(above, rows, _column(f"ttft_{name}_s"), look, _percentile_text(name), _lacks(name), _limit(name))
        )
    parts.append(_unanswered_labels(above, rows))
    lasts = [(_last(rows, name), name, look.class_) for name, look in TAILS.items()]
    ends = [(above.y(above.y.within(last)), name, class_) for last, name, class_ in lasts if last]
    if limit is not None:
        ceiling = seen.verdict.get("ceiling")
        kept = "kept at no level" if ceiling is None else f"\N{BLACK DIAMOND} ceiling {ceiling}"
        ends += [(above.y(limit) - 7, short(seen.verdict["slo"]), "in"), (above.y(limit) + 7, kept, "soft")]
    parts.append(svg.end_labels(above, ends))
    answered = _told("req/s", _column("req_per_s"), rate)
    parts.append(_series(below, rows, _column("req_per_s"), Look("ink", "circle"), answered))
    levels, knee = _levels(rows), seen.knee or ()
    parts += [svg.ground(above, levels, "", knee), _predicted(above, seen, 35), svg.ground(below, levels, C_AXIS, knee)]
    signs = [(svg.stroke(look.class_, look.shape, look.dash), name) for name, look in TAILS.items()]
    signs.append((svg.box(-10, -6, 20, 12, "a band"), "95 % interval"))
    parts.append(svg.legend(8, 64, [*signs, *_hollow_entry(rows, TAILS, "triangle")]))
    told = "Time to the first token (log scale) and answered requests a second, as sessions are added."
    return seen.figure("curve", _curve_title(seen, rows), told, 512, *parts)


def _unanswered_labels(panel: Panel, rows: Sequence[LevelRow]) -> str:
    """How many, below their level if there is room; a cross above where they are so many that it has no percentiles."""
    parts, free = [], -math.inf
    for row in rows:
        x, words = panel.x(row.concurrency), f"{stats.show(row, 'errors')} err"
        half = len(words) * svg.CHARACTER / 2
        if row.errors and x - half > free:
            parts.append(text(x, panel.y.start - 6, words, "soft", "middle"))
            free = x + half
        if row.why_none:
            tip = f"C = {row.concurrency} \u00b7 {row.why_none}"
            parts.append(svg.mark(x, panel.y.end, "cross", "ink line", tip, **data_of(row)))
    return "".join(parts)


def _last(rows: Sequence[LevelRow], name: str) -> float | None:
    value: float | None = getattr(rows[-1], f"ttft_{name}_s")
    return value


def _curve_title(seen: Seen, rows: Sequence[LevelRow]) -> str:
    if seen.knee is None:
        return f"No cliff up to {rows[-1].concurrency} sessions"
    lo, hi = (at_level(rows, level) for level in seen.knee)
    title = f"The cliff stands between {seen.knee[0]} and {seen.knee[1]} sessions"
    if not lo or not hi or not lo.ttft_p99_s or not hi.ttft_p99_s:
        return title
    return f"{title}: p99 goes from {stats.seen(lo, 'ttft_p99_s')} to {stats.seen(hi, 'ttft_p99_s')}"


def band(seen: Seen) -> str | None:
    """What is the cache worth?"""
    cases = {case: rows for case in CASES if (rows := seen.case(case))}
    every = [row for rows in cases.values() for row in rows]
    values = positive(value for row in every for value in (row.ttft_p50_s, row.ttft_p99_s))
    if len(cases) < 2 or not values:
        return None
    panel = Panel(_across(every), _times(values, 336, 104))
    parts = [svg.frame(panel, "TTFT", tick), _knee_shade(panel, seen, label=True)]
    for case, rows in cases.items():
        look = CASES[case]
        thin = Look(f"{look.class_} thin", "dot", "1 3")
        parts.append(
            _series(panel, rows, _column("ttft_p99_s"), thin, _case_text(case, "p99"), _lacks("p99"), _limit("p99"))
        )
        parts.append(
            _series(panel, rows, _column("ttft_p50_s"), look, _case_text(case, "p50"), _lacks("p50"), _limit("p50"))
        )
        parts.append(_case_labels(panel, case, rows, every))
    parts.append(svg.ground(panel, _levels(every), C_AXIS, seen.knee or (), low=54))
    parts.append(_predicted(panel, seen, 35))
    signs = [(svg.stroke(CASES[case].class_, CASES[case].shape, CASES[case].dash), CASE_TEXT[case]) for case in cases]
    parts.append(svg.legend(8, 64, signs))
    title, told = _worth(cases)
    return seen.figure("band", title, told, 398, *parts)


def _case_text(case: str, name: str) -> Callable[[LevelRow], str]:
    told = _percentile_text(name)
    return lambda row: f"{case} {told(row)}"


def _case_labels(panel: Panel, case: str, rows: Sequence[LevelRow], every: Sequence[LevelRow]) -> str:
    """Beside the last p50 and p99; in the margin, or on the free side of the line where others go on."""
    parts = []
    for name in ("p50", "p99"):
        value = _last(rows, name)
        if value is None or not panel.y.holds(value):
            continue
        x, y = panel.x(rows[-1].concurrency), panel.y(value)
        level = rows[-1].concurrency
        others = [panel.y(v) for row in every if row.concurrency == level for v in (row.ttft_p50_s, row.ttft_p99_s)
                  if v is not None and v != value and panel.y.holds(v)]  # fmt: skip
        places = [at for at in (y - 9, y + 18) if panel.y.end + 8 < at < panel.y.start - 4] or [y - 9]
        free = max(places, key=lambda at: min((abs(at - 4 - other) for other in others), default=0))
        inside = level < panel.x.high * 0.9
        parts.append(text(x + (4 if inside else 12), free if inside else y + 4, f"{case} {name}", CASES[case].class_))
    return "".join(parts)


def _worth(cases: Mapping[str, Sequence[LevelRow]]) -> tuple[str, str]:
    """Title and subtitle, at the highest level at which all cases were taken."""
    told = "TTFT, log scale; large marks p50, small ones p99; hollow: too few requests for a limit."
    if any(row.at_least for rows in cases.values() for row in rows):
        told = told.replace("hollow: too few requests for a limit.", "hollow: a limit; arrow: for time-outs.")
    common = set.intersection(*({row.concurrency for row in rows} for rows in cases.values()))
    if not common or not {"realistic", "worst"} <= set(cases):
        return "Between everything cached and nothing but the shared prompt", told
    level = max(common)
    at = {case: at_level(rows, level) for case, rows in cases.items()}
    real, worst = at["realistic"], at["worst"]
    assert real is not None
    assert worst is not None
    medians = [] if _limit("p50")(worst) or _limit("p50")(real) else positive([real.ttft_p50_s, worst.ttft_p50_s])
    if len(medians) == 2:
        told = f"It divides p50 by {medians[1] / medians[0]:.1f}. {told}"
    if not real.req_per_s or not worst.req_per_s:
        return f"What the cache is worth at {level} sessions", told
    times = real.req_per_s / worst.req_per_s
    return f"At {level} sessions {times:.1f} times what full depth without the cache would answer", told


def precisions(run: Mapping[str, Any]) -> str | None:
    """What does a smaller KV cache entry buy?"""
    verdicts = {name: part_of(run["verdict"]["variants"], name) for name in run["variants"]}
    if not any(v.get("knee") or v.get("predicted_knee") is not None for v in verdicts.values()):
        return None
    highest = max(v.get("highest") or 1 for v in verdicts.values())
    scale = Scale(0, max(highest, *(v.get("predicted_knee") or 0 for v in verdicts.values())) * 1.14, 190, 740)
    bottom = 92.0 + 48 * len(verdicts)
    panel = Panel(scale, Scale(0, 1, bottom, 84))
    parts = [line(scale(value), 84, scale(value), bottom, "grid") for value in scale.ticks()]
    parts.append(line(scale.start, bottom, scale.end, bottom, "axis"))
    for at, (variant, verdict) in enumerate(verdicts.items()):
        y = 112.0 + 48 * at
        held = part_of(part_of(part_of(run["variants"], variant), "server"), "cache").get("tokens")
        parts.append(text(180, y, short(variant), "strong", "end"))
        parts.append(text(180, y + 15, "KV cache not told" if held is None else f"{held:,} tokens", "soft", "end"))
        parts.append(_bracket(scale, y, verdict, variant))
    parts += [svg.hatch("precisions", "rising"), svg.ground(panel, scale.ticks(), C_AXIS)]
    parts.append(svg.legend(8, 64, [
        (svg.swatch("a"), "healthy up to there"),
        (svg.swatch("c", "url(#precisions-rising)"), "the knee's bracket"),
        (svg.shape(0, 0, "triangle", "ink"), "sessions that fit, by arithmetic"),
    ]))  # fmt: skip
    told = "Where the cliff was seen at each KV cache precision, and where it should be."
    return figure("precisions", _precisions_title(verdicts), told, bottom + 46, *parts)


def _precisions_title(verdicts: Mapping[str, Mapping[str, Any]]) -> str:
    lows = {name: v["knee"][0] for name, v in verdicts.items() if v.get("knee")}
    if len(lows) < 2:
        return "Sessions that each KV cache precision holds"
    most, least = max(lows, key=lambda name: lows[name]), min(lows, key=lambda name: lows[name])
    if lows[most] == lows[least]:
        return f"Each precision holds {lows[most]} sessions before the cliff"
    return f"{short(most)} holds {lows[most]} sessions before the cliff, {short(least)} {lows[least]}"


def _bracket(scale: Scale, y: float, verdict: Mapping[str, Any], variant: str) -> str:
    found, fit, highest = verdict.get("knee"), verdict.get("predicted_knee"), verdict.get("highest") or 0
    lo, hi = found or (highest, highest)
    none = f"knee below {verdict['below']}" if verdict.get("below") else f"no knee up to {highest}"
    seen = f"knee {lo}{DASH}{hi}" if found else none if highest else "nothing measured"
    tip = f"{variant} \u00b7 {seen}" + ("" if fit is None else f" \u00b7 {fit:.1f} sessions fit")
    bars = [box(scale(0), y - 12, scale(lo) - scale(0), 22, "a")]
    if found:
        x, wide = scale(lo), scale(hi) - scale(lo)
        bars += [box(x, y - 12, wide, 22, "c"), box(x, y - 12, wide, 22, fill="url(#precisions-rising)")]
    parts = [svg.touchable(tip, *bars, data_variant=variant), text(scale(hi) + 8, y + 4, seen)]
    if fit is not None:
        parts.append(svg.shape(scale(fit), y + 17, "triangle", "ink"))
        parts.append(text(scale(fit) + 8, y + 21, f"{fit:.1f}", "soft"))
    return "".join(parts)


@dataclass(frozen=True, slots=True)
class Strip:
    """A small panel of one or two lines over the levels."""

    label: str
    lines: tuple[tuple[str, Callable[[LevelRow], float | None]], ...]
    form: Callable[[float], str]
    rule: tuple[float, str] | None = None


def _percent(value: float) -> str:
    return f"{value * 100:.0f} %"


def _strips(seen: Seen) -> Iterator[Strip]:
    held = seen.tokens

    def working_set(row: LevelRow) -> float | None:
        return row.working_set_tokens / held if held and row.working_set_tokens is not None else None

    told = (("of own history", _column("eligible_hit_rate")), ("of all tokens", _column("prefix_hit_rate")))
    yield Strip("prefix hit rate", told, _percent)
    kept = (("live sessions", working_set), ("being answered", _column("kv_usage_max")))
    yield Strip("KV cache needed, at most", kept, _percent, (1.0, "the whole cache"))
    busy = (("running", _column("running_max")), ("waiting", _column("waiting_max")))
    yield Strip("requests at once, at most", busy, lambda value: f"{value:g}")
    yield Strip("preemptions", (("", _column("preemptions")),), lambda value: f"{value:g}")
    close = (("matrix rate", _column("matrix_share")), ("bandwidth", _column("bandwidth_share")))
    yield Strip("of the card's limit, at least", close, _percent)


def server(seen: Seen) -> str | None:
    """What did the server itself see at each level?"""
    rows = seen.case("realistic")
    strips = [one for one in _strips(seen) if any(of(row) for row in rows for _, of in one.lines)]
    if not strips:
        return None
    x, bottom = _across(rows), 88.0 + 112 * len(strips) - 42
    parts = [_strip_panel(seen, rows, one, x, 88.0 + 112 * at, at == 0) for at, one in enumerate(strips)]
    parts.append(svg.ground(Panel(x, Scale(0, 1, bottom, 0)), _levels(rows), C_AXIS, seen.knee or ()))
    told = "What each level asked of the server, and what the server told; the knee is shaded."
    if all(row.preemptions == 0 for row in rows):
        told += " Nothing was preempted."
    return seen.figure("server", _server_title(seen, rows), told, bottom + 46, *parts)


def _server_title(seen: Seen, rows: Sequence[LevelRow]) -> str:
    held = seen.tokens
    over = next((row for row in rows if held and (row.working_set_tokens or 0) > held), None)
    if over is None or not held:
        return "What the server saw"
    needed = (over.working_set_tokens or 0) / held
    return f"At {over.concurrency} sessions the live ones need {_percent(needed)} of the KV cache"


def _strip_panel(seen: Seen, rows: Sequence[LevelRow], one: Strip, x: Scale, top: float, first: bool) -> str:
    values = [value for row in rows for _, of in one.lines if (value := of(row)) is not None and math.isfinite(value)]
    rule = one.rule[0] if one.rule else 0.0
    low = max(0.0, math.floor(min(values) * 20 - 0.5) / 20) if one.form is _percent and not one.rule else 0.0
    panel = Panel(x, Scale(low, max(*values, rule) + 0.08 * ((max(values) - low) or 1), top + 70, top))
    parts = [svg.frame(panel, one.label, one.form, 15), _knee_shade(panel, seen, label=first)]
    if one.rule:
        parts.append(line(x.start, panel.y(rule), x.end, panel.y(rule), "rule"))
        parts.append(text(x.start + 6, panel.y(rule) + 14, one.rule[1]))
    ends = []
    for (name, of), look in zip(one.lines, (P50, P95), strict=False):
        parts.append(_series(panel, rows, of, look, _told(name or one.label, of, one.form)))
        last = of(rows[-1])
        if name and last is not None and panel.y.holds(last):
            ends.append((panel.y(last), name, look.class_))
    return "".join([*parts, svg.end_labels(panel, ends), svg.notches(panel, _levels(rows))])


def _told(name: str, of: Callable[[LevelRow], float | None], form: Callable[[float], str]) -> Callable[[LevelRow], str]:
    def told(row: LevelRow) -> str:
        value = of(row)
        return name if value is None else f"{name} {share(value) if form is _percent else form(value)}"

    return told


def waits(seen: Seen) -> str | None:
    """What was the time to the first token spent on?"""
    rows = [row for row in seen.case("realistic") if row.wait_compute_s is not None]
    highest = max((sum(_wait(row, part) for part in COMPONENTS) for row in rows), default=0.0)
    if highest <= 0:
        return None
    panel = Panel(Scale(0, len(rows), LEFT, 600), Scale(0, highest * 1.12, 340, 84))
    used = [part for part in WAITS if any(_wait(row, part) > 0.004 * highest for row in rows)]
    key = seen.key("waits")
    parts = [svg.hatch(key, name) for part in used if (name := WAITS[part][1])]
    parts.append(svg.frame(panel, "mean TTFT", lambda value: "0" if value == 0 else tick(value)))
    wide = panel.x(1) - panel.x(0)
    for at, row in enumerate(rows):
        parts.append(_stack(row, used, panel.x(at) + wide * 0.14, wide * 0.72, panel.y, key))
        if wide >= 22 or at % math.ceil(22 / wide) == 0:
            parts.append(text(panel.x(at + 0.5), 357, row.concurrency, "soft", "middle"))
    for at, part in enumerate(reversed(used)):
        parts.append(svg.legend(612, 100 + 22 * at, [(_fill(part, key), METRICS[f"wait_{part}_s"].title)]))
    parts.append(text(panel.middle, 376, C_AXIS, "soft", "middle"))
    told = "The mean time to the first token of answered requests, by what the engine did while they waited."
    return seen.figure("waits", _waits_title(seen), told, 388, *parts)


def _wait(row: LevelRow, part: str) -> float:
    value = getattr(row, f"wait_{part}_s") or 0.0
    return float(value) if math.isfinite(value) else 0.0


def _fill(part: str, key: str) -> str:
    class_, pattern = WAITS[part]
    return svg.swatch(class_, *([f"url(#{key}-{pattern})"] if pattern else []))


def _waits_title(seen: Seen) -> str:
    shares, binding, compared = (seen.verdict.get(name) for name in ("shares", "binding", "compared"))
    if not shares or not binding or not compared:
        return "What the time to the first token was spent on"
    part = f"{shares[binding] * 100:.0f} % of the added wait"
    return f"From {compared[0]} to {compared[1]} sessions {part} goes to {SPENT.get(binding, binding)}"


def _stack(row: LevelRow, used: Sequence[str], x: float, wide: float, up: Scale, key: str) -> str:
    heights = [_wait(row, part) for part in used]
    parts = []
    for part, (below, above) in zip(used, pairwise(accumulate(heights, initial=0.0)), strict=True):
        high = up(max(0.0, below)) - up(max(0.0, above))
        if high <= 0:
            continue
        class_, pattern = WAITS[part]
        said = f"{METRICS[f'wait_{part}_s'].title} {seconds(above - below)} of {seconds(sum(heights))}"
        tip = f"C = {row.concurrency} \u00b7 {said}"
        over = box(x, up(above), wide, high, fill=f"url(#{key}-{pattern})") if pattern else ""
        parts.append(svg.touchable(tip, box(x, up(above), wide, high, class_), over, **data_of(row)))
    said = seconds(sum(heights))
    if wide >= len(said) * svg.CHARACTER * 0.75:
        parts.append(text(x + wide / 2, up(sum(heights)) - 6, said, None, "middle"))
    return "".join(parts)


PICTURES: dict[str, Callable[[Seen], str | None]] = {
    "curve": curve,
    "band": band,
    "memory": memory,
    "luck": luck,
    "timeline": timeline,
    "server": server,
    "waits": waits,
}
