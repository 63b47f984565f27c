"""Two sides become findings: what differs, how sure that is, and what could not have been seen.

How slow a run was is a logarithm: of a percentile of TTFT, or of seconds per answered request. How much that varies by
chance is put together from three parts:
- within a play, its sessions: they are exchanged, whole, with those of the other runs at the same place in the order,
  for if nothing differs then nothing tells whose they are;
- between plays of one level, and between runs, whose sessions share their luck: what identical runs were seen to do
  (PLAY_NOISE, RUN_NOISE);
- what the runs of a side show themselves, as soon as there are several: the more runs, the less is assumed.
A case is tested over all its levels, which a few runs can tell, and then level by level, with Holm's correction.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from bench import sample
from bench.errors import BenchError
from bench.plays import Play
from bench.stats import PERCENTILES

RELEVANT = 0.05  # a smaller change is not called one, however sure it is
# Seen between 84 runs of the same four levels on one server, on two busy cores: plays of a level differed by 4 to 8 %
# more than their sessions explain, and up to 3 % was common to a run. A quiet card does better; several runs show it.
PLAY_NOISE = 0.06
RUN_NOISE = 0.03
PRIOR_RUNS = 8  # what these two weigh against the runs at hand
DRAWS = 200
ERROR = {"cases": 0.04, "levels": 0.01}  # of comparisons of what is the same, at most: slower or faster, anywhere
POWER = 0.80
SURE = 0.9  # of its own knee
HEADLINE_CASE = "realistic"
TESTED = {f"ttft_{name}_s": share for name, share in PERCENTILES.items()}  # and req_per_s, after them
MORE_IS_BETTER = ("req_per_s", "knee", "ceiling")

Verdict = Literal["slower", "faster", "no difference found"]
Headline = Literal["regression", "improvement", "no difference found"]
Floats = npt.NDArray[np.float64]
SAME: Verdict = "no difference found"


@dataclass(frozen=True, slots=True)
class Side:
    """One run; what is compared are one or several on either side."""

    name: str
    plays: tuple[Play, ...]
    knees: Mapping[str, Sequence[float] | None]  # of each variant: the last level before it, the first after
    ceilings: Mapping[str, int | None]
    sure: Mapping[str, tuple[float | None, float | None]]  # of knee and ceiling
    conditions: Mapping[str, str]  # what has to be equal for numbers to be comparable
    valid: bool
    imported: str | None  # the tool whose result it is, where it is not ours
    notes: tuple[str, ...] = ()  # on how that was read
    simulated: bool = False


@dataclass(frozen=True, slots=True)
class Finding:
    variant: str
    case: str
    concurrency: int | None  # None: over all levels
    metric: str
    a: float | None = None
    b: float | None = None
    change: float | None = None  # b / a - 1
    low: float | None = None  # 95 % interval of the change, for this finding alone
    high: float | None = None
    verdict: Verdict = SAME
    could_have_seen: float | None = None  # the smallest slowdown that four of five such comparisons would find
    p: float | None = None  # for this finding alone; None where nothing was tested, or chance is no explanation


@dataclass(frozen=True, slots=True)
class Comparison:
    a: tuple[str, ...]
    b: tuple[str, ...]
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]

    @property
    def headline(self) -> Headline:
        verdicts = {finding.verdict for finding in self.findings}
        if "slower" in verdicts:
            return "regression"
        return "improvement" if "faster" in verdicts else "no difference found"


# --- what is compared with what ---

Level = tuple[str, int]  # case and concurrency
Levels = dict[Level, list[Play]]  # of one run, the repeats of a level together


@dataclass(frozen=True, slots=True)
class Pair:
    """One variant on both sides, run by run."""

    before: str
    after: str
    a: tuple[Levels, ...]
    b: tuple[Levels, ...]

    @property
    def variant(self) -> str:
        return self.before if self.before == self.after else f"{self.before} to {self.after}"

    @property
    def levels(self) -> list[Level]:
        """Those that both sides have, in the order in which they were played."""
        other = {level for run in self.b for level in run}
        return [level for level in dict.fromkeys(level for run in self.a for level in run) if level in other]

    @property
    def headlines(self) -> list[str]:
        """The cases that are tested over all their levels: chosen beforehand."""
        cases = list(dict.fromkeys(case for case, _ in self.levels))
        return [HEADLINE_CASE] if HEADLINE_CASE in cases else cases

    def shared(self, case: str) -> list[Level]:
        """The levels of a case that no run lacks."""
        return [at for at in self.levels if at[0] == case and all(at in run for run in (*self.a, *self.b))]


def _pairs(a: Sequence[Side], b: Sequence[Side]) -> list[Pair]:
    names = [list(dict.fromkeys(play.variant for side in sides for play in side.plays)) for sides in (a, b)]
    both = [(name, name) for name in names[0] if name in names[1]]
    if not both and len(names[0]) == len(names[1]) == 1:
        both = [(names[0][0], names[1][0])]  # one precision against another is a fair question
    pairs = [Pair(before, after, _runs(a, before), _runs(b, after)) for before, after in both]
    return [pair for pair in pairs if pair.levels]


def _runs(sides: Sequence[Side], variant: str) -> tuple[Levels, ...]:
    runs: list[Levels] = []
    for side in sides:
        runs.append({})
        for play in side.plays:
            if play.variant == variant:
                runs[-1].setdefault((play.case, play.concurrency), []).append(play)
    return tuple(run for run in runs if run)


# --- measuring ---


@dataclass(frozen=True, slots=True)
class Contrast:
    """One number on both sides: the log of how slow each run was, and how much one run is assumed to vary."""

    blank: Finding
    a: Floats
    b: Floats
    noise: float  # variance

    @property
    def effect(self) -> float:
        return float(self.b.mean() - self.a.mean())

    @property
    def known(self) -> bool:
        return bool(np.isfinite(self.a).all() and np.isfinite(self.b).all())

    @property
    def freedom(self) -> int:
        return PRIOR_RUNS + len(self.a) + len(self.b) - 2

    @property
    def error(self) -> float:
        """Of the effect: what was assumed, outvoted by what the runs show."""
        seen = sum(float(((side - side.mean()) ** 2).sum()) for side in (self.a, self.b))
        variance = (PRIOR_RUNS * self.noise + seen) / self.freedom
        return math.sqrt(variance * (1 / len(self.a) + 1 / len(self.b)))


def _level(pair: Pair, level: Level) -> dict[str, Contrast]:
    runs = [[run[level] for run in side if level in run] for side in (pair.a, pair.b)]
    slow = [np.array([_slowness(run) for run in side]) for side in runs]
    noise = _within([*runs[0], *runs[1]]) + PLAY_NOISE**2 + RUN_NOISE**2
    found = {}
    for at, metric in enumerate([*TESTED, "req_per_s"]):
        a, b = (side[:, at] for side in slow)
        if not np.isnan([*a, *b]).any():
            shown = [float(np.exp(_sign(metric) * side.mean())) for side in (a, b)]
            blank = Finding(pair.variant, *level, metric, shown[0], shown[1])
            found[metric] = Contrast(blank, a, b, float(noise[at]))
    return found


def _sign(metric: str) -> int:
    return -1 if metric in MORE_IS_BETTER else 1


def _slowness(run: Sequence[Play]) -> list[float]:
    """The log of each tested metric, larger where it is slower; nan where it was not measured."""
    values = [ttft for play in run for session in play.sessions for ttft in session]
    tail = [_log(sample.percentile(values, share)) for share in TESTED.values()]
    return [*tail, -_log(_answered(run))]


def _log(value: float | None) -> float:
    return math.nan if value is None else math.log(value) if value > 0 else -math.inf


def _answered(run: Sequence[Play]) -> float | None:
    """Requests a second of all repeats, over the time of all of them."""
    good = [sum(math.isfinite(ttft) for session in play.sessions for ttft in session) for play in run]
    times = [count / play.req_per_s for count, play in zip(good, run, strict=True) if play.req_per_s]
    if not any(good):
        return 0.0
    return sum(good) / sum(times) if len(times) == len(run) else None


def _within(runs: Sequence[Sequence[Play]]) -> Floats:
    """Variance of a run with its sessions: exchanged between the runs, whole, each at its own place in the order.

    So what the order explains, as the depth and size that a workload gives to a session, is not taken for chance.
    Answered requests a second are sessions over the time of a turn: they vary no more than the mean TTFT.
    """
    table, rng = _table(runs), np.random.default_rng(0)
    variances = []
    for _ in range(DRAWS):
        whose = rng.random(table.shape[:2]).argsort(axis=0)
        exchanged = np.take_along_axis(table, whose[..., None], axis=0)
        variances.append(_logs(exchanged.reshape(len(table), -1)).var(axis=0, ddof=1))
    found: Floats = np.mean(variances, axis=0)
    return found


def _table(runs: Sequence[Sequence[Play]]) -> Floats:
    """Run x session x turn; nan where there is none, and a failure slower than any answer, but a number."""
    sessions = [[session for play in run for session in play.sessions] for run in runs]
    widest = max(len(session) for run in sessions for session in run)
    table = np.full((len(runs), max(map(len, sessions)), widest), np.nan)
    for at, run in enumerate(sessions):
        for place, session in enumerate(run):
            table[at, place, : len(session)] = session
    table[np.isinf(table)] = 10 * (np.max(table, where=np.isfinite(table), initial=0.0) or 1.0)
    return table


def _logs(runs: Floats) -> Floats:
    """What `_slowness` says of them, a row a run, with the mean in the place of the rate."""
    ordered = np.sort(runs, axis=1)  # nan to the end
    counts = (~np.isnan(ordered)).sum(axis=1)
    at = np.outer(np.maximum(counts - 1, 0), list(TESTED.values()))
    low = np.take_along_axis(ordered, np.floor(at).astype(int), axis=1)
    high = np.take_along_axis(ordered, np.ceil(at).astype(int), axis=1)
    means = np.nansum(ordered, axis=1) / np.maximum(counts, 1)
    found: Floats = np.log(np.nan_to_num(np.column_stack([low + (high - low) * (at % 1), means])).clip(min=1e-9))
    return found


def _over_levels(pair: Pair, case: str, levels: Mapping[Level, Mapping[str, Contrast]]) -> Iterator[Contrast]:
    """A case as one number a run: the mean over its levels, of which those count most that vary least."""
    for metric in [*TESTED, "req_per_s"]:
        measured = [levels[level][metric] for level in pair.shared(case) if metric in levels[level]]
        if len(parts := [part for part in measured if part.known]) > 1:
            noise = np.array([part.noise - RUN_NOISE**2 for part in parts])
            weights = 1 / noise / (1 / noise).sum()
            a, b = (np.array([getattr(part, side) for part in parts]).T @ weights for side in ("a", "b"))
            yield Contrast(
                Finding(pair.variant, case, None, metric), a, b, float((weights**2 * noise).sum() + RUN_NOISE**2)
            )


# --- judging ---


def compare(a: Sequence[Side], b: Sequence[Side]) -> Comparison:
    pairs = _comparable(a, b)
    cases: list[Contrast] = []
    levels: list[Contrast] = []
    failures: list[Finding] = []
    for pair in pairs:
        measured = {level: _level(pair, level) for level in pair.levels}
        levels += [contrast for level in measured.values() for contrast in level.values()]
        for case in pair.headlines:
            cases += _over_levels(pair, case, measured)
            failures += _failures(pair, case)
    findings = [
        *_limits(a, b, pairs),
        *_judged(cases, failures, ERROR["cases"]),
        *_judged(levels, [], ERROR["levels"]),
    ]
    return Comparison(_names(a), _names(b), tuple(findings), tuple(_notes(a, b, pairs)))


def _names(sides: Iterable[Side]) -> tuple[str, ...]:
    return tuple(side.name for side in sides)


def _judged(contrasts: Sequence[Contrast], exact: Sequence[Finding], error: float) -> list[Finding]:
    """A family of tests, with the error that all of them may make together."""
    known = [contrast for contrast in contrasts if contrast.known]
    tests = len(known) + len(exact)
    verdicts = iter(_holm([*(_measured(contrast, error / tests) for contrast in known), *exact], error))
    told = [next(verdicts) if contrast.known else _failed(contrast) for contrast in contrasts]
    return [*told, *verdicts]


def _measured(contrast: Contrast, strict: float) -> Finding:
    sign, error, freedom = _sign(contrast.blank.metric), contrast.error, contrast.freedom
    edge = _edge(1 - sample.CONFIDENCE, freedom) * error
    low, high = sorted(math.expm1(sign * (contrast.effect + by)) for by in (-edge, edge))
    visible = (_edge(strict, freedom) + _edge(2 * (1 - POWER), freedom)) * error
    return replace(
        contrast.blank,
        change=math.expm1(sign * contrast.effect),
        low=low,
        high=high,
        p=_chance(abs(contrast.effect) / error, freedom),
        could_have_seen=max(RELEVANT, abs(math.expm1(sign * visible))),
    )


def _failed(contrast: Contrast) -> Finding:
    """A percentile that is a failure on one side and a time on the other: chance does not explain that."""
    before, after = contrast.a.mean(), contrast.b.mean()
    if before == after:
        return contrast.blank
    slower = bool(after > before)
    grows = slower == (_sign(contrast.blank.metric) > 0)
    return replace(contrast.blank, change=math.inf if grows else -1.0, verdict="slower" if slower else "faster")


def _holm(findings: Sequence[Finding], error: float) -> list[Finding]:
    """From the surest on, until the first that is not sure enough for as many as are left."""
    judged = list(findings)
    for rank, at in enumerate(sorted(range(len(findings)), key=lambda at: findings[at].p or 0.0)):
        if (findings[at].p or 0.0) > error / (len(findings) - rank):
            break
        judged[at] = replace(findings[at], verdict=_verdict(findings[at]))
    return judged


def _verdict(found: Finding) -> Verdict:
    worse = _sign(found.metric) * (found.change or 0.0)
    return SAME if abs(worse) < RELEVANT else "slower" if worse > 0 else "faster"


@cache
def _tails(freedom: int) -> tuple[Floats, Floats]:
    """Student's t, by its angle: tan(angle) = t / sqrt(freedom). Angles, and how likely a larger one is."""
    angles = np.linspace(0, math.pi / 2, 20_001)
    pieces = np.cos(angles[1:] - angles[1] / 2) ** (freedom - 1)
    beyond = np.append(np.cumsum(pieces[::-1])[::-1], 0.0)
    return angles, beyond / beyond[0]


def _chance(t: float, freedom: int) -> float:
    """How likely chance alone gets as far from 0 as t, to either side."""
    angles, beyond = _tails(freedom)
    return float(np.interp(math.atan(t / math.sqrt(freedom)), angles, beyond))


def _edge(chance: float, freedom: int) -> float:
    """The t that chance alone reaches that rarely."""
    angles, beyond = _tails(freedom)
    return math.sqrt(freedom) * math.tan(float(np.interp(chance, beyond[::-1], angles[::-1])))


class Broken(NamedTuple):
    requests: int
    sessions: int
    of: int


def _failures(pair: Pair, case: str) -> list[Finding]:
    """Sessions with a failed request, of all there were: exact, as drawn from one urn."""
    a, b = _broken(pair.a, case), _broken(pair.b, case)
    if not a.sessions + b.sessions:
        return []
    change = (b.sessions / b.of) / (a.sessions / a.of) - 1 if a.sessions else math.inf
    more, fewer = (b, a) if change > 0 else (a, b)
    chance = min(1.0, 2 * _urn(more.sessions, more.of, fewer.sessions, fewer.of))
    return [Finding(pair.variant, case, None, "errors", a.requests, b.requests, change, p=chance)]


def _broken(runs: Sequence[Levels], case: str) -> Broken:
    played = [play for run in runs for level in run if level[0] == case for play in run[level]]
    failed = [sum(map(math.isinf, session)) for play in played for session in play.sessions]
    return Broken(sum(failed), sum(map(bool, failed)), len(failed))


def _urn(ones: int, drawn: int, others: int, left: int) -> float:
    """How likely at least so many of the ones are among those drawn."""
    every = ones + others
    ways = sum(math.comb(drawn, n) * math.comb(left, every - n) for n in range(ones, min(drawn, every) + 1))
    return ways / math.comb(drawn + left, every)


# --- knee and ceiling ---

Bracket = tuple[float, float]


def _limits(a: Sequence[Side], b: Sequence[Side], pairs: Sequence[Pair]) -> Iterator[Finding]:
    for pair in pairs:
        sides = [
            [side for side in runs if name in _variants(side)] for runs, name in ((a, pair.before), (b, pair.after))
        ]
        for metric, bracket in (("knee", _knee), ("ceiling", _ceiling)):
            before, after = (
                [bracket(side, name) for side in runs]
                for runs, name in zip(sides, (pair.before, pair.after), strict=True)
            )
            if any([*before, *after]):
                found = _limit(Finding(pair.variant, "", None, metric), before, after)
                believed = min(map(len, sides)) > 1 or (metric == "knee" and _sure(sides[0][0], sides[1][0], pair))
                yield found if believed else replace(found, verdict=SAME)


def _sure(a: Side, b: Side, pair: Pair) -> bool:
    """One run's knee counts if it does not doubt it itself; its ceiling never, which two stalled requests can end."""
    told = [a.sure.get(pair.before, (None, None))[0], b.sure.get(pair.after, (None, None))[0]]
    return all(confidence is not None and confidence >= SURE for confidence in told)


def _variants(side: Side) -> set[str]:
    return {play.variant for play in side.plays}


def _knee(side: Side, variant: str) -> Bracket | None:
    found = side.knees.get(variant)
    return (found[0], found[1]) if found else None


def _ceiling(side: Side, variant: str) -> Bracket | None:
    """It lies below the next level that was played."""
    found = side.ceilings.get(variant)
    played = {play.concurrency for play in side.plays if play.variant == variant and play.case == HEADLINE_CASE}
    return None if found is None else (found, min((level for level in played if level > found), default=math.inf))


def _limit(blank: Finding, before: Sequence[Bracket | None], after: Sequence[Bracket | None]) -> Finding:
    """The levels that were played are its interval: brackets that touch may hold the same truth."""
    a, b = ([found for found in side if found] for side in (before, after))
    shown = replace(
        blank, a=_lower(a) if len(a) == len(before) else None, b=_lower(b) if len(b) == len(after) else None
    )
    if shown.a is None or shown.b is None:
        return shown
    low = min(lo for lo, _ in b) / max(hi for _, hi in a) - 1
    high = max(hi for _, hi in b) / min(lo for lo, _ in a) - 1
    verdict: Verdict = "slower" if high < 0 else "faster" if low > 0 else SAME
    return replace(shown, change=shown.b / shown.a - 1, low=low, high=high, verdict=verdict)


def _lower(found: Sequence[Bracket]) -> float:
    """The last level before the knee, the highest that kept the promise: what the runs themselves print."""
    return sum(lo for lo, _ in found) / len(found)


# --- may they be compared, and what differs besides ---


def _comparable(a: Sequence[Side], b: Sequence[Side]) -> list[Pair]:
    before, after = _values(a, "workload"), _values(b, "workload")
    if before and after and not before & after:
        raise BenchError(
            f"the workloads differ: {_list(before)}, then {_list(after)}", "runs of one workload can be compared"
        )
    if not (pairs := _pairs(a, b)):
        raise BenchError(
            f"nothing in common: {_list(_played(a))}, then {_list(_played(b))}",
            "both sides need a level of the same case and, where there are several, of the same variant",
        )
    return pairs


def _values(sides: Iterable[Side], name: str) -> set[str]:
    return {side.conditions[name] for side in sides if name in side.conditions}


def _played(sides: Iterable[Side]) -> set[str]:
    return {f"{play.variant} {play.case} at {play.concurrency}" for side in sides for play in side.plays}


def _list(texts: Iterable[str]) -> str:
    return ", ".join(sorted(texts)) or "nothing"


def _notes(a: Sequence[Side], b: Sequence[Side], pairs: Sequence[Pair]) -> Iterator[str]:
    for side in (*a, *b):
        yield from _standing(side)
    for name in dict.fromkeys(name for side in (*a, *b) for name in side.conditions):
        before, after = _values(a, name), _values(b, name)
        if before and after and len(before | after) > 1:
            yield f"DIFFERS: {name}: {_list(before)}, then {_list(after)}."
    for pair in pairs:
        yield from _coverage(pair)
    if any(min(len(pair.a), len(pair.b)) < 2 for pair in pairs) and not any(side.simulated for side in (*a, *b)):
        yield (
            f"One run a side cannot tell a drift of the machine from a difference: {PLAY_NOISE:.0%} a level and "
            f"{RUN_NOISE:.0%} a run of noise were assumed. Three runs a side, taken in turns, show it."
        )


def _standing(side: Side) -> Iterator[str]:
    """What its numbers are worth."""
    if side.imported:
        yield f"{side.name}: imported from {side.imported}, not checked."
        yield from (f"{side.name}: {note}" for note in side.notes)
    if not side.valid:
        yield f"{side.name}: NOT VALID, and so nothing that is said of it."
    if side.simulated:
        yield f"{side.name}: SIMULATED: nothing was measured, and no two runs of it differ by chance."


def _coverage(pair: Pair) -> Iterator[str]:
    """Levels that one side lacks, and those of another length, whose tails are not the same."""
    runs, levels = (*pair.a, *pair.b), set(pair.levels)
    if lone := {level for run in runs for level in run} - levels:
        yield f"{pair.variant}: only one side has {_places(lone)}."
    if uneven := {level for level in levels if len({_requests(run[level]) for run in runs if level in run}) > 1}:
        yield f"DIFFERS: {pair.variant}: the number of requests of {_places(uneven)}."


def _places(levels: Iterable[Level]) -> str:
    return ", ".join(f"{case} at {concurrency}" for case, concurrency in sorted(levels))


def _requests(run: Sequence[Play]) -> int:
    return sum(len(session) for play in run for session in play.sessions)
