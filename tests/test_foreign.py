"""Other tools' files, cut down to the keys that are read, in the shapes of the versions that bench/foreign.py names."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench import foreign, stats
from bench.errors import BenchError
from bench.foreign import Foreign
from bench.records import TurnRecord

EPOCH_NS = 1_759_813_207_532_900_363


def vllm(**other: Any) -> dict[str, Any]:
    return {
        "date": "20261120-200000", "backend": "openai", "model_id": "m", "tokenizer_id": "m", "max_concurrency": 4,
        "input_lens": [100, 200, 300], "output_lens": [3, 0, 3], "ttfts": [0.5, 0.0, 0.25],
        "itls": [[0.1, 0.2], [], [0.1, 0.1]], "start_times": [1000.0, 1001.0, 1002.0], "errors": ["", "Traceback", ""],
        **other,
    }  # fmt: skip


def aiperf(session: str, turn: int, start_ms: float, **other: Any) -> dict[str, Any]:
    start = EPOCH_NS + int(start_ms * 1e6)
    return {
        "metadata": {
            "session_num": 0, "x_correlation_id": session, "conversation_id": "c", "turn_index": turn,
            "request_start_ns": start, "request_end_ns": start + 300_000_000, "benchmark_phase": "profiling",
            "was_cancelled": False, **other.pop("metadata", {}),
        },
        "metrics": {
            "time_to_first_token": {"value": 255.5, "unit": "ms"}, "request_latency": {"value": 0.29, "unit": "sec"},
            "input_sequence_length": {"value": 550, "unit": "tokens"},
            "output_sequence_length": {"value": 9, "unit": "tokens"},
        },
        "error": None, **other,
    }  # fmt: skip


def guidellm_request(start: float, ttft: float | None = 0.5, status: str = "completed", **info: Any) -> dict[str, Any]:
    first = None if ttft is None else start + ttft
    return {
        "prompt_tokens": 128, "output_tokens": 64,
        "info": {
            "conversation_id": None, "turn_index": 0, "status": status, "error": None, **info,
            "timings": {
                "resolve_start": start - 0.01, "request_start": start, "first_token_iteration": first,
                "last_token_iteration": first and first + 1, "request_end": start + 2, "resolve_end": start + 2.01,
            },
        },
    }  # fmt: skip


def guidellm(*levels: tuple[dict[str, Any], list[dict[str, Any]]], **groups: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "metadata": {"version": 2, "guidellm_version": "0.8.1"},
        "benchmarks": [
            {
                "config": {"strategy": strategy, "backend": {"target": "http://h", "model": "m"}},
                "metrics": {"request_totals": {"successful": len(requests)}},
                "requests": {"successful": requests, "errored": [], "incomplete": [], **groups},
            }
            for strategy, requests in levels
        ],
    }


def put(path: Path, *documents: Any) -> Path:
    path.write_text("\n".join(json.dumps(document) for document in documents))
    return path


def taken(path: Path) -> Foreign:
    found = foreign.read(path)
    assert found is not None
    assert {(one.variant, one.case, one.eligible_tokens, one.cached_tokens) for one in found.records} == {
        ("imported", "realistic", 0, None)
    }
    assert all(one.intended_s == one.sent_s for one in found.records), "when it was due is not known"
    assert min(one.sent_s for one in found.records) == 0
    return found


def by_session(records: list[TurnRecord]) -> Iterator[list[int]]:
    return ([record.turn for record in session] for session in stats.by_session(records))


# --- vLLM ---


def test_vllms_requests_are_sessions_by_themselves(tmp_path: Path) -> None:
    found = taken(put(tmp_path / "r.json", vllm()))
    assert (found.tool, found.version, found.model, found.notes) == ("vllm bench serve", None, "m", ())
    good, failed, last = found.records
    assert (good.ttft_s, good.concurrency, good.prompt_tokens, good.output_tokens) == (0.5, 4, 100, 3)
    assert (good.last_s, good.end_s) == (pytest.approx(0.8), pytest.approx(0.8)), "itls add up to the answer's end"
    assert (failed.status, failed.ttft_s, failed.error, failed.output_tokens) == ("failed", None, "Traceback", None)
    assert (last.sent_s, last.ttft_s) == (2.0, 0.25)
    assert list(by_session(found.records)) == [[1], [1], [1]]


def test_an_answer_without_a_token_has_failed_even_if_vllm_names_no_error(tmp_path: Path) -> None:
    found = taken(put(tmp_path / "r.json", vllm(errors=["", "", ""])))
    assert [record.status for record in found.records] == ["ok", "failed", "ok"]


def test_vllms_appended_results_are_levels_and_repeats(tmp_path: Path) -> None:
    found = taken(put(tmp_path / "r.json", vllm(), vllm(max_concurrency=8), vllm()))
    assert sorted({(record.concurrency, record.repeat) for record in found.records}) == [(4, 0), (4, 1), (8, 0)]


def test_without_a_concurrency_it_is_what_was_under_way_at_once(tmp_path: Path) -> None:
    found = taken(put(tmp_path / "r.json", vllm(max_concurrency=None, latencies=[2.5, 0.0, 1.0])))
    assert {record.concurrency for record in found.records} == {2}
    assert "2 is the most" in found.notes[0]


def test_totals_alone_are_refused_with_the_flag_that_is_missing(tmp_path: Path) -> None:
    totals = {name: value for name, value in vllm().items() if not isinstance(value, list)}
    with pytest.raises(BenchError, match="no ttfts, start_times") as told:
        foreign.read(put(tmp_path / "r.json", totals))
    assert "--save-detailed" in told.value.hint


# --- AIPerf ---


def test_aiperfs_conversations_are_sessions(tmp_path: Path) -> None:
    lines = [aiperf("a", 0, 0), aiperf("b", 0, 10), aiperf("a", 1, 900)]
    put(tmp_path / "profile_export_aiperf.json", {
        "aiperf_version": "0.13.0",
        "input_config": {"models": {"items": [{"name": "m"}]}, "phases": [{"name": "profiling", "concurrency": 2}]},
    })  # fmt: skip
    found = taken(put(tmp_path / "profile_export.jsonl", *lines))
    assert (found.tool, found.version, found.model, found.notes) == ("AIPerf", "0.13.0", "m", ())
    assert list(by_session(found.records)) == [[1, 2], [1]]
    first = found.records[0]
    assert first.ttft_s == pytest.approx(0.2555, abs=1e-6), "milliseconds"
    assert first.last_s == pytest.approx(0.29, abs=1e-6), "seconds, by the unit that stands there"
    assert (first.end_s, first.concurrency) == (pytest.approx(0.3, abs=1e-6), 2)
    assert (first.prompt_tokens, first.output_tokens) == (550, 9)
    assert taken(tmp_path).records == found.records, "its folder will do"


def test_aiperfs_phases_are_levels(tmp_path: Path) -> None:
    phases = [{"name": "w", "kind": "warmup", "concurrency": 1}] + [
        {"name": f"p{n}", "kind": "profiling", "concurrency": n} for n in (2, 8)
    ]
    put(tmp_path / "profile_export_aiperf.json", {"aiperf_version": "0.13.0", "input_config": {"phases": phases}})
    lines = [aiperf(session, 0, 0, metadata={"profiling_index": n}) for n, session in ((0, "a"), (1, "b"))]
    found = taken(put(tmp_path / "profile_export.jsonl", *lines))
    assert [record.concurrency for record in found.records] == [2, 8]


def test_an_older_aiperf_keeps_model_and_concurrency_elsewhere(tmp_path: Path) -> None:
    config = {"endpoint": {"model_names": ["old"]}, "loadgen": {"concurrency": 3}}
    put(tmp_path / "profile_export_aiperf.json", {"aiperf_version": "0.1.1", "input_config": config})
    found = taken(put(tmp_path / "profile_export.jsonl", aiperf("a", 0, 0)))
    assert (found.model, found.records[0].concurrency) == ("old", 3)


def test_without_its_summary_aiperf_is_still_read(tmp_path: Path) -> None:
    found = taken(put(tmp_path / "profile_export.jsonl", aiperf("a", 0, 0), aiperf("b", 0, 100)))
    assert (found.model, found.version, found.records[0].concurrency) == (None, None, 2)
    assert len(found.notes) == 2


def test_aiperfs_warm_up_and_cancelled_requests_are_left_out_and_its_errors_are_not(tmp_path: Path) -> None:
    lines = [
        aiperf("w", 0, 0, metadata={"benchmark_phase": "warmup"}),
        aiperf("a", 0, 1000),
        aiperf("b", 0, 1000, metadata={"was_cancelled": True}, metrics=None, error={"type": "E", "message": "499"}),
        aiperf(
            "c", 0, 1000, metrics={"error_isl": {"value": 7, "unit": "tokens"}}, error={"type": "E", "message": "m"}
        ),
    ]
    found = taken(put(tmp_path / "profile_export.jsonl", *lines))
    assert [(record.status, record.error) for record in found.records] == [("ok", None), ("failed", "E: m")]
    assert "1 requests that AIPerf cancelled are left out" in found.notes


def test_aiperfs_summary_alone_points_to_its_records(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="summary") as told:
        foreign.read(put(tmp_path / "profile_export_aiperf.json", {"aiperf_version": "0.13.0"}))
    assert "profile_export.jsonl" in told.value.hint


def test_without_streaming_there_is_no_ttft_to_compare(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="time to first token"):
        foreign.read(put(tmp_path / "p.jsonl", aiperf("a", 0, 0, metrics={}), aiperf("b", 0, 0, metrics={})))


# --- GuideLLM ---


def test_guidellms_benchmarks_are_levels(tmp_path: Path) -> None:
    two, eight = ({"type_": "concurrent", "streams": streams} for streams in (2, 8))
    chat = [guidellm_request(1e9, conversation_id="c"), guidellm_request(1e9 + 3, conversation_id="c", turn_index=1)]
    single = [guidellm_request(2e9, ttft=1.5), guidellm_request(2e9 + 1)]
    found = taken(put(tmp_path / "g.json", guidellm((two, chat), (eight, single))))
    assert (found.tool, found.version, found.model, found.notes) == ("GuideLLM", "0.8.1", "m", ())
    assert [(record.concurrency, record.turn) for record in found.records] == [(2, 1), (2, 2), (8, 1), (8, 1)]
    assert [record.ttft_s for record in found.records] == pytest.approx([0.5, 0.5, 1.5, 0.5], abs=1e-6)
    assert list(by_session([record for record in found.records if record.concurrency == 2])) == [[1, 2]]
    assert list(by_session([record for record in found.records if record.concurrency == 8])) == [[1], [1]]


@pytest.mark.parametrize(
    ("strategy", "concurrency"),
    [
        ({"type_": "synchronous"}, 1),
        ({"type_": "throughput", "max_concurrency": 32}, 32),
        ({"type_": "constant", "rate": 5.0, "max_concurrency": 512}, 2),
    ],
)
def test_a_rate_has_no_concurrency_of_its_own(tmp_path: Path, strategy: dict[str, Any], concurrency: int) -> None:
    found = taken(put(tmp_path / "g.json", guidellm((strategy, [guidellm_request(0.0), guidellm_request(1.0)]))))
    assert {record.concurrency for record in found.records} == {concurrency}


def test_guidellms_errors_count_and_what_its_clock_cut_off_does_not(tmp_path: Path) -> None:
    failed = guidellm_request(1.0, ttft=None, status="errored", error="HTTP 500")
    failed["info"]["timings"] |= {"request_start": None, "request_end": None}
    report = guidellm(({"type_": "synchronous"}, [guidellm_request(0.0)]), errored=[failed], incomplete=[{}, {}])
    report["benchmarks"][0]["metrics"]["request_totals"]["successful"] = 50
    found = taken(put(tmp_path / "g.json", report))
    assert [record.error for record in found.records] == [None, "GuideLLM: HTTP 500"]
    assert "2 requests that were not answered" in found.notes[0]
    assert "1 of 50 answered requests" in found.notes[1]


# --- what is none of them, and what is broken ---


def test_what_is_nobodys_result_is_nobodys(tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(b"\xff\xfe\x00")
    for path in (put(tmp_path / "other.json", {"a": 1}), tmp_path / "image", tmp_path, tmp_path / "nothing"):
        assert foreign.read(path) is None


@pytest.mark.parametrize(
    ("document", "tool"),
    [(vllm(), "vllm bench serve"), (aiperf("a", 0, 0), "AIPerf"), (guidellm(({"type_": "x"}, [])), "GuideLLM")],
)
def test_a_torn_file_is_called_damaged(tmp_path: Path, document: dict[str, Any], tool: str) -> None:
    file = tmp_path / "torn"
    file.write_text(json.dumps(document)[:-20])
    with pytest.raises(BenchError, match=f"not what {tool} writes") as told:
        foreign.read(file)
    assert "to its end" in told.value.hint


@pytest.mark.parametrize(
    "document",
    [
        vllm(ttfts=[0.5]),
        vllm(start_times=[None] * 3),
        aiperf("a", 0, 0, metrics={"time_to_first_token": {"value": 1, "unit": "fortnight"}}),
        {"metadata": {"guidellm_version": "0.8.1"}, "benchmarks": []},
    ],
)
def test_a_file_of_another_shape_is_an_error_with_a_name_and_no_traceback(tmp_path: Path, document: Any) -> None:
    with pytest.raises(BenchError, match=r"r\.json is not what"):
        foreign.read(put(tmp_path / "r.json", document))
