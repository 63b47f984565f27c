"""One vLLM: started with its whole family in a process group of its own, watched until ready, and gone afterwards."""

import os
import shlex
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from bench import asking, diagnosis, key, model, scrape, secret
from bench.engine import Vllm
from bench.errors import BenchError, Exit
from bench.recipe import Launch

TAG = "BENCH_OWNER"  # in the environment of all we start: "pid:start time:folder of the run"
STOP_S = 20.0
SOON_S = 5.0
# Where the processes of one vLLM listen for each other, unless the user says otherwise: by default, on whatever
# address the machine's name stands for.
LOCAL = {"VLLM_HOST_IP": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A server that answers. A sweep cannot tell one that we started from one that we were pointed at."""

    base_url: str
    model: str
    cache: scrape.CacheFacts
    version: str | None
    vocabulary: int | None = None
    key: str | None = None
    process: subprocess.Popen[bytes] | None = None
    log: Path | None = None
    control_s: float = 60

    def reset_cache(self) -> bool:
        """True if the server says that its prefix cache is empty now."""
        try:
            return asking.reply(f"{self.base_url}/reset_prefix_cache", self.key, b"", self.control_s).status == 200
        except OSError:
            return False

    def metrics(self) -> scrape.Sample | None:
        page = scrape.fetch(self.base_url, self.key, self.control_s)
        return scrape.parse(page) if page else None

    def alive(self) -> str | None:
        """None, or how our process ended."""
        if self.process is None or self.process.poll() is None:
            return None
        return f"vLLM ended with exit code {self.process.returncode}: {diagnosis.cause(self.log)}"


def connect(url: str, wanted: str | None, key: str | None, control_s: float = 60) -> Endpoint:
    """A server that someone else runs."""
    if not url.startswith(("http://", "https://")):
        raise BenchError(f"--endpoint {url!r} is not a URL", f"did you mean http://{url}?")
    base = url.rstrip("/").removesuffix("/v1")
    hint = "is the server up, and the URL right? A key is read from BENCH_API_KEY or BENCH_API_KEY_FILE"
    try:
        models = _models(base, key, control_s)
    except OSError as error:
        raise BenchError(f"{base}/v1/models does not answer: {error}", hint, Exit.SERVER) from None
    if wanted is not None and wanted not in models:
        raise BenchError(f"{base} does not serve {wanted}", f"it serves {', '.join(models)}")
    cache, version = scrape.cache_facts(scrape.fetch(base, key, control_s) or ""), _version(base, key, control_s)
    return Endpoint(base, wanted or models[0], cache, version, key=key, control_s=control_s)


def _models(base: str, key: str | None, limit_s: float) -> list[str]:
    """Those it serves; raises OSError where it does not say."""
    answer = asking.reply(f"{base}/v1/models", key, limit_s=limit_s)
    try:
        models = [str(entry["id"]) for entry in answer.json()["data"]]
    except (ValueError, LookupError, TypeError):
        models = []
    if answer.status != 200 or not models:
        raise ConnectionError(f"HTTP {answer.status}, and no list of models")
    return models


def _version(base: str, key: str | None, limit_s: float) -> str | None:
    try:
        answer = asking.reply(f"{base}/version", key, limit_s=limit_s)
        return str(answer.json()["version"]) if answer.status == 200 else None
    except (OSError, ValueError, LookupError, TypeError):
        return None


@contextmanager
def serve(
    vllm: Vllm, launch: Launch, run: Path, say: Callable[[str], None], start_timeout_s: float = 1200
) -> Iterator[Endpoint]:
    """vLLM for as long as the body runs, and not a moment longer."""
    port, ours = choose_port(launch), key.of_our_server()
    loaded = launch.model
    if model.is_synthetic(launch.model):
        loaded = str(model.materialise(launch.model, run.resolve() / "model"))
    command = [*launch.file.serve.before, *vllm.command, *launch.arguments(loaded, port)]
    log = run / f"vllm-{launch.kv}.log"
    while log.exists():  # another variant of the same precision
        log = log.with_stem(f"{log.stem}-again")
    tag = f"{os.getpid()}:{started(os.getpid())}:{run.resolve()}"
    (run / f"{log.stem}.command").write_text(shlex.join(command) + "\n")
    with log.open("wb") as out:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**LOCAL, **_inherited(), **launch.environment(), TAG: tag},
        )
    try:
        base = f"http://127.0.0.1:{port}"
        _await_ready(process, base, launch, log, say, start_timeout_s, ours)
        page = scrape.fetch(base, ours) or ""
        geometry = model.geometry(launch.model) if model.is_synthetic(launch.model) else None
        vocabulary = geometry.vocabulary if geometry else None
        cache = scrape.cache_facts(page)
        yield Endpoint(base, launch.model, cache, vllm.version, vocabulary, key=ours, process=process, log=log)
    finally:
        try:
            stop(process, tag)
        finally:
            secret.blot(log)


def _inherited() -> dict[str, str]:
    """Of another server's key, vLLM need not know."""
    return {name: value for name, value in os.environ.items() if name not in (secret.KEY, secret.KEY_FILE)}


def choose_port(launch: Launch) -> int:
    """The one the user named after --, if it is free, or any free one."""
    named = [word for word in launch.extra if word.startswith("--port")]
    port = int(launch.number("--port") or 0) if named else 0
    if port > 65_535:
        raise BenchError(f"--port {port} is no port", "ports end at 65535")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            hint = "give another after --, or leave --port out and a free one is found"
            raise BenchError(f"port {port} is in use", hint) from None
        return int(probe.getsockname()[1])


def _await_ready(
    process: subprocess.Popen[bytes],
    base: str,
    launch: Launch,
    log: Path,
    say: Callable[[str], None],
    limit_s: float,
    ours: str | None = None,
) -> None:
    """Ready is: our process lives, its port answers, and it serves our model."""
    began = time.perf_counter()
    usual = launch.file.serve.start_s
    while (waited := time.perf_counter() - began) < limit_s:
        if process.poll() is not None:
            why, hint = diagnosis.diagnose(log)
            raise BenchError(f"vLLM did not start: {why}", f"{hint}its log: {log}", Exit.SERVER)
        with suppress(OSError):
            if launch.model in _models(base, ours, SOON_S):
                say("")
                return
        say(f"vLLM is {diagnosis.stage(log)} ({waited:.0f} s; a start usually takes about {usual:.0f} s)")
        time.sleep(0.25)
    raise BenchError(
        f"vLLM was not ready after {limit_s:.0f} s, while {diagnosis.stage(log)}", f"its log: {log}", Exit.SERVER
    )


def stop(process: subprocess.Popen[bytes], tag: str) -> None:
    """Ask the group to end, make it, then prove that nothing of ours is left."""
    try:
        _signal(process.pid, signal.SIGTERM)
        process.wait(STOP_S)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        pass
    _signal(process.pid, signal.SIGKILL)  # the engine may outlive its API server
    deadline = time.perf_counter() + STOP_S
    while left := [pid for pid, owner in owned() if owner == tag]:
        for pid in left:  # a child that left the group still carries our tag
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        if time.perf_counter() > deadline:
            raise BenchError(f"processes of our vLLM are still there: {left}", "see `ps`, then kill them", Exit.CLEANUP)
        process.poll()
        time.sleep(0.05)
    process.wait(STOP_S)


def _signal(group: int, number: signal.Signals) -> None:
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):
        return


def owned() -> Iterator[tuple[int, str]]:
    """Every process that carries our tag."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            variables = (folder / "environ").read_bytes().split(b"\0")
            state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        for variable in variables:
            if variable.startswith(f"{TAG}=".encode()) and state != "Z":
                yield int(folder.name), variable.decode(errors="replace").partition("=")[2]


@dataclass(frozen=True, slots=True)
class Orphan:
    """What an earlier bench left running when it was killed."""

    pids: tuple[int, ...]
    group: int
    run: str


def orphans() -> list[Orphan]:
    by_owner: dict[str, list[int]] = {}
    for pid, owner in owned():
        bench, began, _ = [*owner.split(":", 2), "", ""][:3]
        if bench.isdigit() and started(int(bench)) != began:
            by_owner.setdefault(owner, []).append(pid)
    return [Orphan(tuple(sorted(pids)), _group(min(pids)), owner.split(":", 2)[2]) for owner, pids in by_owner.items()]


def _group(pid: int) -> int:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return pid


def started(pid: int) -> str:
    """When a process began, in the kernel's ticks: tells it from a later one of the same number."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""


def now(target: Endpoint) -> dict[str, object]:
    """Its settings as it tells them at this moment: before a run and after it they have to be the same."""
    asked = target.base_url, target.key, target.control_s
    page = scrape.fetch(*asked) or ""
    try:
        models = sorted(_models(*asked))
    except OSError:
        models = []
    return secret.without(
        {
            "cache": asdict(scrape.cache_facts(page)),
            "version": _version(*asked),
            "models": models,
        }
    )


def facts(target: Endpoint) -> dict[str, object]:
    """What run.json keeps of the server."""
    told: dict[str, object] = {
        "base_url": target.base_url,
        "model": target.model,
        "version": target.version,
        "cache": asdict(target.cache),
        "started_by_us": target.process is not None,
        "log": target.log.name if target.log else None,
        "command": (target.log.parent / f"{target.log.stem}.command").read_text().strip() if target.log else None,
    }
    return secret.without(told)
