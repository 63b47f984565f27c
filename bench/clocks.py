"""Did time run evenly? Clocks are held against each other: one that is set, and a machine that sleeps, part them."""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

# A clock that is slewed goes wrong by 500 ppm at most. (On Linux those of a machine are slewed together.)
SLEWED = 500e-6
FLOOR_S = 0.005
TRIES = 3


@dataclass(frozen=True, slots=True)
class Reading:
    """All at one moment, give or take `unsure_s`."""

    wall_s: float  # may be set
    steady_s: float  # ours; stands while the machine sleeps
    awake_or_not_s: float | None  # and one that does not, where the system has it
    unsure_s: float = 0.0


def read() -> Reading:
    """The best of a few: between two clocks others may take the processor."""
    return min((_read() for _ in range(TRIES)), key=lambda reading: reading.unsure_s)


def _read() -> Reading:
    before = time.monotonic()
    wall = time.time()
    slept = time.clock_gettime(time.CLOCK_BOOTTIME) if sys.platform == "linux" else None
    return Reading(wall, before, slept, time.monotonic() - before)


class Watch:
    """The largest that the wall clock was set by and that the machine slept, between any two looks."""

    def __init__(self, read: Callable[[], Reading]) -> None:
        self._read, self._last = read, read()
        self.stepped_s = 0.0
        self.suspended_s = None if self._last.awake_or_not_s is None else 0.0

    def look(self) -> None:
        was, now = self._last, self._read()
        self._last = now
        passed, allowed = now.steady_s - was.steady_s, FLOOR_S + was.unsure_s + now.unsure_s
        if was.awake_or_not_s is not None and now.awake_or_not_s is not None:
            slept = now.awake_or_not_s - was.awake_or_not_s - passed
            self.suspended_s = max(self.suspended_s or 0.0, slept if slept > allowed else 0.0)
            passed += slept
        stepped = abs(now.wall_s - was.wall_s - passed)
        self.stepped_s = max(self.stepped_s, stepped if stepped > allowed + SLEWED * passed else 0.0)
