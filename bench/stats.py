"""Records become numbers: a level as a row, and the one table that says how each number is called and printed."""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from operator import attrgetter
from typing import Any, Literal

import numpy as np

from bench import roofline, sample, waits
from bench.records import TurnRecord
from bench.speed import Speed
from bench.waits import Told

UNLUCKY_TOKENS = 1000  # a request that lost more than about a turn's worth of its history
COMPONENTS = ("lost", "slot", "blocks", "preempted", "compute", "client")  # of a wait
HEADLINE = ("ttft_p50_s", "ttft_p99_s", "req_per_s")  # what a prediction is made of
PERCENTILES = {"p50": 0.50, "p95": 0.95, "p99": 0.99}
MANY_FAILED = 0.10  # of the requests: above it a percentile would say how the server fails, and not how slow it is


@dataclass(frozen=True, slots=True)
class LevelRow:
    """A level as numbers; a row of levels.csv."""

    variant: str
    case: str
    concurrency: int
    requests: int
    errors: int
    ttft_p50_s: float | None
    ttft_p95_s: float | None
    ttft_p99_s: float | None
    ttft_p99_lo_s: float | None
    ttft_p99_hi_s: float | None
    req_per_s: float | None
    eligible_hit_rate: float | None
    prefix_hit_rate: float | None
    lost_tokens: int | None
    preemptions: float | None
    kv_usage_max: float | None
    duration_s: float
    unlucky: int | None
    sessions: int
    tpot_p50_s: float | None
    late_p99_s: float | None
    ttft_p50_lo_s: float | None = None
    ttft_p50_hi_s: float | None = None
    ttft_p95_lo_s: float | None = None
    ttft_p95_hi_s: float | None = None
    needs_p50: int | None = None  # more sessions until the percentile has its floor
    needs_p95: int | None = None
    needs_p99: int | None = None
    lucky_p50_s: float | None = None  # TTFT of those who kept their history
    lucky_p95_s: float | None = None
    lucky_p99_s: float | None = None
    unlucky_p50_s: float | None = None  # and of those who lost it
    unlucky_p95_s: float | None = None
    unlucky_p99_s: float | None = None
    first_unlucky_turn: int | None = None
    running_max: float | None = None
    waiting_max: float | None = None
    working_set_tokens: int | None = None  # the most that the sessions under way had sent and received, all at once
    repeats: int = 1
    repeat_spread: float | None = None  # of req/s over the repeats: (most - least) / mean
    # What the mean TTFT is made of
    wait_client_s: float | None = None
    wait_slot_s: float | None = None
    wait_blocks_s: float | None = None
    wait_lost_s: float | None = None
    wait_preempted_s: float | None = None
    wait_compute_s: float | None = None
    # Of the client
    punctual_p99_s: float | None = None  # p99 of TTFT had every turn been sent when it was due
    read_late_p99_s: float | None = None  # for how long first tokens lay unread; not in TTFT
    lag_p99_s: float | None = None  # of its event loop: a hundredth of the time it was farther behind
    client_cpu: float | None = None  # of a core, by its busiest process
    # Of those that were not answered
    timeouts: int | None = None  # among the errors
    at_least: str = ""  # the percentiles of which only that is known, for requests timed out: "p95 p99"
    why_none: str = ""  # why there are no percentiles
    # Of the card
    prefill_tokens_per_s: float | None = None
    decode_tokens_per_s: float | None = None
    matrix_share: float | None = None  # of what it could have done, at least
    bandwidth_share: float | None = None
    power_w: float | None = None  # of all the server's cards, in the mean


def by_session(turns: Iterable[TurnRecord]) -> list[list[TurnRecord]]:
    found: dict[tuple[int, int], list[TurnRecord]] = {}
    for record in turns:
        found.setdefault((record.repeat, record.session), []).append(record)
    return list(found.values())


def least(record: TurnRecord) -> float:
    """Its TTFT, or what that must exceed: who was given up had waited so long, and who failed never got an answer."""
    if record.status in ("failed", "truncated"):
        return math.inf
    if record.first_s is not None:
        return max(0.0, record.first_s - record.intended_s)
    return math.inf if record.status == "ok" else max(0.0, record.end_s - record.intended_s)


def ttft(record: TurnRecord) -> float:
    """Infinite where none was seen: what is not known is never taken for fast."""
    return math.inf if record.first_s is None else least(record)


def is_unlucky(record: TurnRecord) -> bool | None:
    lost = record.lost_tokens
    return None if lost is None else lost > UNLUCKY_TOKENS


def reduce(
    records: Sequence[TurnRecord],
    samples: Sequence[dict[str, Any]],
    shared_tokens: int = 0,
    max_seqs: int | None = None,
    pulses: Sequence[dict[str, Any]] = (),
    roof: Speed | None = None,
) -> LevelRow:
    """All repeats of one level of one case, with what server and client told of themselves while it ran."""
    turns = [record for record in records if record.turn > 0]
    first = turns[0]
    numbers = sorted({record.repeat for record in turns})
    repeats = [[r for r in turns if r.repeat == n] for n in numbers]
    whole = [[r for r in records if r.repeat == n] for n in numbers]
    sessions = by_session(turns)
    told = [(record, tokens) for record in turns if (tokens := record.lost_tokens) is not None]
    lost = [tokens for _, tokens in told]
    duration = sum(lasted(repeat) for repeat in repeats)
    good = sum(record.status == "ok" for record in turns)
    rates = [rate for repeat in repeats if (rate := throughput(repeat)) is not None]
    row = LevelRow(
        variant=first.variant,
        case=first.case,
        concurrency=first.concurrency,
        requests=len(turns),
        errors=len(turns) - good,
        req_per_s=good / duration if duration > 0 else None,
        eligible_hit_rate=_eligible_hit_rate(told),
        prefix_hit_rate=_ratio(growth(samples, "prefix_hits"), growth(samples, "prefix_queries")),
        lost_tokens=sum(lost) if lost else None,
        preemptions=growth(samples, "preemptions"),
        kv_usage_max=_most(samples, "kv_usage"),
        duration_s=duration,
        unlucky=sum(tokens > UNLUCKY_TOKENS for tokens in lost) if lost else None,
        sessions=len(sessions),
        tpot_p50_s=sample.percentile([tpot for record in turns if (tpot := _tpot(record)) is not None], 0.50),
        late_p99_s=sample.percentile([record.late_s for record in turns if record.turn > 1], 0.99),
        running_max=_most(samples, "running"),
        waiting_max=_most(samples, "waiting"),
        working_set_tokens=max(_working_set(repeat, shared_tokens) for repeat in repeats),
        repeats=len(repeats),
        repeat_spread=(max(rates) - min(rates)) / (sum(rates) / len(rates)) if len(rates) > 1 else None,
        timeouts=sum(record.status == "timeout" for record in turns),
        why_none=(why_none := _why_none(turns)),
        **_percentiles(sessions),
        **_luck(told),
        **_waits(whole, samples, max_seqs),
        **roofline.reached(turns, duration, _pace(repeats, samples, "steps"), roof),
        power_w=_pace(repeats, samples, "energy_j"),
        **_client(turns, pulses),
    )
    return replace(row, **NO_PERCENTILES) if why_none else row


OF_THE_ANSWERED = re.compile("ttft|needs|tpot|punctual|wait_|(un)?lucky_p")
NO_PERCENTILES: dict[str, Any] = {
    "at_least": "",
    **{field.name: None for field in fields(LevelRow) if OF_THE_ANSWERED.match(field.name)},
}


def _why_none(turns: Sequence[TurnRecord]) -> str:
    """Too many failed; with what they said the most often, inert, for servers chose the words."""
    failed = [record for record in turns if record.status in ("failed", "truncated")]
    if len(failed) <= MANY_FAILED * len(turns):
        return ""
    said = Counter("".join(filter(str.isprintable, record.error or record.status))[:60].strip() for record in failed)
    often = ", ".join(f"{times}x {text}" for text, times in said.most_common(3)).replace("`", "'")
    return f"no percentiles: {len(failed)} of {len(turns)} requests failed ({often})"


def _client(turns: Sequence[TurnRecord], pulses: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What the client did to these numbers, and what it could have done."""
    unread = [record.read_late_s for record in turns if record.read_late_s is not None]
    return {
        "punctual_p99_s": sample.percentile([least(record) - record.late_s for record in turns], 0.99),
        "read_late_p99_s": sample.percentile(unread, 0.99),
        "lag_p99_s": _most(pulses, "lag_p99_s"),
        "client_cpu": max((pulse["cpu_s"] / pulse["wall_s"] for pulse in pulses if pulse["wall_s"] > 0), default=None),
    }


def _percentiles(sessions: list[list[TurnRecord]]) -> dict[str, Any]:
    """Of all requests. One that timed out counts as what it had waited in lower limits, and as infinite in upper ones.

    That needs no assumption. Kaplan and Meier's estimate, which gives a number where this gives a limit, takes it that
    who is given up would have gone on like the others; here the slow are given up because they are slow.
    """
    lows, highs = ([[of(record) for record in session] for session in sessions] for of in (least, ttft))
    at_least, at_most = (sorted(value for one in bound for value in one) for bound in (lows, highs))
    shares = list(PERCENTILES.values())
    lower = sample.intervals(lows, shares)
    upper = lower if at_least == at_most else sample.intervals(highs, shares)
    found: dict[str, Any] = {}
    unknown = []
    for (name, share), (low, _), (_, high) in zip(PERCENTILES.items(), lower, upper, strict=True):
        found[f"ttft_{name}_s"] = sample.percentile(at_least, share)
        found[f"ttft_{name}_lo_s"], found[f"ttft_{name}_hi_s"] = low, high
        found[f"needs_{name}"] = sample.needs(lows, share)
        if sample.percentile(at_most, share) != found[f"ttft_{name}_s"]:
            unknown.append(name)
    return found | {"at_least": " ".join(unknown)}


Lost = Sequence[tuple[TurnRecord, int]]  # requests of which the server told what was cached, and what they had lost


def _luck(told: Lost) -> dict[str, Any]:
    """TTFT of those who kept their history and of those who lost it, and the first turn at which one did."""
    found: dict[str, Any] = {}
    for cohort, wanted in (("lucky", False), ("unlucky", True)):
        values = sorted(ttft(record) for record, lost in told if (lost > UNLUCKY_TOKENS) is wanted)
        found |= {f"{cohort}_{name}_s": sample.percentile(values, share) for name, share in PERCENTILES.items()}
    broken = [record.turn for record, lost in told if lost > UNLUCKY_TOKENS]
    return found | {"first_unlucky_turn": min(broken, default=None)}


def _waits(
    repeats: Sequence[Sequence[TurnRecord]], samples: Sequence[dict[str, Any]], max_seqs: int | None
) -> dict[str, Any]:
    found = []
    for repeat in repeats:
        own = [row for row in samples if row["repeat"] == repeat[0].repeat]
        told = Told(max_seqs, _most(own, "kv_usage"), growth(own, "preemptions"), _server_ttft(repeat, own))
        if (wait := waits.split(repeat, told)) is not None:
            found.append(wait)
    if not found:
        return {}
    return {f"wait_{name}": sum(getattr(wait, name) for wait in found) / len(found) for name in asdict(found[0])}


def _server_ttft(records: Sequence[TurnRecord], samples: Sequence[dict[str, Any]]) -> float | None:
    """Mean, by the server's clock; the warm-ups, which it counts too, are taken out by ours."""
    total, count = growth(samples, "ttft_s"), growth(samples, "first_tokens")
    warm = [record.ttft_s or 0.0 for record in records if record.turn == 0]
    if total is None or count is None or count <= len(warm):
        return None
    return (total - sum(warm)) / (count - len(warm))


def _working_set(turns: Sequence[TurnRecord], shared_tokens: int) -> int:
    """A session holds its longest context until the next of its turns, and nothing once it is over."""
    turns = sorted(turns, key=attrgetter("session", "turn"))
    longest = [(one.prompt_tokens or one.planned_prompt_tokens) + (one.output_tokens or 0) for one in turns]
    begins = np.diff([one.session for one in turns], prepend=turns[0].session - 1) != 0
    own = np.maximum(0, np.array(longest) - shared_tokens)
    apart = np.cumsum(begins) * (own.max() + 1)  # so that each session's largest so far is its own
    held = np.maximum.accumulate(own + apart) - apart
    starts = np.flatnonzero(begins)
    sent = [one.sent_s for one in turns]
    ended = np.maximum.reduceat([one.end_s for one in turns], starts)
    last = np.append(starts[1:], len(turns)) - 1
    times = np.concatenate([sent, ended])
    steps = np.concatenate([held - np.where(begins, 0, np.roll(held, 1)), -held[last]])
    most = steps[np.lexsort((steps, times))].cumsum().max()
    return shared_tokens + max(0, int(most))


def lasted(turns: Sequence[TurnRecord]) -> float:
    return max(max(record.sent_s, record.end_s) for record in turns) - min(record.sent_s for record in turns)


def throughput(turns: Sequence[TurnRecord]) -> float | None:
    span = lasted(turns)
    return sum(record.status == "ok" for record in turns) / span if span > 0 else None


def _most(samples: Sequence[dict[str, Any]], name: str) -> float | None:
    return max((row[name] for row in samples if row.get(name) is not None), default=None)


def _eligible_hit_rate(told: Lost) -> float | None:
    eligible = sum(record.reusable_tokens for record, _ in told)
    return 1 - sum(lost for _, lost in told) / eligible if eligible else None


def _tpot(record: TurnRecord) -> float | None:
    first, last = record.first_s, record.last_s
    if record.status != "ok" or first is None or last is None or not record.output_tokens or record.output_tokens < 2:
        return None
    return max(0.0, last - first) / (record.output_tokens - 1)


def growth(samples: Sequence[dict[str, Any]], name: str) -> float | None:
    """How far a counter went in each repeat, added up."""
    total, seen = 0.0, False
    for repeat in {row["repeat"] for row in samples}:
        values = [s[name] for s in samples if s["repeat"] == repeat and s.get(name) is not None]
        if len(values) > 1:
            total, seen = total + values[-1] - values[0], True
    return total if seen else None


def _pace(repeats: Sequence[Sequence[TurnRecord]], samples: Sequence[dict[str, Any]], name: str) -> float | None:
    """How far a counter went in a second of those in which requests were under way, warm-ups left out."""
    grown = spanned = 0.0
    for turns in repeats:
        begins, repeat = min(one.sent_s for one in turns), turns[0].repeat
        told = [s for s in samples if s["repeat"] == repeat and s["t_s"] >= begins and s.get(name) is not None]
        if told:
            grown += told[-1][name] - told[0][name]
            spanned += told[-1]["t_s"] - told[0]["t_s"]
    return grown / spanned if spanned > 0 else None


def _ratio(part: float | None, whole: float | None) -> float | None:
    return part / whole if part is not None and whole else None


# --- the one table of metrics ---

AT_LEAST = "\N{GREATER-THAN OR EQUAL TO}"
Better = Literal["less", "more", "neither"]


def seconds(value: float) -> str:
    """Three digits: 57 ms, 388 ms, 1.25 s, 38.9 s, 102 s."""
    if math.isinf(value):
        return "failed"
    if value < 0.9995:
        return f"{value * 1000:.0f} ms" if value >= 0.00995 else f"{value * 1000:.1f} ms"
    return f"{value:.2f} s" if value < 9.995 else f"{value:.1f} s" if value < 99.95 else f"{value:.0f} s"


def rate(value: float) -> str:
    return f"{value:.2f}" if value < 99.5 else f"{value:.0f}"


def share(value: float) -> str:
    return f"{value:.1%}"


def count(value: float) -> str:
    return f"{value:,.0f}"


def tokens(value: float) -> str:
    return f"{value:.0f}" if value < 1000 else f"{value / 1e3:.0f}K" if value < 999_500 else f"{value / 1e6:.1f}M"


@dataclass(frozen=True, slots=True)
class Metric:
    title: str
    unit: str
    better: Better
    format: Callable[[float], str]
    meaning: str = ""


METRICS: dict[str, Metric] = {
    "ttft_p50_s": Metric("TTFT p50", "s", "less", seconds, "time to the first token from when the turn was due"),
    "ttft_p95_s": Metric("p95", "s", "less", seconds, "of TTFT"),
    "ttft_p99_s": Metric("p99", "s", "less", seconds, "of TTFT"),
    "req_per_s": Metric("req/s", "1/s", "more", rate, "answered requests over the time of the level"),
    "eligible_hit_rate": Metric("hit", "", "more", share, "of the tokens a session had sent, those still cached"),
    "lost_tokens": Metric("lost", "tokens", "less", tokens, "tokens that had been cached and were not any more"),
    "unlucky": Metric("unlucky", "requests", "less", count, "requests that lost over 1,000 tokens of their history"),
    "preemptions": Metric("preempted", "", "less", count, "requests thrown out of the batch for want of blocks"),
    "kv_usage_max": Metric("KV used", "", "neither", share, "blocks held by requests being answered, at most"),
    "working_set_tokens": Metric(
        "working set", "tokens", "neither", tokens, "the most that live sessions held at once"
    ),
    "prefix_hit_rate": Metric("server's hit", "", "more", share, "by the server's own counters"),
    "tpot_p50_s": Metric(
        "TPOT p50", "s", "less", seconds, "time per output token after the first, of answered requests"
    ),
    "errors": Metric("errors", "requests", "less", count, "failed or cut off; 2+1t: two, and one that timed out"),
    "timeouts": Metric("timeouts", "requests", "less", count, "given up before their answer was whole"),
    "requests": Metric("requests", "requests", "neither", count, ""),
    "sessions": Metric("sessions", "sessions", "neither", count, "that were begun"),
    "duration_s": Metric("took", "s", "neither", seconds, ""),
    "late_p99_s": Metric("client late p99", "s", "less", seconds, "from when a turn was due until it was sent"),
    "punctual_p99_s": Metric("p99 if on time", "s", "less", seconds, "p99 of TTFT had every turn been sent when due"),
    "read_late_p99_s": Metric("unread p99", "s", "less", seconds, "for how long first tokens lay unread; not in TTFT"),
    "lag_p99_s": Metric("client lag p99", "s", "less", seconds, "what came at one moment in a hundred waited longer"),
    "client_cpu": Metric("client CPU", "", "less", share, "of a core, by the client's busiest process"),
    "prefill_tokens_per_s": Metric(
        "prefill tok/s", "1/s", "more", count, "prompt tokens computed, none that was cached"
    ),
    "decode_tokens_per_s": Metric("decode tok/s", "1/s", "more", count, "tokens of answers"),
    "matrix_share": Metric("matrix rate used", "", "neither", share, "of what the cards could have computed, at least"),
    "bandwidth_share": Metric("bandwidth used", "", "neither", share, "of what they could have moved, at least"),
    "power_w": Metric("power", "W", "less", count, "that the cards drew, in the mean"),
    "lucky_p50_s": Metric("lucky p50", "s", "less", seconds, "TTFT of those answered who kept their history"),
    "lucky_p99_s": Metric("lucky p99", "s", "less", seconds, ""),
    "unlucky_p50_s": Metric("unlucky p50", "s", "less", seconds, "TTFT of those answered who lost it"),
    "unlucky_p99_s": Metric("unlucky p99", "s", "less", seconds, ""),
    "wait_client_s": Metric("client", "s", "less", seconds, "outside the engine: sent late, HTTP, read late"),
    "wait_slot_s": Metric("slot", "s", "less", seconds, "for one of --max-num-seqs slots"),
    "wait_blocks_s": Metric("blocks", "s", "less", seconds, "for free blocks of KV cache"),
    "wait_lost_s": Metric("lost history", "s", "less", seconds, "while history that had been evicted was read again"),
    "wait_preempted_s": Metric("preempted", "s", "less", seconds, "while preempted requests were read again, at most"),
    "wait_compute_s": Metric("new tokens", "s", "less", seconds, "while new tokens were computed"),
}


def show(row: LevelRow, name: str) -> str:
    """A percentile without its floor is a lower limit, never a bare number."""
    if more_sessions(row, name):
        low = getattr(row, f"{name.removesuffix('_s')}_lo_s")
        return "-" if low is None else f"{AT_LEAST}{METRICS[name].format(low)}"
    if name == "errors" and row.timeouts:
        failed = row.errors - row.timeouts
        return f"{failed}+{row.timeouts}t" if failed else f"{row.timeouts}t"
    return seen(row, name)


def seen(row: LevelRow, name: str) -> str:
    """However few the sessions."""
    value = getattr(row, name)
    limit = AT_LEAST if is_limit(row, name) else ""
    return "-" if value is None else f"{limit}{METRICS[name].format(value)}"


def is_limit(row: LevelRow, name: str) -> bool:
    """Is that all there is to be known of a percentile, for requests timed out?"""
    return name.removeprefix("ttft_").removesuffix("_s") in row.at_least.split()


def more_sessions(row: LevelRow, name: str) -> int:
    """How many a percentile of TTFT lacks; 0 for whatever needs none."""
    match = re.fullmatch(r"ttft_(p\d+)_s", name)
    return getattr(row, f"needs_{match[1]}") or 0 if match else 0
