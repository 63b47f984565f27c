"""A real vLLM killed and stopped for real: the level it died in is begun anew on another, and the run is whole."""

import json
import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

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
    2: (engine, signal.SIGSTOP, "answered none of 3 requests in a row"),
    3: (api_server, signal.SIGKILL, "vLLM was killed (signal 9)"),
    4: (engine, signal.SIGKILL, "EngineDeadError"),
}

REQUESTS = 300  # a level of 60 is over in a third of a second on a quiet machine, before its accident


def test_a_level_whose_server_is_lost_is_begun_anew_on_another(tmp_path: Path) -> None:
    """One accident in each of three levels."""
    run = tmp_path / "run"
    levels = ["--levels", "2,3,4", "--requests", str(REQUESTS), "--no-bounds", "--timeout", "5"]
    words = ["sweep", *SMALL, "--kv", "plenty", *levels]
    process = subprocess.Popen(
        [*BENCH, *words, "--out", str(run)], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    for level, (whose, number, _) in FAULTS.items():
        wait(partial(under_way, run, level))
        os.kill(whose(run), number)
    _, err = process.communicate(timeout=300)
    assert process.returncode in (0, 4), err
    assert not [says for _, _, says in FAULTS.values() if says not in err]
    assert err.count("begun anew") >= len(FAULTS)
    told = json.loads((run / "run.json").read_text())
    assert told["ended"] == "finished"
    assert told["verdict"]["ledger"]["ok"] == told["verdict"]["ledger"]["planned"] == REQUESTS * len(FAULTS)
    statuses = Counter((one.concurrency, one.attempt, one.status) for one in Folder.open(run).records())
    for level in FAULTS:
        assert statuses[level, 0, "failed"] + statuses[level, 0, "timeout"] >= 1, "what was under way is on file"
    assert not [key for key in statuses if key[1] == 1 and key[2] != "ok"]
    assert not tagged(run)


def under_way(run: Path, level: int) -> bool:
    file = run / "requests.jsonl"
    return file.is_file() and file.read_text().count(f'"concurrency":{level},') > 10


def wait(until: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 200
    while not until():
        assert time.monotonic() < deadline
        time.sleep(0.05)
