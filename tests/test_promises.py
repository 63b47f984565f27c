"""What docs/reliability.md says is shown, is shown: each test that it names is there."""

import re
from pathlib import Path

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs/reliability.md"


def named() -> list[tuple[str, str]]:
    """File and beginning of each test; `::` alone goes on in the file named before it."""
    found, file = [], ""
    for before, begins in re.findall(r"`((?:real/)?test_\w+)?(?:::(test_\w+))?`", PAGE.read_text()):
        file = before or file
        if file:
            found.append((file, begins))
    return found


def test_every_test_that_a_promise_names_is_there() -> None:
    assert len(named()) > 60
    for file, begins in named():
        assert re.search(rf"^(async )?def {begins or 'test_'}", (HERE / f"{file}.py").read_text(), re.MULTILINE), (
            file,
            begins,
        )
