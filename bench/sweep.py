"""A whole sweep: for each variant a server, for each level a cold cache and its sessions, every request on file.

A server that dies is started again, and the level begun anew, once; a run that died goes on at the level it was in.
"""

import asyncio
import json
import secrets
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from itertools import groupby
from typing import Any, Protocol

from bench import (
    audit,
    capacity,
    client,
    connection,
    foresight,
    knee,
    load,
    machine,
    manifest,
    search,
    secret,
    server,
    stats,
)
from bench.audit import Evidence
from bench.client import Target
from bench.errors import BenchError, Exit
from bench.expectation import Expectation
from bench.journal import Journal
from bench.load import Level
from bench.minutes import Minutes
from bench.recipe import Launch
from bench.records import SCHEMA, Folder, Play, TurnRecord, play_of
from bench.schedule import Schedule
from bench.search import Prediction, Watch
from bench.troupe import Part
from bench.workload import Content


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
    schedule: Schedule
    start: Callable[[], AbstractContextManager[server.Endpoint]]


def begun(variants: Sequence[Variant], argv: Sequence[str], slo: str) -> dict[str, Any]:
    """All that a stranger needs to do it again; what only the server knows is added once it is up."""
    schedule = variants[0].schedule  # the variants' differ in nothing but the workload
    several = any(variant.schedule.workload != schedule.workload for variant in variants)
    return {
        "schema": SCHEMA,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "ended": "running",
        "argv": list(argv),
        "seed": schedule.seed,
        "salt": secrets.randbits(32),
        "slo": slo,
        **_agents(schedule),
        "levels": [asdict(level) for variant in variants for level in variant.schedule.levels(variant.name)],
        "search": {"max_c": schedule.max_c, "plays": schedule.repeats} if schedule.search else None,
        "repeats": 1 if schedule.search else schedule.repeats,
        "timeout_s": schedule.limits.request_s,
        "limits": asdict(schedule.limits),
        "machine": asdict(machine.describe()),
        "variants": {
            one.name: {
                "launch": asdict(one.launch) if one.launch else None,
                **(_agents(one.schedule) if several else {}),
            }
            for one in variants
        },
    }


def _agents(schedule: Schedule) -> dict[str, Any]:
    """What they do."""
    work = schedule.workload
    typical = {"shared_tokens": work.file.shared_tokens, **asdict(work.typical(schedule.seed))}
    return {"workload": asdict(work), "typical": typical}


HERE = ("host", "cpu", "cores", "python", "bench", "gpus")  # of the machine: what has to be the same
PLANNED = ("workload", "typical", "search", "repeats", "seed", "limits")


def cut(folder: Folder) -> dict[str, Any]:
    """The manifest of a run that has not come to its end."""
    run = folder.manifest()
    if run.get("simulated"):
        raise BenchError(f"{folder.path} was simulated: there is no server to go on with", "bench plan makes it again")
    if run["schema"] < SCHEMA:
        raise BenchError(f"{folder.path} was made by an older bench, which kept no journal", "begin a new run")
    if run["ended"] == "finished":
        hint = f"see it with: bench report {folder.path}"
        raise BenchError(f"{folder.path} is finished: nothing is left to be done", hint)
    return run


def go_on(now: dict[str, Any], folder: Folder, show: Show) -> dict[str, Any]:
    """The manifest of a run that was cut, if what goes on is still the same; its files mended. The folder is held, for
    else another may come to the run's end meanwhile."""
    before = cut(folder)
    was, is_now = (json.loads(json.dumps(_recipe(run))) for run in (before, now))
    if other := [name for name in was if was[name] != is_now.get(name)]:
        raise BenchError(
            f"this is not the run that began in {folder.path}: its {', '.join(other)} was another",
            f"then {was[other[0]]}, now {is_now.get(other[0])}: begin a new run",
        )
    for name in {row["variant"] for row in folder.rows("journal.jsonl") if row["what"] == "over"}:
        manifest.check_played(before, name, str(folder.path / "run.json"))
    for file in folder.mend():
        show.print(f"{file}: its last line was torn, and is mended")
    parts = [*before.get("resumed", []), {"at": now["started"], "ended": before["ended"]}]
    return {**before, "ended": "running", "resumed": parts}


def _recipe(run: dict[str, Any]) -> dict[str, Any]:
    """What makes two runs one."""
    here = {name: run["machine"].get(name) for name in HERE}
    launches = {f"launch of {name}": facts["launch"] for name, facts in run["variants"].items()}
    works = {f"workload of {name}": facts.get("workload") for name, facts in run["variants"].items()}
    levels = {} if run.get("search") else {"levels": run["levels"]}  # those of a search show as it goes
    told = {name: run.get(name) for name in PLANNED}
    return {**told, **levels, **here, "variants": sorted(run["variants"]), **launches, **works}


Played = tuple[list[TurnRecord], list[dict[str, Any]]]  # what is on file of it, and what its client felt


@dataclass(frozen=True, slots=True)
class Job:
    """One run: what is to be done, where it goes, how far it has come."""

    variants: Sequence[Variant]
    folder: Folder
    show: Show
    run: dict[str, Any]
    epoch: float
    journal: Journal
    why: dict[Play, str] = field(default_factory=dict)  # a level of a search is played

    def facts(self, variant: Variant) -> dict[str, Any]:
        facts: dict[str, Any] = self.run["variants"][variant.name]
        return facts

    def left(self, variant: Variant) -> list[Level]:
        """Without what an earlier part of the run has played and may keep."""
        over, ended = self.journal.over(), self.journal.requests()
        played = self._played() if over else {}
        left = []
        searched = [
            replace(variant.schedule.realistic(name, at), repeat=repeat, requests=ended[name, case, at, repeat])
            for name, case, at, repeat in over
            if (name, case, at, repeat) in ended and name == variant.name
        ]
        for level in [*searched, *variant.schedule.plays(variant.name)]:
            doubts = self._doubts(level, *played[level.play, over[level.play]]) if level.play in over else []
            left += [level] if doubts or level.play not in over else []
            if doubts:
                self.show.print(f"C = {level.concurrency} is played again: {doubts[0]}")
        return self._searching(variant, left) if variant.schedule.search else left

    def _searching(self, variant: Variant, left: list[Level]) -> list[Level]:
        """The bounds wait until the search is over."""
        again = [replace(one, requests=variant.schedule.requests_at(one.concurrency)) for one in left if _sought(one)]
        return again or self.further(variant) or left

    def further(self, variant: Variant) -> list[Level]:
        """The next level that the search asks for, if it is not over."""
        played = self.sought(variant)
        aim = self.aim(variant, played)
        step = search.step(aim, search.judge(played, aim.slo, aim.requests))
        self.facts(variant)["search"]["over"] = None if step.level is not None else step.why
        if step.level is None:
            self.enter([])
            return []
        repeat = len({one.repeat for one in played.get(step.level, [])})
        level = replace(variant.schedule.realistic(variant.name, step.level), repeat=repeat)
        self.why[level.play] = step.why
        return [level]

    def over(self, level: Level) -> bool:
        return level.play in self.journal.over()

    def watch(self, variant: Variant, level: Level) -> Watch | None:
        """Over a level of a search, which may end before all its requests are sent."""
        if not variant.schedule.search or not _sought(level):
            return None
        played = self.sought(variant)
        aim = self.aim(variant, played)
        if why := self.why.get(level.play):
            self.show.print(f"C = {level.concurrency}: {why}.")
        before = [one for one in played.get(level.concurrency, []) if one.repeat != level.repeat]
        return search.watch(aim, search.judge(played, aim.slo, aim.requests), level.concurrency, level.requests, before)

    def sought(self, variant: Variant) -> dict[int, list[TurnRecord]]:
        """What the search has seen of each level: plays that came to their end."""
        over = self.journal.over()
        found: dict[int, list[TurnRecord]] = {}
        for one in self.folder.records() if over else []:
            if one.variant == variant.name and one.case == "realistic" and over.get(one.play) == one.attempt:
                found.setdefault(one.concurrency, []).append(one)
        return found

    def aim(self, variant: Variant, played: dict[int, list[TurnRecord]]) -> search.Aim:
        """Predicted before the first level, corrected after each, and on file: what goes on goes the same way."""
        told, slo = self.facts(variant).setdefault("search", {}), knee.parse_slo(self.run["slo"])
        tokens = self.facts(variant).get("server", {}).get("cache", {}).get("tokens")
        if tokens is None and variant.launch is not None:
            tokens = capacity.expected(variant.launch).tokens
        known = Expectation(variant.schedule, variant.launch, tokens, slo)
        if "prediction" not in told or (not played and told["prediction"]["tokens"] != tokens):
            told["prediction"] = asdict(known.prediction())
            self.show.print(f"{variant.name}, predicted: {Prediction(**told['prediction'])}")
        if played and told.get("corrected_by") != sorted(played):
            told["corrected_by"] = sorted(played)
            if better := known.corrected(Prediction(**told["prediction"]), played):
                if better.ceiling != told.get("corrected", told["prediction"])["ceiling"]:
                    slower = better.how.removeprefix("simulated, ")
                    self.show.print(f"The ceiling is expected at {better.ceiling}: the server is {slower}")
                told["corrected"] = asdict(better)
        return search.aim_of(variant.schedule, slo, Prediction(**told.get("corrected", told["prediction"])))

    def enter(self, pending: Sequence[Level]) -> None:
        """What was played of a search, and is about to be, becomes what was planned: as many requests as ended."""
        if not self.run["search"]:
            return
        counts = {**self.journal.requests(), **{one.play: one.requests for one in pending if _sought(one)}}
        levels: dict[tuple[str, int], Level] = {}
        for (name, _, at, _), requests in sorted(counts.items()):
            so_far = levels[name, at].requests if (name, at) in levels else 0
            levels[name, at] = Level(name, "realistic", at, 0, so_far + requests)
        bounds = [level for one in self.variants for level in one.schedule.levels(one.name)]
        self.run["levels"] = [asdict(level) for level in (*levels.values(), *bounds)]
        self.folder.write_manifest(self.run)

    def _played(self) -> dict[tuple[Play, int], Played]:
        """Of each attempt at each level."""
        found: dict[tuple[Play, int], Played] = defaultdict(lambda: ([], []))
        for record in self.folder.records():
            found[record.play, record.attempt][0].append(record)
        for row in self.folder.rows("client.jsonl"):
            found[play_of(row), row.get("attempt", 0)][1].append(row)
        return found

    def _doubts(self, level: Level, own: list[TurnRecord], pulses: list[dict[str, Any]]) -> list[str]:
        if sum(one.turn > 0 and one.status != "cut" for one in own) != level.requests:
            return ["some of its requests are not on file"]
        rows = [stats.reduce(own, [], pulses=pulses)]
        return audit.doubts(Evidence(manifest.of(self.run, level.variant), level.variant, own, rows))


def _sought(level: Level) -> bool:
    return level.case == "realistic"


def sweep(variants: Sequence[Variant], folder: Folder, show: Show, run: dict[str, Any]) -> None:
    """Leaves the records and the manifest; what they mean is for others to say."""
    before = _reached(folder)
    epoch = time.perf_counter() - before
    job = Job(variants, folder, show, run, epoch, Journal(folder, load.WallClock(epoch).now))
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
    except Exception as error:  # of the system, or a mistake of ours
        ended = f"failed: {secret.without(repr(error))}"
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
            target = replace(target, control_s=variant.schedule.limits.control_s)
            _welcome(job, variant, target, time.perf_counter() - began)
            try:
                connection.run(_measure(job, variant, target, left))
            except BenchError as error:
                if error.exit != Exit.SERVER or variant.launch is None or left[0].play in again:
                    raise
                again.add(left[0].play)
                job.show.print(f"{error.message}. It is started again, and this level begun anew")
            else:
                job.facts(variant)["settings"].append(connection.run(server.now(target)))


def _welcome(job: Job, variant: Variant, target: server.Endpoint, started_s: float) -> None:
    expected = capacity.expected(variant.launch) if variant.launch else None
    job.show.server_ready(target, expected, started_s)
    facts, settings = job.facts(variant), connection.run(server.now(target))
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
        "roof": asdict(roof) if variant.launch and (roof := capacity.roof(variant.launch)) else None,
        "settings": [*facts.get("settings", []), settings],
    }
    if "foretold" not in facts and variant.launch and not variant.schedule.search:
        plan, levels = variant.schedule, variant.schedule.levels(variant.name)
        tokens = target.cache.tokens
        facts["foretold"] = foresight.foretell(variant.name, variant.launch, tokens, levels, plan.workload, plan.seed)


async def _measure(job: Job, variant: Variant, target: server.Endpoint, left: list[Level]) -> None:
    """Takes away from `left` what is done."""
    schedule = variant.schedule
    dialect = await client.probe(
        target.base_url, target.model, target.key, target.vocabulary, schedule.limits.control_s
    )
    job.facts(variant)["dialect"] = {"name": dialect.name, "reports_cached": dialect.reports_cached}
    job.folder.write_manifest(job.run)
    asked = Target(target.base_url, target.model, dialect, job.epoch, schedule.limits, target.key)
    content = Content(dialect.words, dialect.separator, schedule.seed, job.run["salt"])
    fit = (
        capacity.sessions_that_fit(target.cache.tokens, schedule.workload, schedule.seed)
        if target.cache.tokens
        else None
    )
    block, drift = target.cache.block_size or 1, 1.0
    if schedule.search and not job.sought(variant):
        left[:] = job.further(variant)  # as the server has told its cache by now
    while left:
        repeats = [*next(groupby(left, key=lambda one: (one.case, one.concurrency)))[1]]
        guesses = [schedule.expected_s(variant.launch, one, fit) for one in left]
        rest = (
            None if None in guesses or schedule.search else drift * sum(guess for guess in guesses if guess is not None)
        )
        job.show.level_begins(replace(repeats[0], requests=sum(one.requests for one in repeats)), rest)
        began = time.perf_counter()
        minutes = Minutes(job.folder, job.journal, target, schedule.processes, job.show.turn_ended)
        for level in repeats:
            job.enter([level])
            here = replace(level, attempt=job.journal.begin(level.play))
            watching = job.watch(variant, level)
            part = Part(here, schedule.workload, content, block, asked, schedule.seed, job.folder)
            ended = await minutes.take(part, watching.ended if watching else lambda _: False)
            job.journal.end(level.play, ended if watching else None)
            job.enter([])
            left.remove(level)
            if ended < level.requests:
                job.show.print(f"     certain after {ended} of {level.requests} requests")
        if guesses[0]:
            drift = (time.perf_counter() - began) / (guesses[0] * len(repeats))
        job.show.level_ended(minutes.row())
        if schedule.search and not left and _sought(repeats[0]):
            left += job.further(variant) or [one for one in schedule.plays(variant.name) if not job.over(one)]
