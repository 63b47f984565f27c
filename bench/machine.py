"""Where it ran: what a stranger needs to know of host, card and versions to repeat a run."""

import os
import platform
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from bench import __version__


@dataclass(frozen=True, slots=True)
class Gpu:
    name: str
    memory_mib: int
    driver: str


@dataclass(frozen=True, slots=True)
class Machine:
    host: str
    system: str
    cpu: str
    cores: int
    memory_gib: float | None
    python: str
    bench: str
    gpus: tuple[Gpu, ...]
    busy: float | None  # share of its processor time that others took, in the moment before the run


def describe() -> Machine:
    return Machine(
        host=platform.node(),
        system=f"{platform.system()} {platform.release()}",
        cpu=_cpu(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory_gib=_memory_gib(),
        python=platform.python_version(),
        bench=__version__,
        gpus=gpus(),
        busy=_busy(),
    )


def gpus() -> tuple[Gpu, ...]:
    rows = _smi("gpu=name,memory.total,driver_version")
    return tuple(Gpu(row[0], int(row[1]), row[2]) for row in rows if len(row) == 3 and row[1].isdigit())


@dataclass(frozen=True, slots=True)
class Card:
    """Who holds a card's memory. In a container the processes may be hidden; what is in use is not."""

    name: str
    used_mib: int
    pids: tuple[int, ...]


def cards(visible: str | None, most: int) -> tuple[Card, ...]:
    """The first so many of those that CUDA_VISIBLE_DEVICES leaves, by index or UUID; none where nothing tells."""
    rows = [row for row in _smi("gpu=index,uuid,memory.used") if len(row) == 3 and row[2].isdigit()]
    apps = [row for row in _smi("compute-apps=gpu_uuid,pid") if len(row) == 2 and row[1].isdigit()]
    if visible is not None:
        wanted = [word.strip() for word in visible.split(",")]
        rows = [row for word in wanted for row in rows if word == row[0] or (word and row[1].startswith(word))]
    return tuple(
        Card(f"GPU {index}", int(used), tuple(int(pid) for card, pid in apps if card == uuid))
        for index, uuid, used in rows[:most]
    )


def _smi(query: str) -> list[list[str]]:
    """What nvidia-smi answers, in cells; nothing where there is none, or it hangs."""
    if not (tool := shutil.which("nvidia-smi")):
        return []
    asked = [tool, f"--query-{query}", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(asked, capture_output=True, text=True, timeout=20).stdout
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [[cell.strip() for cell in line.split(",")] for line in answer.splitlines()]


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _busy(over_s: float = 0.5) -> float | None:
    if not Path("/proc/stat").is_file():
        return None
    before = _ticks()
    time.sleep(over_s)
    idle, whole = (after - first for first, after in zip(before, _ticks(), strict=True))
    return 1 - idle / whole if whole else None


def _ticks() -> tuple[int, int]:
    """Idle ones and all, since the machine was started."""
    ticks = [int(word) for word in Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]
    return ticks[3] + ticks[4], sum(ticks)


def _memory_gib() -> float | None:
    info = Path("/proc/meminfo")
    if not info.is_file():
        return None
    return int(info.read_text().split()[1]) / (1 << 20)
