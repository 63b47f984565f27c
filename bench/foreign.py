"""Results of other tools as records, so that a comparison can set them beside ours; what they measured is not checked.

Written after vLLM 0.32.0 (vllm bench serve --save-detailed), AIPerf 0.13.0 (profile_export.jsonl, and the summary
beside it) and GuideLLM 0.8.1 (its report, schema 2). All three count TTFT from when a request was sent.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from bench import bounded
from bench.errors import BenchError
from bench.records import TurnRecord, unsound, values_of

Json = dict[str, Any]
SIGNS = {"vllm bench serve": '"tokenizer_id":', "AIPerf": '"request_start_ns":', "GuideLLM": '"guidellm_version":'}
SUMMARY = '"aiperf_version":'  # what AIPerf writes beside its records
LARGEST = 256 << 20  # bytes; a result of a million requests
IN_FOLDER = ("profile_export.jsonl", "benchmarks.json")  # as AIPerf and GuideLLM call theirs
DETAILS = ("ttfts", "start_times", "input_lens", "output_lens", "errors")
SECONDS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "sec": 1.0, "s": 1.0}
READ = "bench reads results of vLLM 0.32, AIPerf 0.13 and GuideLLM 0.8; was the file written to its end?"


@dataclass(frozen=True, slots=True)
class Foreign:
    """A result of another tool."""

    tool: str
    version: str | None
    model: str | None
    records: list[TurnRecord]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Request:
    """What any of them tells of a request; times are seconds of its own clock."""

    session: object  # its name for the conversation; None: a request by itself
    turn: int
    start_s: float
    first_s: float | None
    last_s: float | None
    end_s: float
    prompt_tokens: int | None
    output_tokens: int | None
    error: str | None


@dataclass(frozen=True, slots=True)
class Level:
    concurrency: int | None
    requests: list[Request]


@dataclass(frozen=True, slots=True)
class Told:
    version: str | None
    model: str | None
    levels: list[Level]
    notes: list[str]


def read(path: Path) -> Foreign | None:
    """None: not a result that bench knows."""
    file = next((path / name for name in IN_FOLDER if (path / name).is_file()), path)
    try:
        text = bounded.data(file, LARGEST).decode() if file.is_file() else ""
    except UnicodeDecodeError:
        return None
    tool = next((tool for tool, sign in SIGNS.items() if sign in text), None)
    if tool is None and SUMMARY in text:
        raise BenchError(f"{file} is AIPerf's summary, without single requests", "give profile_export.jsonl beside it")
    if tool is None:
        return None
    try:
        told = READERS[tool](file, _documents(text))
        notes, records = _records(told.levels)
        if wrong := unsound([*map(values_of, records)]):
            raise ValueError(f"no request can have its {wrong}")
        if not isinstance(told.model, str | None) or not isinstance(told.version, str | None):
            raise ValueError("its model and version are no names")
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise BenchError(f"{file} is not what {tool} writes: {type(error).__name__}: {error!s:.200}", READ) from None
    if all(record.first_s is None for record in records):
        raise BenchError(f"no request in {file} has a time to first token", "it takes streaming: AIPerf's --streaming")
    return Foreign(tool, told.version, told.model, records, (*told.notes, *notes))


def _documents(text: str) -> list[Json]:
    """One, or one a line."""
    try:
        return [json.loads(text)]
    except json.JSONDecodeError:
        return [json.loads(line) for line in text.split("\n") if line.strip()]


def _records(levels: Sequence[Level]) -> tuple[list[str], list[TurnRecord]]:
    """Levels of the same concurrency are repeats of it."""
    notes, records = [], []
    seen: Counter[int] = Counter()
    for level in levels:
        concurrency = level.concurrency or _most_at_once(level.requests)
        if level.concurrency is None:
            notes.append(f"concurrency is not told: {concurrency} is the most requests that were under way at once")
        records += _turns(level.requests, concurrency, seen[concurrency])
        seen[concurrency] += 1
    return notes, records


def _turns(requests: Sequence[Request], concurrency: int, repeat: int) -> list[TurnRecord]:
    sessions: dict[object, int] = {}
    began = min((request.start_s for request in requests), default=0.0)
    found = []
    for number, one in enumerate(requests):
        good = one.error is None and one.first_s is not None
        name = (number,) if one.session is None else one.session
        found.append(
            TurnRecord(
                variant="imported",
                case="realistic",
                concurrency=concurrency,
                repeat=repeat,
                session=sessions.setdefault(name, len(sessions)),
                turn=one.turn,
                status="ok" if good else "failed",
                intended_s=one.start_s - began,
                sent_s=one.start_s - began,
                first_s=one.first_s - began if good and one.first_s is not None else None,
                last_s=one.last_s - began if good and one.last_s is not None else None,
                end_s=one.end_s - began,
                planned_prompt_tokens=one.prompt_tokens or 0,
                planned_output_tokens=one.output_tokens or 0,
                prompt_tokens=one.prompt_tokens,
                output_tokens=one.output_tokens if good else None,
                cached_tokens=None,
                eligible_tokens=0,
                error=None if good else one.error or "no token came",
            )
        )
    return found


def _most_at_once(requests: Sequence[Request]) -> int:
    steps = [step for request in requests for step in ((request.start_s, 1), (request.end_s, -1))]
    return max(accumulate(change for _, change in sorted(steps)), default=1)


# --- vllm bench serve: one result, or one a line with --append-result; it knows no sessions ---


def _vllm(file: Path, documents: Sequence[Json]) -> Told:
    for result in documents:
        if missing := [name for name in DETAILS if name not in result]:
            raise BenchError(
                f"{file} lacks single requests: it has no {', '.join(missing)}",
                "run vllm bench serve again with --save-detailed (start_times: since January 2026)",
            )
    levels = [Level(result.get("max_concurrency"), _vllm_requests(result)) for result in documents]
    return Told(None, documents[0].get("model_id"), levels, [])


def _vllm_requests(result: Json) -> list[Request]:
    return [
        Request(
            session=None,
            turn=1,
            start_s=start,
            first_s=start + ttft if ttft > 0 else None,
            last_s=None if latency is None else start + latency,
            end_s=start + (ttft if latency is None else latency),
            prompt_tokens=prompt_tokens,
            output_tokens=output_tokens,
            error=error or None,
        )
        for ttft, start, prompt_tokens, output_tokens, error, latency in zip(
            *(result[name] for name in DETAILS), _latencies(result), strict=True
        )
    ]


def _latencies(result: Json) -> list[float | None]:
    """Where the file has none, an answer took as long as the gaps between its tokens add up to."""
    if "latencies" in result:
        return list(result["latencies"])
    if "itls" in result:
        return [ttft + sum(gaps) for ttft, gaps in zip(result["ttfts"], result["itls"], strict=True)]
    return [None] * len(result["ttfts"])


# --- AIPerf: a request a line; model, concurrency and version stand in the summary beside it ---


def _aiperf(file: Path, documents: Sequence[Json]) -> Told:
    measured = [one for one in documents if one["metadata"]["benchmark_phase"] == "profiling"]
    whole = [one for one in measured if not one["metadata"].get("was_cancelled")]
    summary = _summary(file)
    config = summary.get("input_config") or {}
    notes = [] if summary else [f"no summary beside {file.name}: model and version are not known"]
    if cancelled := len(measured) - len(whole):
        notes.append(f"{cancelled} requests that AIPerf cancelled are left out")
    phases: dict[int, list[Request]] = {}
    for one in whole:
        phases.setdefault(one["metadata"].get("profiling_index") or 0, []).append(_aiperf_request(one))
    levels = [Level(_aiperf_concurrency(config, number), phase) for number, phase in sorted(phases.items())]
    return Told(summary.get("aiperf_version"), _aiperf_model(config), levels, notes)


def _summary(file: Path) -> Json:
    names = (file.with_name("profile_export_aiperf.json"), file.with_suffix(".json"))
    found = next((name for name in names if name.is_file() and name != file), None)
    summary: Json = json.loads(bounded.text(found)) if found else {}
    return summary


def _aiperf_model(config: Json) -> str | None:
    """Before its second configuration format it stood with the endpoint."""
    items = (config.get("models") or {}).get("items") or []
    names = [item["name"] for item in items] or (config.get("endpoint") or {}).get("model_names") or [None]
    model: str | None = names[0]
    return model


def _aiperf_concurrency(config: Json, number: int) -> int | None:
    phases = [phase for phase in config.get("phases") or [] if phase.get("kind", phase.get("name")) == "profiling"]
    told = (phases[number] if phases else config.get("loadgen") or {}).get("concurrency")
    return told if isinstance(told, int) else None


def _aiperf_request(one: Json) -> Request:
    about, metrics = one["metadata"], one.get("metrics") or {}
    start = about["request_start_ns"] * 1e-9
    ttft, latency = (_seconds(metrics.get(name)) for name in ("time_to_first_token", "request_latency"))
    problem = one.get("error")
    return Request(
        session=about.get("x_correlation_id") or about.get("conversation_id"),
        turn=(about.get("turn_index") or 0) + 1,
        start_s=start,
        first_s=None if ttft is None else start + ttft,
        last_s=None if latency is None else start + latency,
        end_s=about["request_end_ns"] * 1e-9,
        prompt_tokens=_count(metrics, "usage_prompt_tokens", "input_sequence_length", "error_isl"),
        output_tokens=_count(metrics, "usage_completion_tokens", "output_sequence_length"),
        error=f"{problem.get('type')}: {problem.get('message')}" if problem else None,
    )


def _seconds(metric: Json | None) -> float | None:
    return None if metric is None else metric["value"] * SECONDS[metric["unit"]]


def _count(metrics: Json, *names: str) -> int | None:
    """By the server's account, else by the tool's own tokenizer."""
    return next((int(metrics[name]["value"]) for name in names if name in metrics), None)


# --- GuideLLM: a report of several benchmarks, each with its requests ---


def _guidellm(file: Path, documents: Sequence[Json]) -> Told:
    (report,) = documents
    benchmarks = report["benchmarks"]
    levels = [Level(_streams(one["config"]["strategy"]), _guidellm_requests(one["requests"])) for one in benchmarks]
    backend = benchmarks[0]["config"].get("backend") or {}
    notes = [note for one in benchmarks for note in _guidellm_notes(one)]
    return Told(report["metadata"]["guidellm_version"], backend.get("model"), levels, notes)


def _streams(strategy: Json) -> int | None:
    """A rate has no concurrency of its own."""
    kind = strategy["type_"]
    told: int | None = strategy.get({"concurrent": "streams", "throughput": "max_concurrency"}.get(kind, ""))
    return 1 if kind == "synchronous" else told


def _guidellm_requests(requests: Json) -> list[Request]:
    found = []
    for one in (*requests["successful"], *requests["errored"]):
        about, times = one["info"], one["info"]["timings"]
        start = times["resolve_start"] if times["request_start"] is None else times["request_start"]
        end = times["resolve_end"] if times["request_end"] is None else times["request_end"]
        failed = f"GuideLLM: {about.get('error') or about['status']}" if about["status"] != "completed" else None
        found.append(
            Request(
                session=about.get("conversation_id"),
                turn=(about.get("turn_index") or 0) + 1,
                start_s=start,
                first_s=times["first_token_iteration"],
                last_s=times["last_token_iteration"],
                end_s=end,
                prompt_tokens=one.get("prompt_tokens"),
                output_tokens=one.get("output_tokens"),
                error=failed,
            )
        )
    return found


def _guidellm_notes(benchmark: Json) -> list[str]:
    requests = benchmark["requests"]
    made = benchmark["metrics"]["request_totals"]["successful"]
    notes = []
    if kept := len(requests["incomplete"]):
        notes.append(f"{kept} requests that were not answered when GuideLLM's time was up are left out")
    if len(requests["successful"]) < made:
        notes.append(f"the file has {len(requests['successful'])} of {made} answered requests: GuideLLM's sample_size")
    return notes


READERS = {"vllm bench serve": _vllm, "AIPerf": _aiperf, "GuideLLM": _guidellm}
