"""What a user says about waiting, and what is refused."""

import pytest

from bench.errors import BenchError
from bench.limits import Limits


def test_a_limit_that_is_named_is_moved_and_the_others_stay() -> None:
    assert Limits.of(["first-token=30", "gap=0.5"]) == Limits(first_token_s=30, gap_s=0.5)
    assert Limits.of([]) == Limits()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["patience=3"], "no such limit"),
        (["gap"], "no number of seconds"),
        (["gap=soon"], "no number of seconds"),
        (["gap=0"], "no number of seconds"),
        (["gap=-1"], "no number of seconds"),
        (["gap=nan"], "no number of seconds"),
        (["gap=inf"], "no number of seconds"),
        (["request=600", "request=5"], "given twice"),
    ],
)
def test_what_is_no_limit_is_refused(words: list[str], says: str) -> None:
    with pytest.raises(BenchError, match=says):
        Limits.of(words)


def test_an_unknown_limit_is_answered_with_those_there_are() -> None:
    with pytest.raises(BenchError) as caught:
        Limits.of(["patience=3"])
    assert "connect, first-token, gap, request, control, start, stop, help" in caught.value.hint
