"""Which level to play next, and when one has said enough: from a prediction to the knee and the ceiling, step by step.

The rule, in the words a user reads (README, "A search instead of a sweep"):
- First the level past the predicted knee, which is soon over if it is, then the one below. Where they disagree with the
  prediction, on by 1, 2, 4, ... sessions until the knee lies between two levels, then halve what lies between. The
  ceiling in the same way, by the same levels; between two of them it is looked for where what was promised would
  cross its limit.
- Of the two levels that it ends with, one that is less than 90 % sure is played again, if one more play of the same
  would make it sure. Where one is too close to call for that, two sessions are narrow enough: a level between them
  would be no clearer.
- A level ends early once all it is played for is certain, by whole sessions as in the verdict. Past the knee: so many
  requests lost their history that the whole of it can only be called broken, and 90 % sure. Healthy: 90 % sure, and
  twice as many sessions begun as there are places, so that all of them have been at their deepest; from then on 99 %
  sure ends one that is past the knee as well. The same of the promise. What another level has answered is not asked
  again: no history lost above, a promise broken below.
- Each level also tells how fast the server is there: what was simulated of the ceiling is corrected by it.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from bench import knee, sample, stats
from bench.knee import Slo
from bench.records import TurnRecord
from bench.schedule import Schedule, default_levels

FORETOLD = 0.01  # the chance that is left to a level called broken before the whole of it has to be called that
PLAYS = 2  # of a level that is not sure, at most
COUNTED = 64  # sessions: a bracket of more is as narrow as one in so many of them
MOST = 1 << 30  # sessions

LOSSES = ("history is lost", "no history is lost")

Turns = Sequence[TurnRecord]
Requests = Callable[[int], int]  # of one play of a level


@dataclass(frozen=True, slots=True)
class Answer:
    """Is a level past the knee, or the promise broken there?"""

    broken: bool
    chance: float | None  # that it is; None: that cannot be told
    doubled: float | None  # what that would be after one more play of the same

    @property
    def sure(self) -> bool:
        return _sure(self.chance)

    @property
    def close(self) -> bool:
        """To call: one more play of the same would not make it sure, either."""
        return not self.sure and not _sure(self.doubled)


def _sure(chance: float | None) -> bool:
    return chance is None or not 1 - knee.SURE < chance < knee.SURE


@dataclass(frozen=True, slots=True)
class Seen:
    """One level, by all that was played of it."""

    level: int
    plays: int
    knee: Answer
    ceiling: Answer
    value: float | None  # of what is promised


def judge(levels: Mapping[int, Turns], slo: Slo, requests: Requests) -> list[Seen]:
    """By the rules of the verdict. By times alone a level is compared with the last healthy one below."""
    found: list[Seen] = []
    healthy: list[stats.LevelRow] = []
    for level, records in sorted(levels.items()):
        turns = [record for record in records if record.turn > 0]
        row = stats.reduce(turns, [])
        lost = _lost(row, turns, healthy, requests(level))
        healthy = healthy if lost.broken else [row]
        promise = _promise(row, turns, slo, requests(level))
        found.append(Seen(level, row.repeats, lost, promise, getattr(row, slo.metric)))
    return found


def _lost(row: stats.LevelRow, turns: Turns, healthy: list[stats.LevelRow], more: int) -> Answer:
    if row.why_none:
        return Answer(True, 1.0, 1.0)
    if row.unlucky is None:
        return Answer(knee.knee([*healthy, row]) is not None, None, None)
    now, then = (knee.absence_confidence(turns, already=True, more=n) for n in (0, more))
    return Answer(knee.from_the_start([row]), now, then)


def _promise(row: stats.LevelRow, turns: Turns, slo: Slo, more: int) -> Answer:
    if row.why_none or knee.allowed(slo) is None:
        return Answer(not slo.met(row), None, None)
    now, then = (1 - (knee.promise_confidence(slo, turns, n) or 0.0) for n in (0, more))
    return Answer(not slo.met(row), now, then)


@dataclass(frozen=True, slots=True)
class Bracket:
    """The highest level before what is looked for, and the lowest past it, of those that were played."""

    lo: int | None
    hi: int | None
    alone: int | None = None  # a level past it, which one far above contradicts

    def __str__(self) -> str:
        if self.hi is None:
            return f"none up to {self.lo}"
        return f"below {self.hi}" if self.lo is None else f"{self.lo} to {self.hi}"


def bracket(answers: Sequence[tuple[int, bool]], witness: bool = False) -> Bracket:
    """With a witness one level that is broken is not enough: the one above has to agree, if there is one."""
    alone = None
    for at, (level, broken) in enumerate(answers):
        against = [above for above, past in answers[at + 1 : at + 2] if witness and not past]
        if broken and not against:
            return Bracket(answers[at - 1][0] if at else None, level, alone)
        if broken and against[0] > level + 1 and alone is None:
            alone = level
    return Bracket(answers[-1][0] if answers else None, None, alone)


Between = Callable[[int, int], int]


def middle(low: int, high: int) -> int:
    return (low + high) // 2


def crossing(limit: float, values: Mapping[int, float | None]) -> Between:
    """Where what was promised would cross its limit, if each session more changed it by the same factor."""

    def between(low: int, high: int) -> int:
        below, above = values.get(low) or 0.0, values.get(high) or 0.0
        if min(below, above) <= 0 or below == above or math.inf in (below, above):
            return middle(low, high)
        share = math.log(limit / below) / math.log(above / below)
        edge = min(_unit(low), (high - low) // 2)
        return max(low + edge, min(high - edge, low + math.floor(share * (high - low))))

    return between


def towards(found: Bracket, start: int, most: int, between: Between = middle) -> int | None:
    """The level that tells the most; None where the bracket is as narrow as it gets."""
    unit = _unit(start)
    if found.alone is not None:
        return found.alone + 1
    low, high = found.lo or 0, found.hi or most + 1
    if high - low <= (unit if low else 1):
        return None
    for first in (start + unit, start):  # as predicted; a level past it is soon over
        if low < first < high:
            return first
    if found.hi is None:
        return min(most, _stride(low - start, unit) + start)
    if found.lo is None:
        return max(1, start - _stride(start - high, unit))
    return between(low, high)


def _unit(start: int) -> int:
    return max(1, start // COUNTED)


def _stride(gone: int, unit: int) -> int:
    """The next of 1, 2, 4, ... units from where it began."""
    stride = unit
    while stride <= gone:
        stride *= 2
    return stride


@dataclass(frozen=True, slots=True)
class Prediction:
    """The last healthy level and the last that keeps the promise; nought where not even one session would be that."""

    knee: int
    ceiling: int
    how: str
    tokens: int | None = None  # of the cache that was assumed

    def __str__(self) -> str:
        return f"the last level before the knee {self.knee}, the ceiling {self.ceiling} ({self.how})"


@dataclass(frozen=True, slots=True)
class Aim:
    """What is looked for, how far, and where it is expected."""

    slo: Slo
    prediction: Prediction
    most: int
    requests: Requests
    asked: bool = True  # for so many; else a promise is not followed further past the knee than a sweep goes
    from_one: bool = False  # fewer sessions may keep the promise worse
    lockstep: bool = True  # all sessions are alike and begin together: they are never deeper than the first time
    plays: int = PLAYS


@dataclass(frozen=True, slots=True)
class Step:
    level: int | None  # None: it is over
    why: str


@dataclass(frozen=True, slots=True)
class Question:
    name: str
    broken: str
    fine: str
    start: int
    most: int
    bracket: Bracket
    answers: Mapping[int, Answer]
    between: Between = middle

    def next(self) -> int | None:
        """None where the bracket is as narrow as it gets, or as its ends can be told apart."""
        lo, hi = self.bracket.lo, self.bracket.hi
        narrow = lo is not None and hi is not None and hi - lo <= 2 * _unit(self.start)
        if narrow and any(one.close for level, one in self.answers.items() if level in (lo, hi)):
            return None
        return towards(self.bracket, self.start, self.most, self.between)


def questions(aim: Aim, seen: Sequence[Seen]) -> tuple[Question, Question]:
    lost, broken = {one.level: one.knee for one in seen}, {one.level: one.ceiling for one in seen}
    knees = bracket([(level, one.broken) for level, one in lost.items()], witness=True)
    ceilings = bracket([(level, one.broken) for level, one in broken.items()])
    most = aim.most if aim.asked else min(aim.most, default_levels(knees.lo or 1)[-1])
    start = min(max(1, aim.prediction.knee), aim.most)
    promise = min(max(1, aim.prediction.ceiling), most)
    between = crossing(aim.slo.limit, {one.level: one.value for one in seen})
    words = ("the tail has left the body", "the tail is near the body") if _blind(lost) else LOSSES
    return (
        Question("the knee", *words, start, aim.most, knees, lost),
        Question(
            "the ceiling", "the promise is broken", "the promise is kept", promise, most, ceilings, broken, between
        ),
    )


def step(aim: Aim, seen: Sequence[Seen]) -> Step:
    played = {one.level: one.plays for one in seen}
    if aim.from_one and 1 not in played:
        return Step(1, "fewer sessions may keep this promise worse than many: does one of them keep it?")
    both = questions(aim, seen)
    if (level := _reference(both[0])) is not None:
        return Step(level, "the server does not tell what it had cached: a level whose tail others are compared with")
    for question in both:
        if (level := question.next()) is not None:
            return Step(level, _why(question, level))
        for end in (question.bracket.lo, question.bracket.hi):
            if end is None or played[end] >= aim.plays:
                continue
            if not (answer := question.answers[end]).sure and not answer.close:
                return Step(end, _again(question, answer))
    return Step(None, "; ".join(f"{question.name}: {question.bracket}" for question in both))


def _blind(answers: Mapping[int, Answer]) -> bool:
    """The server does not tell what it had cached."""
    return any(one.chance is None for one in answers.values())


def _reference(question: Question) -> int | None:
    """By times alone there is no knee without a healthy level."""
    lowest = min(question.answers, default=1)
    return question.start // 2 if _blind(question.answers) and lowest >= question.start > 1 else None


def _why(question: Question, level: int) -> str:
    lo, hi = question.bracket.lo, question.bracket.hi
    if question.bracket.alone is not None:
        return f"{question.broken} at {level - 1} and not far above: which of them is the exception?"
    if level == question.start:
        return f"the last level before {question.name}, as predicted"
    if level == question.start + _unit(question.start):
        return f"the first level past {question.name}, as predicted"
    if hi is None:
        return f"{question.fine} at {lo}, so {question.name} lies higher"
    if lo is None:
        return f"{question.broken} at {hi} already, so {question.name} lies lower"
    return f"{question.name} lies between {lo} and {hi}"


def _again(question: Question, answer: Answer) -> str:
    said = question.broken if answer.broken else question.fine
    chance = answer.chance or 0.0
    sure = f"{100 * (chance if answer.broken else 1 - chance):.0f} % sure"
    return f"once more: that {said} there is only {sure}"


@dataclass(slots=True)
class Count:
    """Of requests that did what at most a share of them may."""

    flag: Callable[[TurnRecord], bool | None]
    share: float
    planned: int
    grown: int | None  # sessions begun, when all places have had one at its deepest; None: no moment is the deepest
    ones: int = 0
    sessions: dict[tuple[int, int], tuple[int, int]] = field(default_factory=dict)

    def take(self, record: TurnRecord) -> None:
        one, own = bool(self.flag(record)), (record.repeat, record.session)
        ones, size = self.sessions.get(own, (0, 0))
        self.ones, self.sessions[own] = self.ones + one, (ones + one, size + 1)

    def certain(self) -> bool:
        """Of what can only be called broken, whatever comes; or when every place has had a session at its deepest."""
        broken = self.ones > self.share * (self.planned - 1) + 1
        grown = self.grown is not None and len(self.sessions) >= self.grown
        if not broken and not grown:
            return False
        chance = sample.chance_below([*self.sessions.values()], self.share)
        return chance <= (1 - knee.SURE if broken else FORETOLD) or (grown and chance >= knee.SURE)


@dataclass(slots=True)
class Watch:
    """Over a level while it is played: does it have to go on?"""

    counts: Sequence[Count]

    def ended(self, record: TurnRecord) -> bool:
        """Is it certain by now?"""
        if record.turn > 0 and record.status != "cut":
            for count in self.counts:
                count.take(record)
        return bool(self.counts) and all(count.certain() for count in self.counts)


def watch(aim: Aim, seen: Sequence[Seen], level: int, requests: int, before: Turns = ()) -> Watch:
    """`requests`: of one play. Asks what no other level has answered for this one."""
    planned = requests + sum(record.turn > 0 for record in before)
    begun = len({(record.repeat, record.session) for record in before if record.turn > 0})
    grown = begun + 2 * level if aim.lockstep else None  # of this play, for it is played to know more
    counts = []
    if not any(one.level > level and not one.knee.broken and one.knee.sure for one in seen):
        counts.append(Count(stats.is_unlucky, knee.UNLUCKY_SHARE, planned, grown))
    if not any(one.level < level and one.ceiling.broken and one.ceiling.sure for one in seen):
        counts.append(_over(aim.slo, planned, grown))
    made = Watch(counts)
    for record in before:
        made.ended(record)
    return made


def _over(slo: Slo, planned: int, grown: int | None) -> Count:
    share = knee.allowed(slo)
    if share is None:  # a promise of which single requests cannot tell
        return Count(lambda _: False, 0.0, planned, grown)
    return Count(lambda record: stats.least(record) > slo.limit, share, planned, grown)


Play = Callable[[int, int, Watch], Iterable[TurnRecord]]
Played = dict[int, list[TurnRecord]]


Correct = Callable[[Prediction, Mapping[int, Turns]], Prediction | None]  # by what was played; None: it stands


def hunt(aim: Aim, play: Play, correct: Correct = lambda said, played: None) -> Played:
    """To its end, against whatever plays a level: its number, which repeat of it, and who says that it is enough."""
    played: Played = {}
    said = aim.prediction
    while (here := step(aim, seen := judge(played, aim.slo, aim.requests))).level is not None:
        before = played.setdefault(here.level, [])
        watching = watch(aim, seen, here.level, aim.requests(here.level), before)
        before += play(here.level, len({record.repeat for record in before}), watching)
        if better := correct(said, played):
            aim = replace(aim, prediction=better)
    return played


def aim_of(schedule: Schedule, slo: Slo, prediction: Prediction, plays: int | None = None) -> Aim:
    most = schedule.max_c or 4 * prediction.knee + COUNTED
    file = schedule.workload.file
    rate = file.arrivals.sessions_per_s
    from_one = rate is not None or (slo.above and slo.metric == "req_per_s")
    lockstep = rate is None and file.arrivals.start == "together" and isinstance(file.session.turns, int)
    plays, asked = plays or schedule.repeats, schedule.max_c is not None
    return Aim(slo, prediction, most, schedule.requests_at, asked, from_one, lockstep, plays)


def opening(schedule: Schedule, prediction: Prediction) -> Schedule:
    """A sweep of the levels that a search begins with."""
    knee_at = min(max(1, prediction.knee), schedule.max_c or prediction.knee + 1)
    first = {knee_at, min(knee_at + max(1, knee_at // COUNTED), schedule.max_c or MOST)}
    if 0 < prediction.ceiling < knee_at:
        first |= {prediction.ceiling, prediction.ceiling + 1}
    return replace(schedule, search=False, repeats=1, concurrencies=tuple(sorted(first)))
