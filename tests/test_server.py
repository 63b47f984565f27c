"""The life of a server, where a healthy vLLM would not do what is needed: with a stand-in that does."""

import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import pytest

from bench import diagnosis, engine, family, keeper, recipe, server
from bench.errors import BenchError, Exit
from bench.recipe import Launch
from tests.test_records import room

FAKE = Path(__file__).parent / "fake_vllm.py"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def fake(mode: str) -> engine.Vllm:
    return engine.ask(engine.find(shlex.join([sys.executable, str(FAKE), mode]), "cuda"), print)


def launch(*extra: str, model: str = "M") -> Launch:
    return recipe.launch("l4", "fp8", model, 1, True, extra)


def ours(run: Path) -> list[int]:
    return [pid for pid, owner in family.owned() if owner.endswith(str(run.resolve()))]


def test_what_vllm_knows_is_read_from_its_own_help() -> None:
    vllm = fake("healthy")
    assert vllm.version == "0.0.fake"
    assert vllm.kv_dtypes == ("auto", "bfloat16", "fp8")
    assert "--max-num-seqs" in vllm.flags


def check(*extra: str, kv: str = "fp8") -> None:
    made = recipe.launch("l4", kv, None, 1, True, extra)
    engine.check(fake("healthy"), made.arguments("M", 0), made.kv, made.precision.dtype, made.file.kv)


def test_unknown_flags_and_precisions_are_refused_before_anything_starts() -> None:
    check("--max-num-seqs=4", "--max_num_seqs", "4")
    with pytest.raises(BenchError, match=r"has no flag --max-num-sequences"):
        check("--max-num-sequences", "4")
    older = replace(fake("healthy"), flags=fake("healthy").flags - {"--enable-prompt-tokens-details"})
    with pytest.raises(BenchError, match="has no flag --enable-prompt-tokens-details"):
        engine.check(older, recipe.launch("l4", "fp8", None, 1, True, ()).arguments("M", 0), "fp8", "fp8", ())
    with pytest.raises(BenchError, match="no cache of type turboquant_4bit_nc") as caught:
        check(kv="tq4")
    assert "auto, bfloat16, fp8" in caught.value.hint


def test_a_command_that_is_not_vllm_is_refused() -> None:
    with pytest.raises(BenchError, match="is not vLLM's"):
        engine.ask(engine.find("echo", "cuda"), print)
    with pytest.raises(BenchError, match="no such command"):
        engine.find("no-such-vllm", "cuda")


HANGING = 'cd "$0"; sleep 600 & echo $! > child; echo $$ > draft; mv draft itself; wait'


def soon_gone(told: Path) -> bool:
    """The process of that number."""
    for _ in range(200):
        if int(told.read_text()) not in keeper.processes():
            return True
        time.sleep(0.1)
    return False


def test_a_vllm_that_does_not_say_what_it_knows_is_ended_with_its_children(tmp_path: Path) -> None:
    limit_s = 0.5
    while not (tmp_path / "itself").is_file():
        limit_s *= 2
        with pytest.raises(BenchError, match=r"does not run: .* timed out"):
            engine.ask(("sh", "-c", HANGING, str(tmp_path)), print, limit_s)
    assert soon_gone(tmp_path / "itself")
    assert soon_gone(tmp_path / "child")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_vllm_that_is_asked_what_it_knows_ends_with_bench(tmp_path: Path, number: int) -> None:
    words = ["sweep", "--gpu", "l4", "--vllm", shlex.join(("sh", "-c", HANGING, str(tmp_path)))]
    asking = subprocess.Popen([sys.executable, "-m", "bench", *words, "--out", str(tmp_path / "run")])
    while not (tmp_path / "itself").is_file():
        assert asking.poll() is None
        time.sleep(0.05)
    asking.send_signal(number)
    asking.wait()
    assert soon_gone(tmp_path / "itself")
    if number == signal.SIGKILL:  # what a wrapper has started is not promised
        os.kill(int((tmp_path / "child").read_text()), signal.SIGKILL)
    assert soon_gone(tmp_path / "child")


def serve(mode: str, run: Path, *extra: str, start_timeout_s: float = 60) -> AbstractContextManager[server.Endpoint]:
    return server.serve(fake(mode), launch(*extra), run, print, start_timeout_s, stop_timeout_s=1)


def children() -> set[int]:
    """The dead too, while nobody has asked for them."""
    return {pid for pid, (_, parent, *_) in keeper.table().items() if parent == os.getpid()}


@pytest.fixture
def nothing_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No process, no shared memory, no temporary file: whatever the test did."""
    place = Path(tempfile.mkdtemp(prefix="t", dir="/tmp"))  # sockets in it need a short name
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    shared, processes = set(os.listdir("/dev/shm")), keeper.descendants(os.getpid())
    had = children()
    yield
    assert ours(tmp_path) == []
    assert keeper.descendants(os.getpid()) <= processes
    assert children() <= had, "whoever adopts them after us may never ask for them"
    assert not {name for name in os.listdir("/dev/shm") if name.startswith("fake_vllm_")} - shared
    assert [path for path in place.rglob("*") if path.is_file()] == []
    assert list(place.glob("bench-*")) == []
    shutil.rmtree(place)


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("mode", ["healthy", "family", "deaf", "segment", "stray"])
def test_the_whole_family_is_gone_afterwards(tmp_path: Path, mode: str) -> None:
    with serve(mode, tmp_path) as target:
        assert target.model == "M"
        assert ours(tmp_path)
        assert target.cache.tokens is None, "a server without metrics has told nothing"
        port = int(target.base_url.rpartition(":")[2])
    assert family.bindable(port)


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("mode", ["segment", "stray"])
def test_the_family_of_a_leader_that_was_killed_is_gone_too(tmp_path: Path, mode: str) -> None:
    with serve(mode, tmp_path) as target:
        assert target.process is not None
        time.sleep(1.5)  # new shared memory is looked for once a second
        os.kill(target.process.pid, signal.SIGKILL)
        while target.alive() is None:
            time.sleep(0.05)
        assert "killed (signal 9)" in (target.alive() or "")


@pytest.mark.usefixtures("nothing_left")
def test_when_the_keeper_is_killed_bench_ends_what_comes_to_it(tmp_path: Path) -> None:
    with serve("stray", tmp_path) as target:
        assert target.process is not None
        keepers = [pid for pid in ours(tmp_path) if family.keeps(pid)]
        mine = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        os.kill(keepers[0], signal.SIGKILL)
    assert mine.poll() is None, "what we started otherwise is left alone"
    mine.kill()
    mine.wait()


@pytest.mark.usefixtures("nothing_left")
def test_a_keeper_killed_while_its_server_starts_leaves_no_shared_memory(tmp_path: Path) -> None:
    """Its only owner dies with the keeper: by then it has to be known."""
    held = 0

    def say(_: str) -> None:
        nonlocal held
        held += "segment" in (tmp_path / "vllm-fp8.log").read_text()
        if held == 5:
            os.kill(next(pid for pid in ours(tmp_path) if family.keeps(pid)), signal.SIGKILL)

    starts = server.serve(fake("mute segment"), launch(), tmp_path, say, stop_timeout_s=1)
    with pytest.raises(BenchError, match="it was killed"), starts:
        pass


HEADLESS = """
import ctypes, platform, subprocess, sys, threading, time
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
threading.Thread(target=time.sleep, args=(600,)).start()
ctypes.CDLL(None).syscall(60 if platform.machine() == "x86_64" else 93, 0)  # exit, of this thread alone
"""


def test_a_process_whose_first_thread_ended_is_seen_and_so_are_its_children() -> None:
    """As one looks that is being killed on a busy machine."""
    before = keeper.descendants(os.getpid())
    process = subprocess.Popen([sys.executable, "-c", HEADLESS])
    try:
        while " Z " not in Path(f"/proc/{process.pid}/stat").read_text():
            time.sleep(0.05)
        assert len(keeper.descendants(os.getpid()) - before) == 2
    finally:
        keeper.send(keeper.descendants(os.getpid()) - before, signal.SIGKILL)
        process.wait()


STRANGER = """
import subprocess, sys
keeper, place = sys.argv[1:]
command = [sys.executable, "-I", "-S", keeper, "9", f"{place}/log", "1000", f"{place}/own", "sh", "-c", "exit 3"]
kept = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
number = int(kept.stdout.readline().split()[1])
assert kept.stdout.readline() == b"exit 3\\n"
with open("/proc/sys/kernel/ns_last_pid", "w") as last:
    last.write(str(number - 1))
stranger = subprocess.Popen(["sleep", "600"], start_new_session=True)
assert stranger.pid == number
kept.stdin.close()
assert kept.stdout.readline() == b"gone\\n"
print("alive" if stranger.poll() is None else stranger.returncode)
stranger.kill()
"""
OWN_NUMBERS = ("unshare", "-rpf", "--mount-proc")


@pytest.mark.skipif(
    subprocess.run([*OWN_NUMBERS, "test", "-w", "/proc/sys/kernel/ns_last_pid"], capture_output=True).returncode != 0,
    reason="needs user namespaces, sysctl kernel.unprivileged_userns_clone=1, and numbers of processes to choose",
)
def test_a_stranger_who_got_the_number_of_a_leader_that_ended_is_left_alone(tmp_path: Path) -> None:
    told = subprocess.run(
        [*OWN_NUMBERS, sys.executable, "-c", STRANGER, keeper.__file__, str(tmp_path)], capture_output=True, text=True
    )
    assert told.stdout == "alive\n", told.stderr


@pytest.mark.usefixtures("nothing_left")
def test_one_that_ends_at_once_is_told_as_such(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="vLLM did not start: it said nothing"), serve("dead", tmp_path):
        pass


@pytest.mark.usefixtures("nothing_left")
def test_a_command_that_cannot_be_run_is_told(tmp_path: Path) -> None:
    broken = replace(fake("healthy"), command=(str(tmp_path / "no-such-command"),))
    with (
        pytest.raises(BenchError, match="cannot be run") as caught,
        server.serve(broken, launch(), tmp_path, print),
    ):
        pass
    assert caught.value.exit == Exit.SERVER


@pytest.mark.usefixtures("nothing_left")
def test_a_full_folder_for_temporary_files_is_told_and_nothing_left_there(tmp_path: Path) -> None:
    with room(0), pytest.raises(BenchError, match=r"cannot be run: /.*/bench-.*: File too large") as caught:
        family.Kept(("sleep", "600"), os.environ, {}, tmp_path / "log", tmp_path, 1)
    assert caught.value.exit == Exit.SERVER


def test_a_folder_for_temporary_files_that_is_not_there_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/tmp/no-such-folder")
    with pytest.raises(BenchError, match=r"cannot be run: /tmp/no-such-folder/bench-.*: No such file or directory"):
        family.Kept(("sleep", "600"), os.environ, {}, tmp_path / "log", tmp_path, 1)


@pytest.mark.usefixtures("nothing_left")
def test_a_stranger_who_takes_the_port_is_named_and_not_measured(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    words = ["healthy", "serve", "M", "--served-model-name", "M", "--port", port]

    def intrude(_: str) -> None:
        if not strangers:
            strangers.append(subprocess.Popen([sys.executable, str(FAKE), *words]))

    strangers: list[subprocess.Popen[bytes]] = []
    try:
        with (
            pytest.raises(BenchError, match=f"port {port} was taken by another") as caught,
            server.serve(fake("mute"), launch("--port", port), tmp_path, intrude, stop_timeout_s=1),
        ):
            pass
        assert f"process {strangers[0].pid} (" in caught.value.message
        assert caught.value.exit == Exit.CLEANUP, "the port is not free afterwards, and both is said"
        assert strangers[0].poll() is None
    finally:
        for one in strangers:
            one.kill()
            one.wait()


@pytest.mark.usefixtures("nothing_left")
def test_an_unproven_clean_up_is_exit_6_and_says_both(tmp_path: Path) -> None:

    def fail(squatter: socket.socket, target: server.Endpoint) -> None:
        assert target.process is not None
        os.kill(target.process.pid, signal.SIGKILL)
        while target.alive() is None:
            time.sleep(0.05)
        squatter.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        squatter.bind(("127.0.0.1", int(target.base_url.rpartition(":")[2])))
        squatter.listen()
        raise BenchError("the level failed", exit=Exit.SERVER)

    with pytest.raises(BenchError) as caught, socket.socket() as squatter, serve("healthy", tmp_path) as target:
        fail(squatter, target)
    assert caught.value.exit == Exit.CLEANUP
    assert "the level failed; and then clean-up could not be proven: port" in caught.value.message


SMI = """#!{python}
import sys, pathlib
here = pathlib.Path({folder!r})
print((here / ("apps" if "compute-apps" in sys.argv[1] else "cards")).read_text())
"""


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """There is no card where these tests run: a stand-in for what tells of one."""
    tool = tmp_path / "bin" / "nvidia-smi"
    tool.parent.mkdir()
    tool.write_text(SMI.format(python=sys.executable, folder=str(tmp_path)))
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tool.parent), prepend=os.pathsep)

    def tell(cards: str, apps: str = "") -> None:
        (tmp_path / "cards").write_text(cards)
        (tmp_path / "apps").write_text(apps)

    return tell


@pytest.mark.parametrize(
    ("visible", "apps", "says"),
    [
        (None, "GPU-aa, 4", r"GPU 0 has 3 MiB in use by 4"),
        ("1", "", r"GPU 1 has 20,000 MiB in use$"),
        ("GPU-b", "", r"GPU 1 has 20,000 MiB in use$"),
    ],
)
def test_a_card_that_others_use_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, smi: Callable[..., None], visible: str, apps: str, says: str
) -> None:
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    smi("0, GPU-aa, 3\n1, GPU-bb, 20000", apps)
    with pytest.raises(BenchError, match=says) as caught, serve("healthy", tmp_path):
        pass
    assert caught.value.exit == Exit.SERVER
    assert not (tmp_path / "vllm-fp8.log").exists()


def test_memory_that_is_not_given_back_is_exit_6(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, smi: Callable[..., None]
) -> None:
    smi("0, GPU-aa, 3\n1, GPU-bb, 20000")  # the second one is not asked for
    with serve("healthy", tmp_path):
        smi("0, GPU-aa, 9000")
        threading.Timer(0.2, smi, ["0, GPU-aa, 5"]).start()
    smi("0, GPU-aa, 3")
    monkeypatch.setattr(server, "CARD_S", 0.5)
    with pytest.raises(BenchError, match="GPU 0 holds 9,000 MiB, 3 before") as caught, serve("healthy", tmp_path):
        smi("0, GPU-aa, 9000")
    assert caught.value.exit == Exit.CLEANUP


def test_a_long_log_keeps_its_start_and_its_newest_lines(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("ab", buffering=0) as out:
        out.write(b"INFO non-default args\n")
        for number in range(40_000):
            out.write(f"line {number} {'x' * 80}\n".encode())
            if number % 1_000 == 0:
                keeper.trim(str(log), 2 << 20)
        out.write(b"ValueError: the last word\n")
    assert log.stat().st_size + (tmp_path / "log.1").stat().st_size < 4 << 20
    assert log.read_bytes().startswith(b"INFO non-default args\nline 0 ")
    assert diagnosis.stage(log) == "reading its arguments"
    assert diagnosis.cause(log) == "ValueError: the last word"
    keeper.trim(str(log), 1 << 20)
    assert diagnosis.cause(log) == "ValueError: the last word", "moved away, and still found"


def test_it_is_gone_after_an_exception_too(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), serve("family", tmp_path):
        raise ZeroDivisionError
    assert ours(tmp_path) == []


def test_a_crash_at_the_start_is_told_by_its_cause_with_a_way_out(tmp_path: Path) -> None:
    with pytest.raises(BenchError) as caught, server.serve(fake("crash"), launch(), tmp_path, print):
        pass
    assert caught.value.exit == Exit.SERVER
    assert "OutOfMemoryError: CUDA out of memory" in caught.value.message
    assert "nvidia-smi" in caught.value.hint
    assert str(tmp_path) in caught.value.hint


def test_a_server_that_never_gets_ready_is_given_up_and_stopped(tmp_path: Path) -> None:
    with (
        pytest.raises(BenchError, match="was not ready after 1 s"),
        serve("mute", tmp_path, start_timeout_s=1),
    ):
        pass
    assert ours(tmp_path) == []


def test_a_port_in_use_is_refused() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(BenchError, match=f"port {port} is in use"):
            server.choose_port(launch("--port", str(port)))


def test_an_orphan_without_tag_is_found_by_its_session_and_a_note_without_one_is_removed(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    engine_of = "import os, time; os.fork() and os._exit(0); os.execve('/bin/sleep', ['engine', '60'], {})"
    leader = subprocess.Popen([sys.executable, "-c", engine_of], start_new_session=True)
    leader.wait()
    for folder, session, run in (("bench-1", leader.pid, ""), ("bench-2", gone.pid, "/2")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "family").write_text(f"{session} {gone.pid}:1:{tmp_path}{run}")
    (found,) = [orphan for orphan in family.orphans(str(tmp_path)) if orphan.run == str(tmp_path)]
    assert len(found.pids) == 1
    assert found.group == leader.pid
    os.killpg(found.group, signal.SIGKILL)
    assert not (tmp_path / "bench-2").exists()


def test_a_process_whose_bench_is_dead_is_an_orphan(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    tag = {family.TAG: f"{dead.pid}:1:{tmp_path}"}
    left = subprocess.Popen(["sleep", "60"], env=os.environ | tag, start_new_session=True)
    mine = subprocess.Popen(
        ["sleep", "60"], env=os.environ | {family.TAG: f"{os.getpid()}:{family.started(os.getpid())}:x"}
    )
    try:
        found = [orphan for orphan in family.orphans() if orphan.run == str(tmp_path)]
        assert [(orphan.pids, orphan.group) for orphan in found] == [((left.pid,), left.pid)]
        assert not [orphan for orphan in family.orphans() if mine.pid in orphan.pids]
    finally:
        for process in (left, mine):
            process.kill()
            process.wait()
