"""Processes that are started on a core, whose CPU time is watched, and of which nothing stays behind."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TICK_S = 1 / os.sysconf("SC_CLK_TCK")
PATIENCE_S = 5.0  # with a process that is asked to end
SOON_S = 0.01  # after the server said something, we have looked


@dataclass(slots=True)
class Watch:
    """CPU time of all processes of a session, at moments."""

    session: int
    looks: list[tuple[float, float]] = field(default_factory=list)

    def look(self) -> None:
        self.looks.append((time.perf_counter(), sum(map(_cpu_s, processes(self.session)))))

    def between(self, begin: float, end: float) -> tuple[float, float] | None:
        """Since when, and how much: from the last look before there was anything to do."""
        before = [look for look in self.looks if look[0] <= begin + SOON_S][-1:]
        after = [look for look in self.looks if look[0] >= end][:1]
        if not before or not after or after[0][1] <= before[0][1]:
            return None
        return before[0][0] - SOON_S, after[0][1] - before[0][1]


def processes(session: int) -> list[int]:
    numbers = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    found = ((number, _stat(number)) for number in numbers)
    return [number for number, stat in found if stat and int(stat[3]) == session and stat[0] != b"Z"]


def _stat(process: int) -> list[bytes]:
    """What the kernel tells behind its name; nothing of one that is gone."""
    try:
        return Path(f"/proc/{process}/stat").read_bytes().rpartition(b") ")[2].split()
    except OSError:
        return []


def _cpu_s(process: int) -> float:
    """Its own, to the nanosecond, and that of its children that have ended."""
    with suppress(OSError):
        return time.clock_gettime(~process << 3 | 2) + sum(map(int, _stat(process)[13:15])) * TICK_S
    return 0.0


@contextmanager
def running(command: Sequence[str], cores: str, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """In a session of its own, pinned."""
    pinned = ["taskset", "-c", cores, *command]
    process = subprocess.Popen(pinned, text=True, start_new_session=True, stdin=subprocess.DEVNULL, **options)
    try:
        yield process
    finally:
        for stop in (signal.SIGTERM, signal.SIGKILL):
            _end(process, stop)


def _end(process: subprocess.Popen[str], stop: signal.Signals) -> None:
    for one in processes(process.pid):
        with suppress(ProcessLookupError):
            os.kill(one, stop)
    until = time.monotonic() + PATIENCE_S
    while (process.poll() is None or processes(process.pid)) and time.monotonic() < until:
        time.sleep(0.01)
