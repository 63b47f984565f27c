"""What stands on one side of a comparison: a run, a published one, a folder of several, or another tool's result."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench import bounded, conclusion, foreign, manifest, plays
from bench.compare import Side
from bench.errors import BenchError
from bench.foreign import Foreign
from bench.records import Folder


def read(path: Path) -> list[Side]:
    """A folder of several runs is that many."""
    if (path / "run.json").is_file():
        return [_run(Folder.open(path))]
    if path.is_dir():
        found = [_run(Folder.open(file.parent)) for file in sorted(path.glob("*/run.json"))]
        if found:
            return found
    other = foreign.read(path) if path.exists() else None
    if other is None:
        raise BenchError(
            f"{path} is neither a run nor a result that bench knows",
            "a run's folder, a published one, a folder of several, or a result of vLLM bench, AIPerf or GuideLLM",
        )
    return [_foreign(path, other)]


def _run(folder: Folder) -> Side:
    published = folder.path / "sessions.json"
    if published.is_file():
        run, played = folder.published(), plays.from_json(bounded.text(published, 4 * bounded.WHOLE))
    else:
        done = conclusion.conclude(folder)
        whole = {(row.variant, row.case, row.concurrency) for row in done.rows}
        ended = [one for one in done.records if (one.variant, one.case, one.concurrency) in whole]
        run, played = done.run, plays.of(ended)  # of a level that was cut short nothing is known
    verdicts: dict[str, Any] = run["verdict"]["variants"]
    return Side(
        name=str(folder.path),
        plays=played,
        knees={name: _knee(verdict) for name, verdict in verdicts.items()},
        ceilings={name: verdict["ceiling"] for name, verdict in verdicts.items()},
        sure={name: (v.get("knee_confidence"), v.get("ceiling_confidence")) for name, v in verdicts.items()},
        conditions=dict(_conditions(run)),
        valid=run["verdict"]["valid"],
        imported=None,
        simulated=bool(run.get("simulated")),
    )


def _knee(verdict: dict[str, Any]) -> tuple[float, float] | None:
    """Between which levels it lies; where none was found, below the lowest or above the highest that was played."""
    if found := verdict["knee"]:
        return found[0], found[1]
    if verdict.get("below"):
        return 1, verdict["below"]
    return (verdict["highest"], math.inf) if verdict["highest"] else None


def _conditions(run: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What has to be the same on both sides for their numbers to be comparable."""
    yield "workload", ", ".join(f"{work['name']} {work.get('digest')}" for work in manifest.workloads(run))
    yield "card", ", ".join(gpu["name"] for gpu in run["machine"]["gpus"]) or run["machine"]["cpu"]
    yield "cores", str(run["machine"]["cores"])
    yield "driver", ", ".join(gpu["driver"] for gpu in run["machine"]["gpus"]) or "none"
    yield "bench", run["machine"]["bench"]
    yield "seed", str(run["seed"])
    yield "promise", run["slo"]
    for name, facts in run["variants"].items():
        told, launch = facts.get("server", {}), facts["launch"] or {}
        of = f"{name}: " if len(run["variants"]) > 1 else ""  # one alone is compared by whatever name
        yield f"{of}vLLM", str(told.get("version"))
        yield f"{of}model", str(told.get("model"))
        yield f"{of}KV cache", f"{told.get('cache', {}).get('tokens')} tokens"
        yield f"{of}machine", f"{launch.get('name')} {launch.get('digest')}"
        yield f"{of}flags", " ".join(launch.get("extra", [])) or "as the machine's file has them"


def _foreign(path: Path, other: Foreign) -> Side:
    return Side(
        name=str(path),
        plays=plays.of(other.records),
        knees={},
        ceilings={},
        sure={},
        conditions={"tool": f"{other.tool} {other.version or ''}".strip(), "model": other.model or "not told"},
        valid=True,
        imported=other.tool,
        notes=other.notes,
    )
