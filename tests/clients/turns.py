"""What the clients that we wrote ourselves are asked to do, and what they tell: one row a turn."""

import argparse
import json
import math
import random
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.clients.truth import MARK, mark

PROMPT_TOKENS = 22_800
OUTPUT_TOKENS = 75
GROWTH_TOKENS = 100  # a turn, the answer before it included
WORDS = [f"w{number}" for number in range(1000)]
QUIET_S = 0.3


@dataclass(frozen=True, slots=True)
class Asked:
    port: int
    concurrency: int
    requests: int
    out: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@dataclass(frozen=True, slots=True)
class Told:
    """Seconds of the monotonic clock."""

    due: float
    sent: float
    first: float
    ended: float
    mark: int | None = None  # of the body, where the client knows its bytes


def asked(arguments: list[str] | None = None) -> Asked:
    parser = argparse.ArgumentParser()
    for name in ("port", "concurrency", "requests"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True)
    return Asked(**vars(parser.parse_args(arguments)))


def opening(session: int) -> str:
    return _text(PROMPT_TOKENS, session)


def additions(session: int) -> Iterator[str]:
    turn = 0
    while True:
        turn += 1
        yield " " + _text(GROWTH_TOKENS, session, turn)


def _text(tokens: int, *identity: int) -> str:
    return " ".join(random.Random(repr(identity)).choices(WORDS, k=tokens))


def mark_of(*pieces: bytes | memoryview) -> int:
    """Of a body that ends with these pieces."""
    return mark(b"".join(pieces)[-MARK:])


def tell(out: Path, turns: Iterable[Told]) -> None:
    """After a pause: who measures our CPU time shall not count the writing, nor the end of the interpreter."""
    time.sleep(QUIET_S)
    out.write_text("".join(json.dumps(asdict(turn)) + "\n" for turn in turns))


def read(out: Path) -> list[Told]:
    return [Told(**json.loads(line)) for line in out.read_text().splitlines()]


def p99(values: Sequence[float]) -> float:
    """By linear interpolation, as numpy and most clients have it."""
    ordered = sorted(values)
    at = 0.99 * (len(ordered) - 1)
    below = ordered[math.floor(at)]
    return below + (ordered[math.ceil(at)] - below) * (at - math.floor(at))
