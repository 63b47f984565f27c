from collections.abc import Callable
from dataclasses import replace

import pytest

from bench import cause
from bench.cause import Server
from bench.stats import COMPONENTS, LevelRow

Row = Callable[..., LevelRow]
TYPICAL = {"shared_tokens": 10_000, "own_tokens": 12_804, "output_tokens": 75}
SERVER = Server(tokens=177_920, max_seqs=4, typical=TYPICAL)


def level(row: Row, c: int, held: int = 0, **waits: float) -> LevelRow:
    parts = {f"wait_{name}_s": 0.0 for name in COMPONENTS} | {f"wait_{name}_s": s for name, s in waits.items()}
    return row(concurrency=c, working_set_tokens=held, req_per_s=5.0, running_max=4.0, preemptions=7.0, **parts)


@pytest.mark.parametrize(
    ("binding", "said"),
    [
        (
            "lost",
            "KV cache full: 14 sessions need 190K of 178K tokens; 75 % of the added wait re-reads evicted history",
        ),
        ("slot", "no free slot: 14 sessions share 4 (--max-num-seqs); 75 % of the added wait"),
        ("blocks", "no free blocks: 4 requests were being answered at once and held the whole KV cache of 178K tokens"),
        ("preempted", "KV cache too small for what is being answered: 7 preemptions; 75 % of the added wait"),
        (
            "compute",
            "compute saturated: at 14 sessions 5.00 requests a second are answered, 5.00 at 12; 75 %",
        ),
        ("client", "the client, not the server: at 14 sessions it falls behind; 75 % of the added wait"),
    ],
)
def test_the_component_that_took_the_most_is_named_with_its_share(row: Row, binding: str, said: str) -> None:
    other = "client" if binding == "compute" else "compute"
    before = level(row, 12, **{other: 0.2})
    found = cause.cause([before, level(row, 14, **{other: 0.3, binding: 0.3})], 12, 14, SERVER)
    assert found is not None
    assert found.binding == binding
    assert found.shares[binding] == pytest.approx(0.75)
    assert found.sentence.startswith(said)


def test_what_is_not_known_or_by_design_is_not_blamed_on_others(row: Row) -> None:
    rows = [level(row, 1, compute=0.2), level(row, 8, compute=0.9)]
    found = cause.cause(rows, 1, 8, replace(SERVER, max_seqs=None))
    assert found is not None
    assert found.sentence.startswith("compute saturated, or out of slots (its --max-num-seqs is not known)")
    more = cause.cause([rows[0], replace(rows[1], req_per_s=20.0)], 1, 8, SERVER)
    assert more is not None
    assert more.sentence.startswith(
        "compute shared by more: at 8 sessions 20.00 requests a second are answered, 5.00 at 1"
    )
    late = cause.cause([level(row, 1, client=0.2), level(row, 8, client=9.0)], 1, 8, replace(SERVER, open_loop=True))
    assert late is not None
    assert late.sentence.startswith("sessions arrive faster than they are served: all 8 places were taken")
    tail = cause.cause([level(row, 6, compute=0.2), level(row, 8, compute=0.2)], 6, 8, SERVER, "promise")
    assert tail is not None
    assert tail.sentence.startswith("the promise was broken by the tail alone: mean TTFT is 200 ms at 8 sessions")
    assert cause.cause(rows, 8, 8, SERVER) is None, "one level alone has nothing to be compared with"


def test_one_level_alone_that_evicts_still_has_its_cause(row: Row) -> None:
    found = cause.cause([level(row, 16, compute=0.3, lost=0.7)], 16, 16, SERVER, "lost tokens")
    assert found is not None
    wanted = "KV cache full: 16 sessions need 216K of 178K tokens; 70 % of all waiting at 16 re-reads evicted history"
    assert found.sentence == wanted, "nothing is said of a mean that there is nothing to compare with"


def test_where_nothing_was_added_nothing_is_blamed(row: Row) -> None:
    found = cause.cause([level(row, 1, compute=0.20), level(row, 8, compute=0.22)], 1, 8, SERVER)
    assert found is not None
    assert found.binding is None
    assert found.sentence == "nothing broke: mean TTFT is 220 ms at 8 sessions, 200 ms at 1"


def test_a_cliff_that_costs_little_yet_is_still_one(row: Row) -> None:
    rows = [level(row, 13, compute=0.35), level(row, 14, compute=0.30, lost=0.06)]
    found = cause.cause(rows, 13, 14, SERVER, "lost tokens")
    assert found is not None
    assert found.binding == "lost"
    assert "; 17 % of all waiting at 14 re-reads evicted history: the tail pays, the mean hardly yet" in found.sentence


def test_without_the_servers_word_there_is_no_cause(row: Row) -> None:
    assert cause.cause([row(concurrency=1), row(concurrency=2)], 1, 2, SERVER) is None


def explained(rows: list[LevelRow], found: tuple[int, int] | None) -> str:
    said = cause.prediction(rows, found, SERVER)
    assert said is not None
    assert said["predicted"] == pytest.approx(13.04, abs=0.01)
    return str(said["explanation"])


def test_the_error_of_the_prediction_is_explained_by_what_sessions_really_held(row: Row) -> None:
    late = [level(row, 14, 170_000), level(row, 16, 190_000)]
    said = cause.prediction(late, (14, 16), SERVER)
    assert said is not None
    assert said["error"] == pytest.approx(-0.96, abs=0.01)
    assert "not all stand at their deepest at once" in explained(late, (14, 16))
    assert "170K tokens at 14 and 190K at 16" in explained(late, (14, 16))
    unexplained = [row(concurrency=c, working_set_tokens=held) for c, held in ((4, 60_000), (6, 90_000))]
    assert "do not explain it" in explained(unexplained, (4, 6))
    assert explained([level(row, 8, 100_000)], None).startswith("no level asked for more than fits")
    assert "never held more than 150K, 84.3% of the cache" in explained([level(row, 40, 150_000)], None)


def test_a_server_that_hides_its_cache_gets_no_prediction(row: Row) -> None:
    assert cause.prediction([level(row, 1)], None, Server(None, None, TYPICAL)) is None
