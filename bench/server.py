"""One vLLM: started in the hands of its keeper, watched until ready, and gone afterwards."""

import math
import os
import shlex
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx

from bench import diagnosis, interrupt, machine, model, scrape
from bench.engine import Vllm
from bench.errors import BenchError, Exit
from bench.family import Kept, bindable, name, stranger
from bench.machine import Card
from bench.recipe import Launch

IDLE_MIB = 1024  # that a card nobody uses may have in use
NOISE_MIB = 256
CARD_S = 10.0


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A server that answers. A sweep cannot tell one that we started from one that we were pointed at."""

    base_url: str
    model: str
    cache: scrape.CacheFacts
    version: str | None
    vocabulary: int | None = None
    key: str | None = None
    process: Kept | None = None
    log: Path | None = None

    def reset_cache(self) -> bool:
        """True if the server says that its prefix cache is empty now."""
        url = f"{self.base_url}/reset_prefix_cache"
        try:
            return httpx.post(url, headers=scrape.bearer(self.key), timeout=60, trust_env=False).status_code == 200
        except httpx.HTTPError:
            return False

    def metrics(self) -> scrape.Sample | None:
        page = scrape.fetch(self.base_url, self.key)
        return scrape.parse(page) if page else None

    def alive(self) -> str | None:
        """None, or how our process ended."""
        if self.process is None or self.process.poll() is None:
            return None
        return f"vLLM ended with exit code {self.process.returncode}: {diagnosis.cause(self.log)}"


def connect(url: str, wanted: str | None, key: str | None) -> Endpoint:
    """A server that someone else runs."""
    if not url.startswith(("http://", "https://")):
        raise BenchError(f"--endpoint {url!r} is not a URL", f"did you mean http://{url}?")
    base = url.rstrip("/").removesuffix("/v1")
    hint = "is the server up, and the URL right? A key is read from the environment variable BENCH_API_KEY"
    try:
        answer = httpx.get(f"{base}/v1/models", headers=scrape.bearer(key), timeout=30, trust_env=False)
        answer.raise_for_status()
        models = [entry["id"] for entry in answer.json()["data"]]
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError, TypeError) as error:
        raise BenchError(f"{base}/v1/models does not answer: {error}", hint, Exit.SERVER) from None
    if wanted is not None and wanted not in models:
        raise BenchError(f"{base} does not serve {wanted}", f"it serves {', '.join(models)}")
    page = scrape.fetch(base, key) or ""
    return Endpoint(base, wanted or models[0], scrape.cache_facts(page), _version(base, key), key=key)


def _version(base: str, key: str | None) -> str | None:
    try:
        answer = httpx.get(f"{base}/version", headers=scrape.bearer(key), timeout=10, trust_env=False)
        return str(answer.json()["version"]) if answer.status_code == 200 else None
    except (httpx.HTTPError, ValueError, KeyError, TypeError):
        return None


@contextmanager
def serve(
    vllm: Vllm,
    launch: Launch,
    run: Path,
    say: Callable[[str], None],
    start_timeout_s: float = 1200,
    stop_timeout_s: float = 20,
) -> Iterator[Endpoint]:
    """vLLM for as long as the body runs, and not a moment longer."""
    port = choose_port(launch)
    loaded = launch.model
    if model.is_synthetic(launch.model):
        loaded = str(model.materialise(launch.model, run.resolve() / "model"))
    command = [*launch.file.serve.before, *vllm.command, *launch.arguments(loaded, port)]
    log = run / f"vllm-{launch.kv}.log"
    while log.exists():  # another variant of the same precision
        log = log.with_stem(f"{log.stem}-again")
    (run / f"{log.stem}.command").write_text(shlex.join(command) + "\n")
    look = _cards(launch)
    before = look()
    _refuse_foreign(before)
    with interrupt.held():  # nothing comes between a start and what ends it
        kept = Kept(command, launch.environment(), log, run, stop_timeout_s)
        try:
            with interrupt.free():
                base = f"http://127.0.0.1:{port}"
                _await_ready(kept, base, launch, log, say, start_timeout_s)
                kept.look()
                page = scrape.fetch(base) or ""
                geometry = model.geometry(launch.model) if model.is_synthetic(launch.model) else None
                vocabulary = geometry.vocabulary if geometry else None
                cache = scrape.cache_facts(page)
                yield Endpoint(base, launch.model, cache, vllm.version, vocabulary, process=kept, log=log)
        finally:
            stop(kept, port, before, look)


def choose_port(launch: Launch) -> int:
    """The one the user named after --, if it is free, or any free one."""
    named = [word for word in launch.extra if word.startswith("--port")]
    port = int(launch.number("--port") or 0) if named else 0
    if port > 65_535:
        raise BenchError(f"--port {port} is no port", "ports end at 65535")
    if not port:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return int(probe.getsockname()[1])
    if not bindable(port):
        raise BenchError(f"port {port} is in use", "give another after --, or leave --port out and a free one is found")
    return port


def _await_ready(
    kept: Kept,
    base: str,
    launch: Launch,
    log: Path,
    say: Callable[[str], None],
    limit_s: float,
) -> None:
    """Ready is: our process lives, nobody but it listens on its port, and it serves our model."""
    began = time.perf_counter()
    usual = launch.file.serve.start_s
    with httpx.Client(timeout=5, trust_env=False) as http:
        while (waited := time.perf_counter() - began) < limit_s:
            if kept.poll() is not None:
                why, hint = diagnosis.diagnose(log)
                raise BenchError(f"vLLM did not start: {why}", f"{hint}its log: {log}", Exit.SERVER)
            try:
                served = http.get(f"{base}/v1/models").json()["data"]
                _refuse_stranger(kept, int(base.rpartition(":")[2]))
                if launch.model in [entry["id"] for entry in served]:
                    say("")
                    return
            except (httpx.HTTPError, ValueError, KeyError):
                pass
            say(f"vLLM is {diagnosis.stage(log)} ({waited:.0f} s; a start usually takes about {usual:.0f} s)")
            time.sleep(0.25)
    raise BenchError(
        f"vLLM was not ready after {limit_s:.0f} s, while {diagnosis.stage(log)}", f"its log: {log}", Exit.SERVER
    )


def _refuse_stranger(kept: Kept, port: int) -> None:
    if who := stranger(port, kept.members()):
        hint = "run again, or give another port after --: --port N"
        raise BenchError(f"port {port} was taken by another while vLLM started: {who}", hint, Exit.SERVER)


def stop(kept: Kept, port: int, before: tuple[Card, ...], look: Callable[[], tuple[Card, ...]]) -> None:
    """Ask, make, and prove that nothing of ours is left. What went wrong before is not forgotten for it."""
    earlier = sys.exception()
    left = kept.end()
    if not bindable(port):
        left.append(f"port {port} is in use")
    left += _memory_left(before, look)
    if left:
        told = f"{earlier.message}; and then " if isinstance(earlier, BenchError) else ""
        hint = "end these processes (`kill -9`), or the next run has less of the machine than it believes"
        raise BenchError(f"{told}clean-up could not be proven: {'; '.join(left)}", hint, Exit.CLEANUP)


def _memory_left(before: tuple[Card, ...], look: Callable[[], tuple[Card, ...]]) -> list[str]:
    """A driver takes a moment to give memory back."""
    deadline = time.perf_counter() + CARD_S
    while True:
        now = {card.name: card for card in look()} if before else {}
        held = [
            f"{card.name} holds {now[card.name].used_mib:,} MiB, {card.used_mib:,} before" + _who(now[card.name])
            if card.name in now
            else f"{card.name} is not told of any more"
            for card in before
            if card.name not in now or now[card.name].used_mib > card.used_mib + NOISE_MIB
        ]
        if not held or time.perf_counter() > deadline:
            return held
        time.sleep(0.25)


def _cards(launch: Launch) -> Callable[[], tuple[Card, ...]]:
    """How to look at the cards that this server will take."""
    if launch.file.device != "cuda":
        return lambda: ()
    visible = {**os.environ, **launch.environment()}.get("CUDA_VISIBLE_DEVICES")
    parallel = ("--tensor-parallel-size", "--pipeline-parallel-size", "--data-parallel-size")
    most = math.prod(int(launch.number(flag) or 1) for flag in parallel)
    return lambda: machine.cards(visible, most)


def _refuse_foreign(cards: tuple[Card, ...]) -> None:
    """Whoever else is on a card takes memory and time from what is to be measured; it is not ours to end."""
    taken = [card for card in cards if card.pids or card.used_mib > IDLE_MIB]
    if taken:
        told = "; ".join(f"{card.name} has {card.used_mib:,} MiB in use{_who(card)}" for card in taken)
        hint = "end them, wait for them, or choose another card with CUDA_VISIBLE_DEVICES"
        raise BenchError(f"others hold memory of the card: {told}", hint, Exit.SERVER)


def _who(card: Card) -> str:
    return f" by {', '.join(name(pid) for pid in card.pids)}" if card.pids else ""


def now(target: Endpoint) -> dict[str, object]:
    """Its settings as it tells them at this moment: before a run and after it they have to be the same."""
    page = scrape.fetch(target.base_url, target.key) or ""
    try:
        listed = httpx.get(
            f"{target.base_url}/v1/models", headers=scrape.bearer(target.key), timeout=30, trust_env=False
        )
        models = sorted(entry["id"] for entry in listed.json()["data"])
    except (httpx.HTTPError, ValueError, KeyError, TypeError):
        models = []
    return {
        "cache": asdict(scrape.cache_facts(page)),
        "version": _version(target.base_url, target.key),
        "models": models,
    }


def facts(target: Endpoint) -> dict[str, object]:
    """What run.json keeps of the server."""
    return {
        "base_url": target.base_url,
        "model": target.model,
        "version": target.version,
        "cache": asdict(target.cache),
        "started_by_us": target.process is not None,
        "log": target.log.name if target.log else None,
        "command": (target.log.parent / f"{target.log.stem}.command").read_text().strip() if target.log else None,
    }
