"""Several servers or workloads in one run: every combination of what is varied, by a name that tells it apart."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench import bounded, secret, workload
from bench.errors import BenchError, Exit
from bench.recipe import OPTIONS, Launch, topic
from bench.workload import Workload

OWN = {"kv-cache-dtype": "kv", "tensor-parallel-size": "tp", "enable-prefix-caching": "prefix-caching"}  # by our names
NAME = "_benchmark_name"  # vLLM's own
WORKLOAD = "workload"  # of which each key can be varied, too: workload.session.turns


@dataclass(frozen=True, slots=True)
class Cell:
    """Of the grid: one server, and what the agents do on it."""

    launch: Launch
    workload: Workload


def vary(base: Cell, axes: tuple[str, ...], params: Path | None = None) -> dict[str, Cell]:
    """Every combination of `WHAT=A,B` texts with the records of a file as vLLM's own sweeps take it."""
    made = {base.launch.kv: base.launch} if params is None else _recorded(base.launch, params)
    cells = {name: replace(base, launch=launch) for name, launch in made.items()}
    known = [text.partition("=")[0].lstrip("-") for text in axes]
    if twice := [what for at, what in enumerate(known) if what in known[:at]]:
        raise BenchError(f"--vary {twice[0]} is given twice", f"--vary {twice[0]}=A,B,C has all its values")
    first = sorted(axes, key=lambda text: not text.startswith(f"{WORKLOAD}="))  # its keys are changed in what it names
    for at, text in enumerate(first, params is not None):
        what, _, values = text.partition("=")
        what = what.lstrip("-")
        if not what or not all(values.split(",")):
            raise BenchError(f"--vary {text!r} is not WHAT=A,B", "for example --vary kv=fp16,fp8,tq4")
        if {topic(f"--{what}")} & {topic(word) for cell in cells.values() for word in cell.launch.extra}:
            raise BenchError(f"--vary {what} and another --{what} say different things", "leave one of them out")
        varied = [
            (", ".join(filter(None, (name if at else "", _said(what, value)))), _changed(cell, what, value))
            for name, cell in cells.items()
            for value in values.split(",")
        ]
        cells = dict(varied)
        if len(cells) < len(varied):
            raise BenchError(
                f"--vary {text}: two variants would have one name", "give each value once, files other names"
            )
    return cells


def _said(what: str, value: str) -> str:
    if what == WORKLOAD:
        return Path(value).stem
    return value if what == "kv" else f"{what.removeprefix(f'{WORKLOAD}.')}={value}"


def _changed(cell: Cell, what: str, value: str) -> Cell:
    if what == WORKLOAD:
        return replace(cell, workload=workload.load(value))
    if what.startswith(f"{WORKLOAD}."):
        keys = what.replace("-", "_").split(".")[1:]
        return replace(cell, workload=workload.changed(cell.workload, keys, value))
    return replace(cell, launch=_with(cell.launch, what.replace("_", "-"), value))


def _with(launch: Launch, what: str, value: str) -> Launch:
    """One thing changed; on and off are vLLM's switches."""
    if what == "kv":
        return replace(launch, kv=value)
    if what == "model":
        return replace(launch, model=value)
    if what == "tp":
        if not value.isdigit() or int(value) < 1:
            raise BenchError(f"--vary tp={value}: not a number of GPUs")
        return replace(launch, tp=int(value))
    if what == "prefix-caching" and value in ("on", "off"):
        return replace(launch, prefix_caching=value == "on")
    if what in OPTIONS:
        raise BenchError(
            f"--vary {what}: bench counts with it",
            f"say it with {OPTIONS[what]}; --vary kv=, tp= and prefix-caching= vary it",
        )
    flags = {"on": (f"--{what}",), "off": (f"--no-{what}",)}.get(value, (f"--{what}", value))
    return replace(launch, extra=(*launch.extra, *flags))


def _recorded(base: Launch, path: Path) -> dict[str, Launch]:
    """`vllm bench sweep serve --serve-params`: a list of records of flags, or records by name."""
    told = bounded.document(path, exit=Exit.USAGE)
    if isinstance(told, dict):
        told = [{NAME: name, **record} for name, record in told.items() if isinstance(record, dict)]
    if not isinstance(told, list) or not told or not all(isinstance(one, dict) and one for one in told):
        hint = '[{"max_num_seqs": 64}, {"max_num_seqs": 256}], or {"NAME": {"max_num_seqs": 64}}'
        raise BenchError(f"{path} is no list of records of flags", f"for example {hint}")
    made: dict[str, Launch] = {}
    said = {topic(word) for word in base.extra}
    for record in told:
        launch = base
        for flag, value in record.items():
            what = flag.replace("_", "-")
            if what in said or secret.betrayed([f"{what}={value}"]):
                hint = "leave one of them out" if what in said else "export it: vLLM inherits it"
                raise BenchError(f"{path}: {what:.80} {'stands after -- too' if what in said else 'is a secret'}", hint)
            if flag != NAME:
                launch = _set(launch, what, value)
        name = str(record.get(NAME) or ", ".join(f"{what}={_text(value)}" for what, value in record.items()))
        if name in made:
            raise BenchError(f"{path}: two records are called {name:.80}", f"give each a {NAME} of its own")
        made[name] = launch
    return made


def _set(launch: Launch, what: str, value: Any) -> Launch:
    if isinstance(value, bool) and "." not in what:
        return _with(launch, OWN.get(what, what), "on" if value else "off")
    return _with(launch, OWN.get(what, what), _text(value))


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
