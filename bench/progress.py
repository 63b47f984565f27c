"""What moves while a run runs: one line on a terminal, plain lines anywhere else."""

import math
import os
import shutil
import sys
import time
from collections import deque
from contextlib import suppress
from typing import TextIO

from bench import capacity, inert, sample, secret, stats, table
from bench.load import Level
from bench.records import TurnRecord
from bench.server import Endpoint
from bench.stats import LevelRow

RECENT = 500  # requests, of which percentiles are shown while a level is played


class Terminal:
    """Progress: one moving line on a terminal, plain lines anywhere else."""

    def __init__(self, out: TextIO | None = None) -> None:
        self.out = out or sys.stderr or open(os.devnull, "w")  # noqa: SIM115
        self.moving = self.out.isatty()
        self._shown = ""
        self._drawn_at = 0.0
        self._level: Level | None = None
        self._ended = self._eligible = self._lost = 0
        self._recent: deque[float] = deque(maxlen=RECENT)
        self._began = 0.0
        self._left_s: float | None = None
        self._heading = ("", "")

    def say(self, text: str) -> None:
        """A state that the next one replaces; elsewhere than on a terminal only when it is another one."""
        text = inert.line(text)
        if self.moving:
            width = shutil.get_terminal_size().columns - 1
            self._write(f"\r\x1b[2K{text[:width]}")
        elif text and text.partition(" (")[0] != self._shown:
            self._shown = text.partition(" (")[0]
            self._write(f"{text}\n")

    def print(self, text: str) -> None:
        """A line that stays."""
        text = inert.screen(secret.without(text))
        self._write(f"\r\x1b[2K{text}\n" if self.moving else f"{text}\n")

    def _write(self, text: str) -> None:
        """Whether anybody reads it or not: a night's run does not end because its log is full."""
        with suppress(OSError):
            self.out.write(text)
            self.out.flush()

    def server_ready(self, target: Endpoint, expected: capacity.Capacity | None, started_s: float) -> None:
        version = f"vLLM {target.version}" if target.version else "a server that does not tell its version"
        tokens = target.cache.tokens
        size = "KV cache not told" if tokens is None else f"KV cache {tokens:,} tokens"
        sum_of = ""
        if expected is not None:
            counted = "" if expected.tokens is None else f"{expected.tokens:,}: "
            sum_of = f" (arithmetic: {counted}{expected.why})"
        took = f", up after {started_s:.0f} s" if target.process is not None else ""
        self.print(f"{version} with {target.model}{took}. {size}{sum_of}.")

    def level_begins(self, level: Level, left_s: float | None) -> None:
        self._level, self._left_s = level, left_s
        self._ended = self._eligible = self._lost = 0
        self._recent.clear()
        self._began = time.perf_counter()
        if self._heading != (level.variant, level.case):
            self._heading = (level.variant, level.case)
            self.print(table.heading(level.variant, level.case))
            self.print(table.header())

    def turn_ended(self, record: TurnRecord) -> None:
        if record.turn > 0:
            self._ended += 1
            self._recent.append(math.inf if record.ttft_s is None else record.ttft_s)
            if record.lost_tokens is not None:
                self._eligible, self._lost = self._eligible + record.eligible_tokens, self._lost + record.lost_tokens
        if self.moving and time.perf_counter() - self._drawn_at > 0.25 and self._ended:
            self._drawn_at = time.perf_counter()
            self.say(self._progress())

    def _progress(self) -> str:
        """In no time, however many requests there were: others wait for the loop that draws this."""
        assert self._level is not None
        middle, tail = sample.percentile([*self._recent], 0.5), sample.percentile([*self._recent], 0.99)
        hit = f"  hit {1 - self._lost / self._eligible:.0%}" if self._eligible else ""
        left = "" if self._left_s is None else f"  {_minutes(self._left_s - (time.perf_counter() - self._began))} left"
        numbers = f"p50 {stats.seconds(middle or 0)}  p99 {stats.seconds(tail or 0)}{hit}{left}"
        return f"C = {self._level.concurrency}  {self._ended} of {self._level.requests} requests  {numbers}"

    def level_ended(self, row: LevelRow) -> None:
        self.print(table.line(row))
        if row.why_none:
            self.print(f"     {row.why_none}")


def _minutes(seconds: float) -> str:
    return f"about {max(1, round(seconds / 60))} min" if seconds > 45 else "under a minute"
