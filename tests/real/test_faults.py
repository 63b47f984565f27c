"""A real vLLM killed and stopped for real: the level it died in is begun anew on another, and the run is whole."""

import json
import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from bench import family
from bench.records import Folder
from tests.real.command import BENCH, SMALL, needs_vllm

pytestmark = needs_vllm


def relatives(run: Path) -> dict[str, int]:
    """The server's processes by what they call themselves."""
    leader = min(pid for pid in tagged(run) if not family.keeps(pid))
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if os.getsid(int(folder.name)) == os.getsid(leader):
                found[(folder / "comm").read_text().strip()] = int(folder.name)
        except OSError:
            continue
    return found


def tagged(run: Path) -> list[int]:
    return [pid for pid, owner in family.owned() if owner.endswith(str(run.resolve()))]


def engine(run: Path) -> int:
    return next(pid for name, pid in relatives(run).items() if name.startswith("VLLM::Engine"))


def api_server(run: Path) -> int:
    return next(pid for name, pid in relatives(run).items() if not name.startswith("VLLM::Engine"))


FAULTS = {
    "the API server is killed": (api_server, signal.SIGKILL, "vLLM was killed (signal 9)"),
    "the engine is killed": (engine, signal.SIGKILL, "EngineDeadError"),
    "the engine is stopped": (engine, signal.SIGSTOP, "answered none of 3 requests in a row"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_level_is_begun_anew_on_another_server(tmp_path: Path, fault: str) -> None:
    whose, number, says = FAULTS[fault]
    run = tmp_path / "run"
    words = ["sweep", *SMALL, "--kv", "plenty", "--levels", "2", "--requests", "60", "--no-bounds", "--timeout", "5"]
    process = subprocess.Popen(
        [*BENCH, *words, "--out", str(run)], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    wait(lambda: (run / "requests.jsonl").is_file() and len((run / "requests.jsonl").read_text().splitlines()) > 10)
    os.kill(whose(run), number)
    _, err = process.communicate(timeout=300)
    assert process.returncode in (0, 4), err
    assert says in err
    assert "begun anew" in err
    told = json.loads((run / "run.json").read_text())
    assert told["ended"] == "finished"
    assert told["verdict"]["ledger"]["ok"] == told["verdict"]["ledger"]["planned"] == 60
    statuses = Counter((record.attempt, record.status) for record in Folder.open(run).records())
    assert statuses[0, "failed"] + statuses[0, "timeout"] >= 1, "what was under way has its error on file"
    assert not [key for key in statuses if key[0] == 1 and key[1] != "ok"]
    assert not tagged(run)


def wait(until: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 200
    while not until():
        assert time.monotonic() < deadline
        time.sleep(0.05)
