"""Small levels whose truth is known by hand."""

from dataclasses import replace

import pytest

from bench import waits
from bench.records import TurnRecord
from bench.waits import Told, Wait
from tests.test_stats import ONE


def turn(session: int, due: float, first: float, end: float, lost: int = 0, **more: object) -> TurnRecord:
    """1,000 tokens to read, `lost` of them known before; all but those 1,000 of 5,000 are cached."""
    return replace(
        ONE, session=session, intended_s=due, sent_s=due, first_s=first, last_s=end, end_s=end, prompt_tokens=5000,
        planned_prompt_tokens=5000, cached_tokens=4000, eligible_tokens=4000 + lost, **more,
    )  # fmt: skip


def split(turns: list[TurnRecord], told: Told | None = None) -> Wait:
    found = waits.split(turns, told or Told())
    assert found is not None
    assert found.total_s == pytest.approx(sum(one.ttft_s or 0 for one in turns) / len(turns)), "nothing is left over"
    return found


def test_who_waits_behind_lost_history_waits_for_it() -> None:
    unlucky = turn(0, 0.0, 4.0, 9.0, lost=1000, queue_s=0.0, prefill_s=4.0)
    behind = turn(1, 0.0, 4.5, 9.0, queue_s=4.0, prefill_s=0.5)
    found = split([unlucky, behind])
    assert found.lost_s == pytest.approx((4.0 + 4.0) / 2)
    assert found.compute_s == pytest.approx(0.5 / 2)


def test_half_of_what_is_read_is_lost_half_is_new() -> None:
    found = split([turn(0, 0.0, 4.0, 9.0, lost=500, queue_s=0.0, prefill_s=4.0)])
    assert (found.lost_s, found.compute_s) == (pytest.approx(2.0), pytest.approx(2.0))


@pytest.mark.parametrize("clock", [True, False])
def test_without_a_slot_the_wait_is_for_a_slot(clock: bool) -> None:
    told = {"queue_s": 9.0, "prefill_s": 1.0} if clock else {}
    served = turn(0, 0.0, 1.0, 10.0, **({"queue_s": 0.0, "prefill_s": 1.0} if clock else {}))
    found = split([served, turn(1, 1.0, 11.0, 12.0, **told)], Told(max_seqs=1))
    assert found.slot_s == pytest.approx(9.0 / 2), "known from the rule of first come, first served, if not told"
    assert found.compute_s == pytest.approx(2.0 / 2)


def test_with_a_slot_and_nobody_reading_it_waits_for_blocks_if_they_are_all_held() -> None:
    served = turn(0, 0.0, 1.0, 10.0, queue_s=0.0, prefill_s=1.0)
    queued = turn(1, 1.0, 11.0, 12.0, queue_s=9.0, prefill_s=1.0)
    assert split([served, queued], Told(max_seqs=8, kv_usage_max=0.99)).blocks_s == pytest.approx(4.5)
    assert split([served, queued], Told(max_seqs=8, kv_usage_max=0.30)).blocks_s == 0.0


def test_what_the_servers_own_clock_does_not_know_is_the_clients() -> None:
    late = turn(0, 0.0, 6.0, 9.0, queue_s=0.0, prefill_s=1.0)
    assert split([late], Told(ttft_s=1.0)).client_s == pytest.approx(5.0)
    assert split([late], Told(ttft_s=6.0)).client_s == pytest.approx(0.0)
    sent_late = replace(late, intended_s=-2.0)
    assert split([sent_late]).client_s == pytest.approx(2.0), "where it does not tell, our lateness is known at least"


def test_preempted_requests_take_a_share_of_the_reading() -> None:
    one = turn(0, 0.0, 4.0, 9.0, queue_s=0.0, prefill_s=4.0)
    assert split([one], Told(preemptions=1)).preempted_s == pytest.approx(4.0 * 5000 / 6000)


def test_a_server_that_does_not_tell_what_it_had_cached_gets_no_reasons() -> None:
    assert waits.split([replace(ONE, cached_tokens=None)], Told()) is None
    assert waits.split([replace(ONE, status="failed", first_s=None)], Told()) is None
