"""Numbers become checks: reasons to believe them or not, each with what to try. Never changes a number."""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Any

import numpy as np

from bench import manifest, tables
from bench.records import TurnRecord
from bench.stats import COMPONENTS, LevelRow, growth

ERROR_SHARE = 0.01
COUNTER_SHARE = 0.01
LATE_SHARE = 0.01  # of p50 TTFT
LATE_FLOOR_S = 0.002
MOVED = 0.10  # of p99 TTFT, by the client
MOVED_FLOOR_S = 0.01  # less than this moves no promise anybody makes
CLIENT_BUSY = 0.70  # of a core
ROOM = "give the client a core of its own, or fewer sessions"
DRIFT = 0.25  # of TTFT, from the beginning of a healthy level to its end
REPEAT_SPREAD = 0.05  # of req/s
BUSY = 0.25  # of the machine's processor time, before the run
OUTSIDE = 0.5  # of mean TTFT: on one machine that is the client, not the way to the server
OUTSIDE_FLOOR_S = 0.05
TIMES_S = 0.001  # by which times may run backwards: older runs did not put them in order
STATUSES = ("ok", "failed", "truncated", "timeout", "cut")

Samples = Sequence[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Warning:
    what: str
    why: str
    try_next: str
    fatal: bool = False  # the run is not valid


@dataclass(frozen=True, slots=True)
class Evidence:
    """Of one variant: what was planned, what was sent, what the server told."""

    run: dict[str, Any]
    variant: str
    records: Sequence[TurnRecord]
    rows: Sequence[LevelRow] = ()
    samples: Samples = ()
    healthy: int | None = None  # the last level before the knee; None: there is no knee
    pulses: Samples = ()

    @property
    def facts(self) -> dict[str, Any]:
        facts: dict[str, Any] = self.run["variants"][self.variant]
        return facts

    @property
    def sent(self) -> list[TurnRecord]:
        return [record for record in self.records if record.turn > 0]


@dataclass(frozen=True, slots=True)
class Check:
    name: str
    warnings: tuple[Warning, ...] = ()
    unknown: str = ""  # why it could not be checked

    @property
    def passed(self) -> bool | None:
        return None if self.unknown else not any(warning.fatal for warning in self.warnings)


def audit(seen: Evidence) -> list[Check]:
    """All of them, in the order in which one would doubt."""
    return [Check(name, *_asked(check, seen)) for name, check in CHECKS.items()]


# What can be said of one level by itself.
OF_A_LEVEL = ("few requests failed", "streams were whole", "prompts and answers had their length",
              "the client was on time", "every level began cold")  # fmt: skip


def doubts(seen: Evidence) -> list[str]:
    """What about one level, played whole, would make a run invalid."""
    return [warning.what for name in OF_A_LEVEL for warning in _asked(CHECKS[name], seen)[0] if warning.fatal]


def _asked(check: "Asked", seen: Evidence) -> tuple[tuple[Warning, ...], str]:
    said = list(check(seen))
    unknown = [one for one in said if isinstance(one, str)]
    return tuple(one for one in said if isinstance(one, Warning)), "; ".join(unknown)


def _name(row: LevelRow) -> str:
    return f"{row.variant}, {row.case}, C = {row.concurrency}"


def ledger(run: dict[str, Any], records: Sequence[TurnRecord]) -> dict[str, int]:
    """Every request that was planned has one outcome."""
    planned = sum(level["requests"] for level in run["levels"]) * run["repeats"]
    sent: Counter[str] = Counter(record.status for record in records if record.turn > 0)
    return {"planned": planned, **{status: sent[status] for status in STATUSES}, "never_sent": planned - sent.total()}


def _ledger(seen: Evidence) -> Iterator[Warning]:
    planned = sum(level["requests"] for level in seen.run["levels"] if level["variant"] == seen.variant)
    missing = planned * seen.run["repeats"] - len(seen.sent)
    if missing:
        yield Warning(
            f"{seen.variant}: {missing:,} of {planned * seen.run['repeats']:,} planned requests were never sent"
            if missing > 0
            else f"{seen.variant}: {-missing:,} requests more than planned were sent",
            "the outcomes do not add up to the plan",
            "go on with it: bench sweep --resume RUN; levels that were not played to their end have no row",
            fatal=True,
        )


def _samples(seen: Evidence) -> Iterator[str]:
    """Not a reason to distrust: such a percentile is printed as a lower limit."""
    short = [row for row in seen.rows if row.case == "realistic" and row.needs_p99]
    if short:
        most = max(row.needs_p99 or 0 for row in short)
        yield f"p99 is a lower limit at {len(short)} levels: {most} more sessions a level would give its upper one"


def _errors(seen: Evidence) -> Iterator[Warning]:
    for row in seen.rows:
        if row.errors:
            late = row.timeouts or 0  # a limit to what is known, and no lack of it: percentiles say "at least"
            how = f"were not answered: {row.errors - late} failed, {late} timed out" if late else "failed"
            yield Warning(
                f"{_name(row)}: {row.why_none or f'{row.errors} of {row.requests} requests {how}'}",
                "percentiles of the others would be those of the survivors"
                if row.why_none
                else "failures rank as infinitely slow in its percentiles, who timed out as no faster than that",
                "see their `error` in requests.jsonl and the server's log",
                fatal=bool(row.why_none) or row.errors - late > ERROR_SHARE * row.requests,
            )


def _streams(seen: Evidence) -> Iterator[Warning]:
    cut = [record for record in seen.sent if record.status == "truncated"]
    if cut:
        yield Warning(
            f"{len(cut)} of {len(seen.sent)} streams ended before their end was said",
            f"without [DONE] or a finish reason an answer may be half of one: {cut[0].error}",
            "look into the server's log, and at whatever stands between it and bench",
            fatal=len(cut) > ERROR_SHARE * len(seen.sent),
        )


def _sizes(seen: Evidence) -> Iterator[Warning]:
    """Exact where the target takes token ids, within 2 % where it takes text."""
    forced = seen.facts["dialect"]["name"].startswith("token ids")
    slack = 0.0 if forced else 0.02
    counted = [record for record in seen.records if record.status == "ok" and record.prompt_tokens is not None]
    prompts = [
        r for r in counted if abs((r.prompt_tokens or 0) - r.planned_prompt_tokens) > slack * r.planned_prompt_tokens
    ]
    answers = [r for r in counted if r.output_tokens is not None and r.output_tokens != r.planned_output_tokens]
    for what, wrong in (("prompt", prompts), ("answer", answers)):
        if wrong:
            one = wrong[0]
            planned = one.planned_prompt_tokens if what == "prompt" else one.planned_output_tokens
            got = one.prompt_tokens if what == "prompt" else one.output_tokens
            yield Warning(
                f"{len(wrong)} of {len(counted)} {what}s had another length than planned ({planned:,} became {got:,})",
                "the server's usage counts what was really read and written",
                "compare levels of this run with each other, not with other runs",
                fatal=forced,
            )


def _client(seen: Evidence) -> Iterator[Warning | str]:
    """Its own time is in every TTFT: a little is a warning, and what could have moved the tail is fatal."""
    if not seen.pulses:
        yield "the client did not tell how it did"
    # what the SDK is late is what is measured there; and beside what there are no percentiles, nothing can be late
    rows = [row for row in seen.rows if row.case != "openai" and not row.why_none]
    late = [row for row in rows if _late_share(row, "ttft_p50_s") > LATE_SHARE and (row.late_p99_s or 0) > LATE_FLOOR_S]
    if late:
        worst = max(late, key=lambda row: _late_share(row, "ttft_p99_s"))
        yield Warning(
            f"the client was late at {len(late)} levels, most at {_name(worst)}: {(worst.late_p99_s or 0) * 1e3:.1f} ms"
            f" at p99, {_late_share(worst, 'ttft_p99_s'):.1%} of that level's p99 TTFT",
            "what it waits is part of the TTFT it reports",
            ROOM,
        )
    for row in rows:
        moved = _moved(row, _open_loop(seen.run))
        if moved > MOVED_FLOOR_S and moved > MOVED * (row.ttft_p99_s or 0.0):
            yield Warning(
                f"{_name(row)}: the client could have moved the tail: {moved * 1e3:.0f} ms of its own at p99, where"
                f" TTFT is {(row.ttft_p99_s or 0.0) * 1e3:,.0f} ms",
                "it sent late, or did not look for as long; the server had nothing to do with it",
                ROOM,
                fatal=True,
            )
        if (row.client_cpu or 0.0) > CLIENT_BUSY:
            yield Warning(
                f"{_name(row)}: the client took {row.client_cpu:.0%} of a core",
                "past that it soon falls behind, and what it is late is part of the TTFT it reports",
                "fewer sessions, or a faster core",
            )
    for row in () if _open_loop(seen.run) else rows:
        whole = sum(getattr(row, f"wait_{name}_s") or 0.0 for name in COMPONENTS)
        ours = row.wait_client_s or 0.0
        if seen.facts["launch"] and ours > OUTSIDE_FLOOR_S and ours > OUTSIDE * whole:
            yield Warning(
                f"{_name(row)}: {ours / whole:.0%} of TTFT passed outside the server, {ours * 1e3:.0f} ms on average",
                "the server had answered; the client had not sent or not read yet",
                ROOM,
                fatal=True,
            )


def _moved(row: LevelRow, open_loop: bool) -> float:
    """By how much the client may have moved p99: it sent late, left first tokens unread, or did not look at all.

    Where sessions arrive at a rate, waiting for one of our C places counts as late by design."""
    late = 0.0 if open_loop else (row.ttft_p99_s or 0.0) - (row.punctual_p99_s or row.ttft_p99_s or 0.0)
    return max(late if math.isfinite(late) else 0.0, row.lag_p99_s or 0.0, row.read_late_p99_s or 0.0)


def _open_loop(run: dict[str, Any]) -> bool:
    """There, a session waits for one of our C places by design."""
    return bool((run["workload"]["file"].get("arrivals") or {}).get("sessions_per_s"))


def _late_share(row: LevelRow, of: str) -> float:
    whole = getattr(row, of)
    return row.late_p99_s / whole if row.late_p99_s is not None and whole else 0.0


def _cold(seen: Evidence) -> Iterator[Warning | str]:
    """No prompt can be cached beyond what its session, or the level's warm-up, had sent before."""
    slack = max(64, seen.facts["server"]["cache"]["block_size"] or 0)
    told = [record for record in seen.sent if record.cached_tokens is not None]
    warm = [record for record in told if (record.cached_tokens or 0) > record.reusable_tokens + slack]
    if not told:
        yield "the server does not tell what it had cached"
    if warm:
        yield Warning(
            f"{len(warm)} of {len(told)} prompts were cached further than anything this level had sent",
            "the same content had been sent before, so the level was not cold",
            "use another --seed, or a server that nobody else uses",
            fatal=True,
        )


def _reuse(seen: Evidence) -> Iterator[Warning | str]:
    """The server's own counter of hit tokens against the sum over our requests, over the whole run."""
    counted = _grown(seen, "prefix_hits")
    ours = [record.cached_tokens for record in seen.records if record.cached_tokens is not None]
    if counted is None or not ours:
        yield "the server does not count hits"
        return
    if any(record.status == "cut" for record in seen.records):
        yield "requests were cut, of which only the server knows what it had cached"
        return
    total = sum(ours)
    if abs(counted - total) > COUNTER_SHARE * max(total, 1):
        yield Warning(
            f"the server counted {counted:,.0f} cached tokens, our requests add up to {total:,}",
            "others use this server, or it counts otherwise than it tells",
            "measure a server that nobody else uses",
        )


def _grown(seen: Evidence, name: str) -> float | None:
    """How far one of the server's counters went, over all levels."""
    levels = [list(level) for _, level in groupby(seen.samples, lambda s: (s["case"], s["concurrency"], s["repeat"]))]
    grown = [value for level in levels if (value := growth(level, name)) is not None]
    return sum(grown) if grown else None


def _steady(seen: Evidence) -> Iterator[Warning]:
    """Of levels before the knee, where nothing should change while they last; past it the cache is still filling."""
    plays: dict[tuple[int, int], list[TurnRecord]] = {}
    for record in seen.sent:
        if record.case == "realistic" and (record.ttft_s or 0.0) > 0:
            plays.setdefault((record.concurrency, record.repeat), []).append(record)
    for (concurrency, _), turns in sorted(plays.items()):
        least, most = _drift(turns)
        if (seen.healthy is None or concurrency <= seen.healthy) and (least > DRIFT or most < -DRIFT):
            yield Warning(
                f"{seen.variant}, C = {concurrency}: TTFT drifted by {least:+.0%} to {most:+.0%} within the level",
                "a level that has not settled has no percentile of its own",
                "longer levels (--requests), or find what else changes on that machine",
            )


def _drift(turns: Sequence[TurnRecord]) -> tuple[float, float]:
    """95 % limits of how far TTFT moved from the beginning to the end, turns of the same depth compared."""
    depth = np.array([record.turn for record in turns])
    log = np.log([record.ttft_s or 1.0 for record in turns])
    when = np.array([record.sent_s for record in turns])
    when = (when - when.min()) / max(float(np.ptp(when)), 1e-9)
    for turn in np.unique(depth):
        here = depth == turn
        log[here] -= log[here].mean()
        when[here] -= when[here].mean()
    square = float((when**2).sum())
    sessions = np.array([record.session for record in turns])
    if square < 0.5 or len(np.unique(sessions)) < 10:  # equal depths stood side by side, not one after another
        return 0.0, 0.0
    slope = float((when * log).sum() / square)
    rest = log - slope * when
    order = np.argsort(sessions, kind="stable")
    each = np.split((when * rest)[order], np.flatnonzero(np.diff(sessions[order])) + 1)
    error = sum(float(session.sum()) ** 2 for session in each) ** 0.5 / square
    low, high = np.expm1([slope - 2 * error, slope + 2 * error])
    return float(low), float(high)


def _clocks(seen: Evidence) -> Iterator[Warning | str]:
    """Durations are of a clock that nobody sets; but it stands still while the machine sleeps."""
    levels: dict[str, list[tuple[float, float]]] = {}
    for pulse in seen.pulses:
        if pulse.get("stepped_s") is not None:
            place = f"{seen.variant}, {pulse['case']}, C = {pulse['concurrency']}"
            levels.setdefault(place, []).append((pulse["stepped_s"], pulse.get("suspended_s") or 0.0))
    if not levels:
        yield "the client did not tell of its clocks"
    for place, told in levels.items():
        stepped, slept = map(max, zip(*told, strict=True))
        if slept:
            yield Warning(
                f"{place}: the machine was suspended for {slept:.1f} s",
                "requests that were under way waited for longer than any clock of ours says",
                "a machine that does not go to sleep (systemd-inhibit), and run again",
            )
        if stepped:
            yield Warning(
                f"{place}: the wall clock was set by {stepped:.3f} s",
                "the kernel stamps arrivals by it, so single times may be wrong by as much; or a virtual machine stood",
                "let the clock settle first, or have it slewed and not stepped",
            )
    yield from _backwards(seen)


def _backwards(seen: Evidence) -> Iterator[Warning]:
    if wrong := [record for record in seen.records if not _in_order(record)]:
        one = wrong[0]
        yield Warning(
            f"{seen.variant}: the times of {len(wrong)} requests run backwards",
            f"as those of session {one.session}, turn {one.turn} at C = {one.concurrency}: what they took is not known",
            "run it again; if it stays, that is a mistake of bench",
        )


def _in_order(record: TurnRecord) -> bool:
    times = (record.intended_s, record.sent_s, record.first_s, record.last_s, record.end_s)
    return all(a <= b + TIMES_S for a, b in pairwise(time for time in times if time is not None))


def _alone(seen: Evidence) -> Iterator[Warning | str]:
    """Nobody else's requests on the server, nobody else's work on the machine."""
    answered = _grown(seen, "first_tokens")
    ours = len(seen.records)
    if answered is None:
        yield "the server does not count its answers"
    elif answered > ours * (1 + COUNTER_SHARE):
        yield Warning(
            f"the server answered {answered:,.0f} requests while ours were {ours:,}",
            "what others ask takes its time and its cache",
            "measure a server that nobody else uses",
            fatal=True,
        )
    busy = seen.run["machine"].get("busy")
    if busy is not None and busy > BUSY and seen.facts["launch"]:
        yield Warning(
            f"the machine was busy before the run: others took {busy:.0%} of its processor time",
            "other work takes time from client and server",
            "wait until it is idle, and run again",
        )


def _settings(seen: Evidence) -> Iterator[Warning | str]:
    told = seen.facts.get("settings", [])
    if len(told) < 2 or not any(map(_said, told[-1].values())):
        yield "the server did not tell them again after the run"
        return
    was, is_now = told[0], told[-1]
    changed = [name for name in was if _said(was[name]) and _said(is_now.get(name)) and was[name] != is_now[name]]
    if changed:
        yield Warning(
            f"the server's {', '.join(changed)} changed while it was measured",
            f"before: {was}; after: {is_now}",
            "measure a server that nobody restarts",
            fatal=True,
        )


def _said(setting: Any) -> bool:
    """An answer that did not come is no change."""
    return any(value is not None for value in setting.values()) if isinstance(setting, dict) else bool(setting)


def _repeats(seen: Evidence) -> Iterator[Warning | str]:
    if seen.run["repeats"] < 2:
        yield "each level was played once: --repeats 3 shows how far a repeat moves"
    moved = [row for row in seen.rows if row.repeat_spread is not None and row.repeat_spread > REPEAT_SPREAD]
    if moved:
        worst = max(moved, key=lambda row: row.repeat_spread or 0)
        yield Warning(
            f"req/s of {len(moved)} levels moved between repeats, most at {_name(worst)}: by {worst.repeat_spread:.1%}",
            "a difference between runs smaller than that is none",
            "past the knee this is usual; before it, look for other work on the machine",
        )


def _depth(seen: Evidence) -> Iterator[Warning]:
    """A level whose sessions never grew to full depth never asked the cache for what that many sessions need."""
    realistic = sorted((r for r in seen.sent if r.case == "realistic"), key=lambda record: record.concurrency)
    deepest = seen.run["workload"]["file"].get("session", {}).get("turns")
    if not isinstance(deepest, int):
        return  # sessions of many lengths end at many turns
    shallow = [
        concurrency
        for concurrency, group in groupby(realistic, lambda record: record.concurrency)
        if max(record.turn for record in group) < deepest
    ]
    if shallow:
        levels = ", ".join(map(str, shallow))
        yield Warning(
            f"{seen.variant}: at C = {levels} no session reached its last turn",
            "the requests were shared out among more sessions than they could carry to the end, as in the study",
            f"--requests {max(shallow) * deepest} takes every session to its end",
        )


Asked = Callable[[Evidence], Iterator[Warning] | Iterator[str] | Iterator[Warning | str]]
CHECKS: dict[str, Asked] = {
    "every planned request has an outcome": _ledger,
    "few requests failed": _errors,
    "streams were whole": _streams,
    "prompts and answers had their length": _sizes,
    "the client was on time": _client,
    "every level began cold": _cold,
    "the server's hits are those of our design": _reuse,
    "sessions grew to full depth": _depth,
    "nothing drifted within a level": _steady,
    "clocks ran evenly": _clocks,
    "nobody else used server or machine": _alone,
    "settings were the same afterwards": _settings,
    "enough sessions for every percentile": _samples,
    "repeats agree": _repeats,
}


def departures(run: dict[str, Any]) -> list[str]:
    """What is not as the shipped recipe has it; such a run is as valid as any, and never passes for the recipe's."""
    found: list[str] = []
    for work in manifest.workloads(run):
        if not _shipped("workloads", work["name"], work.get("digest")):
            found.append(f"workload {work['name']} is not a shipped one")
    for name, facts in run["variants"].items():
        found += [f"{name}: {text}" for text in _departs(facts["launch"])]
    if run["seed"] != 0:
        found.append(f"seed {run['seed']}")
    if run.get("search"):
        return [*found, "--search: levels end when they are certain"]
    fewest = min((level["requests"] for level in run["levels"] if level["case"] == "realistic"), default=200)
    return [*found, f"{fewest} requests a level instead of 200"] if fewest < 200 else found


def _departs(launch: dict[str, Any] | None) -> Iterator[str]:
    if launch is None:
        yield "a server that bench did not start"
        return
    if not _shipped("launch", launch["name"], launch["digest"]):
        yield f"{launch['name']} is not a shipped machine"
    if launch["kv"] not in launch["file"]["kv"]:
        yield f"precision {launch['kv']}"
    if launch["model"] != launch["file"]["serve"]["model"]:
        yield f"model {launch['model']}"
    if launch["tp"] != 1:
        yield f"--tensor-parallel-size {launch['tp']}"
    if not launch["prefix_caching"]:
        yield "no prefix caching"
    if launch["extra"]:
        yield " ".join(launch["extra"])


def _shipped(folder: str, name: str, digest: str | None) -> bool:
    return digest in tables.digests(folder, name)
