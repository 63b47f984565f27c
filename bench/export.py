"""A run in the formats of others: vLLM's own benchmark results, the llm-d report, github-action-benchmark's lists."""

import json
import math
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import numpy as np

from bench import manifest, stats
from bench.errors import BenchError
from bench.records import TurnRecord
from bench.stats import METRICS, LevelRow
from bench.tables import slug

PERCENTILES = (1, 5, 10, 25, 50, 75, 90, 95, 99)
Json = dict[str, Any]


def export(run: Json, rows: Sequence[LevelRow], records: Sequence[TurnRecord], form: str) -> dict[str, str]:
    """The files of one of FORMS: name and text."""
    if form not in FORMS:
        raise BenchError(f"no format {form!r} to export to", f"known: {', '.join(FORMS)}")
    if not rows:
        raise BenchError("there is nothing to export: no level of the run was played to its end")
    if not all(row.duration_s > 0 for row in rows):
        raise BenchError("a level took no time, by the times of its requests", "run it again: its checks say more")
    # A number that JSON has no notation for is a mistake here, and not to be left to whoever reads the file.
    return {
        name: json.dumps(content, indent=2, allow_nan=False) + "\n"
        for name, content in FORMS[form](run, rows, records).items()
    }


@dataclass(frozen=True, slots=True)
class Level:
    """One level, all its repeats together."""

    run: Json
    row: LevelRow
    turns: tuple[TurnRecord, ...]  # in the order in which they were sent

    @property
    def answered(self) -> list[TurnRecord]:
        return [
            record for record in self.turns if record.status == "ok" and None not in (record.first_s, record.last_s)
        ]

    @property
    def facts(self) -> Json:
        """Of its variant."""
        facts: Json = self.run["variants"][self.row.variant]
        return facts

    @property
    def model(self) -> str:
        return str(self.facts.get("server", {}).get("model") or "unknown")

    @property
    def began(self) -> datetime:
        return self._moment(min(record.sent_s for record in self.turns))

    @property
    def ended(self) -> datetime:
        return self._moment(max(record.end_s for record in self.turns))

    def _moment(self, second: float) -> datetime:
        return datetime.fromisoformat(self.run["started"]) + timedelta(seconds=second)

    @property
    def label(self) -> str:
        return f"{self.row.variant}-{self.row.case}"

    @property
    def file(self) -> str:
        """As vLLM would have called it."""
        model = slug(self.model.split("/")[-1])
        return f"{slug(self.label)}-infqps-concurrency{self.row.concurrency}-{model}-{self.date}.json"

    @property
    def date(self) -> str:
        return f"{self.ended:%Y%m%d-%H%M%S}"


def _levels(run: Json, rows: Sequence[LevelRow], records: Sequence[TurnRecord]) -> list[Level]:
    played: dict[tuple[str, str, int], list[TurnRecord]] = {}
    for record in sorted(records, key=lambda record: record.sent_s):
        if record.turn > 0:
            played.setdefault((record.variant, record.case, record.concurrency), []).append(record)
    found = [
        Level(manifest.of(run, row.variant), row, tuple(played.get((row.variant, row.case, row.concurrency), ())))
        for row in rows
    ]
    if any(not level.turns for level in found):
        raise BenchError("the run's single requests are not there", "export the run's own folder, not a published one")
    return found


# --- of a request ---

# Others count from when a request was sent, we from when it was due. What lies between the two is vLLM's queue time.


def _since_sent(record: TurnRecord, at: float | None) -> float:
    """Zero for a request that failed, as vLLM has it."""
    return at - record.sent_s if record.status == "ok" and at is not None else 0.0


def _ttft(record: TurnRecord) -> float:
    return _since_sent(record, record.first_s)


def _latency(record: TurnRecord) -> float:
    return _since_sent(record, record.last_s)


def _tpot(record: TurnRecord) -> float | None:
    if not record.output_tokens or record.output_tokens < 2:
        return None
    return (_latency(record) - _ttft(record)) / (record.output_tokens - 1)


def _prompt_tokens(record: TurnRecord) -> int:
    """As sent, where the server does not tell."""
    return record.prompt_tokens or record.planned_prompt_tokens


def _mean_gap(answered: Iterable[TurnRecord]) -> float | None:
    """The mean time between two tokens: single gaps are not on record, but their sum and their number are."""
    several = [record for record in answered if record.output_tokens and record.output_tokens > 1]
    gaps = sum((record.output_tokens or 1) - 1 for record in several)
    return sum(_latency(record) - _ttft(record) for record in several) / gaps if gaps else None


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _answer_tokens(answered: Sequence[TurnRecord]) -> int | None:
    """Of all answers together; None where the server did not tell every one."""
    told = [record.output_tokens for record in answered if record.output_tokens is not None]
    return sum(told) if len(told) == len(answered) else None


# --- vLLM: vllm bench serve --save-result --save-detailed, vLLM 0.32.0 ---


def _vllm_bench(run: Json, rows: Sequence[LevelRow], records: Sequence[TurnRecord]) -> Json:
    return {level.file: _vllm_result(level) for level in _levels(run, rows, records)}


def _vllm_result(level: Level) -> Json:
    """vLLM's keys and units, by vLLM's definitions.

    Left out, as not measured: itls, generated_texts, max_output_tokens_per_s, and of ITL all but its mean. Where
    nothing was answered vLLM writes times of zero; here there are none.
    """
    answered, turns, duration = level.answered, level.turns, level.row.duration_s
    backend = "openai-chat" if "chat" in level.facts.get("dialect", {}).get("name", "") else "openai"
    gap = _mean_gap(answered)
    return {
        "date": level.date,
        "endpoint_type": backend,
        "backend": backend,
        "label": level.label,
        "model_id": level.model,
        "tokenizer_id": level.model,
        "num_prompts": len(turns),
        **{"variant": level.row.variant, "case": level.row.case, "repeats": level.row.repeats},  # as by --metadata
        "request_rate": "inf",
        "burstiness": 1.0,
        "max_concurrency": level.row.concurrency,
        "duration": duration,
        "completed": len(answered),
        "failed": len(turns) - len(answered),
        "request_throughput": len(answered) / duration,
        "request_goodput": None,
        **_vllm_tokens(answered, duration),
        "input_lens": [_prompt_tokens(record) for record in turns],
        "output_lens": [(record.output_tokens or 0) if record.status == "ok" else 0 for record in turns],
        "ttfts": [_ttft(record) for record in turns],
        "latencies": [_latency(record) for record in turns],
        "start_times": [record.sent_s for record in turns],
        "queue_times": [record.late_s for record in turns],
        "errors": ["" if record.status == "ok" else record.error or record.status for record in turns],
        "max_concurrent_requests": _busiest_second(answered),
        "rtfx": 0.0,
        **_vllm_times("ttft", [_ttft(record) for record in answered]),
        **_vllm_times("tpot", _known(_tpot(record) for record in answered)),
        **({} if gap is None else {"mean_itl_ms": gap * 1000}),
        **_vllm_times("e2el", [_latency(record) for record in answered]),
        **_vllm_times("client_queue_time", [record.late_s for record in answered]),
    }


def _vllm_tokens(answered: Sequence[TurnRecord], duration: float) -> Json:
    prompts, answers = sum(map(_prompt_tokens, answered)), _answer_tokens(answered)
    if answers is None:
        return {"total_input_tokens": prompts}
    return {
        "total_input_tokens": prompts,
        "total_output_tokens": answers,
        "output_throughput": answers / duration,
        "total_token_throughput": (prompts + answers) / duration,
    }


def _vllm_times(name: str, seconds: Sequence[float]) -> Json:
    if not seconds:
        return {}
    ms = np.array(seconds) * 1000
    return {
        f"mean_{name}_ms": float(np.mean(ms)),
        f"median_{name}_ms": float(np.median(ms)),
        f"std_{name}_ms": float(np.std(ms)),
        **{f"p{share}_{name}_ms": float(np.percentile(ms, share)) for share in PERCENTILES},
    }


def _busiest_second(answered: Sequence[TurnRecord]) -> int:
    """Requests under way at some time of the same second, counted from the first: vLLM's peak, often above C."""
    start = min((record.sent_s for record in answered), default=0.0)
    active = Counter(
        second
        for record in answered
        for second in range(int(record.sent_s - start), int(record.sent_s - start + _latency(record)) + 1)
    )
    return max(active.values(), default=0)


# --- llm-d: benchmark report 0.2.1, as llm-d-benchmark of August 2026 reads it; JSON is YAML ---


def _llm_d(run: Json, rows: Sequence[LevelRow], records: Sequence[TurnRecord]) -> Json:
    """Named as llm-d's own tools look for them: they search for v0.2, and take the version from the content."""
    return {f"benchmark_report_v0.2,_{level.file}.yaml": _report(level) for level in _levels(run, rows, records)}


def _report(level: Level) -> Json:
    run = level.run
    experiment = f"{run['started']} {run.get('salt')}"
    report: Json = _told(
        {
            "version": "0.2.1",
            "run": {
                "uid": str(uuid.uuid5(uuid.NAMESPACE_URL, f"{experiment} {level.file}")),
                "eid": str(uuid.uuid5(uuid.NAMESPACE_URL, experiment)),
                "time": {
                    "start": level.began.isoformat(),
                    "end": level.ended.isoformat(),
                    "duration": f"PT{(level.ended - level.began).total_seconds()}S",
                },
                "description": f"{run['workload']['name']}, {level.label}, {level.row.concurrency} at a time",
            },
            "scenario": {"stack": [_engine(level)], "load": _load(level)},
            "results": {
                "request_performance": {"aggregate": _aggregate(level)},
                "session_performance": {"sessions": _sessions(level)} if level.row.case == "realistic" else None,
                "observability": {"vllm_agent_bench": _seen(level)},
            },
        }
    )
    return report


def _told(value: Any) -> Any:
    """Without what is None."""
    if isinstance(value, dict):
        return {key: _told(inner) for key, inner in value.items() if inner is not None}
    return [_told(inner) for inner in value] if isinstance(value, list) else value


def _engine(level: Level) -> Json:
    server, launch, gpus = level.facts.get("server", {}), level.facts.get("launch"), level.run["machine"]["gpus"]
    known: Json = {"tool": "vllm", "tool_version": str(server.get("version") or "unknown")}
    known["model"] = {"name": level.model}
    if launch is None:  # a server that was running already: what it runs on is not known
        known["kind"] = "generic"
    else:
        tp = launch.get("tp", 1)
        card = {"model": gpus[0]["name"], "count": tp} if gpus else {"model": "cpu", "count": 0}
        known |= {"kind": "inference_engine", "role": "replica", "replicas": 1}
        known["accelerator"] = {**card, "parallelism": {"tp": tp}}
    return {
        "metadata": {"label": level.row.variant, "cfg_id": str((launch or {}).get("digest") or "unknown")},
        "standardized": known,
        "native": {"config": server.get("command")},
    }


def _load(level: Level) -> Json:
    workload, turns = level.run["workload"], level.turns
    last = [len(session) for session in stats.by_session(turns)]
    shared = _length([level.run["typical"]["shared_tokens"]])
    groups = {"num_groups": 1, "num_users_per_group": level.row.concurrency, "num_prefixes": 1}
    return {
        "metadata": {"cfg_id": workload.get("digest"), "description": workload["file"]["summary"]},
        "standardized": {
            "tool": "vllm-agent-bench",
            "tool_version": level.run["machine"]["bench"],
            "source": "random",
            "input_seq_len": _length([_prompt_tokens(record) for record in turns]),
            "output_seq_len": _length([record.planned_output_tokens for record in turns]),
            "prefix": {"prefix_len": shared, **groups},
            "multi_turn": {"enabled": True, "max_turns": _length(last)} if level.row.case == "realistic" else None,
            "concurrency": level.row.concurrency,
        },
        "native": {"config": workload["file"]},
    }


def _length(values: Sequence[int]) -> Json:
    spread = {"min": min(values), "max": max(values)} if len(set(values)) > 1 else {}
    return {"distribution": "other" if spread else "fixed", "value": sum(values) / len(values), **spread}


def _aggregate(level: Level) -> Json:
    answered, duration = level.answered, level.row.duration_s
    gap, answers = _mean_gap(answered), _answer_tokens(answered)
    prompts = sum(map(_prompt_tokens, answered))
    failed = sum(record.status == "failed" for record in level.turns)
    return {
        "requests": {
            "total": len(level.turns),
            "failures": failed,
            "incomplete": len(level.turns) - len(answered) - failed,
            "input_length": _statistics("count", [_prompt_tokens(record) for record in answered]),
            "output_length": _statistics("count", _known(record.output_tokens for record in answered)),
        },
        "latency": {
            "time_to_first_token": _statistics("s", [_ttft(record) for record in answered]),
            "time_per_output_token": _statistics("s/token", _known(_tpot(record) for record in answered)),
            "inter_token_latency": None if gap is None else _mean("s/token", gap),
            "request_latency": _statistics("s", [_latency(record) for record in answered]),
        },
        "throughput": {
            "input_token_rate": _mean("tokens/s", prompts / duration),
            "output_token_rate": None if answers is None else _mean("tokens/s", answers / duration),
            "total_token_rate": None if answers is None else _mean("tokens/s", (prompts + answers) / duration),
            "request_rate": _mean("queries/s", len(answered) / duration),
        },
    }


def _mean(units: str, value: float) -> Json:
    return {"units": units, "mean": value}


def _statistics(units: str, values: Sequence[float]) -> Json | None:
    if not values:
        return None
    shares = {f"p{share}": float(np.percentile(values, share)) for share in PERCENTILES}
    spread = {"stddev": float(np.std(values)), "min": min(values), **shares, "max": max(values)}
    return _mean(units, float(np.mean(values))) | spread


def _sessions(level: Level) -> Json:
    """A level may end within a session, so how many were played to their own end is not told."""
    sessions = stats.by_session(level.turns)
    return {
        "total": len(sessions),
        "failed": sum(any(record.status != "ok" for record in session) for session in sessions),
        "total_events": len(level.turns),
        "total_events_completed": len(level.answered),
        "events_per_session": _statistics("count", [len(session) for session in sessions]),
    }


def _seen(level: Level) -> Json:
    """What the report's own fields have no place for: the cache, the knee, and TTFT from when a turn was due."""
    verdict = _verdict(level.run, level.row.variant)
    row = {name: value for name in METRICS if _finite(value := getattr(level.row, name))}
    if limits := {name: row.pop(name) for name in [*row] if stats.is_limit(level.row, name)}:
        row["at_least"] = limits
    return {
        **row,
        "why_none": level.row.why_none or None,
        "knee": verdict.get("knee"),
        "ceiling": verdict.get("ceiling"),
        "slo": verdict.get("slo"),
    }


def _verdict(run: Json, variant: str) -> Json:
    found: Json = run.get("verdict", {}).get("variants", {}).get(variant, {})
    return found


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


# --- github-action-benchmark 1.22: a list for tool customSmallerIsBetter, one for customBiggerIsBetter ---


def _github_action(run: Json, rows: Sequence[LevelRow], _: Sequence[TurnRecord]) -> Json:
    """Its charts go by an entry's name. What has no finite value has no entry, a gap in the chart."""
    smaller = [
        entry for row in rows for entry in (*(_ttft_entry(row, name) for name in stats.PERCENTILES), _errors(row))
    ]
    bigger = [_rate(row) for row in rows]
    for variant in dict.fromkeys(row.variant for row in rows):
        bigger += _verdict_entries(variant, _verdict(run, variant))
    return {
        "customSmallerIsBetter.json": [entry for entry in smaller if entry],
        "customBiggerIsBetter.json": [entry for entry in bigger if entry],
    }  # fmt: skip


def _of(row: LevelRow, what: str) -> str:
    return f"{row.variant} {row.case}, {row.concurrency} at a time: {what}"


def _ttft_entry(row: LevelRow, percentile: str) -> Json | None:
    """A percentile that is only a lower limit has a name and so a chart of its own."""
    name = f"ttft_{percentile}_s"
    value, low, high = (getattr(row, f"ttft_{percentile}{end}_s") for end in ("", "_lo", "_hi"))
    enough = stats.more_sessions(row, name) == 0
    told, bare = value if enough else low, enough and not stats.is_limit(row, name)
    if not _finite(told):
        return None
    entry = {
        "name": _of(row, f"TTFT {percentile}" if bare else f"TTFT {percentile}, at least"),
        "unit": "ms",
        "value": told * 1000,
        "extra": f"{row.requests} requests of {row.sessions} sessions",
    }
    return entry | ({"range": _range(low, high)} if bare and _finite(low) else {})


def _range(low: float, high: float | None) -> str:
    return f"{low * 1000:.1f} or more" if high is None or math.isinf(high) else f"{low * 1000:.1f} to {high * 1000:.1f}"


def _errors(row: LevelRow) -> Json:
    return {"name": _of(row, "errors"), "unit": "requests", "value": row.errors, "extra": f"of {row.requests}"}


def _rate(row: LevelRow) -> Json | None:
    if not _finite(row.req_per_s):
        return None
    return {"name": _of(row, "answered requests"), "unit": "req/s", "value": row.req_per_s}


def _verdict_entries(variant: str, verdict: Json) -> list[Json]:
    knee, ceiling, found = verdict.get("knee"), verdict.get("ceiling"), []
    if knee:
        extra = f"the knee lies between {knee[0]} and {knee[1]}, seen in {verdict['seen_in']}"
        found.append({"name": f"{variant}: before the knee", "unit": "sessions", "value": knee[0], "extra": extra})
    if ceiling is not None:
        extra = f"the highest that keep {verdict['slo']}"
        found.append({"name": f"{variant}: ceiling", "unit": "sessions", "value": ceiling, "extra": extra})
    return found


Form = Callable[[Json, Sequence[LevelRow], Sequence[TurnRecord]], dict[str, Any]]
FORMS: dict[str, Form] = {"vllm-bench": _vllm_bench, "llm-d": _llm_d, "github-action": _github_action}
