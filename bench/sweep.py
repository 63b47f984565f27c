"""A whole sweep: for each variant a server, for each level a cold cache and its sessions, every request on file.

A server that dies is started again, and the level begun anew, once; a run that died goes on at the level it was in.
"""

import asyncio
import contextlib
import json
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from itertools import groupby
from typing import Any, Protocol

from bench import audit, capacity, client, connection, diagnosis, load, machine, scrape, server, stats, troupe
from bench.audit import Evidence
from bench.client import Target
from bench.errors import BenchError, Exit
from bench.journal import Journal
from bench.limits import Limits
from bench.load import Level
from bench.pulse import Pulse
from bench.recipe import Launch
from bench.records import LINES, SCHEMA, Folder, Play, TurnRecord, play_of
from bench.troupe import Part
from bench.workload import Content, Workload

STUDY_LEVELS = (1, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 24, 28, 32, 40, 48)
STUDY_REQUESTS = 200
BOUND_REQUESTS = 20  # at least; and four for each session
DEAF = 3  # requests in a row without an answer, at least: as many as there are sessions
IDENTITY = ("variant", "case", "concurrency", "repeat", "attempt")
REFUSED = 20  # in a row, at least, until the server is asked whether it is there at all


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

    def plays(self, variant: str) -> list[Level]:
        """Each level as often as it is to be played."""
        return [replace(level, repeat=repeat) for level in self.levels(variant) for repeat in range(self.repeats)]

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
        return each


def forecast(plan: Plan, name: str, launch: Launch) -> capacity.Forecast:
    found = capacity.expected(launch)
    fit = capacity.sessions_that_fit(found.tokens, plan.workload, plan.seed) if found.tokens is not None else None
    guesses = [plan.expected_s(launch, level, fit) for level in plan.plays(name)]
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

    def print(self, text: str) -> None: ...

    def server_ready(self, target: server.Endpoint, expected: capacity.Capacity | None, started_s: float) -> None: ...

    def level_begins(self, level: Level, left_s: float | None) -> None: ...

    def turn_ended(self, record: TurnRecord) -> None: ...

    def level_ended(self, row: stats.LevelRow) -> None: ...


@dataclass(frozen=True, slots=True)
class Variant:
    name: str
    launch: Launch | None  # None: a server that someone else runs
    start: Callable[[], AbstractContextManager[server.Endpoint]]


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


HERE = ("host", "cpu", "cores", "python", "bench", "gpus")  # of the machine: what has to be the same
PLANNED = ("workload", "typical", "levels", "repeats", "seed", "limits")


def go_on(before: dict[str, Any], now: dict[str, Any], folder: Folder, show: Show) -> dict[str, Any]:
    """The manifest of a run that was cut, if what goes on is still the same; its files mended."""
    was, is_now = (json.loads(json.dumps(_recipe(run))) for run in (before, now))
    if other := [name for name in was if was[name] != is_now.get(name)]:
        raise BenchError(
            f"this is not the run that began in {folder.path}: its {', '.join(other)} was another",
            f"then {was[other[0]]}, now {is_now.get(other[0])}: begin a new run",
        )
    for file in folder.mend():
        show.print(f"{file}: its last line was torn, and is mended")
    parts = [*before.get("resumed", []), {"at": now["started"], "ended": before["ended"]}]
    return {**before, "ended": "running", "resumed": parts}


def _recipe(run: dict[str, Any]) -> dict[str, Any]:
    """What makes two runs one."""
    here = {name: run["machine"].get(name) for name in HERE}
    launches = {f"launch of {name}": facts["launch"] for name, facts in run["variants"].items()}
    return {**{name: run.get(name) for name in PLANNED}, **here, **launches}


@dataclass(frozen=True, slots=True)
class Job:
    """One run: what is to be done, where it goes, how far it has come."""

    plan: Plan
    folder: Folder
    show: Show
    run: dict[str, Any]
    epoch: float
    journal: Journal

    def facts(self, variant: Variant) -> dict[str, Any]:
        facts: dict[str, Any] = self.run["variants"][variant.name]
        return facts

    def left(self, variant: Variant) -> list[Level]:
        """Without what an earlier part of the run has played and may keep."""
        over = self.journal.over()
        records = self.folder.records() if over else []
        left = []
        for level in self.plan.plays(variant.name):
            doubts = self._doubts(level, over[level.play], records) if level.play in over else []
            left += [level] if doubts or level.play not in over else []
            if doubts:
                self.show.print(f"C = {level.concurrency} is played again: {doubts[0]}")
        return left

    def _doubts(self, level: Level, attempt: int, records: Sequence[TurnRecord]) -> list[str]:
        own = [one for one in records if one.play == level.play and one.attempt == attempt]
        if sum(one.turn > 0 and one.status != "cut" for one in own) != level.requests:
            return ["some of its requests are not on file"]
        rows = self.folder.rows("client.jsonl")
        pulses = [row for row in rows if play_of(row) == level.play and row["attempt"] == attempt]
        return audit.doubts(Evidence(self.run, level.variant, own, [stats.reduce(own, [], pulses=pulses)]))


def sweep(plan: Plan, variants: Sequence[Variant], folder: Folder, show: Show, run: dict[str, Any]) -> None:
    """Leaves the records and the manifest; what they mean is for others to say."""
    before = _reached(folder)
    epoch = time.perf_counter() - before
    job = Job(plan, folder, show, run, epoch, Journal(folder, load.WallClock(epoch).now))
    folder.write_manifest(run)
    ended = "failed"
    try:
        for variant in variants:
            _take(job, variant)
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


def _reached(folder: Folder) -> float:
    """Where the times of an earlier part of the run end: those of this one go on from there."""
    ends = [record.end_s for record in folder.records()]
    ends += [row["t_s"] for file in ("server.jsonl", "journal.jsonl") for row in folder.rows(file)]
    return max(ends, default=0.0)


def _take(job: Job, variant: Variant) -> None:
    """All that is left of a variant's levels. A server that is lost in one is started again, once for each."""
    left = job.left(variant)
    again: set[Play] = set()
    while left:
        began = time.perf_counter()
        with variant.start() as target:
            target = replace(target, control_s=job.plan.limits.control_s)
            _welcome(job, variant, target, time.perf_counter() - began)
            try:
                connection.run(_measure(job, variant, target, left))
            except BenchError as error:
                if error.exit != Exit.SERVER or variant.launch is None or left[0].play in again:
                    raise
                again.add(left[0].play)
                job.show.print(f"{error.message}. It is started again, and this level begun anew")
            else:
                job.facts(variant)["settings"].append(server.now(target))


def _welcome(job: Job, variant: Variant, target: server.Endpoint, started_s: float) -> None:
    expected = capacity.expected(variant.launch) if variant.launch else None
    job.show.server_ready(target, expected, started_s)
    facts, settings = job.facts(variant), server.now(target)
    if "settings" in facts and facts["settings"][0] != settings:
        raise BenchError(
            f"the server is not what it was when this run began: {facts['settings'][0]} became {settings}",
            "what it measures now cannot stand beside what was measured then: begin a new run",
            Exit.INVALID,
        )
    facts |= {
        "server": server.facts(target),
        "started_s": started_s,
        "capacity": asdict(expected) if expected else None,
        "settings": [*facts.get("settings", []), settings],
    }


async def _measure(job: Job, variant: Variant, target: server.Endpoint, left: list[Level]) -> None:
    """Takes away from `left` what is done."""
    plan = job.plan
    dialect = client.probe(target.base_url, target.model, target.key, target.vocabulary, plan.limits.control_s)
    job.facts(variant)["dialect"] = {"name": dialect.name, "reports_cached": dialect.reports_cached}
    job.folder.write_manifest(job.run)
    asked = Target(target.base_url, target.model, dialect, job.epoch, plan.limits, target.key)
    content = Content(dialect.words, dialect.separator, plan.seed, job.run["salt"])
    fit = capacity.sessions_that_fit(target.cache.tokens, plan.workload, plan.seed) if target.cache.tokens else None
    block, drift = target.cache.block_size or 1, 1.0
    for _, several in groupby([*left], key=lambda one: (one.case, one.concurrency)):
        repeats = [*several]
        guesses = [plan.expected_s(variant.launch, one, fit) for one in left]
        rest = None if None in guesses else drift * sum(guess for guess in guesses if guess is not None)
        job.show.level_begins(replace(repeats[0], requests=sum(one.requests for one in repeats)), rest)
        began, minutes = time.perf_counter(), Minutes(job, target)
        for level in repeats:
            here = replace(level, attempt=job.journal.begin(level.play))
            await minutes.take(Part(here, plan.workload, content, block, asked, plan.seed, job.folder))
            job.journal.end(level.play)
            left.remove(level)
        if guesses[0]:
            drift = (time.perf_counter() - began) / (guesses[0] * len(repeats))
        job.show.level_ended(minutes.row())


class Minutes:
    """What is told while a level is played: on file at once, and nowhere else, for it may last for days."""

    def __init__(self, job: Job, target: server.Endpoint) -> None:
        self._job, self._target = job, target
        self._starts = {file: job.folder.size(file) for file in LINES}
        self._level: Level | None = None
        self._playing: asyncio.Task[None] | None = None
        self._misses = 0  # requests in a row that had no answer
        self._lost: str | None = None  # why the level is given up

    def row(self) -> stats.LevelRow:
        samples, pulses = (
            list(self._job.folder.rows(file, self._starts[file])) for file in ("server.jsonl", "client.jsonl")
        )
        return stats.reduce(self._job.folder.records(self._starts["requests.jsonl"]), samples, pulses=pulses)

    async def take(self, part: Part) -> None:
        """One repeat, on a cold cache."""
        now, target = load.WallClock(part.target.epoch).now, self._target
        self._level = part.level

        def look() -> bool:
            sample = target.metrics()
            if sample:
                self._sampled(now(), sample)
            return bool(sample)

        target.reset_cache()
        watch = scrape.watching(target.base_url, target.key, now, self._sampled, limit_s=target.control_s)
        async with watch if look() else contextlib.nullcontext():
            await self._play(part)
        look()

    async def _play(self, part: Part) -> None:
        """Given up where the server is lost."""
        processes = self._job.plan.processes or troupe.needed(part.level.concurrency)
        self._playing = asyncio.create_task(troupe.play(part, processes, self._ended, self._felt))
        try:
            await self._playing
        except asyncio.CancelledError:
            if self._lost is None:
                raise
        why = self._lost or self._target.alive() or (self._misses and self._gone())
        if why:
            self._job.journal.lose(part.level.play, why)
            raise BenchError(f"at C = {part.level.concurrency}: {why}", f"its log: {self._target.log}", Exit.SERVER)

    def _ended(self, record: TurnRecord) -> None:
        self._job.show.turn_ended(record)
        if record.status in ("ok", "cut"):
            self._misses = 0
            return
        self._misses += 1
        self._lost = self._lost or self._target.alive() or self._deaf(record)
        if self._lost and self._playing:
            self._playing.cancel()

    def _deaf(self, record: TurnRecord) -> str | None:
        """A server that lives and does not answer."""
        if record.status == "timeout":
            deaf = self._misses >= max(DEAF, record.concurrency)
            return f"the server answered none of {self._misses} requests in a row: {record.error}" if deaf else None
        return self._gone() if self._misses % max(REFUSED, record.concurrency) == 0 else None

    def _gone(self) -> str | None:
        if server.now(self._target)["models"]:
            return None
        log = self._target.log
        return "the server is not there any more" + (f": {diagnosis.cause(log)}" if log else "")

    def _sampled(self, at: float, sample: scrape.Sample) -> None:
        self._note("server.jsonl", {"t_s": at, **sample})

    def _felt(self, one: Pulse) -> None:
        self._note("client.jsonl", asdict(one))

    def _note(self, file: str, row: dict[str, Any]) -> None:
        assert self._level is not None
        identity = {name: getattr(self._level, name) for name in IDENTITY}
        self._job.folder.append(file, {**identity, **row})
