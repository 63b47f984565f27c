"""`make bench-client`: what load clients cost, and how true their reports are, against a server whose times are known.

    python -m tests.clients.measure [CLIENT ...] --levels 1 48 128 512 --repeats 3 --out results.md

Server and client have a core each. Clients take turns within every level and pass, so that what the machine does to one
it does to all. What is measured, by what the server wrote down unless it says otherwise:

CPU            of the client and all its children, user and system, from the arrival of the first measured request to
               the end of the last: what a client prepares before, or computes after, is not counted. Read from the
               kernel's clock of each process when the server says that it became busy or idle.
TTFT p99       of all TTFTs in the client's report, minus the same percentile of first event sent - request whole.
  one by one   p99 of that difference for each request, where a client tells which request was which.
idle gap p99   from the end of an answer to the arrival of the request that takes its place: the n-th end and the
               (n + C)-th arrival, whatever connections they came on.
load carried   mean time of an answer as it was planned, over mean time from one start to the next in one place.
"""

import argparse
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.clients import truth, turns
from tests.clients.contestants import OWN, ROOT, Cell, Contestant, Report
from tests.clients.peers import PEERS
from tests.clients.table import Row, markdown
from tests.clients.turns import p99

CONTESTANTS = {contestant.name: contestant for contestant in (*OWN, *PEERS)}
LEVELS = (1, 48, 128, 512)
ROUNDS = {1: 10, 512: 4}  # of a level: requests of each of its places
SERVER_CORE, CLIENT_CORE = 0, 1
LIMIT_S = 300.0
GUESS_S = 20.0  # of a cell never seen
SOON_S = 0.01  # after the server said so, we have looked
TICK_S = 1 / os.sysconf("SC_CLK_TCK")


@dataclass(slots=True)
class Watch:
    """CPU time of all processes of a session, at moments."""

    session: int
    at: list[tuple[float, float]] = field(default_factory=list)

    def look(self) -> None:
        self.at.append((time.perf_counter(), sum(map(_cpu_s, processes(self.session)))))

    def between(self, begin: float, end: float) -> tuple[float, float] | None:
        """Since when, and how much: from the last look before there was anything to do."""
        before = [look for look in self.at if look[0] <= begin + SOON_S][-1:]
        after = [look for look in self.at if look[0] >= end][:1]
        if not before or not after or after[0][1] <= before[0][1]:
            return None
        return before[0][0] - SOON_S, after[0][1] - before[0][1]


def processes(session: int) -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit() and _stat(name, 3) == session]


def _stat(process: int | str, *fields: int) -> int:
    """The sum of fields of a process, counted from behind its name; -1 for one that is gone."""
    try:
        rest = Path(f"/proc/{process}/stat").read_bytes().rpartition(b") ")[2].split()
    except OSError:
        return -1
    return sum(int(rest[number]) for number in fields)


def _cpu_s(process: int) -> float:
    """Its own, to the nanosecond, and that of its children that have ended."""
    with suppress(OSError):
        return time.clock_gettime(~process << 3 | 2) + max(0, _stat(process, 13, 14)) * TICK_S
    return 0.0


@contextmanager
def running(command: Sequence[str], core: int, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """In a session of its own, pinned; nothing of it outlives the block."""
    pinned = ["taskset", "-c", str(core), *command]
    process = subprocess.Popen(pinned, text=True, start_new_session=True, stdin=subprocess.DEVNULL, **options)
    try:
        yield process
    finally:
        for stop, patience_s in ((signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0)):
            _end(process, stop, patience_s)


def _end(process: subprocess.Popen[str], stop: signal.Signals, patience_s: float) -> None:
    for one in processes(process.pid):
        with suppress(ProcessLookupError):
            os.kill(one, stop)
    until = time.monotonic() + patience_s
    while process.poll() is None or processes(process.pid):
        if time.monotonic() > until:
            return
        time.sleep(0.01)


def play(contestant: Contestant, concurrency: int, requests: int) -> tuple[Row, dict[str, Any]]:
    if contestant.version() is None:
        row = Row(contestant.name, concurrency, problem="not installed")
        return row, asdict(row)
    return measure(contestant, concurrency, requests)


def measure(contestant: Contestant, concurrency: int, requests: int) -> tuple[Row, dict[str, Any]]:
    with tempfile.TemporaryDirectory(prefix="bench-client-") as name:
        folder = Path(name)
        served = [sys.executable, "-m", "tests.clients.truth", "--log", str(folder / "truth.jsonl")]
        with running(served, SERVER_CORE, stdout=subprocess.PIPE, cwd=ROOT) as server:
            assert server.stdout is not None
            cell = Cell(int(server.stdout.readline()), concurrency, requests, folder)
            problem, watch = _play(contestant, cell, server)
        answered = sorted(truth.read_log(folder / "truth.jsonl"), key=lambda one: one.arrived)
        report = None
        if not problem:
            report, problem = _report(contestant, cell)
        raw = {"log": (folder / "client.log").read_text(errors="replace")[-4000:]}
    row = judge(contestant.name, concurrency, requests, answered, watch, report, problem)
    raw |= {"looks": watch.at, "truth": [asdict(one) for one in answered], "report": report and asdict(report)}
    return row, asdict(row) | raw


def _play(contestant: Contestant, cell: Cell, server: subprocess.Popen[str]) -> tuple[str | None, Watch]:
    with (cell.folder / "client.log").open("w") as log:
        options = {"stdout": log, "stderr": log, "cwd": cell.folder, "env": contestant.environment()}
        with running(contestant.call(cell), CLIENT_CORE, **options) as client:
            watch = Watch(client.pid)
            threading.Thread(target=_watch, args=(server, watch), daemon=True).start()
            try:
                code = client.wait(LIMIT_S)
            except subprocess.TimeoutExpired:
                return f"not done after {LIMIT_S:.0f} s", watch
    return (f"exit code {code}" if code else None), watch


def _watch(server: subprocess.Popen[str], watch: Watch) -> None:
    assert server.stdout is not None
    for _ in server.stdout:
        watch.look()


def _report(contestant: Contestant, cell: Cell) -> tuple[Report | None, str | None]:
    try:
        return contestant.read(cell), None
    except (OSError, KeyError, ValueError, IndexError, TypeError) as error:
        return None, f"its report cannot be read: {type(error).__name__} {error}"


def judge(
    name: str,
    concurrency: int,
    requests: int,
    answered: list[truth.Answered],
    watch: Watch,
    report: Report | None,
    problem: str | None,
) -> Row:
    if not answered:
        return Row(name, concurrency, problem=problem or "sent nothing")
    cpu_s = _cpu_a_request(watch, answered, requests)
    answered = answered[-requests:]  # what came before was a warm-up
    ends = sorted(one.ended for one in answered)
    starts = [one.arrived for one in answered]
    gaps = [start - end for start, end in zip(starts[concurrency:], ends, strict=False)]
    empty = [start - starts[0] for start in starts[:concurrency]] + gaps
    planned = statistics.fmean(one.due - one.arrived for one in answered) + (turns.OUTPUT_TOKENS - 1) * truth.Pace().gap
    if len(answered) < requests:
        problem = problem or f"{len(answered)} of {requests} requests"
    true = [one.first - one.arrived for one in answered]
    return Row(
        name,
        concurrency,
        cpu_ms=None if cpu_s is None else 1e3 * cpu_s,
        bias_ms=_bias(report.ttfts_s if report else (), true),
        due_bias_ms=_bias(report.due_ttfts_s if report else (), true),
        matched_ms=_matched(report, answered),
        gap_ms=1e3 * p99(gaps) if gaps else None,
        load=planned / (planned + statistics.fmean(empty)),
        lag_ms=1e3 * p99([one.first - one.due for one in answered]),
        problem=problem,
    )


def _cpu_a_request(watch: Watch, answered: list[truth.Answered], requests: int) -> float | None:
    used = watch.between(answered[-requests:][0].arrived, max(one.ended for one in answered))
    return used and used[1] / sum(one.arrived >= used[0] for one in answered)


def _bias(reported_s: Sequence[float], true_s: Sequence[float]) -> float | None:
    return 1e3 * (p99(reported_s) - p99(true_s)) if reported_s else None


def _matched(report: Report | None, answered: list[truth.Answered]) -> float | None:
    known = {one.mark: one.first - one.arrived for one in answered}
    told = [turn for turn in report.turns if turn.mark in known] if report else []
    return 1e3 * p99([turn.first - turn.sent - known[turn.mark] for turn in told]) if told else None


@dataclass(slots=True)
class Progress:
    """How long is left, by what each client took at each level before."""

    cells: list[tuple[int, int, str]]
    took: dict[tuple[int, str], float] = field(default_factory=dict)

    def left_s(self, done: int) -> float:
        typical = statistics.fmean(self.took.values()) if self.took else GUESS_S
        return sum(self.took.get((level, name), typical) for _, level, name in self.cells[done:])

    def say(self, done: int, repeats: int) -> None:
        number, level, name = self.cells[done]
        left = self.left_s(done) / 60
        print(f"pass {number + 1}/{repeats} · C = {level} · {name} · {left:.0f} min left", file=sys.stderr, flush=True)


def run(names: Sequence[str], levels: Sequence[int], repeats: int, keep: Callable[[Row, dict[str, Any]], None]) -> None:
    cells = [(number, level, name) for number in range(repeats) for level in levels for name in names]
    progress = Progress(cells)
    for done, (_, level, name) in enumerate(cells):
        progress.say(done, repeats)
        began = time.monotonic()
        row, raw = play(CONTESTANTS[name], level, level * ROUNDS.get(level, 5))
        progress.took[level, name] = time.monotonic() - began
        print(f"    {row.brief()}", file=sys.stderr, flush=True)
        keep(row, raw)


def about(names: Sequence[str]) -> dict[str, Any]:
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "kernel": platform.release(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "versions": {name: CONTESTANTS[name].version() for name in names},
    }


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("clients", nargs="*", default=list(CONTESTANTS), metavar="CLIENT", help=" ".join(CONTESTANTS))
    parser.add_argument("--levels", type=int, nargs="+", default=LEVELS)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, help="the table; all raw figures go beside it as .json")
    asked = parser.parse_args()
    if unknown := set(asked.clients) - set(CONTESTANTS):
        parser.error(f"unknown: {' '.join(sorted(unknown))}; there are {' '.join(CONTESTANTS)}")
    rows: list[Row] = []
    raw: list[dict[str, Any]] = []
    facts = about(asked.clients)

    def keep(row: Row, figures: dict[str, Any]) -> None:
        rows.append(row)
        raw.append(figures)

    with suppress(KeyboardInterrupt):
        run(asked.clients, asked.levels, asked.repeats, keep)
    text = markdown(rows, facts)
    print(text)
    if asked.out:
        asked.out.write_text(text)
        asked.out.with_suffix(".json").write_text(json.dumps({**facts, "cells": raw}))


if __name__ == "__main__":
    main()
