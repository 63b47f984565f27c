"""Numbers become warnings: reasons not to believe them, each with what to try. Never changes a number."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from bench.records import TurnRecord
from bench.stats import LevelRow

ERROR_SHARE = 0.01
COUNTER_SHARE = 0.01
LATE_SHARE = 0.01  # of p50 TTFT
LATE_FATAL = 0.50  # of p99 TTFT: the tail is more the client's than the server's
LATE_FLOOR_S = 0.002
LATE_FATAL_FLOOR_S = 0.05  # less than this moves no promise anybody makes
P99_REQUESTS = 100  # below this many, p99 is the maximum by another name


@dataclass(frozen=True, slots=True)
class Warning:
    what: str
    why: str
    try_next: str
    fatal: bool = False  # the run is not valid


def audit(
    records: Sequence[TurnRecord], rows: Sequence[LevelRow], server: dict[str, Any], sizes_forced: bool
) -> list[Warning]:
    return [
        *_errors(rows),
        *_sizes(records, sizes_forced),
        *_cold(records, server),
        *_counters(records, server),
        *_client(rows),
        *_few(rows),
        *_shallow(rows, records),
    ]


def _name(row: LevelRow) -> str:
    return f"{row.variant}, {row.case}, C = {row.concurrency}"


def _errors(rows: Sequence[LevelRow]) -> Iterator[Warning]:
    for row in rows:
        if row.errors:
            yield Warning(
                f"{_name(row)}: {row.errors} of {row.requests} requests failed",
                "they rank as infinitely slow in its percentiles",
                "see their `error` in requests.jsonl and the server's log",
                fatal=row.errors > ERROR_SHARE * row.requests,
            )


def _sizes(records: Sequence[TurnRecord], forced: bool) -> Iterator[Warning]:
    """Exact where the target takes token ids, within 2 % where it takes text."""
    slack = 0.0 if forced else 0.02
    counted = [record for record in records if record.status == "ok" and record.prompt_tokens is not None]
    prompts = [
        r for r in counted if abs((r.prompt_tokens or 0) - r.planned_prompt_tokens) > slack * r.planned_prompt_tokens
    ]
    answers = [r for r in counted if r.output_tokens is not None and r.output_tokens != r.planned_output_tokens]
    for what, wrong in (("prompt", prompts), ("answer", answers)):
        if wrong:
            one = wrong[0]
            planned = one.planned_prompt_tokens if what == "prompt" else one.planned_output_tokens
            seen = one.prompt_tokens if what == "prompt" else one.output_tokens
            yield Warning(
                f"{len(wrong)} of {len(counted)} {what}s had another length than planned ({planned:,} became {seen:,})",
                "the server's usage counts what was really read and written",
                "compare levels of this run with each other, not with other runs",
                fatal=forced,
            )


def _cold(records: Sequence[TurnRecord], server: dict[str, Any]) -> Iterator[Warning]:
    """No prompt can be cached beyond what its session, or the level's warm-up, had sent before."""
    slack = max(64, server["cache"]["block_size"] or 0)
    told = [record for record in records if record.turn > 0 and record.cached_tokens is not None]
    warm = [record for record in told if (record.cached_tokens or 0) > record.eligible_tokens + slack]
    if warm:
        yield Warning(
            f"{len(warm)} of {len(told)} prompts were cached further than anything this level had sent",
            "the same content had been sent before, so the level was not cold",
            "use another --seed, or a server that nobody else uses",
            fatal=True,
        )


def _counters(records: Sequence[TurnRecord], server: dict[str, Any]) -> Iterator[Warning]:
    """The server's own counter of hit tokens against the sum over our requests, over the whole run."""
    counted = server.get("hits")
    ours = [record.cached_tokens for record in records if record.cached_tokens is not None]
    if counted is None or not ours:
        return
    total = sum(ours)
    if abs(counted - total) > COUNTER_SHARE * max(total, 1):
        yield Warning(
            f"the server counted {counted:,.0f} cached tokens, our requests add up to {total:,}",
            "preempted requests look their prefix up again; or others use this server",
            "look at `preempted`, and measure a server that nobody else uses",
        )


def _client(rows: Sequence[LevelRow]) -> Iterator[Warning]:
    """The client's own time is in every TTFT: a little is a warning, a part of the tail that matters is fatal."""
    late = [row for row in rows if _late_share(row, "ttft_p50_s") > LATE_SHARE and (row.late_p99_s or 0) > LATE_FLOOR_S]
    if late:
        worst = max(late, key=lambda row: _late_share(row, "ttft_p99_s"))
        yield Warning(
            f"the client was late at {len(late)} levels, most at {_name(worst)}: {(worst.late_p99_s or 0) * 1e3:.1f} ms"
            f" at p99, {_late_share(worst, 'ttft_p99_s'):.1%} of that level's p99 TTFT",
            "what it waits is part of the TTFT it reports",
            "give the client a core of its own, or fewer sessions",
            fatal=_late_share(worst, "ttft_p99_s") > LATE_FATAL and (worst.late_p99_s or 0) > LATE_FATAL_FLOOR_S,
        )


def _late_share(row: LevelRow, of: str) -> float:
    whole = getattr(row, of)
    return row.late_p99_s / whole if row.late_p99_s is not None and whole else 0.0


def _few(rows: Sequence[LevelRow]) -> Iterator[Warning]:
    few = [row for row in rows if row.requests < P99_REQUESTS and row.case == "realistic"]
    if few:
        yield Warning(
            f"{len(few)} levels have under {P99_REQUESTS} requests",
            "their p99 is their slowest request, by another name",
            f"--requests {2 * P99_REQUESTS}",
        )


def _shallow(rows: Sequence[LevelRow], records: Sequence[TurnRecord]) -> Iterator[Warning]:
    """A level whose sessions never grew to full depth never asked the cache for what that many sessions need."""
    key = lambda record: (record.variant, record.concurrency)  # noqa: E731
    realistic = sorted((r for r in records if r.case == "realistic" and r.turn > 0), key=key)
    deepest = max((record.turn for record in realistic), default=0)
    shallow = [
        concurrency
        for (_, concurrency), group in groupby(realistic, key)
        if max(record.turn for record in group) < deepest
    ]
    if shallow:
        levels = ", ".join(map(str, shallow))
        yield Warning(
            f"at C = {levels} no session reached its last turn",
            "the requests were shared out among more sessions than they could carry to the end, as in the study",
            f"--requests {max(shallow) * deepest} takes every session to its end",
        )
