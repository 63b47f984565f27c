"""What a sweep will play: which levels, in which cases, how many requests each, and how long that should take."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from bench import capacity, load
from bench.errors import BenchError
from bench.limits import Limits
from bench.load import Level
from bench.recipe import Launch
from bench.workload import Workload

STUDY_LEVELS = (1, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 24, 28, 32, 40, 48)
STUDY_REQUESTS = 200
BOUND_REQUESTS = 20  # at least; and four for each session


def ladder() -> Iterator[int]:
    """The study's levels, then four to an octave."""
    yield from STUDY_LEVELS
    yield 56
    base = 64
    while True:
        yield from (base, base * 5 // 4, base * 3 // 2, base * 7 // 4)
        base *= 2


def levels_up_to(limit: int) -> tuple[int, ...]:
    below: list[int] = []
    for level in ladder():
        if level >= limit:
            return (*below, limit)
        below.append(level)
    raise AssertionError("the ladder has no end")


def default_levels(fit: float | None) -> tuple[int, ...]:
    """Up to the second level past where the cache should be full: the knee, and one more to be sure of it."""
    if fit is None:
        return STUDY_LEVELS
    past = [level for level in levels_up_to(int(4 * max(fit, 1)) + 64) if level > fit][:2]
    return tuple(level for level in levels_up_to(past[-1]) if level <= past[-1])


@dataclass(frozen=True, slots=True)
class Schedule:
    workload: Workload
    concurrencies: tuple[int, ...]
    bounds: tuple[int, ...]  # the levels at which the best and the worst case are taken too
    miss_rates: tuple[float, ...]
    requests: int | None
    whole_sessions: bool  # every level has at least one whole session for each of its C
    repeats: int
    seed: int
    limits: Limits
    processes: int | None = None  # of the client; None: as many as it needs
    sdk: bool = False  # every level through the official SDK, too
    search: bool = False  # which levels are played shows as the run goes
    max_c: int | None = None

    def levels(self, variant: str) -> list[Level]:
        """Bounds last: the curve is what a user waits for."""
        made = [] if self.search else [self.realistic(variant, concurrency) for concurrency in self.concurrencies]
        if self.sdk:
            made += [self._level(variant, "openai", concurrency) for concurrency in self.concurrencies]
        cases = [*(f"miss={rate:g}" for rate in self.miss_rates)]
        if self.bounds:
            cases = ["best", *cases, "worst"]
        made += [self._level(variant, case, concurrency) for case in cases for concurrency in self._bound_levels()]
        return made

    def plays(self, variant: str) -> list[Level]:
        """Each level as often as it is to be played."""
        repeats = 1 if self.search else self.repeats
        return [replace(level, repeat=repeat) for level in self.levels(variant) for repeat in range(repeats)]

    def realistic(self, variant: str, concurrency: int) -> Level:
        return self._level(variant, "realistic", concurrency)

    def requests_at(self, concurrency: int) -> int:
        return self.realistic("", concurrency).requests

    def _bound_levels(self) -> tuple[int, ...]:
        return self.bounds or self.concurrencies

    def _level(self, variant: str, case: str, concurrency: int) -> Level:
        requests = self.requests or max(STUDY_REQUESTS, 2 * concurrency)  # fewer would leave some of them idle
        if case not in load.OF_SESSIONS:
            requests = min(requests, max(BOUND_REQUESTS, 4 * concurrency))
        elif self.requests is None and self.whole_sessions:
            requests = max(requests, round(concurrency * self.workload.typical(self.seed).turns))
        return Level(variant, case, concurrency, 0, requests)

    def fit(self, tokens: int | None) -> float | None:
        """Sessions, in a cache of so many tokens."""
        return None if tokens is None else capacity.sessions_that_fit(tokens, self.workload, self.seed)

    def expected_s(self, launch: Launch | None, level: Level, fit: float | None) -> float | None:
        speed = capacity.speed(launch) if launch else None
        if speed is None:
            return None
        each = capacity.level_duration_s(speed, self.workload, level.case, level.concurrency, level.requests, fit)
        return each


def forecast(schedule: Schedule, name: str, launch: Launch) -> capacity.Forecast:
    found = capacity.expected(launch)
    fit = capacity.sessions(found, schedule.workload, schedule.seed)
    guesses = [schedule.expected_s(launch, level, fit) for level in schedule.plays(name)]
    known = [guess for guess in guesses if guess is not None]
    return capacity.Forecast(found, fit, launch.file.serve.start_s + sum(known) if len(known) == len(guesses) else None)


def draw_up(
    work: Workload,
    fits: Sequence[float | None],
    levels: tuple[int, ...] | None,
    max_c: int | None,
    bounds: bool,
    miss_rates: tuple[float, ...],
    requests: int | None,
    repeats: int,
    seed: int,
    limits: Limits,
    processes: int | None = None,
    sdk: bool = False,
    search: bool = False,
    bounds_at: tuple[int, ...] | None = None,
) -> Schedule:
    """`fits`: sessions in the cache of each variant, as far as that is known. What the user left open follows from it:
    all variants play the same levels, to be comparable."""
    known = [fit for fit in fits if fit is not None]
    largest = max(known) if len(known) == len(fits) else None
    levels = levels or (levels_up_to(max_c) if max_c is not None else default_levels(largest))
    fitting = [level for level in levels if not known or level <= min(known)] or [levels[0]]
    # 200 requests tell nothing of a cache that they cannot fill: there each session has to grow to its end.
    filled = largest is not None and largest * work.typical(seed).turns < STUDY_REQUESTS
    ends = (bounds_at or tuple(sorted({levels[0], fitting[-1]}))) if bounds else ()
    rates = tuple(dict.fromkeys(miss_rates))
    if requests is not None and requests < (highest := max((*levels, *ends))):
        hint = "a level needs as many requests as it has sessions at least"
        raise BenchError(f"--requests {requests} cannot keep {highest} sessions busy", hint)
    return Schedule(
        work, levels, ends, rates, requests, not filled, repeats, seed, limits, processes, sdk, search, max_c
    )
