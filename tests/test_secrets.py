"""A key goes through all that bench does and is found nowhere afterwards; what would expose one is refused."""

import os
import secrets
import shlex
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bench import engine, keeper, key, secret, server, tables
from bench.errors import BenchError
from bench.recipe import launch

HERE = Path(__file__).parent
FAKE = [sys.executable, str(HERE / "fake_vllm.py")]
SHORT = ("--workload", str(HERE / "real" / "small-agents.toml"), "--levels", "2", "--requests", "12", "--no-bounds")
OURS = ("--gpu", "l4", "--model", "M", *SHORT)


@pytest.fixture
def canary() -> str:
    return f"{secrets.token_hex(4)}-{secrets.token_hex(12)}"


@pytest.fixture
def at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", str(HERE.parent))
    for name in (secret.KEY, secret.KEY_FILE, key.OF_OUR_SERVER):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


class Ear:
    """All that a user, a file or a neighbour on the machine could see of some commands."""

    def __init__(self) -> None:
        self.seen: dict[str, bytes] = {}
        self.listening: set[str] = set()
        self.ended = threading.Event()

    def bench(self, *words: str, expect: int | None = None) -> str:
        ran = subprocess.Popen(
            [sys.executable, "-m", "bench", *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        watch = threading.Thread(target=self._watch, args=(ran.pid,))
        watch.start()
        told, _ = ran.communicate(timeout=400)
        self.ended.set()
        watch.join()
        self.ended.clear()
        self.seen[f"output of {shlex.join(words)}"] = told
        assert expect is None or ran.returncode == expect, told.decode()
        return told.decode()

    def _watch(self, root: int) -> None:
        while not self.ended.wait(0.02):
            for pid in family(root):
                try:
                    self.listening |= listening(pid)
                    told = Path(f"/proc/{pid}/cmdline").read_bytes()
                except OSError:
                    continue
                before = self.seen.setdefault(f"command line of {pid}", b"")
                if told not in before:  # vLLM's processes rename themselves; one that has ended has no name
                    self.seen[f"command line of {pid}"] = before + told

    def heard(self, folder: Path, what: str) -> list[str]:
        files = {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        return [place for place, told in (self.seen | files).items() if what[: secret.SHORT].encode() in told]


def family(root: int) -> set[int]:
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found, before = {root}, 0
    while len(found) > before:  # a child may have the lower number
        before = len(found)
        found |= {pid for pid, parent in parents.items() if parent in found}
    return found


def listening(pid: int) -> set[str]:
    """The addresses at which a process lets others in."""
    files = {os.readlink(file) for file in Path(f"/proc/{pid}/fd").iterdir() if file.is_symlink()}
    found = set()
    for kind, table in ((socket.AF_INET, "tcp"), (socket.AF_INET6, "tcp6")):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            _, local, _, state, *_, inode = line.split()[:10]
            if state == "0A" and f"socket:[{inode}]" in files:
                words = bytes.fromhex(local.partition(":")[0])
                found.add(socket.inet_ntop(kind, b"".join(words[i : i + 4][::-1] for i in range(0, len(words), 4))))
    return found


@contextmanager
def running(mode: str, wanted: str) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [mode, "serve", "M", "--served-model-name", "M", "--port", str(port)]
    process = subprocess.Popen([*FAKE, *words], env=os.environ | {"VLLM_API_KEY": wanted}, stdout=subprocess.DEVNULL)
    try:
        while process.poll() is None:
            with socket.socket() as knock:
                if knock.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def vllm(mode: str) -> tuple[str, str]:
    return "--vllm", shlex.join([*FAKE, mode])


def test_the_search_finds_what_is_there(at: Path, canary: str) -> None:
    (at / "deep").mkdir()
    (at / "deep" / "file").write_text(f"x{canary}y")
    ear = Ear()
    ear.seen["command line"] = f"a\0--key={canary[:12]}".encode()
    assert ear.heard(at, canary) == ["command line", str(at / "deep" / "file")]
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", canary])
    try:
        assert sleeper.pid in family(os.getpid())
        threading.Timer(0.2, ear.ended.set).start()
        ear._watch(os.getpid())
        assert f"command line of {sleeper.pid}" in ear.heard(at, canary)
    finally:
        sleeper.kill()
        sleeper.wait()


def test_the_search_finds_who_listens_to_others(at: Path) -> None:
    with socket.create_server(("0.0.0.0", 0)), socket.create_server(("::1", 0), family=socket.AF_INET6):
        assert {"0.0.0.0", "::1"} <= listening(os.getpid())
    assert "0.0.0.0" not in listening(os.getpid())


def test_the_key_of_an_endpoint_opens_it_and_is_left_nowhere(
    at: Path, canary: str, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path_factory.mktemp("keys") / "key"
    file.write_text(f"{canary}\n")
    ear = Ear()
    with running("guarded", canary) as url:
        monkeypatch.setenv(secret.KEY_FILE, str(file))
        told = ear.bench("sweep", "--endpoint", url, *SHORT, "--processes", "2", "--client", "openai", "--out", "run")
        assert "chmod 600" in told
        monkeypatch.delenv(secret.KEY_FILE)
        monkeypatch.setenv(secret.KEY, canary)
        assert "chmod" not in ear.bench("sweep", "--endpoint", url, *SHORT, "--out", "again")
    for run in ("run", "again"):
        lines = (at / run / "requests.jsonl").read_text().splitlines()
        assert lines
        assert all('"status":"ok"' in line for line in lines)
    assert any(b"multiprocessing" in told for told in ear.seen.values()), "the client's processes were not seen"
    ear.bench("report", "run", "--json")
    ear.bench("compare", "run", "again", "--markdown", expect=0)
    for form in ("vllm-bench", "llm-d", "github-action"):
        ear.bench("export", "run", "--as", form, expect=0)
    ear.bench("publish", "run", "--to", "results")
    assert ear.heard(at, canary) == []


def test_a_key_that_is_wrong_is_quoted_by_the_server_and_not_by_us(
    at: Path, canary: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ear = Ear()
    monkeypatch.setenv(secret.KEY, canary)
    with running("guarded", "another-one") as url:
        assert "401" in ear.bench("sweep", "--endpoint", url, *SHORT, expect=3)
    for client in ("bench", "openai"):
        with running("gossip", canary) as url:
            told = ear.bench("sweep", "--endpoint", url, *SHORT, "--client", client, "--out", client, expect=4)
            assert "requests failed" in told
        assert f"bad header Bearer {secret.INSTEAD}" in (at / client / "requests.jsonl").read_text()
    assert ear.heard(at, canary) == []


def test_the_key_of_a_server_that_we_start_opens_it_and_is_left_nowhere(
    at: Path, canary: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ear = Ear()
    monkeypatch.setenv(key.OF_OUR_SERVER, canary)
    ear.bench("sweep", *OURS, *vllm("guarded"), "--out", "run")
    assert '"status":"ok"' in (at / "run" / "requests.jsonl").read_text()
    assert any(b"\0serve\0" in told for told in ear.seen.values()), "the server was not seen"
    assert ear.listening == {"127.0.0.1"}
    ear.bench("sweep", *OURS, *vllm("gossip"), "--out", "gossip", expect=4)
    assert f"listening, with the key {'*' * len(canary)}\n" in (at / "gossip" / "vllm-fp8.log").read_text()
    told = ear.bench("sweep", *OURS, *vllm("traitor"), "--out", "traitor", expect=3)
    assert f"ValueError: cannot start with the key {secret.INSTEAD}" in told
    ear.bench("sweep", *OURS, *vllm("dies"), "--out", "dies", expect=3)
    assert f"the key {secret.INSTEAD}" in (at / "dies" / "journal.jsonl").read_text()
    assert ear.heard(at, canary) == []


def test_a_key_is_not_left_in_the_part_of_a_long_log_that_was_moved_away(
    at: Path, canary: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(key.OF_OUR_SERVER, canary)
    monkeypatch.setattr(keeper, "LOG_LIMIT", 1 << 20)
    moved = at / "vllm-fp8.log.1"
    with server.serve(engine.ask((*FAKE, "chatty"), print), launch("l4", "fp8", "M", 1, True, ()), at, print):
        while not (moved.is_file() and moved.stat().st_size):
            time.sleep(0.05)
    assert f"chatting, with the key {'*' * len(canary)}\n" in moved.read_text()
    assert Ear().heard(at, canary) == []


def test_vllm_is_told_to_listen_to_this_machine_alone_and_not_the_key_of_another_server(
    at: Path, canary: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spy = at / "spy"
    spy.write_text(f'#!/bin/sh\nenv > "$0.$1"\nexec {shlex.join([*FAKE, "healthy"])} "$@"\n')
    spy.chmod(0o700)
    monkeypatch.setenv(secret.KEY, canary)
    monkeypatch.setenv("VLLM_HOST_IP", "10.0.0.1")
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    Ear().bench("sweep", *OURS, "--vllm", str(spy), "--out", "run")
    told = (at / "spy.serve").read_text()
    assert "GLOO_SOCKET_IFNAME=lo\n" in told
    assert "VLLM_HOST_IP=10.0.0.1\n" in told, "the user has the last word"
    assert canary not in told


REFUSED = {
    "a key for vLLM": (("--gpu", "l4", "--", "--api-key", "CANARY"), "--api-key"),
    "with an equals sign": (("--gpu", "l4", "--", "--api-key=CANARY"), "--api-key"),
    "with an underscore": (("--gpu", "l4", "--", "--api_key=CANARY"), "--api_key"),
    "a token": (("--gpu", "l4", "--", "--hf-token", "CANARY"), "--hf-token"),
    "to be varied": (("--gpu", "l4", "--vary", "hf-token=CANARY,x"), "hf-token"),
    "in an address": (("--endpoint", "http://user:CANARY@127.0.0.1:9"), "a word that looks like a key"),
    "in a query": (("--endpoint", "http://127.0.0.1:9/?api_key=CANARY"), "api_key"),
    "in vLLM's command": (("--gpu", "l4", "--vllm", "env HF_TOKEN=CANARY vllm"), "HF_TOKEN"),
    "in an override": (("--gpu", "l4", "--", "--hf-overrides", '{"auth_token": "CANARY"}'), "auth_token"),
    "by its looks": (("--gpu", "l4", "--model", "hf_CANARYCANARYCANARYCANARY"), "a word that looks like a key"),
    "to a command that takes none": (("--password=CANARY",), "--password"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_secret_on_the_command_line_is_refused_without_being_repeated(at: Path, case: str) -> None:
    words, named = REFUSED[case]
    ear = Ear()
    told = ear.bench("sweep", *words, expect=2)
    assert told.startswith(f"bench: {named}: a secret on the command line")
    assert "VLLM_API_KEY" in told
    assert "CANARY" not in told
    assert not (at / "results").exists()


@pytest.mark.parametrize(
    "line",
    [
        "--max-num-batched-tokens 4096 --tokenizer-mode auto",
        "--enable-prompt-tokens-details",
        "--ssl-keyfile /k",
        "--hf-token --port 7",
        '--hf-overrides {"eos_token_id":7,"monkeys":"x"}',
        "--model org/task-force-sk-1",
        "--endpoint http://127.0.0.1:8000/v1",
        "--model /home/hf_models/x",
        "docker run -e HF_TOKEN vllm",
        "--limit first-token=30 --limit=first-token=2.5 --limit gap=5",
    ],
)
def test_what_is_no_secret_is_let_through(line: str) -> None:
    assert secret.betrayed(line.split()) is None


@pytest.mark.parametrize("serve", ['env = { HF_TOKEN = "CANARY" }', 'args = ["--api-key", "CANARY"]',
                                   'before = ["env", "VLLM_API_KEY=CANARY"]'])  # fmt: skip
def test_a_launch_file_with_a_secret_is_refused(tmp_path: Path, serve: str) -> None:
    own = tmp_path / "own.toml"
    lines = [line for line in tables.find("launch", "cpu").read_text().splitlines() if not line.startswith(serve[:4])]
    own.write_text("\n".join(lines).replace("[serve]", f"[serve]\n{serve}"))
    with pytest.raises(BenchError, match="no secret belongs in a file") as caught:
        launch(str(own), "fp8", None, 1, True, ())
    assert "CANARY" not in str(caught.value)


def test_a_secret_of_which_the_end_was_cut_off_is_one_still(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_TOKEN", "abcdefgh-ijklmnop")
    assert secret.without("got abcdefgh-ijk") == "got ***"
    assert secret.without({"a": ["x abcdefgh-ijklmnop y", 7]}) == {"a": ["x *** y", 7]}
    assert BenchError("vLLM says abcdefgh-ijklmnop", "not abcdefgh-ijklmnop").args[:2] == ("vLLM says ***", "not ***")


def test_a_key_that_was_replaced_in_its_file_is_a_secret_still(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "key"
    file.write_text("the-first-key\n")
    monkeypatch.setenv(secret.KEY_FILE, str(file))
    assert key.of_endpoint() == "the-first-key"
    file.write_text("the-second-key\n")
    assert secret.without("the-first-key is known") == "*** is known"


def test_where_a_secret_lies_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLOUD_CREDENTIALS", "/home/someone/key.json")
    monkeypatch.setenv("TINY_KEY", "run")
    assert secret.without("cannot write to /home/someone/run") == "cannot write to /home/someone/run"


def test_a_key_that_cannot_be_one_is_refused_by_its_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "key"
    monkeypatch.setenv(secret.KEY_FILE, str(file))
    for content, says in (
        (None, "cannot be read: no such file"),
        (b"\n", "is empty"),
        (b"\xff\xfe", "it is not text"),
        (b"two\r\nlines: evil", "holds no key"),
        ("schl\u00fcssel".encode(), "holds no key"),
    ):
        secret.filed.cache_clear()
        if content is not None:
            file.write_bytes(content)
        with pytest.raises(BenchError, match=says):
            key.of_endpoint()
    monkeypatch.setenv(secret.KEY, "one-two-three")
    with pytest.raises(BenchError, match="both set"):
        key.of_endpoint()


def test_a_crash_of_ours_tells_no_secret(at: Path, canary: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(secret.KEY, canary)
    broken = "import os, bench.cli; bench.cli.cli.main = lambda **_: {}[os.environ['BENCH_API_KEY']]; bench.cli.main()"
    ran = subprocess.run([sys.executable, "-c", broken], capture_output=True, text=True)
    assert f"KeyError: '{secret.INSTEAD}'" in ran.stderr
    assert canary not in ran.stderr


def test_who_opens_the_server_to_others_is_told(at: Path) -> None:
    plan = ("sweep", "--gpu", "l4", "--dry-run", *vllm("healthy"))
    assert "--host 0.0.0.0: whoever reaches this machine" in Ear().bench(*plan, "--", "--host", "0.0.0.0", expect=0)
    assert "whoever reaches" not in Ear().bench(*plan, expect=0)


@pytest.mark.parametrize("name", tables.shipped("launch"))
def test_no_shipped_launch_runs_code_of_a_model_or_listens_to_others(name: str) -> None:
    made = launch(name, "fp8", None, 2, True, ())
    words = " ".join([*made.file.serve.before, *made.arguments(made.model, 1), *made.environment()])
    assert "trust" not in words
    assert "--host 127.0.0.1" in words
    assert "0.0.0.0" not in words
