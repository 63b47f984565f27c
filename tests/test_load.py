"""Sessions on a virtual clock, against a server whose every time is known."""

import asyncio
import heapq
import subprocess
import sys
import textwrap
from dataclasses import dataclass, field, replace
from itertools import count, pairwise

import pytest

from bench import load, workload
from bench.load import Level, Stage
from bench.records import TurnRecord
from bench.workload import Arrivals, Content, Turn

ORDER = count()


def text(turn: Turn) -> bytes:
    return b"".join(turn.prompt)


WORDS = tuple(str(i).encode() for i in range(500))


@dataclass
class VirtualClock:
    """Time passes only when everybody waits."""

    time: float = 0.0
    waiting: list[tuple[float, int, asyncio.Event]] = field(default_factory=list)

    def now(self) -> float:
        return self.time

    async def sleep_until(self, when: float) -> None:
        if when > self.time:
            woken = asyncio.Event()
            heapq.heappush(self.waiting, (when, next(ORDER), woken))
            await woken.wait()

    async def run(self) -> None:
        while True:
            for _ in range(20):
                await asyncio.sleep(0)
            if self.waiting:
                self.time, _, woken = heapq.heappop(self.waiting)
                woken.set()


@dataclass
class Known:
    """A server that takes a second a request, however many ask."""

    clock: VirtualClock
    fail: frozenset[int] = frozenset()
    turns: list[Turn] = field(default_factory=list)
    most: int = 0
    here: int = 0

    async def send(self, turn: Turn) -> TurnRecord:
        sent = self.clock.now()
        self.turns.append(turn)
        number = len(self.turns)
        self.here += 1
        self.most = max(self.most, self.here)
        await self.clock.sleep_until(sent + 1)
        self.here -= 1
        bad = number in self.fail
        return TurnRecord(
            turn.variant, turn.case, turn.concurrency, turn.repeat, turn.session, turn.number,
            "failed" if bad else "ok", turn.intended_s, sent, None if bad else sent + 0.5, sent + 1, sent + 1,
            turn.prompt_tokens, turn.output_tokens, turn.prompt_tokens, turn.output_tokens,
            turn.eligible_tokens, turn.eligible_tokens, "length", "boom" if bad else None,
            answer=b",".join([b"499"] * turn.output_tokens),
        )  # fmt: skip


def play(
    concurrency: int, requests: int, case: str = "realistic", rate: float | None = None, name: str = "coding-agent",
    fail: frozenset[int] = frozenset(), start: str = "together",
) -> tuple[Known, list[TurnRecord]]:  # fmt: skip
    work = workload.load(name)
    file = replace(work.file, arrivals=Arrivals("together", rate)) if rate else work.file
    level = Level("v", case, concurrency, 0, requests)

    async def go() -> tuple[Known, list[TurnRecord]]:
        clock = VirtualClock()
        known = Known(clock, fail)
        stage = Stage(Content(WORDS, b",", 0, 0), 128, known.send, clock)
        ticking = asyncio.create_task(clock.run())
        async with asyncio.timeout(30):
            records = await load.play(level, replace(work, file=file), stage, seed=0)
        ticking.cancel()
        return known, records

    return asyncio.run(go())


def measured(records: list[TurnRecord]) -> list[TurnRecord]:
    return [record for record in records if record.turn > 0]


def test_a_closed_loop_keeps_c_requests_under_way_and_sends_exactly_as_many_as_asked() -> None:
    known, records = play(concurrency=4, requests=50)
    assert len(measured(records)) == 50
    assert known.most == 4
    # a second to warm up, then 50 requests of a second by four at a time
    assert max(record.end_s for record in records) == 1 + 13


def test_each_turn_extends_the_exact_prompt_before_it_with_the_real_answer() -> None:
    known, _ = play(concurrency=1, requests=12)
    turns = [turn for turn in known.turns if turn.number > 0]
    assert [turn.number for turn in turns] == list(range(1, 13))
    for before, after in pairwise(turns):
        answered = text(before) + b"," + b",".join([b"499"] * 75)
        assert text(after).startswith(answered + b",")
        assert after.prompt_tokens == before.prompt_tokens + 1067
        assert len(text(after).split(b",")) == after.prompt_tokens
        assert after.eligible_tokens == (before.prompt_tokens + 75 - 1) // 128 * 128
    assert turns[-1].prompt_tokens == 22_804


def test_the_shared_prompt_is_warmed_and_is_all_that_a_first_turn_can_have_cached() -> None:
    known, _ = play(concurrency=3, requests=30)
    warm = [turn for turn in known.turns if turn.number == 0]
    assert [(turn.prompt_tokens, turn.output_tokens) for turn in warm] == [(10_000, 1)]
    firsts = [turn for turn in known.turns if turn.number == 1]
    assert all(text(turn).startswith(text(warm[0]) + b",") for turn in firsts)
    assert {turn.eligible_tokens for turn in firsts} == {9_984}
    assert len({text(turn) for turn in firsts}) == len(firsts)


def test_turns_are_due_when_the_turn_before_ended() -> None:
    _, records = play(concurrency=2, requests=20)
    for record in measured(records):
        assert record.late_s == 0
        assert record.ttft_s == 0.5


def test_after_a_failure_the_session_ends_and_the_slot_goes_on() -> None:
    _, records = play(concurrency=1, requests=20, fail=frozenset({4}))
    turns = [(record.session, record.turn) for record in measured(records)]
    assert turns == [(0, 1), (0, 2), (0, 3), *((1, k) for k in range(1, 13)), *((2, k) for k in range(1, 6))]
    assert sum(record.status == "failed" for record in records) == 1


def test_poisson_arrivals_keep_their_schedule_and_a_wait_for_a_place_counts() -> None:
    _, roomy = play(concurrency=1000, requests=60, rate=0.5, name="short-qa")
    dues = sorted(record.intended_s for record in measured(roomy))
    assert dues[-1] / 60 == pytest.approx(2.0, rel=0.4)
    assert all(record.late_s == 0 for record in measured(roomy))
    _, cramped = play(concurrency=1, requests=60, rate=2.0, name="short-qa")
    assert max(record.late_s for record in measured(cramped)) > 10
    assert len(measured(cramped)) == 60


def test_the_best_case_is_warmed_to_full_depth_and_the_worst_only_to_the_shared_prompt() -> None:
    known, _ = play(concurrency=2, requests=6, case="best")
    warm, *shots = known.turns
    assert warm.prompt_tokens == 22_804
    assert {shot.prompt_tokens for shot in shots} == {23_004}
    assert all(text(shot).startswith(text(warm) + b",") for shot in shots)
    known, _ = play(concurrency=2, requests=6, case="worst")
    warm, *shots = known.turns
    assert warm.prompt_tokens == 10_000
    assert {shot.prompt_tokens for shot in shots} == {22_836}
    tails = {text(shot).split(b",")[10_032] for shot in shots}
    assert len(tails) == 1, "the context is the same, only the bust prefix differs"
    assert len({text(shot) for shot in shots}) == 6


def test_no_two_levels_send_the_same_session() -> None:
    prompts = [{text(turn) for turn in play(c, 24)[0].turns if turn.number > 0} for c in (1, 2)]
    assert not prompts[0] & prompts[1]


def test_spread_sessions_are_warmed_with_their_own_history() -> None:
    known, _ = play(concurrency=8, requests=16, name="steady-agents")
    warm = [turn for turn in known.turns if turn.number == 0]
    deep = next(turn for turn in known.turns if turn.number > 1)
    assert len(warm) > 4
    assert any(text(deep).startswith(text(turn) + b",") and turn.prompt_tokens > 10_000 for turn in warm)


def test_memory_is_that_of_the_sessions_under_way_however_many_are_played() -> None:
    """A process of its own, for only its peak is told; 4,000 sessions at once would take over 300 MB."""
    script = """
        import asyncio
        from pathlib import Path
        from bench import load, workload
        from tests.test_load import WORDS
        from tests.test_stats import ONE
        from dataclasses import replace

        async def send(turn):
            await asyncio.sleep(0)
            return replace(ONE, session=turn.session, turn=turn.number, output_tokens=75, answer=b",".join(WORDS[:75]))

        work = workload.load("coding-agent")
        stage = load.Stage(workload.Content(WORDS, b",", 0, 0), 128, send, load.WallClock(0.0))
        asyncio.run(load.play(load.Level("v", "realistic", 64, 0, 48_000), work, stage, 0))
        # not ru_maxrss, which counts what the process was forked from
        print(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
    """
    ran = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True)
    assert int(ran.stdout) < 200_000
