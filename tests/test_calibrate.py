"""A machine's constants out of what was measured there."""

from dataclasses import replace

import pytest

from bench import calibrate, foresight, recipe, workload
from bench.calibrate import Case
from bench.load import Level
from bench.speed import Speed

TRUE = Speed(
    step_s=1.5e-3, weights_s=0.0, token_s=9e-6, attend_s=3e-9, read_s=3e-8, sequence_s=3e-4, request_s=8e-3, said_s=1e-7
)


def test_a_machine_that_behaves_as_the_model_is_found_again_from_a_wrong_beginning() -> None:
    launch = recipe.launch("cpu", "fp8", None, 1, True, ("--num-gpu-blocks-override", "400"))
    work, server = workload.load("coding-agent"), foresight.simulated("fp8", launch, TRUE)
    levels = [Level("fp8", case, c, 0, n) for case, c, n in (("realistic", 1, 24), ("realistic", 3, 36),
                                                             ("best", 1, 5), ("worst", 2, 8))]  # fmt: skip
    measured = {level: foresight.row(server, level, work, 0) for level in levels}
    begun = replace(server, speed=Speed(**{name: 2 * getattr(TRUE, name) for name in calibrate.CONSTANTS}))
    before = calibrate.compared(Case(begun, work, 0, measured))
    fit = calibrate.fit([Case(begun, work, 0, measured)], lambda _: None)
    assert max(abs(error) for row in before.values() for error in row.values()) > 0.3
    assert fit.typical < 0.02
    assert fit.speed.below < 1.05
    assert fit.speed.past == TRUE.past, "it was not seen past the knee"
    assert fit.speed.step(1, 0, 16_000, 1) == pytest.approx(TRUE.step(1, 0, 16_000, 1), rel=0.05)


def test_what_is_printed_is_read_back_as_a_launch_file_has_it() -> None:
    import tomllib

    table = tomllib.loads(calibrate.toml(TRUE, 'a "run"'))["speed"]
    assert Speed(**table) == replace(TRUE, source='a "run"')
