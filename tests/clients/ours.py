"""bench's own client, as a sweep uses it: every record goes on file, and the client watches itself."""

import dataclasses
import tempfile
import time
from pathlib import Path

from bench import client, connection, load, pulse
from bench.client import Client, Target
from bench.dialect import Dialect
from bench.records import Folder, TurnRecord
from bench.workload import Content, SessionShape, Turn, Workload, WorkloadFile
from tests.clients import turns
from tests.clients.turns import GROWTH_TOKENS, MARK, OUTPUT_TOKENS, PROMPT_TOKENS, Asked, Told

IDS = tuple(str(token).encode() for token in range(10_000))
DIALECT = Dialect("token ids", "/v1/completions", b'"prompt":[', b"]", IDS, b",", "word", True)


def workload(turns: int) -> Workload:
    shape = SessionShape(turns, GROWTH_TOKENS, OUTPUT_TOKENS)
    return Workload("known", WorkloadFile("one long session a place", PROMPT_TOKENS - GROWTH_TOKENS, shape), "")


async def play(asked: Asked, folder: Folder) -> list[tuple[TurnRecord, bytes]]:
    """Each record with the end of the prompt it answers."""
    epoch = time.perf_counter()
    http = Client(Target(asked.url, "truth", DIALECT, epoch))
    kept = client.keeping(http, folder.keep)
    told: list[tuple[TurnRecord, bytes]] = []

    async def send(turn: Turn) -> TurnRecord:
        record = await kept(turn)
        told.append((record, b"".join(turn.prompt[-3:])[-MARK:]))
        return record

    level = load.Level("truth", "realistic", asked.concurrency, 0, asked.requests)
    stage = load.Stage(Content(IDS, b",", 0, 0), 16, send, load.WallClock(epoch))
    performance = load.Performance(level, workload(3 * asked.requests // asked.concurrency), stage, seed=0)
    await performance.warm_up()
    await http.open(asked.concurrency)
    async with pulse.felt(lambda felt: folder.append("client.jsonl", dataclasses.asdict(felt))):
        await performance.run(stage.clock.now())
    http.close()
    return told


def tell(record: TurnRecord, prompt: bytes) -> Told:
    assert record.status == "ok", record.error
    assert record.first_s is not None
    mark = turns.mark_of(prompt, DIALECT.tail(record.planned_output_tokens))
    return Told(record.intended_s, record.sent_s, record.first_s, record.end_s, mark)


def main() -> None:
    asked = turns.asked()
    with tempfile.TemporaryDirectory() as place:
        told = connection.run(play(asked, Folder(Path(place))))
        turns.tell(asked.out, (tell(record, prompt) for record, prompt in told if record.turn))


if __name__ == "__main__":
    main()
