"""A client that is held up says so."""

import asyncio
import time

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


def test_garbage_is_collected_before_and_not_during() -> None:
    import gc

    assert felt(0.0, 1).gc_s == 0.0
    assert gc.isenabled()


@pytest.mark.parametrize(
    ("lags", "wait"),
    [
        ([], 0.0),
        ([0.0] * 20, 0.0),
        ([0.05], 0.0),  # of ten seconds less than a hundredth
        ([0.4] * 10, 0.39),
        ([4.0, 0.1], 3.9),
    ],
)
def test_the_wait_that_one_moment_in_a_hundred_exceeds(lags: list[float], wait: float) -> None:
    assert waited(lags, wall_s=10.0) == pytest.approx(wait)
