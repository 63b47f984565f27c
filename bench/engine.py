"""Which vLLM is here, and what it knows: versions differ in flags and precisions, so it is asked, not assumed."""

import contextlib
import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from bench import bounded, interrupt, keeper
from bench.errors import BenchError

TELLING = ("--enable-per-request-metrics",)


@dataclass(frozen=True, slots=True)
class Vllm:
    command: tuple[str, ...]
    version: str
    flags: frozenset[str]
    kv_dtypes: tuple[str, ...]


def find(given: str | None, device: str) -> tuple[str, ...]:
    """The command that is vLLM: the one given, or the first there is of the usual places."""
    if given is not None:
        command = _words(given)
        if not command or not shutil.which(command[0]):
            raise BenchError(f"--vllm {given!r}: no such command")
        return command
    beside, engine = Path(sys.executable).parent / "vllm", Path(sys.prefix).parent / ".engine/bin/vllm"
    usual = [str(beside), "vllm"]
    for place in [str(engine), *usual] if device == "cpu" else usual:
        if found := shutil.which(place):
            return (found,)
    how = (
        "run `make install` in a checkout of bench" if device == "cpu" else "run `pip install vllm` on the GPU machine"
    )
    raise BenchError("no vllm to be found", f"{how}, give --vllm COMMAND, or --dry-run to see what would be done")


def _words(given: str) -> tuple[str, ...]:
    try:
        return tuple(shlex.split(given))
    except ValueError as error:
        raise BenchError(f"--vllm {given!r}: {error}") from None


def ask(command: tuple[str, ...], say: Callable[[str], None], limit_s: float = 180) -> Vllm:
    """What this vLLM knows, from its own help; remembered until its script changes, for it takes 20 s to say."""
    note = _note(command)
    if note is not None and (known := _remembered(command, note)):
        return known
    say("asking vLLM what it knows (20 s, once)")
    version, text = _output(command, limit_s, "--version"), _output(command, limit_s, "serve", "--help=all")
    flags = sorted(set(re.findall(r"(?<![\w-])--?[a-zA-Z][\w-]*", text)))
    choices = re.search(r"--kv-cache-dtype \{([^}]*)\}", text)
    vllm = Vllm(
        command,
        version.split()[-1] if version.split() else "unknown",
        frozenset(flags),
        tuple(re.sub(r"\s", "", choices[1]).split(",")) if choices else (),
    )
    if "--kv-cache-dtype" not in vllm.flags:
        last = (text.strip().splitlines() or ["nothing"])[-1][:200]
        raise BenchError(f"`{shlex.join(command)} serve --help=all` is not vLLM's: {last}", "give --vllm COMMAND")
    if note is not None:
        with contextlib.suppress(OSError):  # without a home to write to, it is asked again next time
            note.parent.mkdir(parents=True, exist_ok=True)
            note.write_text(json.dumps({"version": vllm.version, "flags": flags, "kv_dtypes": vllm.kv_dtypes}))
    say("")
    return vllm


def _remembered(command: tuple[str, ...], note: Path) -> Vllm | None:
    """None where the note is missing or damaged."""
    try:
        known = bounded.document(note)
        texts = [known["version"], *known["flags"], *known["kv_dtypes"]]
    except (OSError, BenchError, LookupError, TypeError):
        return None
    if not all(isinstance(text, str) for text in texts):
        return None
    return Vllm(command, known["version"], frozenset(known["flags"]), tuple(known["kv_dtypes"]))


def telling(vllm: Vllm) -> tuple[str, ...]:
    """Of the flags that make vLLM tell more of each request, those that this one has."""
    return tuple(flag for flag in TELLING if flag in vllm.flags)


def _note(command: tuple[str, ...]) -> Path | None:
    """Where the answer is remembered; of a command of several words nobody knows when it changes."""
    if len(command) > 1:
        return None
    path = Path(shutil.which(command[0]) or command[0]).resolve()
    stamp = f"{path} {path.stat().st_mtime_ns} 1"
    home = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "vllm-agent-bench"
    return home / f"{hashlib.sha256(stamp.encode()).hexdigest()[:16]}.json"


def _output(command: tuple[str, ...], limit_s: float, *arguments: str) -> str:
    """What it prints, as far as a help text may go: it could be any program that prints without end."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        try:
            _run([*command, *arguments], out, err, limit_s)
        except (OSError, ValueError, subprocess.TimeoutExpired) as error:
            raise BenchError(f"`{shlex.join([*command, *arguments])}` does not run: {error}") from None
        told = (file.read(bounded.LONGEST) for file in (out, err) if file.seek(0) == 0)
        return next(filter(None, told), b"").decode(errors="replace")


def _run(words: Sequence[str], out: IO[bytes], err: IO[bytes], limit_s: float) -> None:
    """To its end, or ours, or that of our patience, and whatever it has started with it."""
    ours = keeper.dying_with(os.getpid())
    with interrupt.held():  # Python's own calls around a fork swallow a KeyboardInterrupt
        process = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True, preexec_fn=ours
        )
        try:
            with interrupt.free():
                process.wait(limit_s)
        finally:
            if process.returncode is None:  # else by its number others may go
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def check(vllm: Vllm, words: Iterable[str], kv: str, dtype: str, named: Iterable[str]) -> None:
    """Refuse what this vLLM does not know before anything starts; `named`: the precisions the recipe has names for."""
    for word in words:
        name = word.partition("=")[0].replace("_", "-").partition(".")[0]
        if name.startswith("--") and name not in vllm.flags:
            raise BenchError(
                f"vLLM {vllm.version} has no flag {word}",
                "leave it out, or use a version that has it: see `vllm serve --help=all`",
            )
    if vllm.kv_dtypes and dtype not in vllm.kv_dtypes:
        raise BenchError(
            f"--kv {kv}: vLLM {vllm.version} has no cache of type {dtype}",
            f"the recipe names {', '.join(named)}; this vLLM knows {', '.join(vllm.kv_dtypes)}",
        )
