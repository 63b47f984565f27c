"""Ours does in every step what vLLM's own scheduler does: same requests, tokens, blocks, in the same order."""

import asyncio
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from bench import engine, model, virtual
from bench.load import Level
from bench.simulate import Engine, Outline, Request, Setup
from bench.speed import Speed
from bench.workload import Turn
from tests.real.command import needs_vllm
from tests.real.scheduling import KINDS, Ask, Scenario, Seen, Sitting, play, scenario

pytestmark = needs_vllm

ROOT = Path(__file__).parents[2]
SEEDS = 4
NAMES = [f"{kind} {seed}" for kind in KINDS for seed in range(SEEDS)]
UNTIMED = Speed(step_s=0, weights_s=0, token_s=0, attend_s=0, read_s=0, sequence_s=0, request_s=0, said_s=0)
LEVEL = Level("fp16", "realistic", 1, 0, 1)


class Ours:
    def __init__(self, setup: Setup) -> None:
        self.engine = Engine(setup, UNTIMED)
        self.scheduler = self.engine.scheduler
        self._known: dict[Request, int] = {}

    def add(self, session: int, number: int, sitting: Sitting, ask: Ask) -> None:
        turn = _turn(session, number, sitting, ask)
        done = asyncio.get_running_loop().create_future()
        request = Request(turn, self.engine.texts(turn), done, 0.0, tokens=turn.prompt_tokens)
        self.scheduler.waiting.append(request)

    def step(self) -> Seen:
        before = [*self.scheduler.running]
        batch = self.scheduler.step(0.0)
        preempted = [request for request in before if request not in self.scheduler.running]
        for request in preempted:
            del self._known[request]
        seen = [self._seen(request, tokens) for request, tokens in batch]
        ended = self.scheduler.finish(batch, 0.0)
        return {
            "scheduled": seen,
            "preempted": sorted(map(_name, preempted)),
            "free": self.scheduler.blocks.free,
            "ended": [[request.turn.session, request.turn.number] for request in ended],
            "running": [*map(_name, self.scheduler.running)],
            "waiting": [*map(_name, self.scheduler.waiting)],
            "prefix": [self.scheduler.queried, self.scheduler.hit],
            "preemptions": self.scheduler.preemptions,
        }

    def _seen(self, request: Request, tokens: int) -> list[Any]:
        new = request.blocks[self._known.get(request, 0) :] + 1  # vLLM keeps the first block for itself
        self._known[request] = len(request.blocks)
        return [_name(request), tokens, request.computed, new.tolist()]


def _name(request: Request) -> str:
    return f"{request.turn.session} {request.turn.number}"


def _turn(session: int, number: int, sitting: Sitting, ask: Ask) -> Turn:
    content = Outline()
    shared, level = content.text(tokens=sitting.shared), content.text(*LEVEL.identity, tokens=sitting.level)
    own = content.text(*LEVEL.identity, session, tokens=ask.own)
    prompt = content.extend(content.extend(content.extend((), shared), level), own)
    tokens = sitting.shared + sitting.level + ask.own
    return Turn(*LEVEL.play, session, number, prompt, tokens, 0, ask.output, 0.0)


async def ours(given: Scenario) -> list[Seen]:
    return play(given, Ours(given.setup))


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Seen]]:
    folder = tmp_path_factory.mktemp("theirs")
    synthetic = model.materialise("synthetic:mini", folder / "model")
    python, out = Path(engine.find(None, "cpu")[0]).parent / "python", folder / "steps"
    if not python.exists():
        pytest.skip(f"vLLM's own interpreter is not at {python}")
    ran = subprocess.run(
        [python, "-m", "tests.real.theirs", synthetic, out, *NAMES],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stderr
    told = map(json.loads, out.read_text().splitlines())
    return {one["name"]: one["steps"] for one in told}


@pytest.mark.parametrize("name", NAMES)
def test_every_step_is_vllms(name: str, theirs: dict[str, list[Seen]]) -> None:
    kind, _, seed = name.rpartition(" ")
    given = scenario(kind, int(seed))
    steps = virtual.run(ours(given))
    for number, (mine, vllms) in enumerate(zip(steps, theirs[name], strict=False)):
        assert mine == vllms, f"step {number} of {given.setup}"
    assert len(steps) == len(theirs[name])
