"""How the client itself fared while it measured: what it took of a core, and for how long what came had to wait."""

import asyncio
import contextlib
import gc
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

TICK_S = 0.5  # to wake an idle core for it costs more than the answer's next token
COARSE_S = 0.001  # the event loop rounds its timers up to a millisecond


@dataclass(frozen=True, slots=True)
class Pulse:
    """Of one process over one level."""

    wall_s: float
    cpu_s: float
    lag_p99_s: float  # at one moment in a hundred, something that came then would have waited longer
    lag_max_s: float
    gc_s: float  # in garbage collections
    gc_max_s: float


@contextlib.asynccontextmanager
async def felt(keep: Callable[[Pulse], None]) -> AsyncIterator[None]:
    """Hands over the pulse of the event loop at the end of the body."""
    with _collections() as pauses:
        began, cpu = time.perf_counter(), time.process_time()
        ticker = Ticker()
        try:
            yield
        finally:
            lags = ticker.stop()
            wall = time.perf_counter() - began
            lag = waited(lags, wall), max(lags)
            keep(Pulse(wall, time.process_time() - cpu, *lag, sum(pauses), max(pauses, default=0.0)))


class Ticker:
    """How late each of its ticks came."""

    def __init__(self) -> None:
        self._lags: list[float] = []
        self._loop = asyncio.get_running_loop()
        self._arm()

    def _arm(self) -> None:
        self._due = time.perf_counter() + TICK_S
        self._next = self._loop.call_later(TICK_S, self._tick)

    def _tick(self) -> None:
        self._lags.append(max(0.0, time.perf_counter() - self._due - COARSE_S))
        self._arm()

    def stop(self) -> list[float]:
        """The tick that is overdue counted, too."""
        self._tick()
        self._next.cancel()
        return self._lags


def waited(lags: Sequence[float], wall_s: float, share: float = 0.01) -> float:
    """What comes at any moment of a lag waits for the rest of it: the wait that `share` of all moments exceed."""
    longest = sorted(lags, reverse=True)
    total = 0.0
    for number, lag in enumerate(longest, 1):
        total += lag
        least = (total - share * wall_s) / number  # if just these exceed it
        if least > 0 and (number == len(longest) or least >= longest[number]):
            return least
    return 0.0


@contextlib.contextmanager
def _collections() -> Iterator[list[float]]:
    """None while the body runs, for one of 60 ms would be 60 ms of somebody's TTFT; and how long those took that came
    all the same."""
    pauses: list[float] = []
    began = 0.0

    def note(phase: str, _: dict[str, Any]) -> None:
        nonlocal began
        now = time.perf_counter()
        if phase == "start":
            began = now
        else:
            pauses.append(now - began)

    gc.collect()
    gc.disable()
    gc.callbacks.append(note)
    try:
        yield pauses
    finally:
        gc.callbacks.remove(note)
        gc.enable()
