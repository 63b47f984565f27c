"""What a comparison needs of a run: each level's sessions as TTFT alone, from records or from `sessions.json`."""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields

from bench import bounded, shape, stats
from bench.errors import BenchError
from bench.records import TurnRecord


@dataclass(frozen=True, slots=True)
class Play:
    """One level of one run, as TTFT alone: what a comparison needs of it."""

    variant: str
    case: str
    concurrency: int
    repeat: int
    sessions: tuple[tuple[float, ...], ...]  # in order of sessions, their turns in order; infinite if not answered
    req_per_s: float | None


def of(records: Iterable[TurnRecord]) -> tuple[Play, ...]:
    found: dict[tuple[str, str, int, int], list[TurnRecord]] = {}
    for record in records:
        if record.turn > 0:
            found.setdefault((record.variant, record.case, record.concurrency, record.repeat), []).append(record)
    return tuple(Play(*key, _sessions(turns), stats.throughput(turns)) for key, turns in found.items())


def _sessions(turns: Sequence[TurnRecord]) -> tuple[tuple[float, ...], ...]:
    """In the order in which they were begun, which is that of the workload, and not in that of their first answers."""
    ordered = sorted(turns, key=lambda record: (record.session, record.turn))
    return tuple(tuple(map(_ttft, session)) for session in stats.by_session(ordered))


def _ttft(record: TurnRecord) -> float:
    """Limits cannot be compared: whoever was not answered, for whatever reason, ranks behind all who were."""
    return math.inf if record.ttft_s is None else record.ttft_s


def to_json(found: Sequence[Play]) -> str:
    """A failed request is null; no digit is cut, so that verdicts stay what they are."""
    rows = [
        asdict(play) | {"sessions": [[t if math.isfinite(t) else None for t in one] for one in play.sessions]}
        for play in found
    ]
    return json.dumps({"schema": 1, "plays": rows}, separators=(",", ":"), allow_nan=False) + "\n"


def from_json(text: str) -> tuple[Play, ...]:
    try:
        told = bounded.parse(text)
    except ValueError as error:
        raise BenchError(f"sessions.json is damaged: {error}", "publish the run again") from None
    shape.check(told, PLAYS, "sessions.json")
    known = [{field.name: row[field.name] for field in fields(Play)} for row in told["plays"]]
    return tuple(Play(**row | {"sessions": _read(row["sessions"])}) for row in known)


def times(value: object) -> bool:
    """Of a session; null for a failure."""
    return isinstance(value, list) and all(
        ttft is None or (type(ttft) in (int, float) and abs(ttft) < 1e9) for ttft in value
    )


PLAYS = {
    "plays": [
        {
            "variant": str,
            "case": str,
            "concurrency": shape.positive,
            "repeat": int,
            "sessions": [times],
            "req_per_s": (float, None),
        }
    ]
}


def _read(sessions: Sequence[Sequence[float | None]]) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(math.inf if ttft is None else float(ttft) for ttft in session) for session in sessions)
