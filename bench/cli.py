"""The commands: parse, call, print, exit. The only place that prints an error or wires real things together."""

import json
import os
import re
import shlex
import signal
import sys
from contextlib import nullcontext
from datetime import datetime
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bench import __version__
from bench.errors import BenchError, Exit

if TYPE_CHECKING:  # --help must not wait for numpy
    from bench.engine import Vllm
    from bench.recipe import Launch
    from bench.report import Terminal
    from bench.sweep import Plan, Variant


def main() -> None:
    """Every way out of the program, with its exit code."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        code = cli(standalone_mode=False)
        sys.exit(code if isinstance(code, int) else Exit.FINE)
    except click.exceptions.Exit as done:
        sys.exit(done.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(Exit.USAGE)
    except BenchError as error:
        click.echo(f"bench: {error.message}", err=True)
        if error.hint:
            click.echo(f"  {error.hint}", err=True)
        sys.exit(error.exit)
    except (KeyboardInterrupt, click.Abort):
        click.echo("bench: interrupted", err=True)
        sys.exit(Exit.INTERRUPTED)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="bench")
def cli() -> None:
    """How many coding agents does this card hold on vLLM, and what breaks first?

    \b
    Try it without a GPU:      bench sweep --gpu cpu --kv fp8
    On an L4 (g6.4xlarge):     bench sweep --gpu l4 --kv fp8 --max-c 48
    What would it do?          bench sweep --gpu l4 --kv fp8 --dry-run

    \b
    Exit codes: 0 fine, 2 usage, 3 the server did not start or died, 4 the run is not valid,
    6 clean-up could not be proven, 130 interrupted.
    """


@cli.command(context_settings={"show_default": True})
@click.option(
    "--gpu",
    metavar="NAME",
    help="A file of launch/ (l4, a10g, l40s, a100, h100, h200, cpu) or the path of your own.",
)
@click.option("--kv", default="fp8", metavar="NAME", help="KV-cache precision: fp16, fp8, tq4, or any name vLLM knows.")
@click.option(
    "--workload",
    "workload_name",
    default="coding-agent",
    metavar="NAME",
    help="A file of workloads/ or the path of your own.",
)
@click.option(
    "--max-c",
    type=click.IntRange(1, 100_000),
    help="Take the levels 1 2 4 6 8 ... up to this many sessions.  [default: two levels past the expected knee]",
)
@click.option("--levels", metavar="1,2,4", help="Take just these levels.")
@click.option(
    "--requests",
    type=click.IntRange(1),
    help="Requests a level.  [default: 200; past 48 sessions one whole session each]",
)
@click.option(
    "--repeats",
    type=click.IntRange(1),
    default=1,
    help="Times each level is played, with new content each time.",
)
@click.option(
    "--bounds/--no-bounds",
    default=True,
    help="Also take, at two levels, the best case (all cached) and the worst (only the shared prompt is).",
)
@click.option(
    "--miss-rate",
    "miss_rates",
    multiple=True,
    type=click.FloatRange(0, 1),
    metavar="R",
    help="Also take single requests of which this share misses; may be repeated.",
)
@click.option("--slo", default="ttft_p99<2s", help="The promise whose ceiling is looked for.")
@click.option(
    "--model",
    metavar="ID",
    help="Another model: a hub id, a folder, or synthetic:qwen3-4b (true shapes, random weights, no download).",
)
@click.option("--tp", type=click.IntRange(1), default=1, help="Tensor parallelism.")
@click.option("--prefix-caching/--no-prefix-caching", default=True, help="vLLM's automatic prefix caching.")
@click.option(
    "--vary",
    multiple=True,
    metavar="WHAT=A,B",
    help="A server for each value: kv=fp16,fp8,tq4 or any flag of vLLM: max-num-seqs=4,256. May be repeated.",
)
@click.option(
    "--endpoint",
    metavar="URL",
    help="Measure a server that is already running; a key is read from BENCH_API_KEY.",
)
@click.option(
    "--vllm",
    "vllm_command",
    metavar="COMMAND",
    help="How to run vLLM.  [default: the one beside bench, or on PATH]",
)
@click.option("--seed", type=click.IntRange(0), default=0, help="The same seed replays the same session shapes.")
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(0, min_open=True),
    default=600.0,
    help="Seconds after which a request is given up.",
)
@click.option("--out", metavar="DIR", help="The run's folder.  [default: results/runs/DATE-GPU-KV]")
@click.option("--dry-run", is_flag=True, help="Print the command, the levels and the expected duration; start nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print run.json, verdict included, instead of the table.")
@click.argument("extra", nargs=-1, type=click.UNPROCESSED, metavar="[-- VLLM SERVE FLAGS]")
def sweep(**given: Any) -> int:
    """Start vLLM, replay agent sessions at one concurrency after another, and show where it breaks.

    Each level starts on a cold cache, with content nobody has sent before. Every request goes to the run's folder as it
    ends. At the end: the table, the knee, the ceiling, and what the arithmetic had said.

    \b
    bench sweep --gpu cpu --kv fp8                         no GPU needed: a real vLLM, a miniature model
    bench sweep --gpu l4 --kv fp8 --max-c 48               the study
    bench sweep --gpu l4 --vary kv=fp16,fp8,tq4            three precisions, one table
    bench sweep --gpu l4 --kv fp8 -- --max-num-seqs 64     flags after -- go to vllm serve unchanged
    bench sweep --endpoint http://127.0.0.1:8000           a server that is already running
    """
    from bench import knee, records, report, server
    from bench import sweep as job

    knee.parse_slo(given["slo"])
    terminal = report.Terminal()
    launches = _launches(given)
    vllm = _vllm(given, launches, terminal)
    plan = _plan(given, launches)
    if given["dry_run"]:
        click.echo(_rehearsal(plan, launches))
        return Exit.FINE
    _report_orphans(terminal)
    variants = [] if launches else [_endpoint(given)]
    folder = records.Folder.create(Path(given["out"]) if given["out"] else _default_folder(given))
    for name, launch in launches.items():
        assert vllm is not None
        variants.append(job.Variant(name, launch, server.serve(vllm, launch, folder.path, terminal.say)))
    run = job.manifest(plan, variants, ["bench", *sys.argv[1:]], given["slo"])
    try:
        job.sweep(plan, variants, folder, terminal, run)
    except (KeyboardInterrupt, BenchError):
        if (folder.path / "run.json").is_file() and folder.records():
            _close(folder, given["as_json"], terminal)
        raise
    return _close(folder, given["as_json"], terminal)


@cli.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print run.json instead of the table.")
def report(run: Path, as_json: bool) -> int:
    """Make table, CSV and verdict of a run again, from its records alone."""
    from bench import records
    from bench import report as paper

    return _close(records.Folder.open(run), as_json, paper.Terminal())


def _close(folder: Any, as_json: bool, terminal: "Terminal") -> int:
    from bench import report as paper

    done = paper.conclude(folder)
    terminal.say("")
    click.echo(json.dumps(done.run, indent=2) if as_json else paper.closing(done, folder))
    if done.warnings:
        click.echo(paper.cautions(done), err=True)
    return Exit.FINE if done.valid else Exit.INVALID


Launches = dict[str, "Launch"]


def _launches(given: dict[str, Any]) -> Launches:
    """Every server to be started, by the name of its variant; none where one is running already."""
    from bench import recipe

    if given["endpoint"]:
        if given["vary"] or given["extra"] or given["gpu"]:
            raise BenchError(
                "--endpoint measures a server as it is: --gpu, --vary and flags after -- do not go with it"
            )
        return {}
    if not given["gpu"]:
        raise BenchError("--gpu is missing", f"one of: {', '.join(_shipped('launch'))}; --gpu cpu needs none")
    if stray := [word for word in given["extra"][:1] if not word.startswith("-")]:
        raise BenchError(f"unexpected argument {stray[0]!r}", "flags of vllm serve stand after --")
    return {
        name: recipe.launch(
            given["gpu"],
            str(chosen.get("kv", given["kv"])),
            chosen.get("model", given["model"]),
            _whole(chosen.get("tp", given["tp"])),
            chosen.get("prefix-caching", "on" if given["prefix_caching"] else "off") == "on",
            (*given["extra"], *(word for key, value in chosen.items() for word in _flag(key, value))),
        )
        for name, chosen in _combinations(given["vary"], given["kv"])
    }


def _vllm(given: dict[str, Any], launches: Launches, terminal: "Terminal") -> "Vllm | None":
    """The vLLM that will serve them, having been asked whether it can."""
    from bench import engine, server

    if not launches:
        return None
    try:
        command = engine.find(given["vllm_command"], next(iter(launches.values())).file.device)
    except BenchError:
        if not given["dry_run"]:
            raise
        terminal.print("no vllm here: precision and flags could not be checked")
        return None
    vllm = engine.ask(command, terminal.say)
    for launch in launches.values():
        engine.check(vllm, launch.extra, launch.kv, launch.precision.dtype, launch.file.kv)
        server.choose_port(launch)
    return vllm


def _endpoint(given: dict[str, Any]) -> "Variant":
    from bench import server
    from bench import sweep as job

    target = server.connect(given["endpoint"], given["model"], os.environ.get("BENCH_API_KEY"))
    return job.Variant("endpoint", None, nullcontext(target))


def _combinations(vary: tuple[str, ...], kv: str) -> list[tuple[str, dict[str, str]]]:
    axes = []
    for text in vary:
        key, _, values = text.partition("=")
        if not key or not all(values.split(",")):
            raise BenchError(f"--vary {text!r} is not WHAT=A,B", "for example --vary kv=fp16,fp8,tq4")
        axes.append([(key.lstrip("-").replace("_", "-"), value) for value in values.split(",")])
    if not axes:
        return [(kv, {})]
    return [
        (", ".join(value if key == "kv" else f"{key}={value}" for key, value in chosen), dict(chosen))
        for chosen in product(*axes)
    ]


def _flag(key: str, value: str) -> tuple[str, ...]:
    """A varied flag of vLLM's; on and off are its switches."""
    if key in ("kv", "tp", "model", "prefix-caching"):
        return ()
    if value in ("on", "off"):
        return (f"--{key}" if value == "on" else f"--no-{key}",)
    return (f"--{key}", value)


def _whole(value: str | int) -> int:
    if not str(value).isdigit() or int(value) < 1:
        raise BenchError(f"--vary tp={value}: not a number of GPUs")
    return int(value)


def _plan(given: dict[str, Any], launches: Launches) -> "Plan":
    from bench import capacity, workload
    from bench import sweep as job

    work = workload.load(given["workload_name"])
    fit = None
    for launch in launches.values():
        workload.fits(work, launch.context)
        if (tokens := capacity.expected(launch).tokens) is not None:
            fit = max(fit or 0.0, capacity.sessions_that_fit(tokens, work, given["seed"]))
    levels = _levels(given["levels"], given["max_c"], fit)
    fitting = [level for level in levels if fit is None or level <= fit] or [levels[0]]
    bounds = tuple(sorted({levels[0], fitting[-1]})) if given["bounds"] else ()
    requests, repeats, timeout_s = given["requests"], given["repeats"], given["timeout_s"]
    return job.Plan(work, levels, bounds, given["miss_rates"], requests, repeats, given["seed"], timeout_s)


def _levels(named: str | None, max_c: int | None, fit: float | None) -> tuple[int, ...]:
    from bench import sweep as job

    if named is not None and max_c is not None:
        raise BenchError("--levels and --max-c exclude each other")
    if named is not None:
        if not re.fullmatch(r"\s*\d+\s*(,\s*\d+\s*)*", named) or 0 in (found := {int(n) for n in named.split(",")}):
            raise BenchError(
                f"--levels {named!r} is not a list of numbers of sessions", "for example --levels 1,4,8,12"
            )
        return tuple(sorted(found))
    return job.levels_up_to(max_c) if max_c is not None else job.default_levels(fit)


def _report_orphans(terminal: "Terminal") -> None:
    from bench import server

    for orphan in server.orphans():
        terminal.print(
            f"warning: a vLLM that an earlier bench started is still running (process {orphan.pids[0]}, "
            f"run {orphan.run}); its bench was killed. It holds memory and time of this machine. "
            f"End it with: kill -- -{orphan.group}"
        )


def _rehearsal(plan: "Plan", launches: Launches) -> str:
    from bench import capacity

    parts, total = [], 0.0
    unknown = False
    for name, launch in launches.items():
        levels = plan.levels(name)
        sizes = "  ".join(f"{level.concurrency}({level.requests})" for level in levels if level.case == "realistic")
        parts.append(f"{name}: sessions (requests): {sizes}")
        if bounds := [level for level in levels if level.case != "realistic"]:
            parts.append("  " + "  ".join(f"{level.case} at {level.concurrency}({level.requests})" for level in bounds))
        expected = capacity.expected(launch)
        fit = capacity.sessions_that_fit(expected.tokens, plan.workload, plan.seed) if expected.tokens else None
        tokens = "KV cache: " + (f"{expected.tokens:,} tokens, {expected.why}" if expected.tokens else expected.why)
        parts.append(f"  {tokens}" + (f"; {fit:.1f} sessions fit" if fit is not None else ""))
        env = " ".join(f"{key}={shlex.quote(value)}" for key, value in launch.environment().items())
        model = launch.model if not launch.model.startswith("synthetic:") else "RUN/model"
        before = " ".join((*launch.file.serve.before, "vllm"))
        parts.append(f"  {env} {before} {shlex.join(launch.arguments(model, 0)).replace('--port 0', '--port FREE')}")
        guesses = [plan.expected_s(launch, level, fit) for level in levels]
        unknown = unknown or None in guesses
        total += launch.file.serve.start_s + sum(guess for guess in guesses if guess is not None)
    known = f"about {max(1, round(total / 60))} min, a first-order guess" if not unknown else "not known"
    return "\n".join([*parts, f"Expected duration: {known}."])


def _shipped(folder: str) -> list[str]:
    from bench import tables

    return tables.shipped(folder)


def _default_folder(given: dict[str, Any]) -> Path:
    what = f"{Path(given['gpu']).stem}-{given['kv']}" if given["gpu"] else "endpoint"
    return Path("results/runs") / f"{datetime.now():%Y%m%d-%H%M%S}-{what}"
