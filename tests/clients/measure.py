"""`make bench-client`: what load clients cost, and how true their reports are, against a server whose times are known.

    python -m tests.clients.measure [CLIENT ...] --levels 1 48 128 512 --repeats 3 --out results.md

Server and client have a core each; a thousand sessions and more are answered more slowly, and a client may then use all
cores. Clients take turns within every level and pass, so that what the machine does to one it does to all. What is
measured, by what the server wrote down unless it says otherwise:

CPU            of the client and all its children, user and system, from the arrival of the first measured request to
               the end of the last: what a client prepares before, or computes after, is not counted. Read from the
               kernel's clock of each process when the server says that it became busy or idle, some milliseconds late.
TTFT p99       of all TTFTs in the client's report, minus the same percentile of first event sent - request whole.
  one by one   p99 of that difference for each request, where a client tells which request was which; first turns, all
               of which begin at once, are left out.
idle gap p99   from the end of an answer to the arrival of the request that takes its place: the n-th end and the
               (n + C)-th arrival, whatever connections they came on.
load carried   mean time of an answer as it was planned, over mean time from one start to the next in one place.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.clients import truth
from tests.clients.contestants import OWN, ROOT, Cell, Contestant, Report
from tests.clients.judge import judge
from tests.clients.peers import PEERS
from tests.clients.processes import Watch, running
from tests.clients.table import Row, markdown

CONTESTANTS = {contestant.name: contestant for contestant in (*OWN, *PEERS)}
LEVELS = (1, 48, 128, 512)
ROUNDS = {1: 10, 512: 4}  # of a level: requests of each of its places
SERVER_CORE, CLIENT_CORE = "0", "1"
EVERYWHERE = f"0-{(os.cpu_count() or 2) - 1}"
LIMIT_S = 300.0
GUESS_S = 20.0  # of a cell never seen


def play(contestant: Contestant, concurrency: int, requests: int) -> tuple[Row, dict[str, Any]]:
    if contestant.version() is None:
        row = Row(contestant.name, concurrency, problem=f"not installed: {contestant.why_not()}")
        return row, asdict(row)
    return measure(contestant, concurrency, requests)


def measure(contestant: Contestant, concurrency: int, requests: int) -> tuple[Row, dict[str, Any]]:
    with tempfile.TemporaryDirectory(prefix="bench-client-") as name:
        folder = Path(name)
        pace = truth.pace(concurrency)
        paced = [f"--{name}={getattr(pace, name)}" for name in ("first", "spread", "gap")]
        served = [sys.executable, "-m", "tests.clients.truth", "--log", str(folder / "truth.jsonl"), *paced]
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
    raw |= {"looks": watch.looks, "truth": [asdict(one) for one in answered], "report": report and asdict(report)}
    return row, asdict(row) | raw


def _play(contestant: Contestant, cell: Cell, server: subprocess.Popen[str]) -> tuple[str | None, Watch]:
    with (cell.folder / "client.log").open("w") as log:
        options = {"stdout": log, "stderr": log, "cwd": cell.folder, "env": contestant.environment(cell)}
        cores = CLIENT_CORE if cell.concurrency < truth.CROWDED else EVERYWHERE
        with running(contestant.call(cell), cores, **options) as client:
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
    hopeless: set[tuple[int, str]] = set()
    for done, (_, level, name) in enumerate(cells):
        if (level, name) in hopeless:
            continue
        progress.say(done, repeats)
        began = time.monotonic()
        row, raw = play(CONTESTANTS[name], level, level * ROUNDS.get(level, 5))
        progress.took[level, name] = raw["took_s"] = time.monotonic() - began
        print(f"    {row.brief()}", file=sys.stderr, flush=True)
        keep(row, raw)
        if row.bias_ms is None:  # no report: it would end no better a second time
            hopeless.add((level, name))


def about(names: Sequence[str]) -> dict[str, Any]:
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "kernel": platform.release(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "commit": _commit(),
        "versions": {name: CONTESTANTS[name].version() for name in names},
    }


def _commit() -> str:
    asked = ["git", "describe", "--always", "--dirty"]
    return subprocess.run(asked, capture_output=True, text=True, check=False, cwd=ROOT).stdout.strip()


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
    os.sched_setaffinity(0, {int(SERVER_CORE)})  # this process has little to do, and that not on the client's core

    def keep(row: Row, figures: dict[str, Any]) -> None:
        rows.append(row)
        raw.append(figures)

    with suppress(KeyboardInterrupt):
        run(asked.clients, asked.levels, asked.repeats, keep)
    text = markdown(rows, facts)
    print(text)
    if asked.out:
        asked.out.parent.mkdir(parents=True, exist_ok=True)
        asked.out.write_text(text)
        asked.out.with_suffix(".json").write_text(json.dumps({**facts, "cells": raw}))


if __name__ == "__main__":
    main()
