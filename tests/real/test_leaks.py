"""After every way to end, nothing is left of a real vLLM: no process, however it called itself, no port, no memory."""

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from bench import family, keeper
from bench.records import Folder
from tests.real.command import BENCH, SMALL, needs_vllm

pytestmark = needs_vllm
DONE, ENDLESS = ("--requests", "60"), ("--requests", "100000")
WAYS: dict[str, tuple[tuple[str, ...], Callable[[int, int], None], tuple[int, ...]]] = {
    "success": (DONE, lambda bench, kept: None, (0, 4)),
    "Ctrl-C": (ENDLESS, lambda bench, kept: os.kill(bench, signal.SIGINT), (130,)),
    "kill -9 of bench": (ENDLESS, lambda bench, kept: os.kill(bench, signal.SIGKILL), (-9,)),
    "kill -9 of the keeper": (("--requests", "600"), lambda bench, kept: os.kill(kept, signal.SIGKILL), (0, 4)),
}


@pytest.fixture
def place() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="t", dir="/tmp"))  # sockets in it need a short name
    yield made
    shutil.rmtree(made)


@pytest.mark.parametrize("way", WAYS)
def test_nothing_is_left_of_the_engine(way: str, place: Path, tmp_path: Path) -> None:
    words, act, codes = WAYS[way]
    shared, out = set(os.listdir("/dev/shm")), tmp_path / "run"
    process = subprocess.Popen(
        [*BENCH, "sweep", *SMALL, "--kv", "fp16", "--levels", "2", "--no-bounds", *words, "--out", str(out)],
        env={**os.environ, "TMPDIR": str(place)}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    soon(lambda: (out / "requests.jsonl").is_file() and (out / "requests.jsonl").stat().st_size > 0, process)
    kept = next(pid for pid in keeper.descendants(process.pid) if family.keeps(pid))
    members = {pid: began for pid in keeper.descendants(kept) if (began := family.started(pid))}  # some end at once
    command = (out / "vllm-fp16.command").read_text().split()
    act(process.pid, kept)
    _, said = process.communicate(timeout=200)
    assert process.returncode in codes, said
    assert "Traceback" not in said
    if way == "Ctrl-C":
        assert "interrupted" in said
        assert json.loads((out / "run.json").read_text())["verdict"]["valid"] is False
        statuses = Counter(record.status for record in Folder.open(out).records())
        assert statuses["ok"] > 0
        assert set(statuses) <= {"ok", "cut"}
    soon(lambda: not living(members))
    assert len(members) > 1, "an engine beside its API server"
    assert family.bindable(int(command[command.index("--port") + 1]))
    soon(lambda: set(os.listdir("/dev/shm")) <= shared)
    soon(lambda: not list(place.glob("bench-*")))  # the keeper's last act, if bench was killed
    assert [path.name for path in place.iterdir() if not path.name.startswith("torchinductor")] == []


def test_both_killed_at_once_the_next_run_finds_the_engine_that_lost_its_tag(place: Path, tmp_path: Path) -> None:
    out, segments = tmp_path / "run", keeper.Segments()
    process = subprocess.Popen(
        [*BENCH, "sweep", *SMALL, "--kv", "fp16", "--levels", "2", *ENDLESS, "--out", str(out)],
        env={**os.environ, "TMPDIR": str(place)}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    soon(lambda: (out / "requests.jsonl").is_file() and (out / "requests.jsonl").stat().st_size > 0, process)
    kept = next(pid for pid in keeper.descendants(process.pid) if family.keeps(pid))
    members = {pid: family.started(pid) for pid in keeper.descendants(kept)}
    segments.look(kept, closely=True)
    for number in (signal.SIGSTOP, signal.SIGKILL):  # neither has the time to act for the other
        for pid in (kept, process.pid):
            os.kill(pid, number)
    process.wait()
    soon(lambda: kept not in keeper.processes())

    def found() -> set[int]:
        return {pid for one in family.orphans(str(place)) if one.run == str(out.resolve()) for pid in one.pids}

    try:
        soon(lambda: living(members) <= found())  # who is not found ends by itself
    finally:
        keeper.send(living(members), signal.SIGKILL)
        soon(lambda: not living(members))
        segments.remove()
    family.orphans(str(place))
    assert list(place.glob("bench-*")) == [], "the folder of those that are gone"


def living(members: Mapping[int, str]) -> set[int]:
    """One that only waits to be reaped is gone: not every init reaps."""
    return {pid for pid, (*_, began) in keeper.processes().items() if members.get(pid) == began}


def soon(true: Callable[[], bool], process: subprocess.Popen[str] | None = None) -> None:
    deadline = time.monotonic() + 200
    while not true():
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)
