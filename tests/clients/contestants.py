"""Who takes part: how a client is called, and where it says what it saw. Here are those that are ours."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.clients import turns
from tests.clients.turns import Told

ROOT = Path(__file__).parents[2]
VERSION = "import importlib.metadata, sys; print(importlib.metadata.version(sys.argv[1]))"
UNKNOWN = "w100"  # of a usual length: a client that makes its prompts of other words sends as many bytes


@dataclass(frozen=True, slots=True)
class Cell:
    """One run of one client."""

    port: int
    concurrency: int
    requests: int
    folder: Path  # its own, and its working directory

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def tokenizer(self) -> Path:
        """One token a word, made on the spot: no client needs the network."""
        made = self.folder / "tokenizer"
        if not made.exists():
            made.mkdir()
            split = {"type": "WhitespaceSplit"}
            words = {"type": "WordLevel", "vocab": {w: i for i, w in enumerate(turns.WORDS)}, "unk_token": UNKNOWN}
            tokenizer = {"version": "1.0", "added_tokens": [], "pre_tokenizer": split, "model": words}
            nothing = dict.fromkeys(("truncation", "padding", "normalizer", "post_processor", "decoder"))
            (made / "tokenizer.json").write_text(json.dumps(tokenizer | nothing))
            kind = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 65536, "unk_token": UNKNOWN}
            (made / "tokenizer_config.json").write_text(json.dumps(kind))
            (made / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": len(turns.WORDS)}))
        return made

    @property
    def prompts(self) -> Path:
        """A file of them, all different, for a client whose own making of them would take longer than the run."""
        made = self.folder / "prompts.jsonl"
        words = turns.opening(0).split()
        with made.open("w") as file:
            for shift in range(self.requests):
                prompt = " ".join(words[shift:] + words[:shift])
                file.write(json.dumps({"prompt": prompt, "output_tokens_count": turns.OUTPUT_TOKENS}) + "\n")
        return made


@dataclass(frozen=True, slots=True)
class Report:
    ttfts_s: tuple[float, ...]
    due_ttfts_s: tuple[float, ...] = ()  # from when the turn was due
    turns: tuple[Told, ...] = ()


@dataclass(frozen=True, slots=True)
class Contestant:
    name: str
    package: str | None  # whose version is told
    python: Path  # of its environment
    command: Callable[[Cell], list[str]]  # behind the folder of its programs
    read: Callable[[Cell], Report]
    ours: bool = False  # its program is in this repository

    def call(self, cell: Cell) -> list[str]:
        program, *rest = self.command(cell)
        return [str(self.python.parent / program), *rest]

    def environment(self, cell: Cell) -> dict[str, str]:
        """What a run shall not depend on stays out: proxies, caches, tokens."""
        kept = {name: value for name, value in os.environ.items() if name in ("LANG", "LC_ALL", "TMPDIR")}
        quiet = {"HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1", "NO_PROXY": "127.0.0.1"}
        own = {"PYTHONPATH": str(ROOT)} if self.ours else {}
        path = f"{self.python.parent}:/usr/local/bin:/usr/bin:/bin"
        return {**kept, **quiet, **own, "HOME": str(cell.folder), "PATH": path}

    def version(self) -> str | None:
        """None: it is not installed."""
        if not self.python.exists():
            return None
        if self.package is None:
            return "of this commit"
        asked = [str(self.python), "-c", VERSION, self.package]
        answer = subprocess.run(asked, capture_output=True, text=True, check=False)
        return answer.stdout.strip() if answer.returncode == 0 else None

    def why_not(self) -> str:
        said = self.python.parents[1] / "why"
        lines = said.read_text().strip().splitlines() if said.exists() else []
        return lines[-1] if lines else f"{self.python} is not there"


def environment(name: str) -> Path:
    return ROOT / ".peers" / name / "bin" / "python"


def _own(name: str, package: str | None, python: Path, *module: str) -> Contestant:
    def command(cell: Cell) -> list[str]:
        asked = {"port": cell.port, "concurrency": cell.concurrency, "requests": cell.requests, "out": _told(cell)}
        flags = [text for flag, value in asked.items() for text in (f"--{flag}", str(value))]
        return [python.name, "-m", *module, *flags]

    return Contestant(name, package, python, command, _read, ours=True)


def _told(cell: Cell) -> Path:
    return cell.folder / "told.jsonl"


def _read(cell: Cell) -> Report:
    told = turns.read(_told(cell))
    sent, due = zip(*((turn.first - turn.sent, turn.first - turn.due) for turn in told), strict=True)
    return Report(sent, due, tuple(told))


HERE = Path(sys.executable)
OWN = (
    _own("floor", None, HERE, "tests.clients.floor"),
    _own("ours", None, HERE, "tests.clients.ours"),
    *(_own(name, name, environment("loops"), "tests.clients.loops", name) for name in ("httpx", "aiohttp", "openai")),
)
