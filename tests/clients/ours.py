"""bench's own client, as a sweep uses it: every record goes on file, and the client watches itself."""

import dataclasses
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from bench import connection, load, troupe
from bench.client import Target
from bench.dialect import Dialect
from bench.load import Script
from bench.pulse import Pulse
from bench.records import Folder, TurnRecord
from bench.troupe import Part
from bench.workload import Content, SessionShape, Workload, WorkloadFile
from tests.clients import turns
from tests.clients.turns import GROWTH_TOKENS, OUTPUT_TOKENS, PROMPT_TOKENS, Asked, Told

IDS = tuple(str(token).encode() for token in range(10_000))
DIALECT = Dialect("token ids", "/v1/completions", b'"prompt":[', b"]", IDS, b",", "word", True)


def part(asked: Asked, folder: Folder) -> Part:
    shape = SessionShape(3 * asked.requests // asked.concurrency, GROWTH_TOKENS, OUTPUT_TOKENS)
    work = Workload("known", WorkloadFile("one long session a place", PROMPT_TOKENS - GROWTH_TOKENS, shape), "")
    level = load.Level("truth", "realistic", asked.concurrency, 0, asked.requests)
    target = Target(asked.url, "truth", DIALECT, time.perf_counter())
    return Part(level, work, Content(IDS, b",", 0, 0), 16, target, 0, folder)


def play(played: Part) -> list[TurnRecord]:
    records: list[TurnRecord] = []

    def felt(pulse: Pulse) -> None:
        played.folder.append("client.jsonl", dataclasses.asdict(pulse))

    connection.run(troupe.play(played, troupe.needed(played.level.concurrency), records.append, felt))
    return records


def told(played: Part, records: list[TurnRecord]) -> Iterator[Told]:
    """Each turn with the mark of its body, made once more: what was sent is not kept."""
    epoch = played.target.epoch
    by_session = defaultdict(list)
    for record in sorted(records, key=lambda record: record.turn):
        assert record.status == "ok", record.error
        by_session[record.session].append(record)
    for number, session in enumerate(load.sessions(played.workload, played.level, played.seed)):
        if number not in by_session:
            return
        script, content, answered = Script(played.content, played.level, session, {}), played.content, 0
        prompt = script.opening
        for record in by_session[number]:
            prompt = content.extend(prompt, script.own(GROWTH_TOKENS, answered))
            mark = turns.mark_of(*prompt, DIALECT.tail(record.planned_output_tokens))
            assert record.first_s is not None
            times = (record.intended_s, record.sent_s, record.first_s, record.end_s)
            yield Told(*(epoch + seconds for seconds in times), mark)
            prompt, answered = content.extend(prompt, memoryview(b"," + record.answer)), OUTPUT_TOKENS


def main() -> None:
    asked = turns.asked()
    with tempfile.TemporaryDirectory() as place:
        played = part(asked, Folder(Path(place)))
        records = play(played)
    turns.tell(asked.out, told(played, [record for record in records if record.turn]))


if __name__ == "__main__":
    main()
