"""A run's folder becomes all that the run says: rows, verdict, checks; from its records alone, today and in a year."""

import gc
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from bench import audit, cause, cost, foretold, knee, manifest, stats
from bench.audit import Check, Evidence, Warning
from bench.cause import Server
from bench.errors import BenchError
from bench.knee import Knee, Slo
from bench.records import LINES, Folder, TurnRecord, attempts, is_last, play_of
from bench.speed import CONSTANTS, Speed
from bench.stats import LevelRow
from bench.table import OF_CARD

Samples = Sequence[dict[str, Any]]
SURPRISE = 2  # sessions off: more of them want a reason


@dataclass(frozen=True, slots=True)
class Conclusion:
    run: dict[str, Any]
    rows: list[LevelRow]
    warnings: list[Warning]
    records: list[TurnRecord]
    samples: Samples

    @property
    def valid(self) -> bool:
        return bool(self.run["verdict"]["valid"])


@contextmanager
def _uncollected() -> Iterator[None]:
    """Python looks through many new objects for cycles, again and again; records have none."""
    on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if on:
            gc.enable()


@_uncollected()
def conclude(folder: Folder) -> Conclusion:
    if not (folder.path / "requests.jsonl").is_file():
        hint = "a published run keeps none: its table and its report lie beside its run.json, as they were made"
        raise BenchError(f"{folder.path} has no requests.jsonl, so nothing can be made again", hint)
    run, every = folder.manifest(), folder.records()
    last = attempts(every)
    records = [one for one in every if is_last(last, one)] if any(last.values()) else every
    samples, pulses = (
        [row for row in folder.rows(file) if last.get(play_of(row), 0) == row.get("attempt", 0)]
        for file in ("server.jsonl", "client.jsonl")
    )
    rows: list[LevelRow] = []
    checks: list[Check] = []
    verdicts: dict[str, Any] = {}
    for variant, facts in run["variants"].items():
        here = manifest.of(run, variant)
        own = [record for record in records if record.variant == variant]
        told = [sample for sample in samples if sample["variant"] == variant]
        felt = [pulse for pulse in pulses if pulse["variant"] == variant]
        found = list(_rows(here, variant, own, told, felt))
        verdicts[variant] = _verdict(found, own, knee.parse_slo(run["slo"]), _server(here, facts))
        if run.get("simulated"):  # it would come out the same again: of the machine that says nothing
            verdicts[variant] |= {"knee_confidence": None, "ceiling_confidence": None, "ceiling_between": None}
        verdicts[variant]["card"] = _card(found, verdicts[variant]["ceiling"], facts, here["typical"]["turns"])
        verdicts[variant]["foretold"] = _foretold(facts.get("foretold"), found, verdicts[variant])
        verdicts[variant]["search"] = _searched(facts.get("search"), verdicts[variant], found)
        if {"dialect", "server"} <= set(facts) and own:
            healthy = (verdicts[variant]["knee"] or [None])[0]
            checks += audit.audit(Evidence(here, variant, own, found, told, healthy, felt))
        rows += found
    warnings = [*_torn(folder), *(warning for check in checks for warning in check.warnings)]
    warnings += _lost(list(folder.rows("journal.jsonl")))
    if run["ended"] != "finished":
        why = "its numbers are those of the levels that were reached"
        again = f"go on where it stopped: bench sweep --resume {folder.path}"
        again = "plan it again: nothing of it took long" if run.get("simulated") else again
        how = "it was killed, or is running still" if run["ended"] == "running" else run["ended"]
        warnings.append(Warning(f"the run did not finish: {how}", why, again, fatal=True))
    run["verdict"] = {
        **next(iter(verdicts.values())),
        "valid": bool(rows) and not any(warning.fatal for warning in warnings),
        "warnings": [asdict(warning) for warning in warnings],
        "checks": [_told(name, [check for check in checks if check.name == name]) for name in audit.CHECKS],
        "ledger": {**audit.ledger(run, records), "begun_anew": _sent(every) - _sent(records)},
        "departures": audit.departures(run),
        "variants": verdicts,
    }
    return Conclusion(run, rows, warnings, records, samples)


def _torn(folder: Folder) -> Iterator[Warning]:
    for file in LINES:
        if folder.torn(file):
            yield Warning(
                f"the last line of {file} is torn: what it said is lost",
                "bench was killed while it wrote, or the disk was full; all lines before it are whole",
                "nothing, if that much was known; else look at the machine's log and its disk",
            )


def _sent(records: Sequence[TurnRecord]) -> int:
    return sum(record.turn > 0 for record in records)


def _lost(journal: Sequence[dict[str, Any]]) -> list[Warning]:
    """Levels that were begun anew because their server died: said, and no reason to distrust what came of them."""
    return [
        Warning(
            f"{row['variant']}, {row['case']}, C = {row['concurrency']}: the server was lost: {row['why']}",
            "its requests until then are on file, and count for nothing: the level was begun anew, if it could be",
            "see the server's log",
        )
        for row in journal
        if row["what"] == "lost"
    ]


def _told(name: str, checks: Sequence[Check]) -> dict[str, Any]:
    """One check over all variants: failed if one failed, unknown if none could tell."""
    passed = [check.passed for check in checks]
    details = [warning.what for check in checks for warning in check.warnings] + [
        c.unknown for c in checks if c.unknown
    ]
    known = False if False in passed else True if True in passed else None
    return {"name": name, "passed": known, "detail": "; ".join(dict.fromkeys(details))}


def _rows(
    run: dict[str, Any], variant: str, records: Sequence[TurnRecord], samples: Samples, pulses: Samples
) -> Iterator[LevelRow]:
    """The levels that were played to their end."""
    levels: dict[tuple[str, int], list[TurnRecord]] = {}
    for record in records:
        levels.setdefault((record.case, record.concurrency), []).append(record)
    told, felt = _by_level(samples), _by_level(pulses)
    facts = run["variants"][variant]
    server, roof = _server(run, facts), facts.get("roof")
    for level in run["levels"]:
        name = (level["case"], level["concurrency"])
        found = levels.get(name, [])
        ended = sum(record.turn > 0 and record.status != "cut" for record in found)
        if level["variant"] == variant and ended == level["requests"] * run["repeats"]:
            own, pulse = told.get(name, []), felt.get(name, [])
            known = Speed(**{name: roof[name] for name in CONSTANTS}) if roof else None
            yield stats.reduce(found, own, run["typical"]["shared_tokens"], server.max_seqs, pulse, known)


def _by_level(samples: Samples) -> dict[tuple[str, int], list[dict[str, Any]]]:
    found: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for sample in samples:
        found.setdefault((sample["case"], sample["concurrency"]), []).append(sample)
    return found


def _server(run: dict[str, Any], facts: dict[str, Any]) -> Server:
    told = facts.get("server", {})
    arrivals = run["workload"]["file"].get("arrivals") or {}
    tokens = told.get("cache", {}).get("tokens")
    return Server(tokens, _max_seqs(told.get("command")), run["typical"], bool(arrivals.get("sessions_per_s")))


def _max_seqs(command: str | None) -> int | None:
    """Of the last that was given, which is the one that holds."""
    values = re.findall(r"--max[-_]num[-_]seqs[ =](\d+)", command or "")
    return int(values[-1]) if values else None


def _verdict(rows: Sequence[LevelRow], records: Sequence[TurnRecord], slo: Slo, server: Server) -> dict[str, Any]:
    """Of one variant."""
    realistic = _case(rows, "realistic")
    turns: dict[int, list[TurnRecord]] = {row.concurrency: [] for row in realistic}
    for record in records:
        if record.case == "realistic" and record.turn > 0 and record.concurrency in turns:
            turns[record.concurrency].append(record)
    told = [row for row in realistic if not row.why_none]  # the others are evidence of nothing but a broken promise
    found, top = knee.knee(told), knee.ceiling(realistic, slo)
    bracket = [found.lo, found.hi] if found else None
    below = found is None and knee.from_the_start(told)
    broken_promise = bool(told) and top != told[-1].concurrency
    seen = _seen(found, below, broken_promise)
    reason = cause.cause(told, *_compared(told, found, top), server, seen) if told else None
    worst = _case(rows, "worst")
    ends = (worst[0].concurrency, worst[-1].concurrency) if len(worst) > 1 else None
    saturated = cause.cause(worst, *ends, server) if ends else None
    return {
        "knee": bracket,
        "below": told[0].concurrency if below else None,
        "seen_in": found.seen_in if found else None,
        "knee_confidence": _knee_confidence(found, below, told, turns),
        "ceiling": top,
        "ceiling_confidence": knee.ceiling_confidence(slo, turns[top], _above(turns, top)) if top is not None else None,
        "ceiling_between": knee.ceiling_between(slo, turns, top),
        "slo": slo.text,
        "highest": told[-1].concurrency if told else None,
        "burst": _burst(turns, top, slo) if broken_promise and not server.open_loop else None,
        "failed": [row.concurrency for row in realistic if row.why_none],
        "predicted_knee": server.fits,
        "cause": reason.sentence if reason else None,
        "binding": reason.binding if reason else None,
        "shares": reason.shares if reason else None,
        "compared": [reason.healthy, reason.broken] if reason else None,
        "worst_case": asdict(saturated) if saturated else None,
        "prediction": cause.prediction(told, (found.lo, found.hi) if found else None, server),
        "luck": _luck(realistic, found),
        "cache_worth": _cache_worth(rows),
        "sdk": _sdk(realistic, _case(rows, "openai")),
    }


def _sdk(ours: Sequence[LevelRow], theirs: Sequence[LevelRow]) -> list[dict[str, Any]]:
    """Level by level, what users of the official SDK saw, and what there was to be seen."""
    seen = {row.concurrency: row for row in ours}
    pairs = [(seen[row.concurrency], row) for row in theirs if row.concurrency in seen]
    return [{"level": row.concurrency, **_saw("bench", own), **_saw("sdk", row)} for own, row in pairs]


def _saw(who: str, row: LevelRow) -> dict[str, float | None]:
    told = ("ttft_p50_s", "ttft_p99_s", "req_per_s", "client_cpu")
    return {f"{who}_{name}": None if stats.is_limit(row, name) else _number(getattr(row, name)) for name in told}


def _case(rows: Sequence[LevelRow], case: str) -> list[LevelRow]:
    return sorted((row for row in rows if row.case == case), key=lambda row: row.concurrency)


def _knee_confidence(
    found: Knee | None, below: bool, rows: Sequence[LevelRow], turns: dict[int, list[TurnRecord]]
) -> float | None:
    if found:
        return knee.knee_confidence(found, rows, turns[found.lo], turns[found.hi])
    return knee.absence_confidence(turns[rows[0 if below else -1].concurrency], below) if rows else None


def _above(turns: dict[int, list[TurnRecord]], level: int) -> list[TurnRecord]:
    return next((found for higher, found in sorted(turns.items()) if higher > level), [])


def _compared(rows: Sequence[LevelRow], found: Knee | None, top: int | None) -> tuple[int, int]:
    """The last healthy level and the one to be explained: across the knee, else the ceiling, else from end to end."""
    if found:
        return found.lo, found.hi
    levels = [row.concurrency for row in rows]
    above = [level for level in levels if top is None or level > top]
    return (top, above[0]) if top is not None and above else (levels[0], levels[-1])


def _burst(turns: dict[int, list[TurnRecord]], top: int | None, slo: Slo) -> dict[str, int] | None:
    """Where the promise breaks: is it by those who open the first sessions, all at once?"""
    level = next((level for level in sorted(turns) if top is None or level > top), None)
    if level is None or not slo.metric.startswith("ttft"):
        return None
    over = [one for one in turns[level] if stats.least(one) > slo.limit]
    first = sum(one.turn == 1 and one.session < level for one in over)
    return {"level": level, "over": len(over), "first": first} if 2 * first > len(over) else None


def _seen(found: Knee | None, below: bool, broken_promise: bool) -> cause.Seen:
    """What made us call a level broken."""
    if below or (found and found.seen_in == knee.SEEN_IN[True]):
        return "lost tokens"
    return "promise" if found is None and broken_promise else ""


def _luck(rows: Sequence[LevelRow], found: Knee | None) -> dict[str, Any] | None:
    """The two cohorts at the first level past the knee."""
    row = next((row for row in rows if found and row.concurrency == found.hi), None)
    if row is None or not row.unlucky:
        return None
    return {
        "level": row.concurrency,
        "unlucky": row.unlucky,
        "requests": row.requests,
        "first_turn": row.first_unlucky_turn,
        "lucky_p50_s": _number(row.lucky_p50_s),
        "unlucky_p50_s": _number(row.unlucky_p50_s),
    }


def _searched(told: Any, verdict: dict[str, Any], rows: Sequence[LevelRow]) -> dict[str, Any] | None:
    """What was predicted beside what was found, and what that took."""
    if not told or "prediction" not in told:
        return None
    realistic = _case(rows, "realistic")
    said, found, highest = told["prediction"], verdict["knee"], verdict["highest"] or 0
    healthy = found[0] if found else 0 if verdict["below"] else highest
    off = {"knee": said["knee"] - healthy, "ceiling": said["ceiling"] - (verdict["ceiling"] or 0)}
    if not found and not verdict["below"]:  # none up to there: no less is known
        off["knee"] = min(0, off["knee"])
    if verdict["ceiling"] == highest:
        off["ceiling"] = min(0, off["ceiling"])
    return {
        "predicted_knee": said["knee"],
        "predicted_ceiling": said["ceiling"],
        "how": said["how"],
        "off": off,
        "why": _surprise(told, off, verdict),
        "levels": len(realistic),
        "requests": sum(row.requests for row in realistic),
        "server_s": sum(row.duration_s for row in realistic),
        "over": told.get("over"),
    }


def _surprise(told: dict[str, Any], off: dict[str, int], verdict: dict[str, Any]) -> str | None:
    """Why it was not as predicted, where that is more than two sessions off."""
    if abs(off["knee"]) > SURPRISE and verdict["prediction"]:
        return str(verdict["prediction"]["explanation"])
    if max(map(abs, off.values())) <= SURPRISE:
        return None
    if off["ceiling"] < 0 and verdict["knee"] and (verdict["ceiling"] or 0) >= verdict["knee"][1]:
        return "the promise outlasts the cache: reading lost history again takes less time than it allows"
    if "as slow as assumed" in (how := told.get("corrected", {}).get("how", "")):
        return f"the server is {how.removeprefix('simulated, ')}; {verdict['cause']}"
    return verdict["cause"] or "nothing that was measured explains it"


def _number(value: float | None) -> float | None:
    """None where it is a failure: run.json is JSON, which knows no infinity."""
    return value if value is not None and math.isfinite(value) else None


def _foretold(said: dict[str, Any] | None, rows: Sequence[LevelRow], verdict: dict[str, Any]) -> dict[str, Any] | None:
    """How far off it was."""
    if not said or not (levels := foretold.errors(said["levels"], rows)):
        return None
    over = verdict["knee"][1] if verdict["knee"] else verdict["below"]
    return {"source": said["source"], "levels": levels, **foretold.typical(levels, over)}


def _card(rows: Sequence[LevelRow], ceiling: int | None, facts: dict[str, Any], turns: float) -> dict[str, Any] | None:
    """What they did, and what a thousand tasks took, where the promise is just kept; if it never is, at the top."""
    told = [row for row in _case(rows, "realistic") if not row.why_none]
    if not told:
        return None
    row = next((row for row in told if row.concurrency == ceiling), told[-1])
    return {
        "level": row.concurrency,
        "turns": turns,
        **{name: getattr(row, name) for name in OF_CARD},
        "usd_per_1000_tasks": cost.in_money(cost.usd_h(facts["launch"] or {}), row.req_per_s, turns),
        "joules_per_1000_tasks": cost.of_tasks(row.power_w, row.req_per_s, turns),
    }


def _cache_worth(rows: Sequence[LevelRow]) -> dict[str, Any] | None:
    """At the highest level at which all three were taken: what is answered with all, some and none of it cached."""
    rates = {
        case: {row.concurrency: row.req_per_s for row in rows if row.case == case and row.req_per_s}
        for case in ("best", "realistic", "worst")
    }
    shared = set.intersection(*(set(levels) for levels in rates.values()))
    if not shared:
        return None
    level = max(shared)
    return {"level": level, **{case: levels[level] for case, levels in rates.items()}}
