"""What run.json has to hold for those who read it: checked once, where it is read, and relied on by all."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from bench import shape
from bench.errors import BenchError
from bench.speed import CONSTANTS


def name(value: object) -> bool:
    """Of a variant: it heads tables and files."""
    return isinstance(value, str) and 0 < len(value) <= 1000


def moment(value: object) -> bool:
    try:
        return isinstance(value, str) and 1970 <= datetime.fromisoformat(value).year < 9000
    except ValueError:
        return False


def seed(value: object) -> bool:
    return type(value) is int and value >= 0


def bracket(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(shape.positive, value))


def quantity(value: object) -> bool:
    return shape.holds(value, float) and float(str(value)) >= 0


def interval(value: object) -> bool:
    return value is None or (
        isinstance(value, list) and len(value) == 2 and all(shape.holds(one, float) for one in value)
    )


def history(value: object) -> bool:
    """Of settings: the first are those with which the run began."""
    return isinstance(value, list) and bool(value) and all(isinstance(one, dict) for one in value)


WORKLOAD = {
    "name": str,
    "digest": str,
    "file": {"summary": str, "arrivals?": (None, {"sessions_per_s?": (float, None)}), "session?": dict},
}
TYPICAL = {"shared_tokens": float, "turns": float, "own_tokens": float, "output_tokens": float}
LAUNCH = {
    "name": str,
    "digest": str,
    "kv": str,
    "model": str,
    "tp": shape.positive,
    "prefix_caching": bool,
    "extra": [str],
    "file": {
        "serve": {"model": str},
        "kv": {str: dict},
        "caveat": (str, None),
        "card?": (None, {"price_usd_h": {"value": float}}),
    },
}
CAPACITY = {"tokens": (int, None), "bytes_per_token?": (float, None)}
SERVER = {
    "model?": str,
    "version": (str, None),
    "base_url": str,
    "command": (str, None),
    "cache": {"tokens": (int, None), "block_size": (int, None)},
}
OUTLOOK = {
    "cliff_s": float,
    "levers": [{"what": str, "sessions": (float, None), "price_usd_h": (float, None)}],
    "bands": [{"concurrency": shape.positive, **dict.fromkeys(("ttft_p50_s", "ttft_p99_s", "req_per_s"), interval)}],
    "source": str,
}
FORETOLD = {
    "source": str,
    "levels": [
        {
            "case": str,
            "concurrency": shape.positive,
            **dict.fromkeys(("ttft_p50_s", "ttft_p99_s", "req_per_s"), (None, quantity)),
        }
    ],
}
ROOF = {**dict.fromkeys(CONSTANTS, quantity), "source": str}
PREDICTION = {"knee": int, "ceiling": int, "how": str, "tokens": (int, None)}
RUN = {
    "started": moment,
    "ended": str,
    "resumed?": [dict],
    "argv": [str],
    "seed": seed,
    "salt": int,
    "slo": str,
    "search?": (None, {"max_c": (int, None), "plays": shape.positive}),
    "repeats": shape.positive,
    "workload": WORKLOAD,
    "typical": TYPICAL,
    "levels": [{"variant": name, "case": str, "concurrency": shape.positive, "requests": int}],
    "machine": {
        "cpu": str,
        "cores": int,
        "system": str,
        "python": str,
        "bench": str,
        "busy?": (float, None),
        "gpus": [{"name": str, "driver": str}],
    },
    "variants": {
        name: {
            "launch": (None, LAUNCH),
            "workload?": WORKLOAD,
            "typical?": TYPICAL,
            "server?": SERVER,
            "capacity?": (None, CAPACITY),
            "settings?": history,
            "dialect?": {"name": str},
            "outlook?": OUTLOOK,
            "roof?": (None, ROOF),
            "foretold?": (None, FORETOLD),
            "search?": {
                "prediction?": PREDICTION,
                "corrected?": PREDICTION,
                "corrected_by?": [int],
                "over?": (str, None),
            },
        }
    },
}
OF_VARIANT = {
    "knee": (None, bracket),
    "below?": (None, shape.positive),
    "highest": (None, shape.positive),
    "ceiling": (None, shape.positive),
    "slo": str,
    "knee_confidence?": (float, None),
    "ceiling_confidence?": (float, None),
}
PLAYED = {"server": dict, "dialect": dict, "settings": list}
VERDICT = {"valid": bool, "departures?": [str], "variants": {name: OF_VARIANT}}


def check(run: object, where: str) -> None:
    """Of a run; its verdict is made again."""
    shape.check(run, RUN, where)


def of(run: Mapping[str, Any], variant: str) -> dict[str, Any]:
    """The run as one variant had it: the workload may be varied, too."""
    facts = run["variants"][variant]
    return {**run, **{name: facts[name] for name in ("workload", "typical") if facts.get(name)}}


def workloads(run: Mapping[str, Any]) -> list[dict[str, Any]]:
    """All that were played."""
    own = [facts["workload"] for facts in run["variants"].values() if facts.get("workload")]
    return list({work["name"]: work for work in own or [run["workload"]]}.values())


def check_played(run: Mapping[str, Any], variant: str, where: str) -> None:
    """Of a variant that has a level behind it: what was found out about its server before."""
    shape.check(run["variants"].get(variant), PLAYED, where)


def check_published(run: Mapping[str, Any], where: str) -> None:
    """Of a published one, whose verdict stands."""
    shape.check(run, {"verdict": VERDICT}, where)
    if missing := set(run["verdict"]["variants"]) - set(run["variants"]):
        raise BenchError(f"{where} is damaged: it has a verdict on '{min(missing):.80}', and no such variant")
