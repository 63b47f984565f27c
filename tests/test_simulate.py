"""Small scenes of which every step can be worked out by hand; that vLLM does the same is tests/real/test_scheduler."""

import asyncio
from dataclasses import replace

import pytest

from bench import foresight, recipe, stats, virtual, workload
from bench.blocks import Blocks, Text
from bench.errors import BenchError
from bench.load import Level
from bench.records import TurnRecord
from bench.simulate import ENDLESS, Engine, Outline, Setup
from bench.speed import Speed
from bench.workload import Turn

SECOND = Speed(step_s=1, weights_s=0, token_s=0, attend_s=0, read_s=0, sequence_s=0, request_s=0, said_s=0)
L4 = Speed(
    step_s=0, weights_s=0.021, token_s=1.94e-4, attend_s=1.6e-8, read_s=3.5e-7, sequence_s=0, request_s=0.005, said_s=0
)
SMALL = Setup(block_size=4, blocks=100, budget=64, most_sequences=8)


def turn(session: int, tokens: int, output: int, shared: int = 0, number: int = 1) -> Turn:
    content, level = Outline(), (0, 1, 0)
    prompt = content.extend((), content.text(tokens=shared))
    prompt = content.extend(prompt, content.text(*level, session, tokens=tokens - shared))
    return Turn("fp16", "realistic", 1, 0, session, number, prompt, tokens, 0, output, 0.0)


def served(
    setup: Setup, *turns: Turn, together: bool = False, speed: Speed = SECOND
) -> tuple[list[TurnRecord], Engine]:
    engine = Engine(setup, speed)

    async def go() -> list[TurnRecord]:
        if together:
            return await asyncio.gather(*map(engine.send, turns))
        return [await engine.send(one) for one in turns]

    return virtual.run(go()), engine


def cached(setup: Setup, *turns: Turn) -> list[int | None]:
    return [record.cached_tokens for record in served(setup, *turns)[0]]


def given_out(blocks: Blocks) -> list[int]:
    return [int(blocks.take(1)[0]) for _ in range(blocks.free)]


def two_prompts() -> tuple[Blocks, Text, Text]:
    """Of six blocks, 0 and 1 hold the first and 3 and 4 the second; 2 was the first's too and never full."""
    blocks, first, second = Blocks(6), Text(0), Text(1)
    held = ((first, blocks.take(3)), (second, blocks.take(2)))
    for text, ids in held:
        blocks.fill(((text, ENDLESS),), ids, full=2, known=0)
    for _, ids in held:
        blocks.release(ids)
    return blocks, first, second


def test_what_goes_first_is_what_nobody_can_find_then_the_oldest_from_its_tail() -> None:
    blocks, _, _ = two_prompts()
    assert given_out(blocks) == [2, 5, 1, 0, 4, 3]


def test_what_was_used_again_goes_last() -> None:
    blocks, first, _ = two_prompts()
    again = blocks.found(((first, 2),))
    blocks.use(again)
    blocks.release(again)
    assert given_out(blocks) == [2, 5, 4, 3, 1, 0]


def test_a_prompt_is_found_up_to_the_first_block_that_went() -> None:
    blocks, first, second = two_prompts()
    blocks.take(3)
    assert (blocks.found(((first, 2),)).tolist(), blocks.found(((second, 2),)).tolist()) == ([0], [3, 4])


def test_what_two_computed_at_once_is_found_while_either_keeps_it() -> None:
    blocks, text = Blocks(4), Text(0)
    first, second = blocks.take(2), blocks.take(2)
    for ids in (first, second):
        blocks.fill(((text, ENDLESS),), ids, full=2, known=0)
    assert blocks.found(((text, 2),)).tolist() == [0, 1]
    blocks.release(first)
    blocks.take(2)
    assert blocks.found(((text, 2),)).tolist() == [2, 3]


def test_hits_are_whole_blocks_and_of_an_answer_all_but_its_last_token() -> None:
    # 10 + 3 tokens, of which the last was never computed: 12 are known, three blocks.
    assert cached(SMALL, turn(0, 10, output=3), turn(0, 17, output=1, number=2)) == [0, 12]
    # 10 + 2 tokens: 11 are known, two blocks.
    assert cached(SMALL, turn(0, 10, output=2), turn(0, 17, output=1, number=2)) == [0, 8]


def test_the_last_token_of_a_prompt_is_computed_whatever_is_cached() -> None:
    assert cached(SMALL, turn(0, 8, output=1), turn(0, 8, output=1)) == [0, 4]
    assert cached(SMALL, turn(0, 8, output=1), turn(0, 9, output=1)) == [0, 8]


def test_sessions_share_the_blocks_that_the_shared_prompt_fills() -> None:
    assert cached(SMALL, turn(0, 20, output=1, shared=10), turn(1, 20, output=1, shared=10)) == [0, 8]


def test_without_prefix_caching_nothing_is_asked_for_and_nothing_found() -> None:
    plain = Setup(block_size=4, blocks=100, budget=64, most_sequences=8, caching=False)
    records, engine = served(plain, turn(0, 8, output=1), turn(0, 9, output=1))
    assert [record.cached_tokens for record in records] == [0, 0]
    assert (engine.sample()["prefix_queries"], engine.sample()["prefix_hits"]) == (0, 0)


def test_who_came_last_gives_way_and_begins_again_with_what_is_left_of_it() -> None:
    tight = Setup(block_size=4, blocks=5, budget=64, most_sequences=8)
    records, engine = served(tight, turn(0, 8, output=8), turn(1, 8, output=8), together=True)
    # Both prompts in the first step; in the second, one takes the last block and the other leaves, a token said.
    # It is let in again when the first is done, and says a token a step as before.
    assert engine.sample()["preemptions"] == 1
    assert [record.first_s for record in records] == [1, 1]
    assert [record.last_s for record in records] == [8, 15]


def test_who_gave_way_has_no_part_in_that_step() -> None:
    tight = Setup(block_size=4, blocks=6, budget=64, most_sequences=8)
    turns = turn(0, 8, output=3), turn(1, 7, output=3), turn(2, 7, output=3)
    records, engine = served(tight, *turns, together=True)
    assert engine.sample()["preemptions"] == 1
    assert [record.last_s for record in records] == [3, 3, 5]


def test_a_long_prompt_takes_a_share_of_each_step_unless_it_is_alone() -> None:
    fair = Setup(block_size=4, blocks=100, budget=64, most_sequences=8, threshold=10)
    assert served(fair, turn(0, 40, output=1))[0][0].last_s == 1
    records, _ = served(fair, turn(0, 40, output=1), turn(1, 40, output=2), together=True)
    assert [record.first_s for record in records] == [4, 4]


def test_a_prompt_larger_than_the_cache_is_refused() -> None:
    with pytest.raises(BenchError, match="larger than the whole cache"):
        served(Setup(block_size=4, blocks=5, budget=64, most_sequences=8), turn(0, 21, output=1))


def begun(request_s: float, way_s: float, *turns: Turn) -> list[float | None]:
    """When each of those that come together has its first token, by a server of a second a step."""
    records, _ = served(SMALL, *turns, together=True, speed=replace(SECOND, request_s=request_s, way_s=way_s))
    return [record.first_s for record in records]


def test_requests_come_in_one_after_the_other_and_the_rest_of_their_way_together() -> None:
    several = [turn(session, 8, output=1) for session in range(3)]
    # The first is there at 1.25 and has a step; the others have come when it ends, and share the next.
    assert begun(0.25, 1.0, *several) == pytest.approx([2.25, 3.25, 3.25])
    assert begun(2.0, 0.0, *several) == pytest.approx([3, 5, 7])


def test_a_request_that_comes_within_a_step_waits_for_its_end_at_the_door_and_not_in_the_queue() -> None:
    records, _ = served(SMALL, turn(0, 8, output=1), turn(1, 8, output=1), together=True,
                        speed=replace(SECOND, request_s=0.5))  # fmt: skip
    assert [record.queue_s for record in records] == [0, 0]


def level(concurrency: int) -> foresight.Played:
    launch = recipe.launch("l4", "fp8", None, 1, True, ())
    server = foresight.simulated("l4", launch, L4, tokens=178_000)
    agents = workload.load("coding-agent")
    return foresight.play(server, Level("fp8", "realistic", concurrency, 0, 200), agents, 0)


def test_a_level_comes_out_the_same_each_time() -> None:
    assert level(14) == level(14)


def test_thirteen_sessions_fit_178_000_tokens_and_the_fourteenth_costs_others_theirs() -> None:
    lost = {sessions: stats.reduce(level(sessions).records, [], 10_000).lost_tokens for sessions in (13, 14)}
    assert lost[13] == 0
    assert (lost[14] or 0) > 10_000
