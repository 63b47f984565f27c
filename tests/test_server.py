"""The life of a server, where a healthy vLLM would not do what is needed: with a stand-in that does."""

import os
import shlex
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from bench import engine, recipe, server
from bench.errors import BenchError, Exit
from bench.recipe import Launch

FAKE = Path(__file__).parent / "fake_vllm.py"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(server, "STOP_S", 1.0)


def fake(mode: str) -> engine.Vllm:
    return engine.ask(engine.find(shlex.join([sys.executable, str(FAKE), mode]), "cuda"), print)


def launch(*extra: str, model: str = "M") -> Launch:
    return recipe.launch("l4", "fp8", model, 1, True, extra)


def ours(run: Path) -> list[int]:
    return [pid for pid, owner in server.owned() if owner.endswith(str(run.resolve()))]


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


@pytest.mark.parametrize("mode", ["healthy", "family", "deaf"])
def test_the_whole_family_is_gone_afterwards(tmp_path: Path, mode: str) -> None:
    said: list[str] = []
    with server.serve(fake(mode), launch(), tmp_path, said.append) as target:
        assert target.model == "M"
        assert ours(tmp_path)
        assert target.cache.tokens is None, "a server without metrics has told nothing"
    assert ours(tmp_path) == []


def test_it_is_gone_after_an_exception_too(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), server.serve(fake("family"), launch(), tmp_path, print):
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
        server.serve(fake("mute"), launch(), tmp_path, print, start_timeout_s=1),
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


def test_a_process_whose_bench_is_dead_is_an_orphan(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    tag = {server.TAG: f"{dead.pid}:1:{tmp_path}"}
    left = subprocess.Popen(["sleep", "60"], env=os.environ | tag, start_new_session=True)
    mine = subprocess.Popen(
        ["sleep", "60"], env=os.environ | {server.TAG: f"{os.getpid()}:{server.started(os.getpid())}:x"}
    )
    try:
        found = [orphan for orphan in server.orphans() if orphan.run == str(tmp_path)]
        assert [(orphan.pids, orphan.group) for orphan in found] == [((left.pid,), left.pid)]
        assert not [orphan for orphan in server.orphans() if mine.pid in orphan.pids]
    finally:
        for process in (left, mine):
            process.kill()
            process.wait()
