"""Numbers become a reason: what the added wait past the last healthy level was spent on, and what stands behind it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from bench import capacity
from bench.stats import COMPONENTS, LevelRow, rate, seconds, share, tokens

Seen = Literal["lost tokens", "promise", ""]  # why a level is called broken
SATURATED = 1 / 3  # of the growth in sessions, as an exponent: less than this in answers
LITTLE = 0.25  # more of mean TTFT than at the level it is compared with: less than this and nothing has broken


@dataclass(frozen=True, slots=True)
class Server:
    """What a reason needs to know of the server and of what it was asked."""

    tokens: int | None  # of KV cache
    max_seqs: int | None
    typical: dict[str, Any]
    open_loop: bool = False  # sessions arrive at a rate, and wait where all C places are taken

    def needed(self, sessions: float) -> float:
        """Tokens of that many sessions at their deepest."""
        return float(self.typical["shared_tokens"] + sessions * self.each)

    @property
    def each(self) -> float:
        return float(self.typical["own_tokens"] + self.typical["output_tokens"])

    @property
    def fits(self) -> float | None:
        return None if self.tokens is None else capacity.fit(self.tokens, self.typical["shared_tokens"], self.each)


@dataclass(frozen=True, slots=True)
class Cause:
    binding: str | None  # the component that the most of the added wait went to
    shares: dict[str, float]
    added_s: float  # to the mean TTFT
    healthy: int
    broken: int
    sentence: str


def cause(rows: Sequence[LevelRow], healthy: int, broken: int, server: Server, seen: Seen = "") -> Cause | None:
    """None where the server did not tell enough."""
    by_level = {row.concurrency: row for row in rows}
    before, here = by_level[healthy], by_level[broken]
    if before.wait_compute_s is None or here.wait_compute_s is None or (healthy == broken and seen != "lost tokens"):
        return None
    start, end = (sum(_wait(row, name) for name in COMPONENTS) for row in (before, here))
    added = {name: max(0.0, _wait(here, name) - _wait(before, name)) for name in COMPONENTS}
    whole = sum(added.values())
    shares = {name: extra / whole if whole else 0.0 for name, extra in added.items()}
    binding, text = _said(shares, start, end, before, here, server, seen)
    return Cause(binding, shares, end - start, healthy, broken, text)


def _said(
    shares: dict[str, float], start: float, end: float, before: LevelRow, here: LevelRow, server: Server, seen: Seen
) -> tuple[str | None, str]:
    """What binds, and the sentence that says so."""
    if end - start >= LITTLE * start:
        binding = max(shares, key=lambda name: shares[name])
        reason, spent = _reason(binding, before, here, server)
        return binding, f"{reason}; {shares[binding] * 100:.0f} % of the added wait {spent}"
    if seen == "lost tokens":
        reason, spent = _reason("lost", before, here, server)
        of_all = f"{_wait(here, 'lost') / end * 100:.0f} % of all waiting at {here.concurrency} {spent}"
        mean = "" if here is before else ": the tail pays, the mean hardly yet"
        return "lost", f"{reason}; {of_all}{mean}"
    broke = "the promise was broken by the tail alone" if seen == "promise" else "nothing broke"
    means = f"{seconds(end)} at {here.concurrency} sessions, {seconds(start)} at {before.concurrency}"
    return None, f"{broke}: mean TTFT is {means}"


def _wait(row: LevelRow, name: str) -> float:
    return float(getattr(row, f"wait_{name}_s") or 0.0)


def _reason(binding: str, before: LevelRow, row: LevelRow, server: Server) -> tuple[str, str]:
    """What stands behind it, and what the wait was spent on."""
    c = row.concurrency
    held = "" if server.tokens is None else f" of {tokens(server.tokens)} tokens"
    match binding:
        case "lost":
            return f"KV cache full: {c} sessions need {tokens(server.needed(c))}{held}", "re-reads evicted history"
        case "slot":
            return (
                f"no free slot: {c} sessions share {server.max_seqs} (--max-num-seqs)",
                "is spent in the queue for one",
            )
        case "blocks":
            running = "many" if row.running_max is None else f"{row.running_max:.0f}"
            answered = f"{running} requests were being answered at once and held the whole KV cache{held}"
            return f"no free blocks: {answered}", "is spent waiting for some"
        case "preempted":
            times = f"{row.preemptions or 0:,.0f} preemptions"
            return f"KV cache too small for what is being answered: {times}", "re-reads preempted requests"
        case "compute":
            return _shared(before, row, server), "goes to new tokens, its own and those of the requests ahead"
    return _outside(c, server), "passes outside the server"


def _shared(before: LevelRow, row: LevelRow, server: Server) -> str:
    """Saturated where more sessions hardly bring more answers, else just shared by more."""
    was, now = before.req_per_s or 0.0, row.req_per_s or 0.0
    told = (
        f"at {row.concurrency} sessions {rate(now)} requests a second are answered, {rate(was)} at {before.concurrency}"
    )
    grown = math.log(now / was) / math.log(row.concurrency / before.concurrency) if was and now else 0.0
    unknown = "" if server.max_seqs else ", or out of slots (its --max-num-seqs is not known)"
    return f"compute saturated{unknown}: {told}" if grown < SATURATED else f"compute shared by more: {told}"


def _outside(level: int, server: Server) -> str:
    if server.open_loop:
        return f"sessions arrive faster than they are served: all {level} places were taken"
    return f"the client, not the server: at {level} sessions it falls behind"


def prediction(rows: Sequence[LevelRow], found: tuple[int, int] | None, server: Server) -> dict[str, Any] | None:
    """The arithmetic before the run against the knee after it, and what explains the difference."""
    predicted = server.fits
    if predicted is None or not rows:
        return None
    highest = rows[-1].concurrency
    error = None if found is None else predicted - min(max(predicted, found[0]), found[1])
    return {
        "predicted": predicted,
        "knee": found,
        "error": error,
        "explanation": _explain(rows, found, highest, server),
    }


def _explain(rows: Sequence[LevelRow], found: tuple[int, int] | None, highest: int, server: Server) -> str:
    """From the working set that was really held: what the sessions under way had sent and received, at its largest."""
    assert server.tokens is not None
    assert server.fits is not None
    by_level = {row.concurrency: row.working_set_tokens or 0 for row in rows}
    if found is None:
        if server.fits >= highest:
            return f"no level asked for more than fits: {server.fits:.1f} sessions, and the highest had {highest}"
        return _held(highest, by_level[highest], server)
    lo, hi = (by_level[level] for level in found)
    told = f"sessions under way held {tokens(lo)} tokens at {found[0]} and {tokens(hi)} at {found[1]}"
    told += f", of {tokens(server.tokens)}"
    if found[0] <= server.fits <= found[1]:
        return told
    if lo <= server.tokens < hi:
        return f"{told}: sessions do not all stand at their deepest at once, as the arithmetic assumes"
    over = next((row for row in rows if row.concurrency == found[1]), None)
    if over is not None and (over.preemptions or 0) > 0:
        return f"{told}; requests being answered were preempted, which the arithmetic does not know"
    return f"{told}: eviction began where the held tokens do not explain it"


def _held(level: int, held: int, server: Server) -> str:
    """Where more was asked for than fits, and no knee was found."""
    assert server.tokens is not None
    room = f"{tokens(held)}, {share(held / server.tokens)} of the cache"
    if held > server.tokens:
        return f"sessions under way held {room}: the lowest level measured lies past the knee, or losses went unseen"
    needed = f"{level} sessions would need {tokens(server.needed(level))} tokens at their deepest"
    return f"{needed}, but those under way never held more than {room}"
