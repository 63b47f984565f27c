"""What a user typed becomes servers to start, a schedule, limits, a folder; and what has to be said of it first."""

import math
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from bench import tables
from bench.errors import BenchError

if TYPE_CHECKING:  # --help must not wait for numpy
    from bench.engine import Vllm
    from bench.limits import Limits
    from bench.progress import Terminal
    from bench.recipe import Launch
    from bench.schedule import Schedule
    from bench.server import Endpoint
    from bench.vary import Cell

MOST_SESSIONS = 100_000
MOST_REQUESTS = 1_000_000_000  # of a level
MOST_REPEATS = 10_000


def numbers(context: click.Context, option: click.Parameter, given: tuple[float, ...]) -> tuple[float, ...]:
    if any(math.isnan(one) for one in given):
        raise click.BadParameter("nan is no number", context, option)
    return given


def is_given(context: click.Context, name: str) -> bool:
    return context.get_parameter_source(name) != ParameterSource.DEFAULT


ENDPOINT = "endpoint"  # the one variant of a server that someone else runs
Launches = dict[str, "Launch"]
Schedules = dict[str, "Schedule"]
OF_A_SERVER = {"gpu": "--gpu", "kv": "--kv", "tp": "--tp", "prefix_caching": "--prefix-caching", "vary": "--vary",
               "serve_params": "--serve-params", "vllm_command": "--vllm", "extra": "flags after --"}  # fmt: skip


def grid(given: dict[str, Any]) -> "dict[str, Cell]":
    """Every server to be started and what is played on it, by the name of the variant; none where one is running."""
    from bench import model, recipe, vary, workload

    if given["endpoint"]:
        context = click.get_current_context()
        if named := [said for key, said in OF_A_SERVER.items() if is_given(context, key)]:
            raise BenchError(f"--endpoint measures a server as it is: {', '.join(named)} cannot change it")
        return {}
    if stray := [word for word in given["extra"][:1] if not word.startswith("-")]:
        raise BenchError(
            f"unexpected word {stray[0]!r}", "a card is named by --gpu, flags of vllm serve follow after --"
        )
    if not given["gpu"]:
        raise BenchError("--gpu is missing", f"one of: {', '.join(tables.shipped('launch'))}; --gpu cpu needs no GPU")
    base = recipe.launch(
        given["gpu"], given["kv"], given["model"], given["tp"], given["prefix_caching"], given["extra"]
    )
    work = workload.load(given["workload_name"])
    cells = vary.vary(vary.Cell(base, work), given["vary"], given["serve_params"])
    for cell in cells.values():
        model.check(cell.launch.model)
        workload.fits(cell.workload, cell.launch.context)
    return cells


def warn_of_exposure(launches: Launches, terminal: "Terminal") -> None:
    """A user may ask for it, and has to know what is asked for."""
    hosts = {launch.flag("--host") or "" for launch in launches.values()}
    if hosts := hosts - {"127.0.0.1", "localhost", "::1"}:
        terminal.print(
            f"warning: --host {hosts.pop()}: whoever reaches this machine can use vLLM while it runs, and its switches "
            "for developers too, for which it asks no key. Without --host, only this machine can."
        )


def vllm(given: dict[str, Any], launches: Launches, terminal: "Terminal") -> "Vllm | None":
    """The vLLM that will serve them, having been asked whether it can."""
    from bench import engine, server

    if not launches:
        return None
    try:
        command = engine.find(given["vllm_command"], next(iter(launches.values())).file.device)
    except BenchError as error:
        if not given["dry_run"]:
            raise
        terminal.print(f"{error.message}: whether it knows this precision and these flags could not be checked")
        return None
    vllm = engine.ask(command, terminal.say, given["limits"].help_s)
    for launch in launches.values():
        engine.check(vllm, launch.arguments(launch.model, 0), launch.kv, launch.precision.dtype, launch.file.kv)
        server.choose_port(launch)
    return vllm


def endpoint(given: dict[str, Any], terminal: "Terminal") -> "Endpoint":
    from bench import connection, key, server

    ours = key.of_endpoint()
    if file := key.lies_open():
        terminal.print(f"warning: other users of this machine can read the key in {file}: chmod 600 {file}")
    return connection.run(server.connect(given["endpoint"], given["model"], ours, given["limits"].control_s))


def limits(given: dict[str, Any]) -> "Limits":
    from bench.limits import Limits

    timeout = [f"request={given['timeout']}"] if given["timeout"] is not None else []
    return Limits.of([*timeout, *given["limit"]])


OF_A_SCHEDULE = ("max_c", "bounds", "miss_rates", "requests", "repeats", "seed", "limits", "processes")


def schedules(given: dict[str, Any], grid: "dict[str, Cell]", endpoint: "Endpoint | None") -> Schedules:
    """Of each variant."""
    from bench import capacity, official, schedule, workload

    works = {name: cell.workload for name, cell in grid.items()} or {ENDPOINT: workload.load(given["workload_name"])}
    tokens = {name: capacity.expected(cell.launch).tokens for name, cell in grid.items()}
    tokens |= {ENDPOINT: endpoint.cache.tokens} if endpoint else {}
    if sdk := given["client"] == "openai":
        official.check()
    asked = {name: given[name] for name in OF_A_SCHEDULE}
    asked = _of_a_search(given, asked) if given["search"] else asked
    levels, more = _levels(given), {"sdk": sdk, "search": given["search"], "bounds_at": _bounds_at(given)}
    fits = [
        None if size is None else capacity.sessions_that_fit(size, works[name], given["seed"])
        for name, size in tokens.items()
    ]
    return {name: schedule.draw_up(work, fits, levels, **asked, **more) for name, work in works.items()}


def _of_a_search(given: dict[str, Any], asked: dict[str, Any]) -> dict[str, Any]:
    """What it leaves out unless it is asked for."""
    from bench.search import PLAYS

    context = click.get_current_context()
    if given["levels"] is not None:
        raise BenchError("--search and --levels exclude each other", "a search finds its levels; --max-c limits them")
    if given["client"] == "openai":
        raise BenchError("--search and --client openai exclude each other", "search first, then take --levels by both")
    named = given["bounds_at"] is not None or bool(given["miss_rates"])
    bounds = given["bounds"] and (is_given(context, "bounds") or named)
    repeats = given["repeats"] if is_given(context, "repeats") else PLAYS
    return {**asked, "bounds": bounds, "repeats": repeats}


def _levels(given: dict[str, Any]) -> tuple[int, ...] | None:
    if given["levels"] is not None and given["max_c"] is not None:
        raise BenchError("--levels and --max-c exclude each other")
    return _numbers_of_sessions("--levels", given["levels"])


def _bounds_at(given: dict[str, Any]) -> tuple[int, ...] | None:
    if given["bounds_at"] is not None and not given["bounds"]:
        raise BenchError("--bounds-at and --no-bounds exclude each other")
    return _numbers_of_sessions("--bounds-at", given["bounds_at"])


def _numbers_of_sessions(option: str, named: str | None) -> tuple[int, ...] | None:
    if named is None:
        return None
    found = {int(word) if word.strip().isdigit() else 0 for word in named.split(",")}
    if not all(1 <= level <= MOST_SESSIONS for level in found):
        hint = f"for example {option} 1,4,8,12; each from 1 to {MOST_SESSIONS:,}"
        raise BenchError(f"{option} {named!r} is not a list of numbers of sessions", hint)
    return tuple(sorted(found))


def warn_of_orphans(terminal: "Terminal") -> None:
    from bench import family

    for orphan in family.orphans():
        terminal.print(
            f"warning: a vLLM that an earlier bench started is still running (process {orphan.pids[0]}, "
            f"run {orphan.run}); its bench was killed. It holds memory and time of this machine. "
            f"End it with: kill -- -{orphan.group}"
        )


def folder(given: dict[str, Any], kind: str = "") -> Path:
    what = tables.slug(f"{Path(given['gpu']).stem}-{given['kv']}") if given["gpu"] else "endpoint"
    return Path("results/runs") / f"{datetime.now():%Y%m%d-%H%M%S}-{kind}{what}"
