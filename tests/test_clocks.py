"""A machine that sleeps and a wall clock that is set are noticed; and nothing but stamps and names hangs on it."""

import ast
import asyncio
import itertools
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bench import clocks, pulse
from bench.clocks import Reading, Watch
from bench.pulse import Pulse

TICK_S = 0.25


def telescope(wall: dict[int, float], sleep: dict[int, float], unsure_s: float = 0.0) -> Callable[[], Reading]:
    """A look every quarter of a second; at some of them the wall clock has been set, or the machine has slept."""

    def readings() -> Iterator[Reading]:
        stepped = slept = 0.0
        for look in itertools.count():
            stepped, slept = stepped + wall.get(look, 0.0), slept + sleep.get(look, 0.0)
            steady = 1000 + look * TICK_S
            yield Reading(1.8e9 + steady + slept + stepped, steady, 5000 + steady + slept, unsure_s)

    return readings().__next__


def watched(read: Callable[[], Reading], looks: int = 10) -> tuple[float, float | None]:
    watch = Watch(read)
    for _ in range(looks):
        watch.look()
    return watch.stepped_s, watch.suspended_s


@pytest.mark.parametrize("step", [2.5, -2.5, 0.02, -3600.0])
def test_a_wall_clock_that_is_set_is_noticed_forwards_and_backwards(step: float) -> None:
    assert watched(telescope({4: step}, {})) == (pytest.approx(abs(step), abs=1e-5), 0.0)


def test_a_machine_that_slept_is_noticed_and_its_wall_clock_was_not_set() -> None:
    assert watched(telescope({}, {4: 31.0})) == (0.0, pytest.approx(31.0))


def test_both_at_once_are_told_apart_as_after_a_resume_with_a_bad_clock() -> None:
    assert watched(telescope({4: -1.5}, {4: 31.0})) == (pytest.approx(1.5, abs=1e-5), pytest.approx(31.0))


def test_the_largest_counts() -> None:
    read = telescope({2: 1.0, 5: -4.0, 7: 2.0}, {3: 10.0, 6: 20.0})
    assert watched(read) == (pytest.approx(4.0, abs=1e-5), pytest.approx(20.0))


def test_slewing_is_no_step_however_long_it_goes_on() -> None:
    drift = {look: 400e-6 * TICK_S for look in range(1, 5000)}
    assert watched(telescope(drift, {}), 4999) == (0.0, 0.0)


def test_a_loop_that_was_held_up_for_a_minute_has_slewed_for_a_minute() -> None:
    times = iter([Reading(100.0, 1.0, 1.0), Reading(160.024, 61.0, 61.0), Reading(220.124, 121.0, 121.0)])
    watch = Watch(times.__next__)
    watch.look()
    assert watch.stepped_s == 0.0, "24 ms in a minute are 400 ppm"
    watch.look()
    assert watch.stepped_s == pytest.approx(0.1)


def test_what_the_reading_itself_leaves_open_is_no_step() -> None:
    assert watched(telescope({4: 0.04}, {}, unsure_s=0.03)) == (0.0, 0.0), "the processor was elsewhere between clocks"


def test_where_a_system_does_not_tell_of_sleep_that_is_not_known() -> None:
    times = iter([Reading(100.0, 1.0, None), Reading(103.0, 1.5, None)])
    assert watched(times.__next__, 1) == (pytest.approx(2.5), None)


def test_the_clocks_of_this_machine_agree_with_themselves() -> None:
    told = clocks.read()
    assert told.unsure_s >= 0
    assert (told.awake_or_not_s is not None) == (sys.platform == "linux")
    watch = Watch(clocks.read)
    watch.look()
    assert watch.stepped_s == 0.0


def test_the_pulse_of_a_level_tells_it_even_of_one_shorter_than_a_tick() -> None:
    found: list[Pulse] = []

    async def level() -> None:
        async with pulse.felt(found.append, telescope({1: 2.5}, {1: 31.0})):
            await asyncio.sleep(0)

    asyncio.run(level())
    assert (found[0].stepped_s, found[0].suspended_s) == (pytest.approx(2.5, abs=1e-5), pytest.approx(31.0))


def test_the_loop_and_our_durations_go_by_a_clock_that_nobody_sets() -> None:
    assert not time.get_clock_info("perf_counter").adjustable
    assert not time.get_clock_info("monotonic").adjustable
    loop = asyncio.new_event_loop()
    assert abs(loop.time() - time.monotonic()) < 3600, "an event loop's timers go by it, too"
    loop.close()


def test_only_stamps_and_names_are_of_the_wall_clock() -> None:
    """Whoever adds a use of it says here what for: never for a duration."""
    found = set()
    for path in (Path(__file__).parent.parent / "bench").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            name = ast.unparse(node) if isinstance(node, ast.Attribute) else ""
            if name in (
                "time.time",
                "time.time_ns",
                "datetime.now",
                "datetime.utcnow",
                "time.localtime",
                "time.gmtime",
            ):
                found.add((path.stem, name))
    assert found == {
        ("clocks", "time.time"),  # to be held against the others
        ("connection", "time.time"),  # beside the kernel's stamp, which is of that clock
        ("wanted", "datetime.now"),  # a folder's name
        ("sweep", "datetime.now"),  # when a run began
    }
