"""How the client itself fared while it measured: what it took of a core, and for how long what came had to wait."""

import asyncio
import contextlib
import gc
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from bench import clocks
from bench.clocks import Reading, Watch

TICK_S = 0.25  # to wake an idle core for it costs more than the answer's next token
YOUNG_TICKS = 4  # a connection of asyncio is a cycle when it has ended: one a second, and a kilobyte each
FINE_S = 0.0001  # to which lags are told apart
COARSE_S = 0.001  # the event loop rounds its timers up to a millisecond


@dataclass(frozen=True, slots=True)
class Pulse:
    """Of one process over one level."""

    wall_s: float
    cpu_s: float
    lag_p99_s: float  # at one moment in a hundred, something that came then would have waited longer
    lag_max_s: float
    gc_s: float  # in garbage collections: of the youngest objects, once a second
    stepped_s: float | None = None  # the most that the wall clock was set by
    suspended_s: float | None = None  # the longest that the machine slept, where the system tells


@contextlib.asynccontextmanager
async def felt(keep: Callable[[Pulse], None], read: Callable[[], Reading] = clocks.read) -> AsyncIterator[None]:
    """Hands over the pulse of the event loop, and what the clocks did, at the end of the body."""
    with _no_collection(), _collections() as paused:
        began, cpu = time.perf_counter(), time.process_time()
        watch = Watch(read)
        ticker = Ticker(watch.look)
        try:
            yield
        finally:
            lags = ticker.stop()
            wall, cpu = time.perf_counter() - began, time.process_time() - cpu
            keep(Pulse(wall, cpu, waited(lags), max(lags), paused(), watch.stepped_s, watch.suspended_s))


class Ticker:
    """How late each of its ticks came; at each of them it looks."""

    def __init__(self, look: Callable[[], None]) -> None:
        self._look = look
        self._lags: Counter[int] = Counter()  # by length: a level may last for days
        self._loop = asyncio.get_running_loop()
        self._arm()

    def _arm(self) -> None:
        self._due = time.perf_counter() + TICK_S
        self._next = self._loop.call_later(TICK_S, self._tick)

    def _tick(self) -> None:
        self._lags[round(self._late() / FINE_S)] += 1
        if self._lags.total() % YOUNG_TICKS == 0:
            gc.collect(0)
        self._look()
        self._arm()

    def stop(self) -> list[float]:
        """The tick that is overdue counted, too."""
        self._next.cancel()
        self._look()
        return [*(lag * FINE_S for lag in self._lags.elements()), self._late()]

    def _late(self) -> float:
        return max(0.0, time.perf_counter() - self._due - COARSE_S)


def waited(lags: Sequence[float], share: float = 0.01) -> float:
    """What comes at one moment in a hundred waits longer; and at two at least, for one lag may be chance.

    Ticks are samples of moments. In a lag longer than a tick there should have been more of them."""
    every = sorted(lag - missed * TICK_S for lag in lags for missed in range(1 + int(lag / TICK_S)))
    beyond = 1 + int(share * len(every))
    return every[-1 - beyond] if len(every) > beyond else 0.0


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """One of 60 ms would be 60 ms of somebody's TTFT: before, not during."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@contextlib.contextmanager
def _collections() -> Iterator[Callable[[], float]]:
    """How long those took, all together, that somebody asked for all the same."""
    took, began = 0.0, 0.0

    def note(phase: str, _: dict[str, Any]) -> None:
        nonlocal took, began
        if phase == "start":
            began = time.perf_counter()
        else:
            took += time.perf_counter() - began

    gc.callbacks.append(note)
    try:
        yield lambda: took
    finally:
        gc.callbacks.remove(note)
