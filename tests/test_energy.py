"""What cards have drawn, as their driver counts it: of the right cards, and never of a part of them."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.driver import installed, needs_compiler

SAY = "import time; from bench import energy; read = energy.counter({}, {}); print(read(), time.sleep(0.01) or read())"
CARD = 1_000_000_000  # joules that the first has drawn before this machine came up; the third three times as many


def drawn(env: dict[str, str] | None, visible: str | None, most: int) -> tuple[str, str]:
    """Twice: in a process of its own, for a library is looked for where a process begins."""
    words = [sys.executable, "-c", SAY.format(repr(visible), most)]
    first, second = subprocess.run(words, env=env, capture_output=True, text=True, check=True).stdout.split()
    return first, second


@needs_compiler
@pytest.mark.parametrize(
    ("visible", "most", "cards"),
    [(None, 1, 1), ("0", 8, 1), ("2,0", 1, 3), ("2,0", 2, 4), ("GPU-cc", 1, 3), (" 2 , GPU-aa", 2, 4)],
)
def test_all_cards_of_a_server_are_counted_and_no_other(
    tmp_path: Path, visible: str | None, most: int, cards: int
) -> None:
    first, second = map(float, drawn(installed(tmp_path), visible, most))
    assert first // CARD == cards
    assert first < second, "they draw on"


@needs_compiler
@pytest.mark.parametrize(("visible", "most"), [(None, 2), ("1", 1), ("0,7", 2), ("GPU-zz", 1), ("", 1)])
def test_a_sum_that_would_lack_a_card_is_none(tmp_path: Path, visible: str | None, most: int) -> None:
    assert drawn(installed(tmp_path), visible, most) == ("None", "None")


@needs_compiler
def test_a_library_without_its_driver_counts_nothing(tmp_path: Path) -> None:
    assert drawn({**installed(tmp_path), "NO_DRIVER": "1"}, None, 1) == ("None", "None")


def test_a_machine_without_cards_counts_nothing() -> None:
    assert drawn(None, None, 1) == ("None", "None")
