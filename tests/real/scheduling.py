"""What a scheduler is given to do, the same for vLLM's and for ours, and what it is then seen to do."""

import heapq
import random
from dataclasses import dataclass
from typing import Any, Protocol

from bench.simulate import Setup

Seen = dict[str, Any]
MOST_STEPS = 20_000


@dataclass(frozen=True, slots=True)
class Ask:
    own: int  # tokens that are the session's alone, of the whole prompt
    output: int
    pause: int  # steps between the answer before and this


@dataclass(frozen=True, slots=True)
class Sitting:
    comes: int  # before which step
    shared: int  # tokens that all prompts begin with
    level: int  # tokens that follow those, the same for all that have them
    asks: tuple[Ask, ...]

    @property
    def longest(self) -> int:
        return self.shared + self.level + self.asks[-1].own + self.asks[-1].output


@dataclass(frozen=True, slots=True)
class Scenario:
    name: str
    setup: Setup
    sittings: tuple[Sitting, ...]


class Server(Protocol):
    def add(self, session: int, number: int, sitting: Sitting, ask: Ask) -> None: ...

    def step(self) -> Seen:
        """Also `ended`: (session, number) of the turns that were answered, in that order."""
        ...


def play(scenario: Scenario, server: Server) -> list[Seen]:
    coming = [(sitting.comes, session, 0) for session, sitting in enumerate(scenario.sittings)]
    heapq.heapify(coming)
    steps: list[Seen] = []
    there = 0
    while coming or there:
        while coming and coming[0][0] <= len(steps):
            _, session, number = heapq.heappop(coming)
            sitting = scenario.sittings[session]
            server.add(session, number, sitting, sitting.asks[number])
            there += 1
        steps.append(server.step())
        assert len(steps) < MOST_STEPS, "nothing goes on any more"
        for session, number in steps[-1]["ended"]:
            there -= 1
            asks = scenario.sittings[session].asks
            if number + 1 < len(asks):
                heapq.heappush(coming, (len(steps) + asks[number + 1].pause, session, number + 1))
    return steps


@dataclass(frozen=True, slots=True)
class Kind:
    """Bounds between which a scenario is drawn."""

    sessions: tuple[int, int] = (4, 12)
    turns: tuple[int, int] = (1, 5)
    new: tuple[int, int] = (10, 300)
    output: tuple[int, int] = (1, 30)
    shared: tuple[int, int] = (0, 400)
    level: tuple[int, int] = (0, 0)
    apart: int = 20  # steps over which sessions begin
    pause: int = 5
    room: tuple[float, float] = (0.3, 1.5)  # of the cache, for what all sessions come to
    sizes: tuple[int, ...] = (16, 16, 128)
    budgets: tuple[int, ...] = (256, 300, 512, 1024, 2048)
    sequences: tuple[int, ...] = (2, 5, 256)
    chunked: tuple[bool, ...] = (True,)
    caching: tuple[bool, ...] = (True,)
    thresholds: tuple[int, ...] = (0,)
    busts: float = 0.0  # share of sessions that have nothing but the first part in common with others


KINDS = {
    "there is room for all": Kind(room=(1.2, 3.0)),
    "somewhat too small": Kind(room=(0.6, 0.9)),
    "far too small": Kind(sessions=(8, 16), room=(0.1, 0.3)),
    "together from the start": Kind(apart=0, pause=0, shared=(100, 1500)),
    "many short requests": Kind(
        sessions=(60, 120), turns=(1, 1), new=(1, 60), output=(1, 8), shared=(0, 64), sequences=(8, 64, 256)
    ),
    "a long context, some without it": Kind(
        sessions=(20, 40), turns=(1, 1), new=(0, 40), level=(500, 2500), busts=0.3, room=(0.1, 0.5), apart=60
    ),
    "answers outgrow the cache": Kind(
        sessions=(6, 12), turns=(1, 2), new=(5, 60), output=(60, 200), shared=(0, 60), apart=3, room=(0.1, 0.4)
    ),
    "whole prompts only": Kind(
        chunked=(False,), budgets=(256,), new=(100, 600), turns=(1, 2), shared=(0, 60), apart=3, sequences=(256,),
        thresholds=(0, 0, 100),
    ),
    "a long prompt waits its turn": Kind(thresholds=(40, 128, 500), new=(10, 900), turns=(1, 3), sessions=(1, 10)),
    "no prefix caching": Kind(caching=(False,), output=(1, 60), room=(0.1, 0.8)),
    "the same prompt again": Kind(
        sessions=(10, 30), turns=(1, 1), new=(0, 0), output=(1, 40), shared=(128, 128), level=(384, 384), busts=0.4,
        apart=80, room=(0.1, 0.4),
    ),
    "the same prompt at once": Kind(
        sessions=(6, 20), turns=(1, 4), new=(1, 100), level=(200, 1500), apart=4, room=(0.1, 0.5),
        thresholds=(32, 100), budgets=(256, 512),
    ),
    "anything": Kind(
        sessions=(1, 30), output=(1, 90), level=(0, 600), apart=10, room=(0.05, 2.0), thresholds=(0, 64), busts=0.2,
        caching=(True, True, True, False), chunked=(True, True, False),
    ),
}  # fmt: skip


def scenario(name: str, seed: int) -> Scenario:
    draw, kind = random.Random(f"{name} {seed}"), KINDS[name]
    shared, level = draw.randint(*kind.shared), draw.randint(*kind.level)
    sittings = tuple(_sitting(draw, kind, shared, level) for _ in range(draw.randint(*kind.sessions)))
    longest = max(sitting.longest for sitting in sittings)
    size, chunked = draw.choice(kind.sizes), draw.choice(kind.chunked)
    sequences, budget = draw.choice(kind.sequences), draw.choice(kind.budgets)
    room = int(draw.uniform(*kind.room) * sum(sitting.longest for sitting in sittings))
    setup = Setup(
        block_size=size,
        blocks=-(-max(room, longest) // size),
        budget=budget if chunked else max(budget, longest + 1),
        most_sequences=sequences,
        chunked=chunked,
        caching=draw.choice(kind.caching),
        threshold=draw.choice(kind.thresholds),
    )
    return Scenario(f"{name} {seed}", setup, sittings)


def _sitting(draw: random.Random, kind: Kind, shared: int, level: int) -> Sitting:
    busts = draw.random() < kind.busts
    own, asks = level + 1 if busts else 0, list[Ask]()
    for _ in range(draw.randint(*kind.turns)):
        new, output = draw.randint(*kind.new), draw.randint(*kind.output)
        own += new if shared + level + own + new else 1
        asks.append(Ask(own, output, draw.randint(0, kind.pause)))
        own += output
    return Sitting(draw.randint(0, kind.apart), shared, 0 if busts else level, tuple(asks))
