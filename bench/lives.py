"""Pictures of sessions and requests, one by one: who fits into the cache, who pays, and when it happens."""

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from bench import capacity, stats, svg
from bench.records import TurnRecord
from bench.scene import LEFT, Data, Seen, at_level, data_of, part_of, tick
from bench.stats import LevelRow, seconds, share, tokens
from bench.svg import Scale, box, line, text

BARS = 600  # as many requests as a timeline can show apart
CROSSES = 600  # and as many as a row of pixels can
CELLS = 300  # and as many sessions as a bar can
DASH = "\N{EN DASH}"
# What a request lost, more than so many tokens: an unlucky one has lost more than stats.UNLUCKY_TOKENS.
LOSS = (
    (-1, "nothing"),
    (0, "up to 1K"),
    (stats.UNLUCKY_TOKENS, "1K to 4K"),
    (4_000, "4K to 12K"),
    (12_000, "over 12K"),
)


def memory(seen: Seen) -> str | None:
    """Where do the tokens come from, and how many sessions do they hold?"""
    held, typical = seen.tokens, seen.run["typical"]
    shared, each = float(typical["shared_tokens"]), float(typical["own_tokens"] + typical["output_tokens"])
    if not held or each <= 0:
        return None
    size = part_of(seen.facts, "capacity")
    steps = list(_memory_steps(size))
    top = 84.0 + (30 * len(steps) + 56 if steps else 0)
    fit = capacity.fit(held, shared, each)
    parts = [svg.hatch(seen.key("memory"), "rising"), _waterfall(steps, size, held, 66.0) if steps else ""]
    parts.append(_cells(seen, held, shared, each, top))
    told = f"{held:,} tokens of KV cache, less {shared:,.0f} of the prompt that all share,"
    told += f" at {each:,.0f} a session at its deepest."
    return seen.figure("memory", f"{fit:.1f} sessions fit into the KV cache", told, top + 92, *parts)


def _memory_steps(size: Mapping[str, Any]) -> Iterator[tuple[str, float, float, str]]:
    """Name, from, to in GB, and colour."""
    names = ("memory_gb", "usable_gb", "weights_gb", "other_gb", "pool_gb", "bytes_per_token")
    if any(size.get(name) is None for name in names):
        return
    whole, usable, weights, other, pool = (float(size[name]) for name in names[:5])
    yield "memory of the card", 0.0, whole, "r0"
    yield "kept free (utilization)", usable, whole, "ghost"
    yield "weights", usable - weights, usable, "a"
    yield "activations and other", usable - weights - other, usable - weights, "e"
    yield "KV cache", 0.0, pool, "r2"


def _waterfall(steps: Sequence[tuple[str, float, float, str]], size: Mapping[str, Any], held: int, top: float) -> str:
    scale = Scale(0, steps[0][2], 190, 670)
    parts = []
    for at, (words, begin, end, class_) in enumerate(steps):
        y = top + 30 * at
        parts.append(text(182, y + 15, words, None, "end"))
        parts.append(box(scale(begin), y, max(1.0, scale(end) - scale(begin)), 20, class_))
        sign = "" if begin == 0 else "\N{MINUS SIGN}"
        parts.append(text(scale(end) + 6, y + 15, f"{sign}{end - begin:.1f} GB", "soft"))
        if at + 1 < len(steps):
            x = scale(begin if begin > 0 else end)
            parts.append(line(x, y + 20, x, y + 30, "axis"))
    each, expected = size["bytes_per_token"], size.get("tokens")
    y = top + 30 * len(steps) + 15
    sum_of = f"at {each:,.0f} bytes a token: "
    sum_of += f"{expected:,} tokens by arithmetic, {held:,} by the server" if expected else f"{held:,} by the server"
    off = f" ({(expected - held) / held:+.1%} off)" if expected else ""
    return "".join([*parts, text(190, y, sum_of + off)])


def _cells(seen: Seen, held: int, shared: float, each: float, top: float) -> str:
    """The cache as a bar, filled by the shared prompt and by whole sessions; the first that does not fit as a ghost."""
    fit = capacity.fit(held, shared, each)
    whole = min(math.floor(fit), CELLS)
    ghost = shared + (whole + 1) * each
    scale = Scale(0, max(held, min(ghost, held * 1.3)) * 1.01, 24, 736)
    high, parts = 40.0, []
    wide = scale(min(shared, held)) - scale(0)
    tip = f"shared prompt \u00b7 {shared:,.0f} tokens, held once for all sessions"
    hatched = box(scale(0), top, wide, high, fill=f"url(#{seen.key('memory')}-rising)")
    parts.append(svg.touchable(tip, box(scale(0), top, wide, high, "s edge"), hatched))
    for at in range(whole):
        x, width = scale(shared + at * each), scale(each) - scale(0)
        name = text(x + width / 2, top + 25, at + 1, "in", "middle") if width >= 18 else ""
        tip = f"session {at + 1} \u00b7 {each:,.0f} tokens at its deepest"
        parts.append(svg.touchable(tip, box(x, top, width, high, f"t{at % 2} edge"), name, tabindex=None))
    x, edge = scale(min(shared + whole * each, held)), scale(held)
    last = edge if whole == CELLS else scale(min(ghost, scale.high))
    parts.append(box(x, top + 0.5, last - x, high - 1, "ghost" if whole < CELLS else "t0"))
    parts.append(line(edge, top - 8, edge, top + high + 8, "wall"))
    parts.append(text(edge + 4, top - 12, f"KV cache: {held:,} tokens", "strong", "end"))
    parts.append(text(24, top + high + 18, f"shared prompt, {tokens(shared)}", "soft"))
    over = f"session {whole + 1} no longer fits"
    parts.append(text(736, top + high + 18, over if whole < CELLS else f"{fit:.0f} sessions", "soft", "end"))
    return "".join(parts)


def luck(seen: Seen) -> str | None:
    """Who pays? TTFT of those who kept their history as steps, of those who lost it a cross each."""
    rows = [row for row in seen.case("realistic") if row.unlucky is not None]
    cohorts = [_cohorts(seen.turns.get(row.concurrency, ())) for row in rows]
    values = [ttft for kept, gone, _ in cohorts for ttft in (*kept, *gone)]
    if not values:
        return None
    high = 46.0 if len(rows) <= 14 else 30.0
    bottom = 102.0 + high * len(rows)
    across = Scale(min(values) / 1.2, max(values) * 1.2, 74, 600, log=True)
    parts = [line(across(value), 88, across(value), bottom, "grid") for value in across.ticks()]
    parts += [text(across(value), bottom + 19, tick(value), "soft", "middle") for value in across.ticks()]
    parts += [line(74, bottom, 600, bottom, "axis"), text(337, bottom + 37, "TTFT (log scale)", "soft", "middle")]
    parts += [text(66, 82, "C", "strong", "end"), text(612, 82, "lost their history", "strong")]
    for at, (row, cohort) in enumerate(zip(rows, cohorts, strict=True)):
        parts.append(_strip(across, 92 + high * (at + 1) - 14, high - 18, row, cohort))
    steps = svg.tag("path", d="M-12 6V2H-6V-4H0V-7H6V0H12V6Z", class_="t1")
    signs = [
        (steps, "how many kept their history, at each TTFT"),
        (svg.shape(0, 0, "cross", "c line"), "a request that lost more than 1,000 tokens of it"),
    ]
    parts.append(svg.legend(8, 64, signs))
    told = "Answered requests by their time to the first token, a row a level; its steps on a scale of its own."
    if any(len(gone) > CROSSES for _, gone, _ in cohorts):  # there is room for one line
        told = "Answered requests by TTFT, a row a level; its steps on a scale of its own"
        told += f"; of over {CROSSES} crosses one a pixel is drawn."
    return seen.figure("luck", _luck_title(seen, rows), told, bottom + 50, *parts)


def _luck_title(seen: Seen, rows: Sequence[LevelRow]) -> str:
    row = (at_level(rows, seen.knee[1]) if seen.knee else None) or next((row for row in rows if row.unlucky), None)
    if row is None or not row.unlucky:
        return "Nobody lost their history at any level"
    title = f"At {row.concurrency} sessions {row.unlucky} of {row.requests} lost their history"
    if row.lucky_p50_s is None or row.unlucky_p50_s is None:
        return title
    return f"{title}: p50 {seconds(row.unlucky_p50_s)}, the others' {seconds(row.lucky_p50_s)}"


Cohorts = tuple[list[float], list[float], int]


def _cohorts(turns: Iterable[TurnRecord]) -> Cohorts:
    """TTFT of those who kept their history, of those who lost it, and how many were not answered."""
    kept: list[float] = []
    gone: list[float] = []
    failed = 0
    for record in turns:
        ttft = record.ttft_s
        if ttft is None:
            failed += 1
        elif 0 < ttft < math.inf:
            (gone if stats.is_unlucky(record) else kept).append(ttft)
    return kept, gone, failed


def _strip(across: Scale, y: float, high: float, row: LevelRow, cohorts: Cohorts) -> str:
    kept, gone, failed = cohorts
    unlucky = row.unlucky or 0
    tip = f"C = {row.concurrency} \u00b7 {unlucky} of {row.requests} requests lost their history"
    tip += "".join(f", p50 {seconds(p50)}" for p50 in [row.unlucky_p50_s] if p50 is not None)
    tip += "".join(f"; p50 of the others {seconds(p50)}" for p50 in [row.lucky_p50_s] if p50 is not None)
    places = across.each(gone) if len(gone) <= CROSSES else sorted(set(map(round, across.each(gone))))
    crosses = "".join(f"M{svg.number(x - 3)} {svg.number(y + 3)}l6 7m0-7l-6 7" for x in places)
    inner = [box(across.start, y - high, across.end - across.start, high + 12, "hit"), _steps(across, kept, y, high)]
    inner.append(svg.tag("path", d=crosses, class_="c line", stroke_width="1.5") if gone else "")
    said = f"{unlucky} of {row.requests} \u00b7 {share(unlucky / row.requests)}" if unlucky else "none"
    tip += f"; {failed} not answered" if failed else ""
    return "".join([
        line(across.start, y, across.end, y, "axis"),
        text(66, y + 1, row.concurrency, "strong" if unlucky else None, "end"),
        svg.touchable(tip, *inner, **data_of(row)),
        text(612, y + 1, said, "c strong" if unlucky else "soft"),
        text(612, y + 14, f"{failed} not answered") if failed else "",
    ])  # fmt: skip


def _steps(across: Scale, values: Sequence[float], y: float, high: float) -> str:
    """A histogram in bins of six pixels."""
    if not values:
        return ""
    bins = Counter(int((x - across.start) / 6) for x in across.each(values))
    most = max(bins.values())
    up = {at: svg.number(high * n / most) for at, n in sorted(bins.items())}
    path = "".join(f"M{svg.number(across.start + 6 * at)} {svg.number(y)}v-{n}h6v{n}z" for at, n in up.items())
    return svg.tag("path", d=path, class_="t1")


def timeline(seen: Seen) -> str | None:
    """When does it happen? A row a session, a bar a request, coloured by the history it lost."""
    levels = [level for level in seen.knee or [seen.verdict.get("highest")] if level and level in seen.turns]
    plays = {level: _few(seen.turns[level], BARS // len(levels)) for level in levels}
    if not plays:
        return None
    longest = max(stats.lasted(turns) for turns, _ in plays.values())
    across, top = Scale(0, longest or 1.0, LEFT, 744), 112.0
    parts = []
    for level, (turns, every) in plays.items():
        drawn, top = _bars(turns, every, level, seen.variant, across, top)
        parts.append(drawn)
    parts.append(text((across.start + across.end) / 2, top - 26, "seconds since the level began", "soft", "middle"))
    turns = [record for play, _ in plays.values() for record in play]
    told = "A row a session, a bar a request: thick until its first token, thin while it answers; the thick part"
    told += " coloured by the tokens of history it had lost."
    parts.append(svg.legend(8, 76, _loss_signs(turns)))
    return seen.figure("timeline", _timeline_title(plays), told, top - 12, *parts)


Play = tuple[list[TurnRecord], int]


def _few(turns: Sequence[TurnRecord], most: int) -> Play:
    """Of the first repeat, every nth session: whole ones, for eviction comes late in them."""
    first = min(record.repeat for record in turns)
    sessions = stats.by_session(sorted((r for r in turns if r.repeat == first), key=lambda r: r.sent_s))
    every = max(1, math.ceil(sum(map(len, sessions)) / most))
    return [record for session in sessions[::every] for record in session], every


def _timeline_title(plays: Mapping[int, Play]) -> str:
    level, (turns, every) = list(plays.items())[-1]
    hit = [record for record in turns if stats.is_unlucky(record)]
    if not hit or every > 1:
        return "Each request in its time, by the history it had lost"
    first = min(hit, key=lambda record: record.sent_s)
    after = first.sent_s - min(record.sent_s for record in turns)
    return f"At {level} sessions the first to lose its history was sent after {after:.1f} s, at turn {first.turn}"


def _loss_class(record: TurnRecord) -> str:
    """On the scale of LOSS; what was not told is not on it."""
    lost = record.lost_tokens
    return "soft" if lost is None else f"r{bisect_left([least for least, _ in LOSS], lost) - 1}"


def _loss_signs(turns: Iterable[TurnRecord]) -> Iterator[tuple[str, str]]:
    known = {record.lost_tokens is not None for record in turns}
    if True in known:
        for at, (_, words) in enumerate(LOSS):
            yield svg.swatch(f"r{at}"), f"lost {words}" if at == 0 else words
    if False in known:
        yield svg.swatch("soft"), "not told"


def _bars(
    turns: Sequence[TurnRecord], every: int, level: int, variant: str, across: Scale, top: float
) -> tuple[str, float]:
    """One level; and where the next may begin."""
    start = min(record.sent_s for record in turns)
    places = {session: at for at, session in enumerate(dict.fromkeys(record.session for record in turns))}
    high = min(12.0, max(3.0, 280 / len(places)))
    bottom = top + high * len(places) + 3
    shown = f"one session in {every}" if every % 10 in (1, 2, 3) else f"every {every}th session"
    some = "" if every == 1 else f", {shown} shown"
    parts = [text(LEFT, top - 8, f"C = {level}{some}", "strong"), text(LEFT - 8, top - 8, "session", "soft", "end")]
    parts += [line(across(value), top, across(value), bottom, "grid") for value in across.ticks()]
    parts += [text(across(value), bottom + 16, f"{value:g}", "soft", "middle") for value in across.ticks()]
    apart = math.ceil(13 / high)
    named = [(session, top + high * (at + 0.5) + 4) for session, at in places.items() if at % apart == 0]
    parts += [text(LEFT - 8, y, session, "soft", "end") for session, y in named]
    bars = [_bar(record, across, start, top + high * places[record.session], high) for record in turns]
    data: Data = {"data_level": level, "data_variant": variant, "data_case": "realistic"}
    parts += [svg.tag("g", *bars, **data), line(across.start, bottom, across.end, bottom, "axis")]
    return "".join(parts), bottom + 58


def _bar(record: TurnRecord, across: Scale, start: float, y: float, high: float) -> str:
    begin, end = across(record.sent_s - start), across(max(record.end_s, record.sent_s) - start)
    first = end if record.ttft_s is None or record.first_s is None else across(record.first_s - start)
    took = record.status if record.ttft_s is None else f"TTFT {seconds(record.ttft_s)}"
    lost = "" if record.lost_tokens is None else f", lost {record.lost_tokens:,} tokens"
    tip = f"C = {record.concurrency} \u00b7 session {record.session}, turn {record.turn} \u00b7 {took}{lost}"
    wait = box(begin, y + 0.5, max(1.0, first - begin), high - 1, _loss_class(record))
    rest = box(first, y + high / 2 - 0.75, max(0.0, end - first), 1.5, "thread")
    cross = svg.shape(end, y + high / 2, "cross", "ink line") if record.ttft_s is None else ""
    return svg.touchable(tip, rest, wait, cross, tabindex=None)
