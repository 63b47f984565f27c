"""`make prediction`: how far is the simulator from a real vLLM, on settings that its constants were not fitted to? And
what does a search cost that begins with what it says, beside the sweep of all levels?

python -m tests.prediction.measure RUNS: plays on the CPU engine what is not in the folder RUNS yet, fits the constants
to the settings named for it, and prints predicted and measured side by side. An hour, once, on a
machine that has nothing else to do: a level at which the client was late is left out.
"""

import argparse
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bench import audit, calibrate, foresight, knee
from bench.audit import Evidence
from bench.calibrate import Case
from bench.conclusion import Conclusion, conclude
from bench.errors import Exit
from bench.load import Level
from bench.records import Folder
from bench.speed import Speed

HERE = Path(__file__).parent
MACHINE = HERE / "machine.toml"
PROMISES = ("ttft_p99<250ms", "ttft_p99<500ms")  # what lost history breaks, and what it takes a crowd to break


@dataclass(frozen=True, slots=True)
class Setting:
    name: str
    workload: str = "small"
    kv: str = "fp8"
    extra: tuple[str, ...] = ()  # of vllm serve
    more: tuple[str, ...] = ("--max-c", "48", "--no-bounds")  # of bench sweep
    fitted: bool = False

    def play(self, out: Path, machine: Path, promise: str, *more: str) -> Path:
        """Unless it was played before."""
        if not (out / "run.json").is_file():
            print(f"playing {out}", flush=True)
            what = ["--gpu", str(machine), "--kv", self.kv, "--workload", str(HERE / f"{self.workload}.toml")]
            words = [*what, "--slo", promise, *self.more, *more, "--out", str(out), "--", *self.extra]
            ran = subprocess.run([sys.executable, "-m", "bench", "sweep", *words], capture_output=True, text=True)
            if ran.returncode not in (Exit.FINE, Exit.INVALID):
                sys.exit(f"{out}: exit code {ran.returncode}\n{ran.stderr[-4000:]}")
        return out

    @property
    def file(self) -> str:
        return self.name.replace(" ", "-")


SETTINGS = (
    Setting("base", more=("--max-c", "48"), fitted=True),
    Setting("long turns", "long", "large", fitted=True),
    Setting("16-bit", kv="fp16"),
    Setting("4-bit", kv="tq4"),
    Setting("four at once", extra=("--max-num-seqs", "4")),
    Setting("spread", "spread"),
    Setting("long answers", "answers"),
    Setting("variable", "variable"),
    Setting("larger cache", kv="large"),
    Setting("steps of 512", extra=("--max-num-batched-tokens", "512")),
    Setting("base again"),
    Setting("misses", more=("--levels", "1,4,8", "--miss-rate", "0.3", "--miss-rate", "0.7")),
)


@dataclass(frozen=True, slots=True)
class Measured:
    setting: Setting
    done: Conclusion
    case: Case  # the levels that nothing is to be said against
    left_out: int


def measured(setting: Setting, run: Path) -> Measured:
    folder = Folder.open(run)
    done, (case,) = conclude(folder), calibrate.cases(folder)
    bad = {(row.case, row.concurrency) for row in done.rows if any(_doubts(done, row))}
    kept = {level: row for level, row in case.measured.items() if (level.case, level.concurrency) not in bad}
    return Measured(setting, done, replace(case, measured=kept), len(case.measured) - len(kept))


def _doubts(done: Conclusion, row: Any) -> Iterator[str]:
    own = [one for one in done.records if (one.case, one.concurrency) == (row.case, row.concurrency)]
    yield from audit.doubts(Evidence(done.run, row.variant, own, [row]))


@dataclass(frozen=True, slots=True)
class Found:
    of: Measured
    predicted: tuple[int, int] | None
    errors: dict[tuple[bool, str], list[float]]  # past the knee or not, column


def judged(one: Measured, fitted: Speed) -> Found:
    case = replace(one.case, server=replace(one.case.server, speed=fitted))
    levels = [Level(**told) for told in one.done.run["levels"] if told["case"] == "realistic"]
    ours = knee.knee([foresight.row(case.server, level, case.workload, case.seed) for level in levels])
    errors: dict[tuple[bool, str], list[float]] = {}
    for level, found in calibrate.compared(case).items():
        for name, error in found.items():
            errors.setdefault((calibrate.is_past(case, level), name), []).append(error)
    return Found(one, (ours.lo, ours.hi) if ours else None, errors)


def errors_table(found: Sequence[Found]) -> str:
    columns = [(past, name) for past in (False, True) for name in calibrate.COMPARED]
    lines = [
        ["setting", "knee", "predicted", "levels, left out", *(f"{name}{', past' * past}" for past, name in columns)]
    ]
    for one in found:
        of = one.of
        name = f"{of.setting.name} (fitted)" if of.setting.fitted else of.setting.name
        said = of.done.run["verdict"]["knee"]
        levels = f"{len(of.case.measured)}, {of.left_out}"
        lines.append(
            [name, _knee(said), _knee(one.predicted), levels, *(_error(one.errors.get(at, [])) for at in columns)]
        )
    return _table(lines)


def _error(errors: Sequence[float]) -> str:
    if not errors:
        return ""
    return f"{np.median(np.abs(errors)):.0%} ({min(errors):+.0%} to {max(errors):+.0%})"


def _knee(found: Sequence[int] | None) -> str:
    return f"{found[0]}-{found[1]}" if found else "none"


def _table(lines: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in [lines[0], ["---"] * len(lines[0]), *lines[1:]])


def cost_table(pairs: Sequence[tuple[str, Measured, Measured]]) -> str:
    """A ceiling with the levels, where they are further away, that surely keep the promise and surely do not."""
    lines = [
        ["setting", "promise", "knee: sweep", "search", "ceiling: sweep", "search", "requests", "server s", "share"]
    ]
    for promise, *both in pairs:
        spent = [sum(row.duration_s for row in one.done.rows if row.case == "realistic") for one in both]
        sent = [sum(row.requests for row in one.done.rows if row.case == "realistic") for one in both]
        lines.append([
            both[0].setting.name, promise, *(_knee(one.done.run["verdict"]["knee"]) for one in both),
            *(_ceiling(one, knee.parse_slo(promise)) for one in both),
            f"{sent[0]}, {sent[1]}", f"{spent[0]:.0f}, {spent[1]:.0f}", f"{spent[1] / spent[0]:.0%}",
        ])  # fmt: skip
    return _table(lines)


def _ceiling(one: Measured, slo: knee.Slo) -> str:
    rows = sorted((row for row in one.done.rows if row.case == "realistic"), key=lambda row: row.concurrency)
    turns = {row.concurrency: [] for row in rows}
    for record in one.done.records:
        if record.case == "realistic" and record.turn > 0:
            turns[record.concurrency].append(record)
    top = knee.ceiling(rows, slo)
    kept, broken = knee.ceiling_between(slo, turns, top) or (None, None)
    return f"{top}" + (f" ({kept or ''} to {broken or ''})" if kept or broken else "")


def main() -> None:
    parser = argparse.ArgumentParser(prog="tests.prediction.measure", description=__doc__)
    parser.add_argument("runs", type=Path)
    runs = parser.parse_args().runs
    runs.mkdir(parents=True, exist_ok=True)
    fit = calibrate.fit([swept(one, runs).case for one in SETTINGS if one.fitted], print)
    told = runs / "machine.toml"
    told.write_text(f"{MACHINE.read_text()}\n{calibrate.toml(fit.speed, 'fitted to two of these runs')}\n")
    sweeps, pairs = [], []
    for setting in SETTINGS:  # each search right after its sweep: the machine is not the same an hour later
        sweeps.append(swept(setting, runs))
        if "--max-c" in setting.more:
            for at, promise in enumerate(PROMISES):
                search = setting.play(runs / f"{setting.file}-search-{at}", told, promise, "--search")
                pairs.append((promise, sweeps[-1], measured(setting, search)))
    print(errors_table([judged(one, fit.speed) for one in sweeps]))
    print(cost_table(pairs))


def swept(setting: Setting, runs: Path) -> Measured:
    return measured(setting, setting.play(runs / setting.file, MACHINE, PROMISES[0]))


if __name__ == "__main__":
    main()
