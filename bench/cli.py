"""The commands: parse, call, print. The only place that wires real things together."""

import json
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bench import __version__, ending, interrupt, wanted
from bench.errors import BenchError, Exit

if TYPE_CHECKING:  # --help must not wait for numpy
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from bench.compare import Side
    from bench.progress import Terminal
    from bench.search import Prediction
    from bench.server import Endpoint
    from bench.speed import Speed


def main() -> None:
    ending.end(lambda: cli(standalone_mode=False))


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
    5 a regression was found (bench compare --fail-on), 6 clean-up could not be proven, 130 interrupted.
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
    type=click.IntRange(1, wanted.MOST_SESSIONS),
    help="Take the levels 1 2 4 6 8 ... up to this many sessions.  [default: two levels past the expected knee]",
)
@click.option("--levels", metavar="1,2,4", help="Take just these levels.")
@click.option(
    "--search",
    is_flag=True,
    help="Look for knee and ceiling, from where they are predicted, instead of taking all levels: a fraction of the "
    "time. --max-c: no further than that; --repeats: plays of a level that is not sure, at most  [default: 2]; bounds "
    "only with --bounds or --miss-rate.",
)
@click.option(
    "--requests",
    type=click.IntRange(1, wanted.MOST_REQUESTS),
    help="Requests a level.  [default: 200, as the study; one whole session each where 200 could not fill the cache]",
)
@click.option(
    "--repeats",
    type=click.IntRange(1, wanted.MOST_REPEATS),
    default=1,
    help="Times each level is played, with new content each time.",
)
@click.option(
    "--bounds/--no-bounds",
    default=True,
    help="Also take, at two levels, the best case (all cached) and the worst (only the shared prompt is).",
)
@click.option(
    "--bounds-at",
    metavar="1,6,12",
    help="Take best and worst case at these levels.  [default: the lowest, and the last that fits into the cache]",
)
@click.option(
    "--miss-rate",
    "miss_rates",
    multiple=True,
    type=click.FloatRange(0, 1),
    callback=wanted.numbers,
    metavar="R",
    help="Also take single requests of which this share misses; may be repeated.",
)
@click.option(
    "--slo",
    default="ttft_p99<2s",
    metavar="METRIC<VALUE",
    help="The promise whose ceiling is looked for: a column of levels.csv, < or >, a value (2s, 300ms, 95%).",
)
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
    help="A variant for each value: kv=fp16,fp8,tq4; any flag of vLLM: max-num-seqs=4,256; workload=A,B, or a key of "
    "its file: workload.session.turns=6,12. May be repeated: every combination.",
)
@click.option(
    "--serve-params",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="A server for each record of a JSON file as `vllm bench sweep serve --serve-params` takes it.",
)
@click.option(
    "--endpoint",
    metavar="URL",
    help="Measure a server that is already running; a key is read from BENCH_API_KEY, or the file BENCH_API_KEY_FILE.",
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
    metavar="SECONDS",
    help="After which a request is given up.  [default: 600]",
)
@click.option(
    "--limit",
    multiple=True,
    metavar="NAME=SECONDS",
    help="How long to wait: connect=30, first-token=600, gap=120 (between two pieces of an answer), request=600 (the "
    "same as --timeout), control=60 (whatever else is asked), start=1200, stop=20, help=180. May be repeated.",
)
@click.option(
    "--client",
    type=click.Choice(["bench", "openai"]),
    default="bench",
    help="openai: play every level a second time through the official SDK, to see what its users see.",
)
@click.option(
    "--processes",
    type=click.IntRange(1),
    help="Processes of the client that the sessions are spread over.  [default: one for each 512 sessions]",
)
@click.option("--out", metavar="DIR", help="The run's folder.  [default: results/runs/DATE-GPU-KV]")
@click.option(
    "--resume",
    metavar="RUN",
    type=click.Path(path_type=Path),
    help="Go on with a run that was cut, at the level it was in. Takes all its options from there.",
)
@click.option("--dry-run", is_flag=True, help="Print the command, the levels and the expected duration; start nothing.")
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print run.json, verdict included, instead of the table; with --dry-run, the plan.",
)
@click.argument("extra", nargs=-1, type=click.UNPROCESSED, metavar="[-- VLLM SERVE FLAGS]")
def sweep(**given: Any) -> int:
    """Start vLLM, replay agent sessions at one concurrency after another, and show where it breaks.

    Each level starts on a cold cache, with content nobody has sent before. Every request goes to the run's folder as it
    ends. At the end: the table, the knee, the ceiling, and what the arithmetic had said.

    \b
    bench sweep --gpu cpu --kv fp8                         no GPU needed: a real vLLM, a miniature model
    bench sweep --gpu l4 --kv fp8 --max-c 48               the study
    bench sweep --gpu l4 --kv fp8 --search                 its knee and ceiling, in a fifth of the time
    bench sweep --gpu l4 --vary kv=fp16,fp8,tq4            three precisions, one table
    bench sweep --gpu l4 --kv fp8 -- --max-num-seqs 64     flags after -- go to vllm serve unchanged
    bench sweep --endpoint http://127.0.0.1:8000           a server that is already running
    bench sweep --resume results/runs/LAST-NIGHT           the rest of a run that was cut
    """
    if given["resume"]:
        return _resume(given["resume"], given["as_json"])
    return _sweep(given, Path(given["out"]) if given["out"] else wanted.folder(given))


def _resume(path: Path, as_json: bool) -> int:
    """With the options of the run itself, as if they were given again."""
    from bench import progress
    from bench import sweep as job
    from bench.records import Folder

    context = click.get_current_context()
    if named := [
        name for name in context.params if wanted.is_given(context, name) and name not in ("resume", "as_json")
    ]:
        raise BenchError(f"--resume takes everything from the run: leave --{named[0].replace('_', '-')} out")
    folder = Folder.open(path)
    if folder.manifest()["ended"] == "finished":
        ending.tell(f"{path} is finished: nothing is left to be done", err=True)
        return _close(folder, as_json, progress.Terminal())
    run = job.cut(folder)
    with sweep.make_context("sweep", [*run["argv"][2:]]) as before:
        return _sweep({**before.params, "as_json": as_json}, path, goes_on=True)


def _sweep(given: dict[str, Any], path: Path, goes_on: bool = False) -> int:
    from dataclasses import replace
    from functools import partial

    from bench import engine, knee, progress, records, server
    from bench import sweep as job

    knee.parse_slo(given["slo"])
    given["limits"] = wanted.limits(given)
    terminal = progress.Terminal()
    grid = wanted.grid(given)
    launches = {name: cell.launch for name, cell in grid.items()}
    vllm = wanted.vllm(given, launches, terminal)
    if vllm is not None:
        launches = {name: replace(one, telling=engine.telling(vllm)) for name, one in launches.items()}
    endpoint = None if launches else wanted.endpoint(given, terminal)
    schedules = wanted.schedules(given, grid, endpoint)
    if not goes_on:
        records.Folder.vacant(path)
    wanted.warn_of_exposure(launches, terminal)
    if given["dry_run"]:
        predicted = _predicted(schedules, launches, endpoint, given["slo"]) if given["search"] else {}
        return _rehearse(schedules, launches, predicted, given["as_json"])
    wanted.warn_of_orphans(terminal)
    folder = records.Folder.open(path) if goes_on else records.Folder.create(path)

    def start(name: str) -> "Callable[[], AbstractContextManager[Endpoint]]":
        if endpoint is not None:
            return lambda: nullcontext(endpoint)
        assert vllm is not None
        waits = given["limits"].start_s, given["limits"].stop_s
        return partial(server.serve, vllm, launches[name], folder.path, terminal.say, *waits)

    variants = [job.Variant(name, launches.get(name), one, start(name)) for name, one in schedules.items()]
    run = job.begun(variants, ["bench", *sys.argv[1:]], given["slo"])
    with folder.held():
        if goes_on:
            run = job.go_on(run, folder, terminal)
        try:
            job.sweep(variants, folder, terminal, run)
        except (KeyboardInterrupt, BenchError):
            _close_what_there_is(folder, given["as_json"], terminal)
            raise
        return _close(folder, given["as_json"], terminal)


def _rehearse(
    schedules: "wanted.Schedules", launches: "wanted.Launches", predicted: "dict[str, Prediction]", as_json: bool
) -> int:
    from bench import report, search
    from bench.schedule import forecast

    plans = {name: search.opening(schedules[name], said) for name, said in predicted.items()} or schedules
    forecasts = {name: forecast(plans[name], name, launch) for name, launch in launches.items()}
    levels = {name: one.levels(name) for name, one in plans.items()}
    if as_json:
        ending.tell(report.rehearsed(levels, launches, forecasts, predicted))
        return Exit.FINE
    ending.tell(report.rehearsal(levels, launches, forecasts))
    for name, said in predicted.items():
        ending.tell(f"{name}, predicted: {said}. The search begins with these levels, and goes on where they disagree.")
    return Exit.FINE


def _predicted(
    schedules: "wanted.Schedules", launches: "wanted.Launches", endpoint: "Endpoint | None", slo: str
) -> "dict[str, Prediction]":
    """Before a server has told how large its cache is; of a running one, as it tells."""
    from bench import capacity, knee
    from bench.expectation import Expectation

    tokens = {name: capacity.expected(launch).tokens for name, launch in launches.items()}
    tokens |= {wanted.ENDPOINT: endpoint.cache.tokens} if endpoint else {}
    promise = knee.parse_slo(slo)
    known = {name: Expectation(schedules[name], launches.get(name), told, promise) for name, told in tokens.items()}
    return {name: one.prediction() for name, one in known.items()}


OF_A_SIZING = ("agents", "slo", "workload_name", "seed", "kv", "model", "gpu")
OF_A_PLAN = ("gpu", "kv", "workload_name", "max_c", "levels", "requests", "bounds", "bounds_at", "slo", "model", "tp",
             "prefix_caching", "vary", "serve_params", "seed", "out", "as_json", "extra")  # fmt: skip
NOT_PLANNED = {"endpoint": None, "vllm_command": None, "miss_rates": (), "repeats": 1, "processes": None,
               "client": "bench", "timeout": None, "limit": (), "search": False}  # fmt: skip


@cli.command(
    params=[option for option in sweep.params if option.name in OF_A_PLAN], context_settings={"show_default": True}
)
@click.option(
    "--agents",
    type=click.IntRange(1, wanted.MOST_SESSIONS),
    help="How many cards would so many agents take, with --slo kept? Over all machines on file, the cheapest first.",
)
@click.option(
    "--calibrate",
    metavar="RUN",
    type=click.Path(path_type=Path),
    help="Fit the machine's speed to a real run there, and print it for its launch file; with --gpu, plan with it.",
)
def plan(**given: Any) -> int:
    """The answer before any GPU is paid for: a sweep on a simulated server, its scheduler and cache as vLLM has them.

    Prints where the card's memory goes, the table as predicted, the knee, what would move it, and what a thousand tasks
    cost; leaves the same folder and report as a run, marked as simulated.

    \b
    bench plan --gpu l4 --kv fp8                              will it hold twelve agents?
    bench plan --gpu h100 --model synthetic:qwen3-32b         another model; its config.json is enough
    bench plan --gpu l4 --vary kv=fp16,fp8,tq4                three precisions beside each other
    bench plan --agents 200 --slo 'ttft_p99<2s'               which cards, how many, at what price?
    bench plan --calibrate results/runs/LAST-NIGHT            the constants of that machine
    """
    from bench import progress

    terminal = progress.Terminal()
    fitted = _calibrated(given["calibrate"], terminal) if given["calibrate"] else None
    if given["agents"]:
        return _size(given, terminal)
    if fitted is not None and not given["gpu"]:
        return Exit.FINE
    return _plan({**given, **NOT_PLANNED}, fitted, terminal)


def _calibrated(path: Path, terminal: "Terminal") -> "Speed":
    from bench import calibrate, records

    fit = calibrate.fit(calibrate.cases(records.Folder.open(path)), terminal.say)
    terminal.say("")
    source = f"fitted to {path.name}, off by {fit.typical:.0%} in the middle"
    ending.tell(calibrate.toml(fit.speed, source))
    return fit.speed


def _size(given: dict[str, Any], terminal: "Terminal") -> int:
    from bench import knee, workload
    from bench import plan as planner

    context = click.get_current_context()
    if named := [name for name in context.params if wanted.is_given(context, name) and name not in OF_A_SIZING]:
        raise BenchError(f"--agents asks how many replicas of one server: leave {named[0].replace('_', '-')} out")
    slo, work = knee.parse_slo(given["slo"]), workload.load(given["workload_name"])
    asked = given["agents"], slo, work, given["seed"], given["kv"], given["model"], given["gpu"]
    found = planner.sizing(*asked, terminal.say)
    terminal.say("")
    ending.tell("\n".join(planner.fleets(found, given["agents"], slo)))
    return Exit.FINE


def _plan(given: dict[str, Any], fitted: "Speed | None", terminal: "Terminal") -> int:
    from bench import capacity, conclusion, foresight, knee, records
    from bench import plan as planner
    from bench import report as paper
    from bench import sweep as job

    knee.parse_slo(given["slo"])
    given["limits"] = wanted.limits(given)
    grid = wanted.grid(given)
    for cell in grid.values():
        capacity.check_context(cell.launch, cell.workload)
    servers = [foresight.simulated(planner.named(name), cell.launch, fitted) for name, cell in grid.items()]
    schedules = [*zip(servers, wanted.schedules(given, grid, None).values(), strict=True)]
    path = Path(given["out"]) if given["out"] else wanted.folder(given, "plan-")
    folder = records.Folder.create(path)
    run = job.begun(planner.variants(schedules), ["bench", *sys.argv[1:]], given["slo"])
    for level in planner.play(schedules, folder, run):
        terminal.say(f"simulating {level.variant}, {level.case}, C = {level.concurrency}")
    terminal.say("")
    done = conclusion.conclude(folder)
    planner.add_outlook(done, schedules)
    paper.write(folder, done)
    ending.tell(json.dumps(done.run, indent=2) if given["as_json"] else paper.closing(done, folder))
    if not given["as_json"]:
        ending.tell("\n".join(planner.summary(done, schedules)))
    return Exit.FINE


@cli.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print run.json instead of the table.")
def report(run: Path, as_json: bool) -> int:
    """Make report, table, pictures and verdict of a run again, from its records alone."""
    from bench import progress, records

    return _close(records.Folder.open(run), as_json, progress.Terminal())


@cli.command()
@click.argument("before", type=click.Path(path_type=Path))
@click.argument("after", type=click.Path(path_type=Path))
@click.option(
    "--fail-on",
    type=click.Choice(["regression"]),
    help="Exit 5 if AFTER is found slower. Refuses, with exit 4, runs that are not valid, and simulated ones.",
)
@click.option("--markdown", is_flag=True, help="Print the table as Markdown.")
def compare(before: Path, after: Path, fail_on: str | None, markdown: bool) -> int:
    """Is there a difference between two runs, and is it real?

    BEFORE and AFTER are a run's folder, a published run's, a folder that holds several runs, or a result of vllm bench
    serve, AIPerf or GuideLLM. The requests of a session are alike, and so are those of a run: what identical runs were
    seen to do is not called a difference. Where none is found, the table says how large it would have had to be. Three
    runs a side, taken in turns, see a tail that is a fifth slower; one rarely does.

    \b
    bench compare results/runs/MONDAY results/runs/TUESDAY
    bench compare results/l4/Qwen-Qwen3-4B-FP8/fp8/DATE run --fail-on regression      published against tonight's
    """
    from bench import compare as differ
    from bench import difference, side

    a, b = side.read(before), side.read(after)
    if fail_on:
        _judgeable([*a, *b])
    found = differ.compare(a, b)
    ending.tell(difference.markdown(found) if markdown else difference.text(found))
    return Exit.THRESHOLD if fail_on and found.headline == "regression" else Exit.FINE


def _judgeable(sides: "list[Side]") -> None:
    """A gate must not open or close on numbers that mean nothing."""
    if bad := [one.name for one in sides if not one.valid or one.imported or one.simulated]:
        told = f"--fail-on judges only runs that were measured, and are valid: {', '.join(bad)}"
        raise BenchError(told, "leave --fail-on out", Exit.INVALID)


@cli.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--to", "results", type=click.Path(path_type=Path), default=Path("results"), metavar="DIR",
              show_default=True, help="Where the published results lie.")  # fmt: skip
def publish(run: Path, results: Path) -> int:
    """Put a run's table, report, pictures and manifest under results/, and make the index of all of them anew.

    Not the raw requests, not the host's name, not the folders of whoever ran it. A run that is not valid is refused.
    """
    from bench import conclusion
    from bench import publish as publisher
    from bench.records import Folder

    place = publisher.publish(conclusion.conclude(Folder.open(run)), results)
    ending.tell(f"{place}\nindex: {results / 'README.md'}, {results / 'index.html'}")
    return Exit.FINE


@cli.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--as", "form", required=True, type=click.Choice(["vllm-bench", "llm-d", "github-action"]),
              help="Whose format.")  # fmt: skip
@click.option("--to", "out", type=click.Path(path_type=Path), metavar="DIR", help="[default: RUN/export]")
def export(run: Path, form: str, out: Path | None) -> int:
    """Write a run as others read it: vLLM's own benchmark results, the llm-d report, github-action-benchmark."""
    from bench import conclusion
    from bench import export as exporter
    from bench.records import Folder

    done = conclusion.conclude(Folder.open(run))
    out = out or run / "export"
    out.mkdir(parents=True, exist_ok=True)
    if not done.valid:
        click.echo("warning: this run is INVALID: its stamp says why", err=True)
    for name, text in exporter.export(done.run, done.rows, done.records, form).items():
        Folder(out).write(name, text)
        ending.tell(str(out / name))
    return Exit.FINE


def _close_what_there_is(folder: Any, as_json: bool, terminal: "Terminal") -> None:
    """Of a run that ended badly: what keeps it from being told must not hide how it ended."""
    try:
        if interrupt.times() < 2 and folder.records():
            _close(folder, as_json, terminal)
    except (BenchError, OSError) as error:
        ending.explain(ending.plain(error))
    except KeyboardInterrupt:
        pass  # it was told to stop now, and does


def _close(folder: Any, as_json: bool, terminal: "Terminal") -> int:
    from bench import conclusion
    from bench import report as paper

    done = conclusion.conclude(folder)
    paper.write(folder, done)
    terminal.say("")
    ending.tell(json.dumps(done.run, indent=2) if as_json else paper.closing(done, folder))
    if done.warnings:
        ending.tell(paper.cautions(done), err=True)
    return Exit.FINE if done.valid else Exit.INVALID
