"""Time that passes as fast as its events can be worked out: an hour of waiting is over at once."""

import asyncio
import selectors
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from bench import interrupt

T = TypeVar("T")


class _Future(selectors.SelectSelector):
    """Where everybody waits, the time they wait for is now. Nothing outside is heard."""

    now = 0.0
    stopped = False

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if interrupt.times() and not self.stopped:  # here, and in the middle of nothing
            self.stopped = True
            raise KeyboardInterrupt
        if timeout is None:
            raise RuntimeError("everybody waits, and for nothing that will come")
        self.now += max(0.0, timeout)
        return []


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._future = _Future()
        super().__init__(self._future)

    def time(self) -> float:
        return self._future.now


class Clock:
    """Seconds of the virtual loop it is asked on."""

    def now(self) -> float:
        return asyncio.get_running_loop().time()

    async def sleep_until(self, when: float) -> None:
        await asyncio.sleep(max(0.0, when - self.now()))


def run(main: Coroutine[Any, Any, T]) -> T:
    """In a thread of its own, for a search asks what a level would do while a real loop is running."""

    def go() -> T:
        with asyncio.Runner(loop_factory=_Loop) as runner:
            return runner.run(main)

    with interrupt.held(), ThreadPoolExecutor(1) as pool:
        return pool.submit(go).result()
