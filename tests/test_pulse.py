"""A client that is held up says so."""

import asyncio
import gc
import time
import weakref
from typing import Any

import pytest

from bench import pulse
from bench.pulse import Pulse, waited


def felt(hold_s: float, times: int) -> Pulse:
    found: list[Pulse] = []

    async def go() -> None:
        async with pulse.felt(found.append):
            for _ in range(times):
                time.sleep(hold_s)  # noqa: ASYNC251  the loop is held up, as it would be by a machine with too much to do
                await asyncio.sleep(0)

    asyncio.run(go())
    return found[0]


def test_a_loop_that_is_held_up_shows_as_lag_and_one_that_is_not_does_not() -> None:
    held = felt(1.5, 2)
    assert held.lag_max_s > 0.9
    assert held.lag_p99_s > 0.8
    assert held.cpu_s < held.wall_s


def test_a_tick_ends_with_its_body() -> None:
    async def go() -> int:
        for _ in range(3):
            async with pulse.felt(lambda _: None):
                await asyncio.sleep(0)
        loop: Any = asyncio.get_running_loop()
        return sum(not handle.cancelled() for handle in loop._scheduled)

    assert asyncio.run(go()) == 0


def test_garbage_is_collected_before_and_not_during() -> None:
    collected: list[str] = []

    async def go() -> None:
        async with pulse.felt(lambda _: None):
            gc.callbacks.append(lambda phase, _: collected.append(phase))
            for _ in range(10_000):
                cycle: list[Any] = []
                cycle.append(cycle)
            gc.callbacks.pop()

    asyncio.run(go())
    assert not collected
    assert gc.isenabled()


@pytest.mark.parametrize(
    ("lags", "wait"),
    [
        ([], 0.0),
        ([0.0] * 20, 0.0),
        ([0.0] * 20 + [0.05], 0.0),  # one may be chance
        ([0.0] * 72 + [0.018] * 8, 0.018),  # a tenth of all moments, and each short
        ([0.0] * 20 + [1.0], 0.75),  # of those that came in a second, many waited
    ],
)
def test_the_wait_that_one_moment_in_a_hundred_exceeds(lags: list[float], wait: float) -> None:
    assert waited(lags) == pytest.approx(wait)


def test_what_refers_to_itself_does_not_gather_over_a_level_that_lasts_for_days() -> None:
    """As a connection of asyncio does once it is closed: with collections off, a question a second would stay."""

    class Closed:
        def __init__(self) -> None:
            self.itself = self

    async def go() -> None:
        async with pulse.felt(lambda _: None), asyncio.timeout(60):
            first = weakref.ref(Closed())
            while first() is not None:  # noqa: ASYNC110  nobody tells
                await asyncio.sleep(0.05)

    asyncio.run(go())
