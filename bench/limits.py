"""Every wait has a limit, and a user can move each of them."""

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from bench.errors import BenchError

if TYPE_CHECKING:  # --help must not wait for it
    from asyncio import AbstractEventLoop, TimerHandle

LONGEST_S = 7 * 24 * 3600.0


@dataclass(frozen=True, slots=True)
class Limits:
    connect_s: float = 30
    first_token_s: float = 600
    gap_s: float = 120  # in which nothing comes, once an answer has begun
    request_s: float = 600  # until the answer is whole
    control_s: float = 60  # the same for all that is no measured request: models, metrics, reset, how to ask
    start_s: float = 1200  # of a server
    stop_s: float = 20
    help_s: float = 180  # vLLM's own, of what it knows

    @classmethod
    def of(cls, words: Iterable[str]) -> "Limits":
        """NAME=SECONDS each, as on the command line."""
        known = {field.name.removesuffix("_s").replace("_", "-"): field.name for field in fields(cls)}
        given: dict[str, float] = {}
        for word in words:
            name, _, value = word.partition("=")
            if name not in known:
                raise BenchError(f"--limit {word!r}: there is no such limit", f"NAME=SECONDS, of {', '.join(known)}")
            if known[name] in given:
                raise BenchError(f"--limit {name} is given twice", "--timeout is another name for --limit request")
            given[known[name]] = _seconds(word, value)
        return cls(**given)


def _seconds(word: str, value: str) -> float:
    try:
        seconds = float(value)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= LONGEST_S:
        hint = f"for example --limit gap=30; more than 0, at most {LONGEST_S:.0f}"
        raise BenchError(f"--limit {word!r} is no number of seconds", hint)
    return seconds


class Overdue(Exception):
    """A limit ran out."""

    def __init__(self, what: str, name: str) -> None:
        super().__init__(f"{what}: --limit {name}=SECONDS sets how long to wait")


class Watch:
    """Over one answer. Its only timer looks, now and then, at when something came last: to set one for each piece would
    cost more than the piece."""

    def __init__(
        self,
        limits: Limits,
        loop: "AbstractEventLoop",
        heard: Callable[[], float | None],
        begun: Callable[[], bool],
        give_up: Callable[[Overdue], None],
    ) -> None:
        """`heard`: when something came last. `begun`: a token was among it; costs something, so it is asked rarely."""
        self._limits, self._loop, self._heard, self._give_up = limits, loop, heard, give_up
        self._begun, self._found = begun, False
        self._since = time.perf_counter()
        self._timer: TimerHandle = self._arm(0.0, 0.0)

    def stop(self) -> None:
        self._timer.cancel()

    def _look(self) -> None:
        now, heard = time.perf_counter(), self._heard()
        waited, silent = now - self._since, now - (self._since if heard is None else heard)
        if not self._found and (waited >= self._limits.first_token_s or silent >= self._limits.gap_s):
            self._found = self._begun()
        over = self._over(waited, silent)
        if over is None:
            self._timer = self._arm(waited, silent)
        else:
            self._give_up(over)

    def _over(self, waited: float, silent: float) -> Overdue | None:
        limits = self._limits
        if waited >= limits.request_s:
            return Overdue(f"no whole answer within {limits.request_s:g} s", "request")
        if self._found and silent >= limits.gap_s:
            return Overdue(f"nothing came for {limits.gap_s:g} s in the middle of the answer", "gap")
        if not self._found and waited >= limits.first_token_s:
            return Overdue(f"no first token within {limits.first_token_s:g} s", "first-token")
        return None

    def _arm(self, waited: float, silent: float) -> "TimerHandle":
        limits = self._limits
        gap = limits.gap_s - silent if silent < limits.gap_s else limits.gap_s  # before the first token it is no fault
        first = math.inf if self._found else limits.first_token_s - waited
        return self._loop.call_later(min(limits.request_s - waited, gap, first), self._look)
