"""One vLLM: started in the hands of its keeper, watched until ready, and gone afterwards."""

import asyncio
import math
import os
import shlex
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from bench import asking, connection, diagnosis, energy, interrupt, key, machine, model, scrape, secret
from bench.engine import Vllm
from bench.errors import BenchError, Exit
from bench.family import Kept, bindable, name, stranger
from bench.machine import Card
from bench.recipe import Launch

SOON_S, LOOKS = 5.0, 50
IDLE_MIB = 1024  # that a card nobody uses may have in use
NOISE_MIB = 256
CARD_S = 10.0
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
    process: Kept | None = None
    log: Path | None = None
    control_s: float = 60
    joules: energy.Read = lambda: None  # that its cards have drawn, by the driver's count

    async def reset_cache(self) -> bool:
        """True if the server says that its prefix cache is empty now."""
        try:
            told = await asking.reply_later(f"{self.base_url}/reset_prefix_cache", self.key, self.control_s, b"")
        except OSError:
            return False
        return told.status == 200

    async def metrics(self) -> scrape.Sample | None:
        page = await scrape.fetch(self.base_url, self.key, self.control_s)
        return scrape.parse(page) if page else None

    def alive(self) -> str | None:
        """None, or how our process ended."""
        if self.process is None or self.process.poll() is None:
            return None
        return diagnosis.ended(self.process.returncode or 0, self.log)

    async def silent(self) -> str | None:
        """None, or what it says instead of serving its model."""
        try:
            await _models(self.base_url, self.key, self.control_s)
        except OSError as error:
            return await self._ends() or f"the server does not answer as it did: {error}"
        return None

    async def _ends(self) -> str | None:
        """What closes its port may be about to end."""
        for _ in range(LOOKS if self.process else 0):
            if not self.alive():
                await asyncio.sleep(SOON_S / LOOKS)
        return self.alive()


async def connect(url: str, wanted: str | None, key: str | None, control_s: float = 60) -> Endpoint:
    """A server that someone else runs."""
    if not url.startswith(("http://", "https://")):
        raise BenchError(f"--endpoint {url!r} is not a URL", f"did you mean http://{url}?")
    base = url.rstrip("/").removesuffix("/v1")
    try:
        models = await _models(base, key, control_s)
    except PermissionError as error:
        hint = (
            "another key in BENCH_API_KEY or BENCH_API_KEY_FILE" if key else "set BENCH_API_KEY or BENCH_API_KEY_FILE"
        )
        raise BenchError(f"{base}: {error}", hint, Exit.SERVER) from None
    except OSError as error:
        hint = "is the server up, and the URL right?"
        raise BenchError(f"{base}/v1/models does not answer as it should: {error}", hint, Exit.SERVER) from None
    if wanted is not None and wanted not in models:
        raise BenchError(f"{base} does not serve {wanted}", f"it serves {', '.join(models)}")
    page, version = await scrape.fetch(base, key, control_s) or "", await _version(base, key, control_s)
    return Endpoint(base, wanted or models[0], scrape.cache_facts(page), version, key=key, control_s=control_s)


async def _models(base: str, key: str | None, limit_s: float) -> list[str]:
    """Those it serves; raises OSError where it does not say."""
    answer = await asking.reply_later(f"{base}/v1/models", key, limit_s)
    try:
        models = [str(entry["id"]) for entry in answer.json()["data"]]
    except (ValueError, LookupError, TypeError):
        models = []
    if answer.status in (401, 403):
        raise PermissionError(f"HTTP {answer.status}: it does not let us in {'with' if key else 'without'} a key")
    if answer.status != 200 or not models:
        raise ConnectionError(f"HTTP {answer.status}, and no list of models")
    return models


async def _version(base: str, key: str | None, limit_s: float) -> str | None:
    try:
        answer = await asking.reply_later(f"{base}/version", key, limit_s)
        return str(answer.json()["version"]) if answer.status == 200 else None
    except (OSError, ValueError, LookupError, TypeError):
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
    port, ours = choose_port(launch), key.of_our_server()
    loaded = launch.model
    if model.is_synthetic(launch.model):
        loaded = str(model.materialise(launch.model, run.resolve() / "model"))
    command = [*launch.file.serve.before, *vllm.command, *launch.arguments(loaded, port)]
    log = run / f"vllm-{launch.kv}.log"
    while log.exists():  # another variant of the same precision
        log = log.with_stem(f"{log.stem}-again")
    (run / f"{log.stem}.command").write_text(shlex.join(command) + "\n")
    look, joules = _cards(launch)
    before = look()
    _refuse_foreign(before)
    with interrupt.held():  # nothing comes between a start and what ends it
        kept = Kept(command, _inherited(), launch.environment(), log, run, stop_timeout_s)
        try:
            with interrupt.free():
                base = f"http://127.0.0.1:{port}"
                _await_ready(kept, base, launch, log, say, start_timeout_s, ours)
                kept.look()
                page = connection.run(scrape.fetch(base, ours)) or ""
                geometry = model.geometry(launch.model) if model.is_synthetic(launch.model) else None
                vocabulary = geometry.vocabulary if geometry else None
                cache = scrape.cache_facts(page)
                up = Endpoint(base, launch.model, cache, vllm.version, vocabulary, key=ours, process=kept, log=log)
                yield replace(up, joules=joules)
        finally:
            try:
                stop(kept, port, before, look)
            finally:
                for part in log.parent.glob(f"{log.name}*"):  # its keeper moves some of a long one away
                    secret.blot(part)


def _inherited() -> dict[str, str]:
    """Of another server's key, vLLM need not know."""
    told = {name: value for name, value in os.environ.items() if name not in (secret.KEY, secret.KEY_FILE)}
    return {**told, **LOCAL, **told}


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
    ours: str | None = None,
) -> None:
    """Ready is: our process lives, nobody but it listens on its port, and it serves our model."""
    began = time.perf_counter()
    usual = launch.file.serve.start_s
    while (waited := time.perf_counter() - began) < limit_s:
        if kept.poll() is not None:
            why, hint = diagnosis.diagnose(log, kept.returncode)
            raise BenchError(f"vLLM did not start: {why}", f"{hint}its log: {log}", Exit.SERVER)
        kept.look(closely=False)
        with suppress(OSError):
            served = connection.run(_models(base, ours, SOON_S))
            _refuse_stranger(kept, int(base.rpartition(":")[2]))
            if launch.model in served:
                say("")
                return
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


def _cards(launch: Launch) -> tuple[Callable[[], tuple[Card, ...]], energy.Read]:
    """How to look at the cards that this server will take, and at what they draw."""
    if launch.file.device != "cuda":
        return lambda: (), lambda: None
    visible = {**os.environ, **launch.environment()}.get("CUDA_VISIBLE_DEVICES")
    parallel = ("--tensor-parallel-size", "--pipeline-parallel-size", "--data-parallel-size")
    most = math.prod(int(launch.number(flag) or 1) for flag in parallel)
    return lambda: machine.cards(visible, most), energy.counter(visible, most)


def _refuse_foreign(cards: tuple[Card, ...]) -> None:
    """Whoever else is on a card takes memory and time from what is to be measured; it is not ours to end."""
    taken = [card for card in cards if card.pids or card.used_mib > IDLE_MIB]
    if taken:
        told = "; ".join(f"{card.name} has {card.used_mib:,} MiB in use{_who(card)}" for card in taken)
        hint = "end them, wait for them, or choose another card with CUDA_VISIBLE_DEVICES"
        raise BenchError(f"others hold memory of the card: {told}", hint, Exit.SERVER)


def _who(card: Card) -> str:
    return f" by {', '.join(name(pid) for pid in card.pids)}" if card.pids else ""


async def now(target: Endpoint) -> dict[str, object]:
    """Its settings as it tells them at this moment: before a run and after it they have to be the same."""
    asked = target.base_url, target.key, target.control_s
    page = await scrape.fetch(*asked) or ""
    try:
        models = sorted(await _models(*asked))
    except OSError:
        models = []
    return secret.without(
        {
            "cache": asdict(scrape.cache_facts(page)),
            "version": await _version(*asked),
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
