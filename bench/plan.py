"""The answer before any GPU is paid for: where memory goes, a run that has not happened, what would move its knee.

Every level is played on a simulated server and put on file as a real run's would be, so that verdict, table and report
are made by the same code. Sizing asks the same of each machine there is a file for.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from bench import capacity, cost, foresight, recipe, stats, sweep, tables, words
from bench.conclusion import Conclusion
from bench.errors import BenchError
from bench.foresight import Simulated
from bench.knee import Slo
from bench.load import Level
from bench.recipe import Launch
from bench.records import Folder
from bench.schedule import Schedule
from bench.speed import Speed
from bench.stats import LevelRow
from bench.workload import Workload

MARK = "simulated"  # in every name a reader could take for a measured one's


def named(variant: str) -> str:
    return f"{variant} ({MARK})"


Schedules = Sequence[tuple[Simulated, Schedule]]


def play(schedules: Schedules, folder: Folder, run: dict[str, Any]) -> Iterator[Level]:
    """Puts on file what a sweep would; each level is told before it is played."""
    run |= {MARK: True, "ended": "interrupted"}
    run["machine"]["busy"] = None  # what others do here makes nothing slower
    folder.write_manifest(run)
    reached = 0.0
    for server, schedule in schedules:
        run["variants"][server.name] |= foresight.facts(server)
        for level in schedule.plays(server.name):
            yield level
            played = foresight.play(server, level, schedule.workload, schedule.seed, reached)
            for record in played.records:
                folder.keep(record)
            for sample in played.samples:
                folder.append("server.jsonl", sample)
            reached = max(reached, *(record.end_s for record in played.records))
    run |= {"ended": "finished", "wall_s": reached}
    folder.write_manifest(run)


def variants(schedules: Schedules) -> list[sweep.Variant]:
    return [sweep.Variant(server.name, server.launch, schedule, _nobody) for server, schedule in schedules]


def _nobody() -> Any:
    raise AssertionError("nothing is started")


def waterfall(server: Simulated, workload: Workload, seed: int) -> list[str]:
    """From the card's memory to sessions, a line each."""
    found, shared = capacity.expected(server.launch), workload.file.shared_tokens
    typical = workload.typical(seed)
    each = typical.own_tokens + typical.output_tokens
    lines = []
    if found.memory_gb is not None and found.usable_gb is not None:
        lines += [
            f"{found.memory_gb:8.1f} GB   the memory of {_cards(server.launch)}",
            f"{found.usable_gb:8.1f} GB   {server.launch.utilization:g} of it: --gpu-memory-utilization",
            f"{found.weights_gb or 0:8.1f} GB   weights",
            f"{found.other_gb or 0:8.1f} GB   activations, graphs and whatever else is in use",
            f"{found.pool_gb or 0:8.1f} GB   left for the KV cache, at {found.bytes_per_token or 0:,.0f} bytes a token",
        ]
    fits, mixed = capacity.sessions(found, workload, seed), capacity.mixed_depth_fit(server.tokens, workload, seed)
    random = f"; {mixed:.1f} at random depths" if typical.turns > 1 else ""
    return [
        *lines,
        f"{server.tokens:11,}   tokens" + ("" if lines else f" ({found.why})"),
        f"{shared:11,}   of them shared by all sessions, once",
        f"{each:11,.0f}   a session's own at its deepest, its last answer included",
        f"{fits or 0:11.1f}   sessions fit, all at their deepest{random}",
        *(f"              {note}" for note in found.notes),
    ]


def _cards(launch: Launch) -> str:
    card = launch.file.card
    name = card.name if card else launch.name
    return f"{launch.cards} x {name}" if launch.cards > 1 else name


@dataclass(frozen=True, slots=True)
class Lever:
    what: str
    sessions: float | None  # that fit with it; None: the model does not fit
    price_usd_h: float | None


def levers(server: Simulated, workload: Workload, seed: int) -> list[Lever]:
    """One thing changed at a time, and how many sessions fit then."""
    launch = server.launch
    changed = {f"--kv {kv}": replace(launch, kv=kv) for kv in launch.file.kv if kv != launch.kv}
    if launch.file.card is not None:
        changed[f"--tp {2 * launch.tp}"] = replace(launch, tp=2 * launch.tp)
        if launch.utilization < 0.94 and launch.precision.gpu_memory_utilization is None:
            flags = (*launch.extra, "--gpu-memory-utilization", "0.95")
            changed["--gpu-memory-utilization 0.95"] = replace(launch, extra=flags)
        for name, file, digest in _machines():
            card = file.card
            if card and launch.kv in file.kv and card.memory_gb.value > launch.file.card.memory_gb.value:
                changed[f"--gpu {name}"] = replace(launch, name=name, file=file, digest=digest)
    found = [Lever(what, _fit(one, workload, seed), _usd_h(one)) for what, one in changed.items()]
    if workload.typical(seed).turns > 1:
        half = replace(workload, file=replace(workload.file, session=_half(workload.file.session)))
        fits = capacity.sessions_that_fit(server.tokens, half, seed)
        found.append(Lever("half as many turns", fits, _usd_h(launch)))
    return found


def _machines() -> Iterator[tuple[str, recipe.RecipeFile, str]]:
    for name in tables.shipped("launch"):
        yield recipe.load(name)


def _half(session: Any) -> Any:
    turns = session.turns
    if isinstance(turns, int):
        return replace(session, turns=max(1, turns // 2))
    smaller = replace(turns, min=max(1, turns.min // 2), max=max(1, turns.max // 2))
    return replace(session, turns=smaller if turns.mean is None else replace(smaller, mean=max(1.0, turns.mean / 2)))


def _fit(launch: Launch, workload: Workload, seed: int) -> float | None:
    try:
        return capacity.sessions(capacity.expected(launch), workload, seed)
    except BenchError:
        return None


def _usd_h(launch: Launch) -> float | None:
    return launch.file.card.price_usd_h.value * launch.cards if launch.file.card else None


def cliff_s(server: Simulated, workload: Workload, seed: int) -> float:
    """How high the cliff is: once the cache is full, all that is in it but the shared prompt is prefilled again."""
    unique = max(0, server.tokens - workload.file.shared_tokens)
    depth = workload.file.shared_tokens + workload.typical(seed).own_tokens / 2
    steps = unique / server.setup.budget
    return steps * server.speed.step(server.setup.budget, server.setup.budget * depth, 0, 1)


@dataclass(frozen=True, slots=True)
class Outlook:
    """What a planner asks besides the table."""

    cliff_s: float
    levers: tuple[Lever, ...]  # the strongest first
    bands: tuple[dict[str, Any], ...]  # of each level: between what and what a real run is expected
    source: str  # of the constants


FAR = 4  # times as many sessions as fit: past that, no promise that anybody makes is kept
Say = Callable[[str], None]


def outlook(done: Conclusion, server: Simulated, schedule: Schedule) -> Outlook:
    verdict, workload, seed = done.run["verdict"]["variants"][server.name], schedule.workload, schedule.seed
    rows = [row for row in done.rows if (row.variant, row.case) == (server.name, "realistic")]
    over = verdict["knee"][1] if verdict["knee"] else verdict["below"]
    return Outlook(
        cliff_s(server, workload, seed),
        tuple(sorted(levers(server, workload, seed), key=lambda one: -(one.sessions or 0))),
        tuple(_band(row, server.speed, over) for row in rows),
        server.speed.source,
    )


def _band(row: LevelRow, speed: Speed, over: int | None) -> dict[str, Any]:
    past = over is not None and row.concurrency >= over
    factor = speed.past if past else speed.below
    told = {name: getattr(row, name) for name in stats.HEADLINE}
    bands = {name: [value / factor, value * factor] for name, value in told.items() if value and math.isfinite(value)}
    return {"concurrency": row.concurrency, **dict.fromkeys(stats.HEADLINE), **bands}


@dataclass(frozen=True, slots=True)
class Fleet:
    """So many replicas of one server, for so many agents."""

    launch: Launch
    sessions: int  # that each holds with the promise kept
    replicas: int
    usd_h: float
    usd_per_1000_tasks: float | None


@dataclass(frozen=True, slots=True)
class Sizing:
    fleets: list[Fleet]  # the cheapest first
    without: dict[str, str]  # why not, of each other machine


def sizing(
    agents: int, slo: Slo, workload: Workload, seed: int, kv: str, model: str | None, gpu: str | None, say: Say
) -> Sizing:
    """Over all machines there is a file for, or one."""
    found, without = [], {}
    for name, file, digest in [recipe.load(gpu)] if gpu else _machines():
        if file.card is None:
            continue
        why = f"its file has no precision {kv}"
        for tp in capacity.SIZES if kv in file.kv else ():
            say(f"asking {tp} x {name}")
            launch = Launch(name, file, digest, kv, model or file.serve.model, tp)
            try:
                if one := _fleet(launch, agents, slo, workload, seed):
                    found.append(one)
                    break  # more cards to a server than it takes cost more for each session, as a rule
                why = f"{slo.text} is not kept, even for one session"
            except BenchError as error:
                why = error.message
        else:
            without[name] = why
    return Sizing(sorted(found, key=lambda one: one.usd_h), without)


def _fleet(launch: Launch, agents: int, slo: Slo, workload: Workload, seed: int) -> Fleet | None:
    capacity.check_context(launch, workload)
    server = foresight.simulated(launch.kv, launch)
    fit = capacity.sessions_that_fit(server.tokens, workload, seed)
    row = best(server, slo, workload, seed, min(agents, FAR * math.ceil(fit)))
    if row is None:
        return None
    replicas = math.ceil(agents / row.concurrency)
    usd_h = replicas * (_usd_h(launch) or 0.0)
    price = cost.in_money(usd_h / replicas, row.req_per_s, workload.typical(seed).turns)
    return Fleet(launch, row.concurrency, replicas, usd_h, price)


def best(server: Simulated, slo: Slo, workload: Workload, seed: int, most: int) -> LevelRow | None:
    """The highest level that keeps the promise, by halving: what is kept at a level is kept below it."""

    def played(level: int) -> LevelRow:
        requests = max(200, round(level * workload.typical(seed).turns))
        return foresight.row(server, Level(server.name, "realistic", level, 0, requests), workload, seed)

    if not slo.met(first := played(1)):  # few may keep it worse than many: then no level counts
        return None
    low, high, found = 1, most + 1, first
    while high - low > 1:
        level = most if (low, high) == (1, most + 1) else (low + high) // 2
        if slo.met(row := played(level)):
            low, found = level, row
        else:
            high = level
    return found


def add_outlook(done: Conclusion, schedules: Schedules) -> None:
    """To the run, so that its report tells it too."""
    for server, schedule in schedules:
        done.run["variants"][server.name]["outlook"] = asdict(outlook(done, server, schedule))


def summary(done: Conclusion, schedules: Schedules) -> list[str]:
    """For the screen, below the table."""
    lines = []
    for server, schedule in schedules:
        told = done.run["variants"][server.name]["outlook"]
        lines += ["", f"{server.name}: from memory to sessions", *waterfall(server, schedule.workload, schedule.seed)]
        lines.append(words.cliff(told))
        heads = f"{'C':>5}  {'TTFT p50':>19}  {'TTFT p99':>19}  {'req/s':>14}"
        lines += ["", words.banded(told), heads, *map(_banded, told["bands"])]
        lines += ["", "What would move the knee:", *map(_move, told["levers"])]
    return lines


def _banded(band: dict[str, Any]) -> str:
    times = [words.band(band[name]).rjust(19) for name in stats.HEADLINE[:2]]
    return f"{band['concurrency']:5}  {'  '.join(times)}  {words.band(band['req_per_s'], stats.rate):>14}"


def _move(lever: dict[str, Any]) -> str:
    fits = "does not fit" if lever["sessions"] is None else f"{lever['sessions']:6.1f} sessions"
    price = "" if lever["price_usd_h"] is None else f"   ${lever['price_usd_h']:,.2f} an hour"
    return f"  {lever['what']:32} {fits:>15}{price}"


def fleets(found: Sizing, agents: int, slo: Slo) -> list[str]:
    lines = (
        [f"{agents} agents with {slo.text}, the cheapest first:"] if found.fleets else ["No machine on file does it."]
    )
    for one in found.fleets:
        each = f"{one.launch.tp} " if one.launch.tp > 1 else ""
        cards = f"{one.replicas} x {each}{one.launch.name}"
        price = "" if one.usd_per_1000_tasks is None else f"   ${one.usd_per_1000_tasks:,.2f} a thousand tasks"
        lines.append(f"  {cards:16} {one.sessions:5} sessions each   ${one.usd_h:9,.2f} an hour{price}")
    prices = {one.launch.name: card.price_usd_h.source for one in found.fleets if (card := one.launch.file.card)}
    lines += [f"  the price of {name}: {source}" for name, source in prices.items()]
    return [*lines, *(f"  not {name}: {why}" for name, why in found.without.items())]
