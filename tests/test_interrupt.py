"""Ways to end a sweep that is under way, by real signals to a real process: what is on file, said, and left."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest

from bench import family, keeper
from tests import fake_vllm

HERE = Path(__file__).parent
WORDS = ("--gpu", "l4", "--model", "M", "--workload", str(HERE / "real" / "small-agents.toml"), "--levels", "2",
         "--no-bounds", "--out", "run")  # fmt: skip
APART_S = 0.5  # two that come closer are one


@dataclass
class Sweep:
    """One that is under way in a folder of its own."""

    place: Path
    process: subprocess.Popen[str]

    @property
    def log(self) -> str:
        path = self.place / "run" / "vllm-fp8.log"
        return path.read_text() if path.is_file() else ""

    def until(self, *moments: str) -> "Sweep":
        for moment in moments:
            soon({"start": self._starting, "level": self._playing}[moment], self.process)
        return self

    def _starting(self) -> bool:
        return "stray" in self.log and "segment" in self.log

    def _playing(self) -> bool:
        path = self.place / "run" / "requests.jsonl"
        return path.is_file() and path.stat().st_size > 5_000

    def send(self, *numbers: signal.Signals) -> "Sweep":
        for at, number in enumerate(numbers):
            if at:
                time.sleep(APART_S)
            self.process.send_signal(number)
        return self

    def ended(self) -> str:
        """What it said, after all that belongs to it is gone."""
        _, said = self.process.communicate(timeout=60)
        soon(lambda: self.left() == [])
        assert "Traceback" not in said
        return said

    def running(self, word: str) -> list[int]:
        """Those of its processes that have it on their command line, but for the keeper."""
        lines = {pid: command_line(pid) for pid in sorted(keeper.descendants(self.process.pid))}
        return [pid for pid, line in lines.items() if word in line and "keeper.py" not in line]

    def left(self) -> list[str]:
        words = [line.split() for line in self.log.splitlines()]
        strays = [pid for kind, pid in (line for line in words if len(line) == 2) if kind == "stray"]
        segments = [path for kind, path in (line for line in words if len(line) == 2) if kind == "segment"]
        owned = [str(pid) for pid, owner in family.owned() if owner.endswith(str((self.place / "run").resolve()))]
        return [
            *owned,
            *(pid for pid in strays if int(pid) in keeper.processes()),
            *(path for path in segments if Path(path).exists()),
            *(str(path) for path in (self.place / "t").rglob("*") if not path.name.startswith("torchinductor")),
        ]

    def statuses(self) -> set[str]:
        lines = (self.place / "run" / "requests.jsonl").read_text().splitlines()
        return {json.loads(line)["status"] for line in lines}


def command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def soon(true: Callable[[], bool], process: subprocess.Popen[str] | None = None) -> None:
    deadline = time.monotonic() + 30
    while not true():
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture
def begin() -> Iterator[Callable[..., Sweep]]:
    place = Path(tempfile.mkdtemp(prefix="t", dir="/tmp"))  # a socket's path must be short
    (place / "t").mkdir()
    begun: list[Sweep] = []

    def sweep(mode: str = "stray", *before: str, requests: str = "100000", processes: str = "1") -> Sweep:
        vllm = ("--vllm", shlex.join([sys.executable, str(HERE / "fake_vllm.py"), mode]))
        environment = {**os.environ, "PYTHONPATH": str(HERE.parent), "TMPDIR": str(place / "t")}
        process = subprocess.Popen(
            [*before, sys.executable, "-m", "bench", "sweep", *WORDS, "--requests", requests,
             "--processes", processes, *vllm],
            cwd=place, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        begun.append(Sweep(place, process))
        return begun[-1]

    yield sweep
    for one in begun:
        one.process.kill()
        one.process.communicate()
    shutil.rmtree(place)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_once_the_records_are_kept_the_report_is_written_and_nothing_is_left(
    begin: Callable[..., Sweep], number: signal.Signals
) -> None:
    sweep = begin().until("start", "level").send(number)
    assert "interrupted" in sweep.ended()
    assert sweep.process.returncode == 130
    assert "ok" in sweep.statuses() <= {"ok", "cut"}
    assert (sweep.place / "run" / "levels.csv").is_file()


@pytest.mark.parametrize("moment", ["start", "level"])
def test_twice_there_is_no_report_and_nothing_is_left(begin: Callable[..., Sweep], moment: str) -> None:
    sweep = begin("mute stray" if moment == "start" else "deaf stray").until(moment)
    sweep.send(signal.SIGINT, signal.SIGINT)
    assert "stopping now" in sweep.ended()
    assert sweep.process.returncode == 130
    assert not (sweep.place / "run" / "levels.csv").is_file()


@pytest.mark.parametrize("mode", ["mute stray", "deaf stray"])
def test_three_times_it_is_gone_and_says_what_is_left_to_the_keeper(begin: Callable[..., Sweep], mode: str) -> None:
    sweep = begin(mode).until("start")
    keepers = [pid for pid in keeper.descendants(sweep.process.pid) if family.keeps(pid)]
    for pid in keepers:  # one that gets nowhere
        os.kill(pid, signal.SIGSTOP)
    sweep.send(signal.SIGINT, signal.SIGTERM, signal.SIGINT)
    _, said = sweep.process.communicate(timeout=60)
    assert sweep.process.returncode == 6
    assert "left while these were still there: " in said
    assert "(somebody else)" in said
    assert "Traceback" not in said
    for pid in keepers:
        os.kill(pid, signal.SIGCONT)
    sweep.ended()


@pytest.mark.parametrize("moment", ["start", "level"])
def test_killed_with_9_everything_goes_with_it(begin: Callable[..., Sweep], moment: str) -> None:
    sweep = begin().until("start", moment).send(signal.SIGKILL)
    sweep.ended()
    assert sweep.process.returncode == -9


def test_its_keeper_killed_with_9_it_ends_what_there_is_itself_and_goes_on(begin: Callable[..., Sweep]) -> None:
    sweep = begin(requests="600").until("start", "level")
    for pid in [pid for pid in keeper.descendants(sweep.process.pid) if family.keeps(pid)]:
        os.kill(pid, signal.SIGKILL)
    told = sweep.ended()
    assert "vLLM was killed (signal 9)" in told
    assert "begun anew" in told
    assert sweep.process.returncode in (0, 4), "4 where the client was late"


def test_with_its_server_ended_at_the_same_moment_it_stops_and_starts_none_again(begin: Callable[..., Sweep]) -> None:
    """As a service manager does it. A client that is slow to end gives us the moment in which the level is given up."""
    sweep = begin(processes="2").until("start", "level")
    time.sleep(1.5)  # a server killed within a second of making its segment leaves that: the keeper looks once in one
    slow, quick = sweep.running("spawn_main")
    os.kill(slow, signal.SIGSTOP)
    for pid in sweep.running("fake_vllm.py\0stray\0serve"):
        os.kill(pid, signal.SIGKILL)
    soon(lambda: quick not in sweep.running("spawn_main"), sweep.process)
    said = sweep.send(signal.SIGTERM).ended()
    assert "It is started again" not in said.partition("stopping in order")[2]
    assert sweep.process.returncode == 130


WAYS_OUT = """
import asyncio, os, signal
from bench import connection, interrupt
from bench.errors import BenchError
async def fail():
    os.kill(os.getpid(), signal.SIGTERM)
    try:
        await asyncio.sleep(600)
    finally:
        raise BenchError("the server is lost")
interrupt.listen(lambda: None)
connection.run(fail())
"""


def test_an_error_on_its_way_out_does_not_undo_a_stop() -> None:
    ran = subprocess.run([sys.executable, "-c", WAYS_OUT], capture_output=True, text=True, cwd=HERE.parent, timeout=60)
    assert ran.stderr.splitlines()[-1] == "KeyboardInterrupt"


class Mute(fake_vllm.Handler):
    """Never answers the n-th question of one kind."""

    model, mode = "M", "errors"
    question, left = "", 0
    reached, over = threading.Event(), threading.Event()

    def parse_request(self) -> bool:
        understood = super().parse_request()
        if self.path == Mute.question:
            Mute.left -= 1
            if not Mute.left:
                Mute.reached.set()
                Mute.over.wait()
        return understood


QUESTIONS = {
    "what it is": ("/v1/models", 1),
    "its settings": ("/metrics", 2),
    "how it is asked": ("/v1/completions", 1),
    "for a cold cache": ("/reset_prefix_cache", 1),
    "its metrics": ("/metrics", 3),
    "whether it is there": ("/v1/models", 3),
}


@pytest.fixture
def mute() -> Iterator[str]:
    Mute.reached.clear(), Mute.over.clear()
    fake_vllm.Handler.asked = 0
    with ThreadingHTTPServer(("127.0.0.1", 0), Mute) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}"
        Mute.over.set()
        server.shutdown()


@pytest.mark.parametrize("question", QUESTIONS)
def test_while_a_question_waits_for_its_answer_a_stop_is_heard(question: str, mute: str, tmp_path: Path) -> None:
    Mute.question, Mute.left = QUESTIONS[question]
    words = [*WORDS[4:-1], str(tmp_path / "run"), "--requests", "10", "--limit", "control=600", "--endpoint", mute]
    command = [sys.executable, "-m", "bench", "sweep", *words]
    with subprocess.Popen(command, stderr=subprocess.PIPE, cwd=HERE.parent, text=True) as process:
        try:
            assert Mute.reached.wait(60)
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130
    assert "Traceback" not in said


def test_under_nohup_the_end_of_the_terminal_is_nothing_to_it(begin: Callable[..., Sweep]) -> None:
    sweep = begin("stray", "nohup").until("start", "level").send(signal.SIGHUP)
    size = (sweep.place / "run" / "requests.jsonl").stat().st_size
    soon(lambda: (sweep.place / "run" / "requests.jsonl").stat().st_size > size, sweep.process)
    sweep.send(signal.SIGTERM)
    assert "interrupted" in sweep.ended()
    assert sweep.process.returncode == 130


def test_at_whatever_moment_it_comes_there_is_no_traceback_and_nothing_is_left(begin: Callable[..., Sweep]) -> None:
    for after_s in (0.9, 1.1, 1.3, 1.6):
        sweep = begin()
        time.sleep(after_s)
        sweep.send(signal.SIGINT)
        sweep.ended()
        assert sweep.process.returncode == 130
        shutil.rmtree(sweep.place / "run", ignore_errors=True)


def test_while_the_program_is_still_loading_it_is_no_crash() -> None:
    script = """
        import sys, bench.__main__
        class Interrupted:
            def find_spec(self, name, *_):
                if name == "bench.cli":
                    raise KeyboardInterrupt
        sys.meta_path.insert(0, Interrupted())
        bench.__main__.main()
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=HERE.parent)
    assert (ran.returncode, ran.stderr) == (130, "bench: interrupted\n")


def test_one_that_cuts_a_text_of_code_short_is_exit_130_too(tmp_path: Path) -> None:
    """As that of a dataclass, while it is loaded: Python would note it, and die of the signal at its end."""
    script = "import bench.cli as c\nc.ending._run = lambda command: exec('raise KeyboardInterrupt')\nc.main()"
    (tmp_path / "broken.py").write_text(script)
    path = {**os.environ, "PYTHONPATH": f"{tmp_path}:{HERE.parent}"}
    ran = subprocess.run([sys.executable, "-m", "broken"], capture_output=True, text=True, env=path)
    assert (ran.returncode, ran.stderr) == (130, "bench: interrupted\n")
