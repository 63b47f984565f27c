"""Continuous load on a real vLLM for as long as you like: does bench hold more memory and open files as time goes on?

python -m tests.endurance.hour [MINUTES]; a table of tenths of the time, and exit 1 if it grew.
"""

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.real.command import BENCH, SMALL

EVERY_S = 5.0
PAGE_MB = os.sysconf("SC_PAGE_SIZE") / 1e6
GROWN_MB = 1.5  # from the second tenth to the last: more than that is no noise
LOAD = ("--kv", "plenty", "--levels", "6", "--requests", "100000000", "--no-bounds")


@dataclass(frozen=True, slots=True)
class Held:
    """By bench itself, and by all that it started."""

    memory_mb: float
    files: int
    others_mb: float
    processes: int


def descendants(pid: int) -> Iterator[int]:
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    found = [pid]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    yield from found[1:]


def memory_mb(pid: int) -> float:
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_MB
    return 0.0


def look(pid: int) -> Held:
    others = [*descendants(pid)]
    return Held(memory_mb(pid), len(os.listdir(f"/proc/{pid}/fd")), sum(memory_mb(one) for one in others), len(others))


def watch(process: subprocess.Popen[bytes], requests: Path, seconds: float) -> list[Held]:
    while not (requests.is_file() and requests.stat().st_size):
        time.sleep(0.5)
    end, seen = time.monotonic() + seconds, []
    while time.monotonic() < end:
        assert process.poll() is None, "the run ended by itself"
        seen.append(look(process.pid))
        time.sleep(EVERY_S)
    return seen


def table(seen: list[Held]) -> str:
    lines = ["tenth  bench MB           files  its children MB    processes"]
    for number, tenth in enumerate(tenths(seen), 1):
        memory, files = [one.memory_mb for one in tenth], [one.files for one in tenth]
        others, several = [one.others_mb for one in tenth], [one.processes for one in tenth]
        lines.append(
            f"{number:5}  {min(memory):7.1f} to {max(memory):6.1f}  {min(files):2}-{max(files):2}"
            f"  {min(others):7.0f} to {max(others):6.0f}  {min(several)}-{max(several)}"
        )
    return "\n".join(lines)


def tenths(seen: list[Held]) -> list[list[Held]]:
    size = len(seen) / 10
    return [seen[round(at * size) : round((at + 1) * size)] for at in range(10)]


def main() -> None:
    minutes = float(sys.argv[1]) if len(sys.argv) > 1 else 60.0
    with tempfile.TemporaryDirectory() as place:
        run = Path(place) / "run"
        process = subprocess.Popen([*BENCH, "sweep", *SMALL, *LOAD, "--out", str(run)])
        try:
            seen = watch(process, run / "requests.jsonl", minutes * 60)
        finally:
            process.terminate()  # SIGINT is ignored where a shell put us in the background
            process.wait()
        told = json.loads((run / "run.json").read_text())
        logs = {log.name: f"{log.stat().st_size / 1e6:.1f} MB" for log in run.glob("*.log*")}
    early, late = (statistics.median(one.memory_mb for one in tenths(seen)[at]) for at in (1, 9))
    print(table(seen))
    print(f"{told['verdict']['ledger']['ok']:,} requests in {minutes:g} minutes; {told['ended']}; logs {logs}")
    print(f"memory of bench: {early:.1f} MB in the second tenth, {late:.1f} MB in the last")
    sys.exit(late > early + GROWN_MB or len({one.files for one in seen[len(seen) // 10 :]}) > 2)


if __name__ == "__main__":
    main()
