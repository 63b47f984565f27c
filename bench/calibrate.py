"""The constants of a machine, out of a run that happened there: those with which the simulation says what was measured.

Nothing but a run's records is needed. Each constant is positive, so their logarithms are fitted; what a run cannot tell
apart stays near where it began.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from bench import capacity, foresight, knee, manifest, stats, tables
from bench.errors import BenchError
from bench.foresight import Simulated
from bench.load import Level
from bench.recipe import Launch
from bench.records import Folder, TurnRecord, attempts, is_last
from bench.speed import CONSTANTS, Speed
from bench.stats import LevelRow
from bench.workload import Workload

MOST_LEVELS = 6  # of sessions; from the lowest to the highest
ROUNDS = 8
ENOUGH = 0.01  # of the squared error, by which a round still has to be better
NEAR = 0.03  # how strongly a constant is held where it began
APART = 0.05  # of a logarithm, to see what a constant does
WIDEST = 1.5  # of a logarithm, in one round
COMPARED = ("ttft_p50_s", "ttft_p99_s", "tpot_p50_s", "req_per_s")
NINE_IN_TEN = 0.9
Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Case:
    """What was measured of one server, and the same server as it would be simulated."""

    server: Simulated
    workload: Workload
    seed: int
    measured: dict[Level, LevelRow]


@dataclass(frozen=True, slots=True)
class Fit:
    speed: Speed
    errors: tuple[dict[Level, dict[str, float]], ...]  # of each case: predicted over measured, less one, by column

    @property
    def typical(self) -> float:
        """The median of all of them, whichever way they go."""
        return float(np.median([abs(error) for case in self.errors for row in case.values() for error in row.values()]))


# Where neither a fit nor a data sheet is at hand: a miniature model on a processor.
UNKNOWN = Speed(
    step_s=2e-3,
    weights_s=0.0,
    token_s=5e-6,
    attend_s=4e-9,
    read_s=2e-8,
    sequence_s=2e-4,
    request_s=4e-3,
    said_s=3e-7,
    way_s=8e-3,
)
LEAST = Speed(
    0.0, 0.0, 0.0, 0.0, 0.0, sequence_s=1e-5, request_s=1e-3, said_s=1e-8, way_s=1e-3
)  # where the data sheet says nothing


def cases(folder: Folder) -> list[Case]:
    """Every variant of a run, with its own launch and workload."""
    run = folder.manifest()
    machines = {
        (facts["launch"]["model"], facts["launch"]["tp"]) for facts in run["variants"].values() if facts["launch"]
    }
    if len(machines) > 1:
        raise BenchError(f"{folder.path}: its variants differ in model or --tp", "calibrate on a run of one of them")
    found = []
    for name, facts in run["variants"].items():
        if not facts["launch"] or facts.get("simulated") or "server" not in facts:
            raise BenchError(f"{folder.path}: {name} was no server that bench started", "calibrate on one that was")
        launch = tables.convert({**facts["launch"], "file": _file(facts)}, Launch, f"{folder.path}: {name}")
        server = foresight.simulated(name, launch, _begin(launch), facts["server"]["cache"]["tokens"])
        work = tables.convert(manifest.of(run, name)["workload"], Workload, f"{folder.path}: workload")
        found.append(Case(server, work, run["seed"], rows(folder, name)))
    return found


def _file(facts: dict[str, Any]) -> dict[str, Any]:
    """Older runs had other constants in it."""
    return {key: value for key, value in facts["launch"]["file"].items() if key != "speed"}


def _begin(launch: Launch) -> Speed:
    sheet = capacity.speed(launch)
    if sheet is None:
        return UNKNOWN
    return Speed(**{name: max(getattr(sheet, name), getattr(LEAST, name)) for name in CONSTANTS})


def toml(fitted: Speed, source: str) -> str:
    """For a launch file."""
    lines = [f"{name} = {json.dumps(getattr(fitted, name))}" for name in ("model", "tp", "kv")]
    lines += [f"{name} = {getattr(fitted, name):.3g}" for name in (*CONSTANTS, "below", "past")]
    return "\n".join(["[speed]", f"source = {json.dumps(source)}", *lines])


def rows(folder: Folder, variant: str) -> dict[Level, LevelRow]:
    """What was measured, of the levels that a simulation can play too."""
    run, records = folder.manifest(), folder.records()
    last = attempts(records)
    found = {}
    for told in run["levels"]:
        level = Level(**told)
        own = [one for one in records if _of(level, one) and one.turn > 0 and is_last(last, one)]
        sent = level.requests * run["repeats"]
        if level.variant == variant and len(own) == sent and all(record.status == "ok" for record in own):
            found[level] = stats.reduce(own, [], manifest.of(run, variant)["typical"]["shared_tokens"])
    if not found:
        raise BenchError(f"{folder.path}: no level of {variant} was answered whole", "calibrate on a valid run")
    return found


def _of(level: Level, one: TurnRecord) -> bool:
    return (one.variant, one.case, one.concurrency) == (level.variant, level.case, level.concurrency)


def _some(measured: dict[Level, LevelRow]) -> dict[Level, LevelRow]:
    """From the lowest level to the highest, and the bounds: enough to fit to."""
    sessions = [level for level in measured if level.case == "realistic"]
    picked = {round(at) for at in np.linspace(0, len(sessions) - 1, MOST_LEVELS)}
    chosen = {level for at, level in enumerate(sessions) if at in picked}
    return {level: row for level, row in measured.items() if level in chosen or level.case in ("best", "worst")}


def fit(cases: Sequence[Case], say: Callable[[str], None]) -> Fit:
    """Least squares on logarithms, by Gauss and Newton, damped. They all have the speed of the first."""
    begun = cases[0].server.speed
    chosen = [replace(case, measured=_some(case.measured)) for case in cases]
    free = [name for name in CONSTANTS if getattr(begun, name) > 0]
    before = np.log([getattr(begun, name) for name in free])

    def speed(at: Numbers) -> Speed:
        return Speed(**{**asdict(begun), **dict(zip(free, np.exp(at).tolist(), strict=True))})

    def off(at: Numbers) -> Numbers:
        found = [compared(_with(case, speed(at))) for case in chosen]
        errors = [error for case in found for row in case.values() for error in row.values()]
        return np.concatenate([np.log1p(errors), NEAR * (at - before)])

    at, now, damping = before, off(before), 1e-2
    for number in range(ROUNDS):
        say(f"fitting {len(free)} constants, round {number + 1}: off by {np.median(np.abs(now)):.0%} in the middle")
        slopes = np.stack([(off(at + APART * unit) - now) / APART for unit in np.eye(len(free))], 1)
        was = float(now @ now)
        while damping < 1e3:
            step = np.linalg.solve(slopes.T @ slopes + damping * np.eye(len(free)), -slopes.T @ now)
            step = step.clip(-WIDEST, WIDEST)
            tried = off(at + step)
            if tried @ tried < was:
                at, now, damping = at + step, tried, max(damping / 5, 1e-4)
                break
            damping *= 5
        if float(now @ now) > was * (1 - ENOUGH):
            break
    errors = tuple(compared(_with(case, speed(at))) for case in cases)
    below, past = (_within(cases, errors, past) for past in (False, True))
    of = cases[0].server.launch
    return Fit(replace(speed(at), below=below, past=past, model=of.model, tp=of.tp, kv=of.kv), errors)


def _within(cases: Sequence[Case], errors: Sequence[dict[Level, dict[str, float]]], past: bool) -> float:
    """The factor that nine in ten of them are within, on that side of the knee; without any, that of a data sheet."""
    of = [
        abs(math.log1p(error))
        for case, found in zip(cases, errors, strict=True)
        for level, row in found.items()
        if is_past(case, level) == past
        for error in row.values()
    ]
    return math.exp(float(np.quantile(of, NINE_IN_TEN))) if of else UNKNOWN.past


def is_past(case: Case, level: Level) -> bool:
    rows = sorted(
        (row for one, row in case.measured.items() if one.case == "realistic"), key=lambda row: row.concurrency
    )
    found = knee.knee(rows)
    return level.case == "realistic" and (level.concurrency >= found.hi if found else knee.from_the_start(rows))


def _with(case: Case, speed: Speed) -> Case:
    return replace(case, server=replace(case.server, speed=speed))


def compared(case: Case) -> dict[Level, dict[str, float]]:
    return {
        level: _off(foresight.row(case.server, level, case.workload, case.seed), row)
        for level, row in case.measured.items()
    }


def _off(predicted: LevelRow, measured: LevelRow) -> dict[str, float]:
    pairs = {name: (getattr(predicted, name), getattr(measured, name)) for name in COMPARED}
    return {name: ours / theirs - 1 for name, (ours, theirs) in pairs.items() if ours and theirs}
