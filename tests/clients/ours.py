"""bench's own client, through the seams that a sweep uses."""

import asyncio
import gc
import itertools
import time
from collections.abc import Iterator

from bench import load
from bench.client import Client, Dialect
from bench.records import TurnRecord
from bench.workload import Arrivals, Content, Part, Session, Step, Turn
from tests.clients import turns
from tests.clients.turns import GROWTH_TOKENS, MARK, OUTPUT_TOKENS, PROMPT_TOKENS, Asked, Told

IDS = tuple(str(token).encode() for token in range(10_000))
DIALECT = Dialect("token ids", "/v1/completions", b'"prompt":[', b"]", IDS, b",", "word", True)


def sessions(steps: int) -> Iterator[Session]:
    opening = (Part("session", PROMPT_TOKENS - GROWTH_TOKENS),)
    for index in itertools.count():
        yield Session(index, opening, (Step(GROWTH_TOKENS, OUTPUT_TOKENS),) * steps, first_turn=1, cached_parts=0)


async def play(asked: Asked) -> list[tuple[TurnRecord, bytes]]:
    """Each record with the end of the prompt it answers."""
    epoch = time.perf_counter()
    client = Client(asked.url, "truth", DIALECT, epoch)
    told: list[tuple[TurnRecord, bytes]] = []

    async def send(turn: Turn) -> TurnRecord:
        record = await client.send(turn)
        told.append((record, turn.prompt[-MARK:]))
        return record

    level = load.Level("truth", "realistic", asked.concurrency, 0, asked.requests)
    stage = load.Stage(Content(IDS, b",", 0, 0), 16, send, load.WallClock(epoch))
    endless = sessions(3 * asked.requests // asked.concurrency)
    await load.play(level, endless, Arrivals(), stage, seed=0)
    client.close()
    return told


def tell(record: TurnRecord, prompt: bytes) -> Told:
    assert record.status == "ok", record.error
    assert record.first_s is not None
    mark = turns.mark_of(prompt, DIALECT.tail(record.planned_output_tokens))
    return Told(record.intended_s, record.sent_s, record.first_s, record.end_s, mark)


def main() -> None:
    asked = turns.asked()
    gc.disable()
    told = asyncio.run(play(asked))
    turns.tell(asked.out, (tell(record, prompt) for record, prompt in told if record.turn))


if __name__ == "__main__":
    main()
