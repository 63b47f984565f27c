"""A whole sweep: for each variant a server, for each level a cold cache and its sessions, every request on file."""

import asyncio
import contextlib
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any, Protocol

from bench import capacity, client, connection, load, machine, scrape, server, stats, troupe
from bench.client import Target
from bench.errors import BenchError, Exit
from bench.limits import Limits
from bench.load import Level
from bench.pulse import Pulse
from bench.recipe import Launch
from bench.records import SCHEMA, Folder, TurnRecord
from bench.troupe import Part
from bench.workload import Content, Workload

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
class Plan:
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

    def levels(self, variant: str) -> list[Level]:
        """Bounds last: the curve is what a user waits for."""
        made = [self._level(variant, "realistic", concurrency) for concurrency in self.concurrencies]
        if self.sdk:
            made += [self._level(variant, "openai", concurrency) for concurrency in self.concurrencies]
        cases = [*(f"miss={rate:g}" for rate in self.miss_rates)]
        if self.bounds:
            cases = ["best", *cases, "worst"]
        made += [self._level(variant, case, concurrency) for case in cases for concurrency in self._bound_levels()]
        return made

    def _bound_levels(self) -> tuple[int, ...]:
        return self.bounds or self.concurrencies

    def _level(self, variant: str, case: str, concurrency: int) -> Level:
        requests = self.requests or STUDY_REQUESTS
        if case not in load.OF_SESSIONS:
            requests = min(requests, max(BOUND_REQUESTS, 4 * concurrency))
        elif self.requests is None and self.whole_sessions:
            requests = max(requests, round(concurrency * self.workload.typical(self.seed).turns))
        return Level(variant, case, concurrency, 0, requests)

    def expected_s(self, launch: Launch | None, level: Level, fit: float | None) -> float | None:
        pace = capacity.pace(launch) if launch else None
        if pace is None:
            return None
        each = capacity.level_duration_s(pace, self.workload, level.case, level.concurrency, level.requests, fit)
        return each * self.repeats


def forecast(plan: Plan, name: str, launch: Launch) -> capacity.Forecast:
    found = capacity.expected(launch)
    fit = capacity.sessions_that_fit(found.tokens, plan.workload, plan.seed) if found.tokens is not None else None
    guesses = [plan.expected_s(launch, level, fit) for level in plan.levels(name)]
    known = [guess for guess in guesses if guess is not None]
    return capacity.Forecast(found, fit, launch.file.serve.start_s + sum(known) if len(known) == len(guesses) else None)


def plan(
    work: Workload,
    tokens: Sequence[int | None],
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
) -> Plan:
    """`tokens`: the cache of each variant, as far as it is known. Whatever the user left open follows from it."""
    fits = [capacity.sessions_that_fit(size, work, seed) for size in tokens if size is not None]
    largest = max(fits) if len(fits) == len(tokens) else None
    levels = levels or (levels_up_to(max_c) if max_c is not None else default_levels(largest))
    fitting = [level for level in levels if not fits or level <= min(fits)] or [levels[0]]
    # 200 requests tell nothing of a cache that they cannot fill: there each session has to grow to its end.
    filled = largest is not None and largest * work.typical(seed).turns < STUDY_REQUESTS
    ends = tuple(sorted({levels[0], fitting[-1]})) if bounds else ()
    rates = tuple(dict.fromkeys(miss_rates))
    return Plan(work, levels, ends, rates, requests, not filled, repeats, seed, limits, processes, sdk)


class Show(Protocol):
    """Where a user follows a run."""

    def say(self, text: str) -> None: ...

    def server_ready(self, target: server.Endpoint, expected: capacity.Capacity | None, started_s: float) -> None: ...

    def level_begins(self, level: Level, left_s: float | None) -> None: ...

    def turn_ended(self, record: TurnRecord) -> None: ...

    def level_ended(self, row: stats.LevelRow) -> None: ...


@dataclass(frozen=True, slots=True)
class Variant:
    name: str
    launch: Launch | None  # None: a server that someone else runs
    target: AbstractContextManager[server.Endpoint]


def manifest(plan: Plan, variants: Sequence[Variant], argv: Sequence[str], slo: str) -> dict[str, Any]:
    """All that a stranger needs to do it again; what only the server knows is added once it is up."""
    return {
        "schema": SCHEMA,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "ended": "running",
        "argv": list(argv),
        "seed": plan.seed,
        "salt": secrets.randbits(32),
        "slo": slo,
        "workload": asdict(plan.workload),
        "typical": {"shared_tokens": plan.workload.file.shared_tokens, **asdict(plan.workload.typical(plan.seed))},
        "levels": [asdict(level) for variant in variants for level in plan.levels(variant.name)],
        "repeats": plan.repeats,
        "timeout_s": plan.limits.request_s,
        "limits": asdict(plan.limits),
        "machine": asdict(machine.describe()),
        "variants": {v.name: {"launch": asdict(v.launch) if v.launch else None} for v in variants},
    }


def sweep(plan: Plan, variants: Sequence[Variant], folder: Folder, show: Show, run: dict[str, Any]) -> None:
    """Leaves the records and the manifest; what they mean is for others to say."""
    epoch = time.perf_counter()
    folder.write_manifest(run)
    ended = "failed"
    try:
        for variant in variants:
            began = time.perf_counter()
            with variant.target as target:
                target = replace(target, control_s=plan.limits.control_s)
                started = time.perf_counter() - began
                expected = capacity.expected(variant.launch) if variant.launch else None
                show.server_ready(target, expected, started)
                facts = server.facts(target)
                run["variants"][variant.name] |= {
                    "server": facts,
                    "started_s": started,
                    "capacity": asdict(expected) if expected else None,
                    "settings": [server.now(target)],
                }
                connection.run(_measure(plan, variant, target, folder, show, run, epoch))
                run["variants"][variant.name]["settings"].append(server.now(target))
        ended = "finished"
    except (KeyboardInterrupt, asyncio.CancelledError):
        ended = "interrupted"
        raise KeyboardInterrupt from None
    except BenchError as error:
        ended = f"failed: {error.message}"
        raise
    finally:
        run["ended"] = ended
        run["wall_s"] = time.perf_counter() - epoch
        folder.write_manifest(run)


async def _measure(
    plan: Plan,
    variant: Variant,
    target: server.Endpoint,
    folder: Folder,
    show: Show,
    run: dict[str, Any],
    epoch: float,
) -> None:
    dialect = client.probe(target.base_url, target.model, target.key, target.vocabulary, plan.limits.control_s)
    run["variants"][variant.name]["dialect"] = {"name": dialect.name, "reports_cached": dialect.reports_cached}
    folder.write_manifest(run)
    asked = Target(target.base_url, target.model, dialect, epoch, plan.limits, target.key)
    content = Content(dialect.words, dialect.separator, plan.seed, run["salt"])
    fit = capacity.sessions_that_fit(target.cache.tokens, plan.workload, plan.seed) if target.cache.tokens else None
    levels = plan.levels(variant.name)
    guesses = [plan.expected_s(variant.launch, level, fit) for level in levels]
    drift = 1.0
    for at, (level, guess) in enumerate(zip(levels, guesses, strict=True)):
        left = None if None in guesses else drift * sum(s for s in guesses[at:] if s is not None)
        show.level_begins(replace(level, requests=level.requests * plan.repeats), left)
        began = time.perf_counter()
        part = Part(level, plan.workload, content, target.cache.block_size or 1, asked, plan.seed)
        await _level(part, plan, target, folder, show)
        if guess:
            drift = (time.perf_counter() - began) / guess


async def _level(part: Part, plan: Plan, target: server.Endpoint, folder: Folder, show: Show) -> None:
    minutes = Minutes(folder, show)
    for repeat in range(plan.repeats):
        here = replace(part, level=replace(part.level, repeat=repeat))
        await minutes.take(here, plan.processes or troupe.needed(here.level.concurrency), target)
    show.level_ended(minutes.row())


class Minutes:
    """What is told while a level is played: on file at once."""

    def __init__(self, folder: Folder, show: Show) -> None:
        self._folder, self._show = folder, show
        self._identity: dict[str, Any] = {}
        self._records: list[TurnRecord] = []
        self._told: dict[str, list[dict[str, Any]]] = {"server.jsonl": [], "client.jsonl": []}

    def row(self) -> stats.LevelRow:
        return stats.reduce(self._records, self._told["server.jsonl"], pulses=self._told["client.jsonl"])

    async def take(self, part: Part, processes: int, target: server.Endpoint) -> None:
        """Of one repeat, on a cold cache."""
        now = load.WallClock(part.target.epoch).now
        self._identity = {name: getattr(part.level, name) for name in ("variant", "case", "concurrency", "repeat")}

        def look() -> bool:
            sample = target.metrics()
            if sample:
                self._sampled(now(), sample)
            return bool(sample)

        target.reset_cache()
        watch = scrape.watching(target.base_url, target.key, now, self._sampled, limit_s=target.control_s)
        async with watch if look() else contextlib.nullcontext():
            self._records += await troupe.play(part, processes, self._ended, self._felt)
        look()
        if died := target.alive():
            raise BenchError(f"at C = {part.level.concurrency}: {died}", f"its log: {target.log}", Exit.SERVER)

    def _ended(self, record: TurnRecord) -> None:
        self._folder.keep(record)
        self._show.turn_ended(record)

    def _sampled(self, at: float, sample: scrape.Sample) -> None:
        self._note("server.jsonl", {"t_s": at, **sample})

    def _felt(self, one: Pulse) -> None:
        self._note("client.jsonl", asdict(one))

    def _note(self, file: str, row: dict[str, Any]) -> None:
        self._told[file].append({**self._identity, **row})
        self._folder.append(file, self._told[file][-1])
