"""Two sides become a difference or none: level by level, over all levels, and how large it would have had to be.

One play of a level (one run, one repeat) is one observation, for whatever moves a run moves all its sessions at once:
identical runs differ by more than the resampling of their sessions says. How far they do is estimated from the plays at
hand together with what was seen before (DRIFT, which weighs as much as PRIOR_RUNS runs): so one run a side gets an
honest, wide interval, and each further run a narrower one. All on the logarithm: a change is a factor.

What is judged first, and alone makes the headline, was chosen beforehand: median, tail and throughput, each averaged
over all levels of the sessions, Holm's correction over the three. Levels get their own findings under Holm's over all.
"""

import json
import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from bench import sample, stats
from bench.errors import BenchError
from bench.records import TurnRecord
from bench.stats import METRICS, PERCENTILES

# The sd of a logarithm between identical runs, sampling apart: 84 of them, on two shared cores, with levels of 2 s.
DRIFT = {"ttft_p50_s": 0.06, "ttft_p95_s": 0.06, "ttft_p99_s": 0.06, "req_per_s": 0.04}
PRIOR_RUNS = 4.0
RELEVANT = 0.02  # a change that is smaller matters to nobody, however sure it is
ALPHA = 0.05
POWER = 0.80
HEADLINES = {
    "median TTFT": ("ttft_p50_s",),
    "tail TTFT (p95, p99)": ("ttft_p95_s", "ttft_p99_s"),
    "req/s": ("req_per_s",),
}

Judged = Literal["slower", "faster", "no difference found"]
Place = tuple[str, str, int]  # variant, case, concurrency


@dataclass(frozen=True, slots=True)
class Play:
    """One level of one run: all of it that a comparison needs."""

    variant: str
    case: str
    concurrency: int
    repeat: int
    sessions: tuple[tuple[float, ...], ...]  # TTFT, turn by turn; infinite where it failed
    req_per_s: float | None

    @property
    def place(self) -> Place:
        return self.variant, self.case, self.concurrency


@dataclass(frozen=True, slots=True)
class Side:
    """One run."""

    name: str
    plays: tuple[Play, ...]
    knees: Mapping[str, Sequence[int] | None]  # by variant
    ceilings: Mapping[str, int | None]
    sure: Mapping[str, tuple[float | None, float | None]]  # of knee and ceiling
    conditions: Mapping[str, str]  # what has to be equal for numbers to be comparable
    valid: bool
    imported: str | None  # the tool whose result it is, where it is not ours
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Finding:
    what: str  # a level, or all of them
    metric: str
    a: float | None
    b: float | None
    change: float | None  # b / a - 1
    low: float | None  # 95 % interval of it
    high: float | None
    judged: Judged
    could_have_seen: float | None
    p: float


@dataclass(frozen=True, slots=True)
class Comparison:
    headline: Literal["regression", "improvement", "mixed", "no difference found"]
    overall: tuple[Finding, ...]
    levels: tuple[Finding, ...]
    brackets: tuple[str, ...]  # knees and ceilings, in words
    notes: tuple[str, ...]


def plays(records: Sequence[TurnRecord]) -> tuple[Play, ...]:
    levels: dict[tuple[Place, int], list[TurnRecord]] = {}
    for record in records:
        if record.turn > 0:
            place = (record.variant, record.case, record.concurrency)
            levels.setdefault((place, record.repeat), []).append(record)
    return tuple(
        Play(
            *place,
            repeat,
            tuple(tuple(stats.ttft(record) for record in session) for session in stats.by_session(turns)),
            stats.throughput(turns),
        )
        for (place, repeat), turns in levels.items()
    )


def to_json(found: Sequence[Play]) -> str:
    """What a published run keeps instead of its requests; a failure is null."""
    told = [
        {**asdict(play), "sessions": [[None if math.isinf(v) else v for v in s] for s in play.sessions]}
        for play in found
    ]
    return json.dumps(told, separators=(",", ":")) + "\n"


def from_json(text: str) -> tuple[Play, ...]:
    told: list[dict[str, Any]] = json.loads(text)
    whole = [tuple(tuple(math.inf if v is None else v for v in s) for s in one["sessions"]) for one in told]
    return tuple(Play(**{**one, "sessions": sessions}) for one, sessions in zip(told, whole, strict=True))


# --- numbers ---


@dataclass(frozen=True, slots=True)
class Seen:
    """One metric of one level on one side: its logarithm in each play, and its variance by resampling sessions."""

    logs: tuple[float, ...]
    variance: float

    @property
    def mean(self) -> float:
        return float(np.mean(self.logs))


def _seen(found: Sequence[Play], metric: str) -> Seen | None:
    values = [value for play in found if (value := _value(play, metric)) is not None and value > 0]
    if not values:
        return None
    return Seen(
        tuple(math.log(value) for value in values), float(np.mean([_resampled(play, metric) for play in found]))
    )


def _value(play: Play, metric: str) -> float | None:
    if metric == "req_per_s":
        return play.req_per_s
    return sample.percentile([value for session in play.sessions for value in session], _share(metric))


def _share(metric: str) -> float:
    return PERCENTILES[metric.split("_")[1]]


def _resampled(play: Play, metric: str) -> float:
    """Throughput has no sessions of its own: all of its variance is between plays."""
    return 0.0 if metric == "req_per_s" else _variances(play)[metric.split("_")[1]]


@cache
def _variances(play: Play) -> dict[str, float]:
    """Of the logarithms of the percentiles, from drawing sessions anew."""
    if len(play.sessions) < sample.FEW_SESSIONS:
        return dict.fromkeys(PERCENTILES, 0.0)
    drawn = sample.redrawn(play.sessions, list(PERCENTILES.values()))
    columns = [column[np.isfinite(column)] for column in drawn.T]
    return {
        name: float(np.log(column).var()) if len(column) else 0.0
        for name, column in zip(PERCENTILES, columns, strict=True)
    }


@dataclass(frozen=True, slots=True)
class Difference:
    """Of two means of logarithms, with a variance moderated by what was seen before."""

    log: float
    error: float
    freedom: float

    @property
    def p(self) -> float:
        return _beyond(abs(self.log) / self.error, self.freedom)

    @property
    def could_have_seen(self) -> float:
        return math.expm1((_limit(ALPHA, self.freedom) + _limit(2 * (1 - POWER), self.freedom)) * self.error)


def _difference(a: Sequence[float], b: Sequence[float], prior: float) -> Difference:
    own = float(sum(((np.array(side) - np.mean(side)) ** 2).sum() for side in (a, b)))
    known = len(a) + len(b) - 2
    variance = (PRIOR_RUNS * prior + own) / (PRIOR_RUNS + known)
    error = math.sqrt(variance * (1 / len(a) + 1 / len(b)))
    return Difference(float(np.mean(b) - np.mean(a)), error, PRIOR_RUNS + known)


@cache
def _student(freedom: float) -> npt.NDArray[np.float64]:
    """Draws of |t|: its distribution function without a library of special functions."""
    return np.sort(np.abs(np.random.default_rng(0).standard_t(freedom, 400_000)))


def _beyond(t: float, freedom: float) -> float:
    drawn = _student(freedom)
    return float(1 - np.searchsorted(drawn, t) / len(drawn))


def _limit(both_sides: float, freedom: float) -> float:
    return float(np.quantile(_student(freedom), 1 - both_sides))


def _holm(ps: Sequence[float]) -> list[float]:
    """Each p times what is left to be tested, never falling."""
    adjusted, highest = [0.0] * len(ps), 0.0
    for rank, at in enumerate(sorted(range(len(ps)), key=lambda at: ps[at])):
        highest = max(highest, min(1.0, ps[at] * (len(ps) - rank)))
        adjusted[at] = highest
    return adjusted


def _judge(change: float, p: float, metric: str) -> Judged:
    if p > ALPHA or abs(change) < RELEVANT:
        return "no difference found"
    return "slower" if (change > 0) == (METRICS[metric].better == "less") else "faster"


# --- the comparison ---


def compare(a: Sequence[Side], b: Sequence[Side]) -> Comparison:
    before, after = _by_place(a), _by_place(b)
    shared = [place for place in before if place in after]
    if not shared:
        hint = "both need a level of the same variant, case and number of sessions"
        raise BenchError("the two sides have no level in common", hint)
    overall = _overall([place for place in shared if place[1] == "realistic"] or shared, before, after)
    levels, brackets = _levels(shared, before, after), list(_brackets(a, b))
    failing = {finding.judged for finding in levels if finding.change is None}  # one side has failures for a number
    verdicts = {finding.judged for finding in overall} | {judged for _, judged in brackets} | failing
    headline: dict[tuple[bool, bool], Any] = {
        (True, False): "regression",
        (False, True): "improvement",
        (True, True): "mixed",
    }
    return Comparison(
        headline.get(("slower" in verdicts, "faster" in verdicts), "no difference found"),
        tuple(overall),
        tuple(levels),
        tuple(text for text, _ in brackets),
        tuple(_notes(a, b, len(shared), len(before), len(after))),
    )


def _by_place(sides: Sequence[Side]) -> dict[Place, list[Play]]:
    found: dict[Place, list[Play]] = {}
    for side in sides:
        for play in side.plays:
            found.setdefault(play.place, []).append(play)
    return found


Plays = Mapping[Place, Sequence[Play]]


def _overall(places: Sequence[Place], before: Plays, after: Plays) -> list[Finding]:
    """Each headline over all levels: a play of each level is one run's worth."""
    made = [(name, metrics, _averaged(places, metrics, before, after)) for name, metrics in HEADLINES.items()]
    told = [(name, metrics, difference) for name, metrics, difference in made if difference is not None]
    adjusted = _holm([difference.p for _, _, difference in told])
    return [
        _finding("all levels", metrics[0], None, None, difference, p, name)
        for (name, metrics, difference), p in zip(told, adjusted, strict=True)
    ]


def _averaged(places: Sequence[Place], metrics: Sequence[str], before: Plays, after: Plays) -> Difference | None:
    cells = [
        (_seen(before[place], metric), _seen(after[place], metric), metric) for place in places for metric in metrics
    ]
    good = [(x, y, m) for x, y, m in cells if x and y and math.isfinite(x.mean) and math.isfinite(y.mean)]
    if not good:
        return None
    sides = []
    for at in (0, 1):
        runs = min(len(cell[at].logs) for cell in good)  # type: ignore[union-attr]
        sides.append([float(np.mean([cell[at].logs[run] for cell in good])) for run in range(runs)])  # type: ignore[union-attr]
    sampled = sum(x.variance + y.variance for x, y, _ in good) / 2 / len(good) ** 2
    return _difference(sides[0], sides[1], DRIFT[metrics[0]] ** 2 + sampled)


def _levels(places: Sequence[Place], before: Plays, after: Plays) -> list[Finding]:
    made = []
    for place in places:
        for metric in DRIFT:
            x, y = _seen(before[place], metric), _seen(after[place], metric)
            if x and y:
                made.append((place, metric, x, y))
    differences = [
        _difference(x.logs, y.logs, DRIFT[metric] ** 2 + (x.variance + y.variance) / 2)
        if math.isfinite(x.mean) and math.isfinite(y.mean) else None
        for _, metric, x, y in made
    ]  # fmt: skip
    adjusted = iter(_holm([difference.p for difference in differences if difference]))
    return [
        _finding(
            _told(place), metric, math.exp(x.mean), math.exp(y.mean), difference, next(adjusted) if difference else 0.0
        )
        for (place, metric, x, y), difference in zip(made, differences, strict=True)
    ]


def _told(place: Place) -> str:
    variant, case, concurrency = place
    return f"{variant}, {case}, C = {concurrency}"


def _finding(
    what: str,
    metric: str,
    a: float | None,
    b: float | None,
    found: Difference | None,
    p: float,
    name: str | None = None,
) -> Finding:
    if found is None:  # a percentile made of failures, on one side at least
        assert a is not None
        assert b is not None
        judged: Judged = "no difference found" if a == b else "slower" if math.isinf(b) else "faster"
        return Finding(what, name or _title(metric), a, b, None, None, None, judged, None, 0.0 if a != b else 1.0)
    wide = _limit(ALPHA, found.freedom) * found.error
    change = math.expm1(found.log)
    return Finding(
        what, name or _title(metric), a, b, change, math.expm1(found.log - wide), math.expm1(found.log + wide),
        _judge(change, p, metric), found.could_have_seen, p,
    )  # fmt: skip


def _title(metric: str) -> str:
    return f"TTFT {metric.split('_')[1]}" if metric.startswith("ttft") else METRICS[metric].title


def _brackets(a: Sequence[Side], b: Sequence[Side]) -> Iterator[tuple[str, Judged]]:
    """Knee and ceiling: moved only if both sides are sure of theirs."""
    shared = [
        name for name in dict.fromkeys(n for side in a for n in side.knees) if all(name in s.knees for s in (*a, *b))
    ]
    for variant in shared:
        knees = ([_lowest(side.knees[variant]) for side in sides] for sides in (a, b))
        yield _moved(f"{variant}: knee", *knees, *([side.sure[variant][0] for side in sides] for sides in (a, b)))
        ceilings = ([side.ceilings[variant] for side in sides] for sides in (a, b))
        yield _moved(f"{variant}: ceiling", *ceilings, *([side.sure[variant][1] for side in sides] for sides in (a, b)))


def _lowest(knee: Sequence[int] | None) -> int | None:
    return knee[0] if knee else None


Sure = Sequence[float | None]


def _moved(
    what: str, a: Sequence[int | None], b: Sequence[int | None], sure_a: Sure, sure_b: Sure
) -> tuple[str, Judged]:
    """All runs of a side have to agree, and it must be unlikely that all of them are wrong."""
    told = f"{what}: {_among(a)} before, {_among(b)} after"
    same, apart = set(a) == set(b), len(set(a)) == 1 and len(set(b)) == 1
    if same or not apart or a[0] is None or b[0] is None:
        return (
            f"{told}: {'the same' if same else 'no difference found, the runs of a side do not agree'}",
            "no difference found",
        )
    doubt = math.prod(1 - (s or 0) for s in sure_a) + math.prod(1 - (s or 0) for s in sure_b)
    if doubt > ALPHA:
        return f"{told}: no difference found, {doubt:.0%} likely to be chance", "no difference found"
    judged: Judged = "slower" if b[0] < a[0] else "faster"
    return f"{told}: {'fewer' if judged == 'slower' else 'more'} sessions", judged


def _among(values: Sequence[int | None]) -> str:
    return " or ".join("none" if value is None else str(value) for value in dict.fromkeys(values))


def _notes(a: Sequence[Side], b: Sequence[Side], shared: int, before: int, after: int) -> Iterator[str]:
    for name in dict.fromkeys(key for side in (*a, *b) for key in side.conditions):
        first, second = (dict.fromkeys(side.conditions.get(name, "not told") for side in sides) for sides in (a, b))
        if list(first) != list(second) or len(first) > 1:
            yield f"NOT THE SAME {name}: {', '.join(first)} before, {', '.join(second)} after"
    for side in (*a, *b):
        if side.imported:
            yield f"{side.name}: imported from {side.imported}, not checked"
            yield from (f"{side.name}: {note}" for note in side.notes)
        elif not side.valid:
            yield f"{side.name} is not valid"
    if shared < max(before, after):
        yield f"{shared} levels are in both sides; {before} were in the first, {after} in the second"
    runs = min(len(a), len(b))
    if runs < 3:
        yield (
            f"{runs} {'run' if runs == 1 else 'runs'} on a side: how far identical runs drift apart is assumed "
            f"({DRIFT['ttft_p50_s']:.0%} of TTFT), not measured; three or more, taken in turns, see smaller differences"
        )


# --- words ---


def text(found: Comparison) -> str:
    notes = [textwrap.fill(note, 100, initial_indent="- ", subsequent_indent="  ") for note in found.notes]
    overall = [*map(_line, found.overall), *(f"  {told}" for told in found.brackets)]
    return "\n".join([_headline(found), *notes, "", *overall, "", *_grid(found.levels)])


def _grid(levels: Sequence[Finding]) -> Iterator[str]:
    """A row a level: the change of each number, with its 95 % interval."""
    rows: dict[str, dict[str, Finding]] = {}
    for one in levels:
        rows.setdefault(one.what, {})[one.metric] = one
    metrics = list(dict.fromkeys(one.metric for one in levels))
    yield " " * 24 + "".join(f"{metric:>21}" for metric in metrics)
    for what, cells in rows.items():
        yield f"{what:<24}" + "".join(f"{_short(cells.get(metric)):>21}" for metric in metrics)
    if any(one.judged != "no difference found" for one in levels):
        yield "! slower or faster by more than chance explains, all levels considered"


def _short(one: Finding | None) -> str:
    if one is None:
        return "-"
    mark = "" if one.judged == "no difference found" else "!"
    if one.change is None or one.low is None or one.high is None:
        return f"{mark}{one.judged if mark else 'failed in both'}"
    return f"{mark}{one.change:+.0%} ({one.low:+.0%} {one.high:+.0%})"


def _headline(found: Comparison) -> str:
    told = {
        "regression": "Regression: the second side is slower.",
        "improvement": "Improvement: the second side is faster.",
        "mixed": "Mixed: the second side is slower in one thing and faster in another.",
    }
    least = max((one.could_have_seen or 0 for one in found.overall), default=0)
    return told.get(found.headline, f"No difference found (could have seen ≥ {least:.0%}).")


def _line(one: Finding) -> str:
    return "  " + "  ".join(cell for cell in (f"{one.what:<28}", f"{one.metric:<20}", *_cells(one)) if cell)


def _cells(one: Finding) -> tuple[str, str, str]:
    values = ""
    if one.a is not None and one.b is not None:
        form = METRICS["req_per_s" if one.metric == "req/s" else "ttft_p50_s"].format
        values = f"{form(one.a)} to {form(one.b)}"
    if one.change is None or one.low is None or one.high is None:
        return values, "", one.judged
    seen = f" (could have seen ≥ {one.could_have_seen or 0:.0%})" if one.judged == "no difference found" else ""
    return values, f"{one.change:+.1%} ({one.low:+.1%} to {one.high:+.1%})", one.judged + seen


def markdown(found: Comparison) -> str:
    rows = [f"| {one.what} | {one.metric} | {' | '.join(_cells(one))} |" for one in (*found.overall, *found.levels)]
    head = ["| where | what | values | change (95 % interval) | |", "|---|---|---|---|---|"]
    told = [f"- {text}" for text in (*found.notes, *found.brackets)]
    return "\n".join([_headline(found), "", *told, "", *head, *rows, ""])
