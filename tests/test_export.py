"""What other tools read must mean what they take it to mean."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench import export, foreign
from bench.errors import BenchError
from bench.records import TurnRecord
from bench.stats import LevelRow
from tests.test_stats import ONE

Row = Callable[..., LevelRow]
RUN: dict[str, Any] = {
    "started": "2026-11-20T20:00:00+00:00", "salt": 7, "machine": {"bench": "0.1.0", "gpus": [{"name": "NVIDIA L4"}]},
    "workload": {"name": "coding-agent", "digest": "d", "file": {"summary": "12 turns"}},
    "typical": {"shared_tokens": 1000},
    "variants": {
        "fp8": {
            "launch": {"tp": 1, "digest": "e"}, "dialect": {"name": "token ids"},
            "server": {"model": "Qwen/Qwen3-4B", "version": "0.32.0", "command": "vllm serve Qwen/Qwen3-4B"},
        }
    },
    "verdict": {"variants": {"fp8": {"knee": [12, 14], "seen_in": "lost tokens", "ceiling": 12, "slo": "ttft_p99<2s"}}},
}  # fmt: skip
ENDPOINT = {**RUN, "variants": {"fp8": {"launch": None, "server": {}}}}
FAILED = replace(
    ONE, session=1, status="failed", sent_s=10.2, first_s=None, last_s=None, output_tokens=None, error="HTTP 500: oh"
)


def level(*turns: TurnRecord) -> list[TurnRecord]:
    return [replace(turn, variant="fp8", concurrency=14) for turn in turns]


def strict(text: str) -> Any:
    """What every reader of JSON takes: no NaN, no Infinity."""

    def refuse(word: str) -> None:
        raise AssertionError(word)

    return json.loads(text, parse_constant=refuse)


def one(form: str, row: LevelRow, *turns: TurnRecord, run: dict[str, Any] = RUN) -> Any:
    (text,) = export.export(run, [row], level(*turns), form).values()
    return strict(text)


def test_a_level_is_called_as_vllm_would_have_called_it(row: Row) -> None:
    rows = [row(concurrency=14), row(concurrency=14, case="best")]
    records = [*level(ONE), *level(replace(ONE, case="best"))]
    names = {form: list(export.export(RUN, rows, records, form)) for form in ("vllm-bench", "llm-d")}
    assert names["vllm-bench"] == [
        "fp8-realistic-infqps-concurrency14-Qwen3-4B-20261120-200011.json",
        "fp8-best-infqps-concurrency14-Qwen3-4B-20261120-200011.json",
    ]
    assert names["llm-d"] == [f"benchmark_report_v0.2,_{name}.yaml" for name in names["vllm-bench"]]


def test_vllms_figures_count_from_sending_and_only_what_was_answered(row: Row) -> None:
    slow = replace(ONE, session=2, sent_s=10.3, first_s=11.3, last_s=12.3, output_tokens=6)
    found = one("vllm-bench", row(concurrency=14, duration_s=4.0), ONE, FAILED, slow, replace(ONE, turn=0))
    assert (found["num_prompts"], found["completed"], found["failed"]) == (3, 2, 1), "a warm-up is not a prompt"
    assert found["ttfts"] == pytest.approx([0.4, 0.0, 1.0])
    assert found["queue_times"] == pytest.approx([0.1, 0.2, 0.3]), "between due and sent"
    assert found["errors"] == ["", "HTTP 500: oh", ""]
    assert (found["mean_ttft_ms"], found["std_ttft_ms"]) == (pytest.approx(700), pytest.approx(300))
    assert found["p99_ttft_ms"] == pytest.approx(994)
    assert found["median_tpot_ms"] == pytest.approx(150), "of 100 and 200 ms a token"
    assert found["mean_itl_ms"] == pytest.approx(2000 / 15), "10 gaps of 100 ms, 5 of 200"
    assert found["mean_e2el_ms"] == pytest.approx(1700)
    assert found["request_throughput"] == pytest.approx(0.5)
    assert found["output_throughput"] == pytest.approx(17 / 4)
    assert (found["request_rate"], found["max_concurrency"]) == ("inf", 14)
    assert found["max_concurrent_requests"] == 2, "in the second in which one ends and the next begins"


@pytest.mark.parametrize(
    ("dialect", "backend"), [("token ids, answers by id", "openai"), ("text", "openai"), ("chat text", "openai-chat")]
)
def test_the_backend_is_the_api_that_was_used(row: Row, dialect: str, backend: str) -> None:
    run = {**RUN, "variants": {"fp8": {**RUN["variants"]["fp8"], "dialect": {"name": dialect}}}}
    assert one("vllm-bench", row(concurrency=14), ONE, run=run)["backend"] == backend


def test_what_was_not_measured_is_left_out_and_never_zero(row: Row) -> None:
    nothing = one("vllm-bench", row(concurrency=14), FAILED)
    assert not [key for key in nothing if key.endswith("_ms")]
    untold = one("vllm-bench", row(concurrency=14), ONE, replace(ONE, turn=2, output_tokens=None))
    assert not {"total_output_tokens", "output_throughput", "total_token_throughput", "itls"} & set(untold)
    aggregate = one("llm-d", row(concurrency=14), FAILED)["results"]["request_performance"]["aggregate"]
    assert aggregate["latency"] == {}
    assert aggregate["requests"] == {"total": 1, "failures": 1, "incomplete": 0}


def test_a_stream_that_stopped_is_no_answer(row: Row) -> None:
    torn = replace(ONE, turn=2, status="truncated", error=None)
    assert one("vllm-bench", row(concurrency=14), ONE, torn)["errors"] == ["", "truncated"]
    requests = one("llm-d", row(concurrency=14), ONE, torn)["results"]["request_performance"]["aggregate"]["requests"]
    assert (requests["total"], requests["failures"], requests["incomplete"]) == (2, 0, 1)


def test_what_is_exported_for_vllm_is_read_back_the_same(row: Row, tmp_path: Path) -> None:
    turns = [replace(ONE, session=n, intended_s=10.0 + n, sent_s=10.0 + n, first_s=10.3 + n * 1.1) for n in range(5)]
    for name, text in export.export(RUN, [row(concurrency=14)], level(*turns, FAILED), "vllm-bench").items():
        (tmp_path / name).write_text(text)
    (file,) = tmp_path.iterdir()
    back = foreign.read(file)
    assert back is not None
    assert (back.tool, back.model, back.notes) == ("vllm bench serve", "Qwen/Qwen3-4B", ())
    assert {(record.concurrency, record.variant) for record in back.records} == {(14, "imported")}
    again = {round(record.sent_s, 6): record for record in back.records}
    for turn in turns:
        record = again[round(turn.sent_s - 10.0, 6)]
        assert record.ttft_s == pytest.approx(turn.ttft_s)
        assert (record.output_tokens, record.prompt_tokens) == (turn.output_tokens, turn.prompt_tokens)
    assert [record.error for record in back.records if record.status == "failed"] == ["HTTP 500: oh"]


# --- the llm-d report: what its schema 0.2.1 demands, as far as we fill it; "!" marks what it cannot do without ---

NUMBER = (int, float)
SHARES = ("stddev", "min", "p1", "p5", "p10", "p25", "p50", "p75", "p90", "p95", "p99", "max")


def statistics(*units: str) -> dict[str, Any]:
    return {"units!": set(units), "mean!": NUMBER, **dict.fromkeys(SHARES, NUMBER)}


LENGTH = {"distribution!": {"fixed", "gaussian", "uniform", "other"}, "value!": NUMBER, "min": int, "max": int}
ANY_ENGINE = {"tool!": str, "tool_version!": str}
ENGINE = {
    **ANY_ENGINE, "kind!": {"inference_engine"}, "role!": {"replica", "prefill", "decode"}, "replicas!": int,
    "model!": {"name!": str}, "accelerator!": {"model!": str, "count!": int, "parallelism!": {"tp": int}},
}  # fmt: skip
GENERIC = {**ANY_ENGINE, "kind!": {"generic"}, "model": {"name!": str}}
RATES = {"input_token_rate": "tokens/s", "output_token_rate": "tokens/s", "total_token_rate": "tokens/s",
         "request_rate": "queries/s"}  # fmt: skip
PREFIX = {"prefix_len!": LENGTH, "num_groups!": int, "num_users_per_group!": int, "num_prefixes!": int}
REPORT = {
    "version!": {"0.2.1"},
    "run!": {"uid!": str, "eid": str, "time": {"start": str, "end": str, "duration": str}, "description": str},
    "scenario": {
        "stack": [{"metadata!": {"label!": str, "cfg_id!": str}, "standardized!": dict, "native!": {"config": object}}],
        "load": {
            "metadata!": {"cfg_id": str, "description": str},
            "standardized!": {
                "tool!": str, "tool_version!": str, "source!": {"random", "sampled", "unknown"},
                "input_seq_len!": LENGTH, "output_seq_len": LENGTH, "concurrency": int,
                "prefix": PREFIX,
                "multi_turn": {"enabled": bool, "max_turns": LENGTH},
            },
            "native!": {"config": object},
        },
    },
    "results!": {
        "request_performance": {
            "aggregate": {
                "requests": {
                    "total!": int, "failures": int, "incomplete": int,
                    "input_length": statistics("count"), "output_length": statistics("count"),
                },
                "latency": {
                    "time_to_first_token": statistics("s", "ms"), "request_latency": statistics("s", "ms"),
                    "time_per_output_token": statistics("s/token", "ms/token"),
                    "inter_token_latency": statistics("s/token", "ms/token"),
                },
                "throughput": {name: statistics(unit) for name, unit in RATES.items()},
            },
        },
        "session_performance": {
            "sessions": {
                "total!": int, "failed": int, "total_events": int, "total_events_completed": int,
                "events_per_session": statistics("count"),
            },
        },
        "observability": object,
    },
}  # fmt: skip


def misfits(value: Any, shape: Any, where: str = "") -> list[str]:
    if isinstance(shape, dict):
        allowed = {key.rstrip("!"): inner for key, inner in shape.items()}
        found = [f"{where}: no {key[:-1]}" for key in shape if key.endswith("!") and key[:-1] not in value]
        found += [f"{where}: unknown {key}" for key in value if key not in allowed]
        return found + [
            text for key in value if key in allowed for text in misfits(value[key], allowed[key], f"{where}.{key}")
        ]
    if isinstance(shape, list):
        return [text for item in value for text in misfits(item, shape[0], f"{where}[]")]
    fits = value in shape if isinstance(shape, set) else isinstance(value, shape)
    return [] if fits else [f"{where}: {value!r}"]


@pytest.mark.parametrize(("run", "engine"), [(RUN, ENGINE), (ENDPOINT, GENERIC)])
def test_the_report_is_what_llm_ds_schema_demands(row: Row, run: dict[str, Any], engine: dict[str, Any]) -> None:
    later = replace(ONE, turn=2, sent_s=12.0, first_s=12.2, last_s=13.0, end_s=13.1, output_tokens=1)
    found = one("llm-d", row(concurrency=14, ttft_p99_s=math.inf), ONE, later, FAILED, run=run)
    assert misfits(found, REPORT) == []
    assert misfits(found["scenario"]["stack"][0]["standardized"], engine) == []


def test_the_report_says_what_it_has_no_fields_for(row: Row) -> None:
    found = one("llm-d", row(concurrency=14, lost_tokens=71_296, ttft_p99_s=math.inf), ONE)
    own = found["results"]["observability"]["vllm_agent_bench"]
    assert (own["lost_tokens"], own["knee"]) == (71_296, [12, 14])
    assert "ttft_p99_s" not in own, "infinity has no notation in JSON"
    sessions = one("llm-d", row(concurrency=14), ONE, replace(FAILED, session=0, turn=2), replace(ONE, session=2))
    counted = sessions["results"]["session_performance"]["sessions"]
    assert [counted[name] for name in ("total", "failed", "total_events", "total_events_completed")] == [2, 1, 3, 2]
    single = one("llm-d", row(concurrency=14, case="best"), replace(ONE, case="best"))
    assert "session_performance" not in single["results"], "a single request is no session"


# --- github-action-benchmark ---


def entries(run: dict[str, Any], *rows: LevelRow) -> dict[str, dict[str, Any]]:
    """By name, over both lists."""
    files = {name: strict(text) for name, text in export.export(run, rows, [], "github-action").items()}
    assert set(files) == {"customSmallerIsBetter.json", "customBiggerIsBetter.json"}
    found = {entry["name"]: {**entry, "file": name} for name, rows in files.items() for entry in rows}
    assert len(found) == sum(map(len, files.values())), "a chart goes by its name"
    assert all({"name", "unit", "value"} <= set(entry) for entry in found.values())
    assert all(isinstance(entry["value"], int | float) for entry in found.values()), "null would be read as 0"
    return found


def test_less_is_better_of_times_and_more_of_throughput_and_sessions(row: Row) -> None:
    here = row(
        concurrency=12, ttft_p50_s=0.3, ttft_p50_lo_s=0.28, ttft_p50_hi_s=0.33, ttft_p99_s=0.8, ttft_p99_lo_s=0.7,
        ttft_p99_hi_s=math.inf, req_per_s=6.7,
    )  # fmt: skip
    found = entries(RUN, here)
    smaller = {name for name, entry in found.items() if entry["file"].startswith("customSmaller")}
    assert smaller == {f"fp8 realistic, 12 at a time: {what}" for what in ("TTFT p50", "TTFT p99", "errors")}
    middle = found["fp8 realistic, 12 at a time: TTFT p50"]
    assert (middle["value"], middle["unit"], middle["range"]) == (pytest.approx(300), "ms", "280.0 to 330.0")
    assert found["fp8 realistic, 12 at a time: TTFT p99"]["range"] == "700.0 or more"
    assert found["fp8 realistic, 12 at a time: answered requests"]["value"] == 6.7
    assert (found["fp8: before the knee"]["value"], found["fp8: ceiling"]["value"]) == (12, 12)


def test_a_lower_limit_has_a_chart_of_its_own(row: Row) -> None:
    found = entries(RUN, row(ttft_p99_s=0.8, ttft_p99_lo_s=0.6, needs_p99=30))
    assert found["fp8 realistic, 1 at a time: TTFT p99, at least"]["value"] == pytest.approx(600)
    assert "fp8 realistic, 1 at a time: TTFT p99" not in found
    assert not [name for name in entries(RUN, row(ttft_p99_s=0.8, needs_p99=30)) if "TTFT" in name]


def test_a_limit_for_time_outs_has_a_chart_of_its_own_too_and_never_passes_for_a_number(row: Row) -> None:
    here = row(concurrency=14, ttft_p50_s=0.3, ttft_p99_s=60.0, needs_p99=0, at_least="p99", timeouts=3, errors=3)
    names = {name for name in entries(RUN, here) if "TTFT" in name}
    assert names == {"fp8 realistic, 14 at a time: TTFT p50", "fp8 realistic, 14 at a time: TTFT p99, at least"}
    seen = one("llm-d", here, ONE)["results"]["observability"]["vllm_agent_bench"]
    assert (seen["ttft_p50_s"], seen.get("ttft_p99_s"), seen["at_least"]) == (0.3, None, {"ttft_p99_s": 60.0})
    assert seen["timeouts"] == 3


def test_failures_are_counted_where_their_percentile_has_no_number(row: Row) -> None:
    found = entries(RUN, row(ttft_p50_s=0.2, ttft_p99_s=math.inf, errors=9))
    assert "fp8 realistic, 1 at a time: TTFT p99" not in found
    assert found["fp8 realistic, 1 at a time: errors"]["value"] == 9


def test_a_knee_that_was_not_found_is_a_gap(row: Row) -> None:
    run = {**RUN, "verdict": {"variants": {"fp8": {"knee": None, "ceiling": None, "slo": "ttft_p99<2s"}}}}
    assert not [name for name in entries(run, row()) if name.startswith("fp8:")]


@pytest.mark.parametrize("form", export.FORMS)
def test_every_form_is_plain_json_whatever_failed(row: Row, form: str) -> None:
    broken = row(concurrency=14, ttft_p50_s=math.inf, ttft_p50_hi_s=math.inf, ttft_p50_lo_s=math.inf, req_per_s=0.0)
    for text in export.export(ENDPOINT, [broken], level(FAILED), form).values():
        strict(text)


def test_a_level_that_took_no_time_has_no_rates(row: Row) -> None:
    for form in export.FORMS:
        with pytest.raises(BenchError, match="took no time"):
            one(form, row(concurrency=14, duration_s=0.0), ONE)


def test_what_cannot_be_exported_says_why(row: Row) -> None:
    with pytest.raises(BenchError, match="no format 'csv'"):
        export.export(RUN, [row()], level(ONE), "csv")
    with pytest.raises(BenchError, match="nothing to export"):
        export.export(RUN, [], [], "vllm-bench")
    with pytest.raises(BenchError, match="single requests are not there"):
        export.export(RUN, [row()], [], "llm-d")
