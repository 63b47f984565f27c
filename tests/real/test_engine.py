"""The whole of it against a real vLLM on this machine's CPU, through the command a user types."""

import json
import socket
from pathlib import Path
from typing import Any

import pytest

from bench import family
from bench.records import Folder, TurnRecord
from tests.real.command import SMALL, bench, needs_vllm, sweep

pytestmark = needs_vllm


def ours_still_running(run: Path) -> list[int]:
    return [pid for pid, owner in family.owned() if owner.endswith(str(run.resolve()))]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], list[TurnRecord]]:
    """One sweep across the knee, with both bounds."""
    out = tmp_path_factory.mktemp("real") / "small"
    run, records = sweep(out, "--kv", "fp16", "--levels", "2,3,6", "--requests", "54")
    return out, run, records


Small = tuple[Path, dict[str, Any], list[TurnRecord]]


def lost(records: list[TurnRecord], concurrency: int) -> int:
    level = [r for r in records if r.concurrency == concurrency and r.case == "realistic" and r.turn > 0]
    assert len(level) == 54
    assert all(r.lost_tokens is not None for r in level)
    return sum(r.lost_tokens or 0 for r in level)


def test_below_capacity_no_eligible_token_is_lost_and_past_it_many_are(small: Small) -> None:
    _, run, records = small
    assert lost(records, 2) == lost(records, 3) == 0
    assert lost(records, 6) > 10_000
    assert run["verdict"]["knee"] == [3, 6]
    assert run["verdict"]["predicted_knee"] == pytest.approx((8192 - 1024) / 2320)
    assert run["verdict"]["binding"] == "lost"
    assert run["verdict"]["cause"].startswith("KV cache full: 6 sessions need 15K of 8K tokens; ")


def test_the_server_counts_the_tokens_that_were_planned(small: Small) -> None:
    _, _, records = small
    assert {r.status for r in records} == {"ok"}
    assert [(r.prompt_tokens, r.output_tokens) for r in records] == [
        (r.planned_prompt_tokens, r.planned_output_tokens) for r in records
    ]


def test_every_requests_cached_tokens_add_up_to_the_servers_own_counter(small: Small) -> None:
    out, _, records = small
    samples = list(Folder.open(out).rows("server.jsonl"))
    for concurrency in (2, 3, 6):
        level = [s for s in samples if s["concurrency"] == concurrency and s["case"] == "realistic"]
        counted = level[-1]["prefix_hits"] - level[0]["prefix_hits"]
        told = sum(r.cached_tokens or 0 for r in records if r.concurrency == concurrency and r.case == "realistic")
        assert counted == pytest.approx(told, rel=0.01)


def test_the_level_after_a_level_starts_cold(small: Small) -> None:
    _, _, records = small
    warm_ups = [r for r in records if r.turn == 0]
    assert {r.cached_tokens for r in warm_ups} == {0}
    firsts = [r for r in records if r.turn == 1 and r.case == "realistic"]
    assert {r.cached_tokens for r in firsts if r.concurrency < 6} == {1024}
    assert max(r.cached_tokens or 0 for r in firsts) == 1024


def test_the_bounds_find_everything_cached_and_nothing_but_the_shared_prompt(small: Small) -> None:
    _, _, records = small
    best = {r.cached_tokens for r in records if r.case == "best" and r.turn > 0}
    worst = {r.cached_tokens for r in records if r.case == "worst" and r.turn > 0}
    assert best == {(1024 + 6 * 384) // 128 * 128}
    assert worst == {1024}


def test_the_report_says_the_same_again(small: Small) -> None:
    out, run, _ = small
    again = json.loads(bench("report", str(out), "--json", expect=(0, 4)).stdout)
    assert again["verdict"] == run["verdict"]
    assert len((out / "levels.csv").read_text().splitlines()) == 1 + 3 + 4


def test_nothing_of_the_server_is_left(small: Small) -> None:
    out, run, _ = small
    assert ours_still_running(out) == []
    port = int(run["variants"]["fp16"]["server"]["base_url"].rpartition(":")[2])
    with socket.socket() as again:
        again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        again.bind(("127.0.0.1", port))


def test_fp8_reports_twice_the_tokens_of_16_bit(tmp_path: Path) -> None:
    run, _ = sweep(tmp_path / "r", "--vary", "kv=whole16,whole8", "--levels", "1", "--requests", "6", "--no-bounds")
    tokens = {name: facts["server"]["cache"]["tokens"] for name, facts in run["variants"].items()}
    assert tokens["whole8"] == pytest.approx(2 * tokens["whole16"], rel=0.001)


def test_two_way_tensor_parallelism_serves_a_level(tmp_path: Path) -> None:
    run, records = sweep(
        tmp_path / "r", "--kv", "fp16", "--tp", "2", "--levels", "2", "--requests", "12", "--no-bounds"
    )
    assert "--tensor-parallel-size 2" in run["variants"]["fp16"]["server"]["command"]
    assert [r.status for r in records] == ["ok"] * 13
    assert lost_any(records) == 0


def lost_any(records: list[TurnRecord]) -> int:
    return sum(r.lost_tokens or 0 for r in records)


def test_a_server_that_refuses_to_start_is_reported_by_its_cause(tmp_path: Path) -> None:
    out = tmp_path / "r"
    ran = bench("sweep", *SMALL, "--kv", "fp16", "--out", str(out), "--levels", "1", "--", "--max-model-len", "32768",
                expect=(3,))  # fmt: skip
    assert "vLLM did not start: ValueError" in ran.stderr
    assert "KV cache" in ran.stderr
    assert "lower --max-model-len" in ran.stderr
    assert str(out / "vllm-fp16.log") in ran.stderr
    assert "Traceback" not in ran.stderr
    assert ours_still_running(out) == []
