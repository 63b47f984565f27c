"""`make prediction`: how far is the simulator from a real vLLM, on settings that its constants were not fitted to?

python -m tests.prediction.measure RUNS: sweeps on the CPU engine what is not in the folder RUNS yet, fits the constants
to the settings named for it, and prints predicted and measured side by side, with the error. Half an hour, once.
"""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from bench import calibrate, foresight, knee
from bench.calibrate import Case
from bench.conclusion import conclude
from bench.load import Level
from bench.records import Folder
from bench.speed import Speed

HERE = Path(__file__).parent
MACHINE = str(HERE / "machine.toml")


@dataclass(frozen=True, slots=True)
class Setting:
    name: str
    workload: str = "small"
    kv: str = "fp8"
    extra: tuple[str, ...] = ()  # of vllm serve
    more: tuple[str, ...] = ()  # of bench sweep
    fitted: bool = False

    def words(self, out: Path) -> list[str]:
        what = ["--gpu", MACHINE, "--kv", self.kv, "--workload", str(HERE / f"{self.workload}.toml"), *self.more]
        return ["sweep", *what, "--out", str(out), *(("--", *self.extra) if self.extra else ())]


FULL = ("--max-c", "48", "--no-bounds")
SETTINGS = (
    Setting("base", more=("--max-c", "48"), fitted=True),
    Setting("long turns", "long", "large", more=FULL, fitted=True),
    Setting("16-bit", kv="fp16", more=FULL),
    Setting("4-bit", kv="tq4", more=FULL),
    Setting("four at once", extra=("--max-num-seqs", "4"), more=FULL),
    Setting("spread", "spread", more=FULL),
    Setting("long answers", "answers", more=FULL),
    Setting("variable", "variable", more=FULL),
    Setting("larger cache", kv="large", more=FULL),
    Setting("steps of 512", extra=("--max-num-batched-tokens", "512"), more=FULL),
    Setting("misses", more=("--levels", "1,4,8", "--miss-rate", "0.3", "--miss-rate", "0.7")),
)


def played(setting: Setting, runs: Path) -> Path:
    out = runs / setting.name.replace(" ", "-")
    if not (out / "run.json").is_file():
        print(f"playing {setting.name}", flush=True)
        subprocess.run([sys.executable, "-m", "bench", *setting.words(out)], check=False)
    return out


def case(run: Path) -> Case:
    (told,) = calibrate.cases(Folder.open(run))
    return told


@dataclass(frozen=True, slots=True)
class Found:
    setting: Setting
    predicted: tuple[int, int] | None
    measured: tuple[int, int] | None
    errors: dict[tuple[bool, str], list[float]]  # past the knee or not, column


def judged(setting: Setting, run: Path, fitted: Speed) -> Found:
    told = case(run)
    told = replace(told, server=replace(told.server, speed=fitted))
    rows = {level: row for level, row in told.measured.items() if level.case == "realistic"}
    here = [foresight.row(told.server, level, told.workload, 0) for level in rows]
    theirs, ours = knee.knee([*rows.values()]), knee.knee(here)
    past = theirs.hi if theirs else 1 << 30
    errors: dict[tuple[bool, str], list[float]] = {}
    for level, found in calibrate.compared(told).items():
        for name, error in found.items():
            errors.setdefault((_past(level, past), name), []).append(error)
    return Found(setting, _bracket(ours), _bracket(theirs), errors)


def _past(level: Level, knee_at: int) -> bool:
    return level.case == "realistic" and level.concurrency >= knee_at


def _bracket(found: knee.Knee | None) -> tuple[int, int] | None:
    return (found.lo, found.hi) if found else None


def table(found: Sequence[Found]) -> str:
    columns = [(past, name) for past in (False, True) for name in calibrate.COMPARED]
    heads = ["setting", "knee, predicted", "measured", *(f"{name}{', past' if past else ''}" for past, name in columns)]
    lines = [heads, ["---"] * len(heads)]
    for one in found:
        name = f"{one.setting.name} (fitted)" if one.setting.fitted else one.setting.name
        lines.append([name, str(one.predicted), str(one.measured), *(_error(one.errors.get(at, [])) for at in columns)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _error(errors: Sequence[float]) -> str:
    if not errors:
        return ""
    return f"{np.median(np.abs(errors)):.0%} ({min(errors):+.0%} to {max(errors):+.0%}, {len(errors)})"


def main() -> None:
    parser = argparse.ArgumentParser(prog="tests.prediction.measure", description=__doc__)
    parser.add_argument("runs", type=Path)
    given = parser.parse_args()
    given.runs.mkdir(parents=True, exist_ok=True)
    runs = {setting: played(setting, given.runs) for setting in SETTINGS}
    fitted = calibrate.fit([case(run) for setting, run in runs.items() if setting.fitted], print)
    print(fitted.speed)
    print(table([judged(setting, run, fitted.speed) for setting, run in runs.items()]))
    invalid = [one.name for one, run in runs.items() if not conclude(Folder.open(run)).valid]
    print(f"not valid: {', '.join(invalid) or 'none'}")


if __name__ == "__main__":
    main()
