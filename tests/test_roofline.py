"""How close a level came to its card's limit: counted by hand, and never past what the card can do."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from bench import capacity, foresight, recipe, roofline, stats, workload
from bench.load import Level
from bench.speed import Speed
from tests.test_cli import at, bench  # noqa: F401
from tests.test_stats import ONE

PLAN = ("plan", "--gpu", "h200", "--model", "synthetic:qwen3-4b-fp8", "--out", "plan")
# Each part has a digit of its own.
ROOF = Speed(step_s=0, weights_s=1e-3, token_s=1e-4, attend_s=1e-7, read_s=1e-6, sequence_s=1e-2, request_s=0, said_s=0)


def test_what_nothing_gets_around_is_counted_by_hand() -> None:
    """A prompt of 100 tokens with 60 cached and an answer of 11, over two seconds, in 5 steps a second."""
    found = roofline.reached([replace(ONE, cached_tokens=60)], 2.0, 5.0, ROOF)
    assert found["prefill_tokens_per_s"] == 40 / 2
    assert found["decode_tokens_per_s"] == 11 / 2
    after = sum(100 + nth for nth in range(1, 11))  # ten of the answer's tokens go through the layers
    before = sum(range(60, 100)) + 40 / 2  # the prompt's new ones, each with half of itself
    compute_s = (40 + 10) * 1e-4 + (before + after) * 1e-7 + 11 * 1e-2
    assert found["matrix_share"] == pytest.approx(compute_s / 2)
    moved_s = (after + 60 + 40 + 10) * 1e-6
    assert found["bandwidth_share"] == pytest.approx(5 * 1e-3 + moved_s / 2)


def test_what_is_not_told_is_not_guessed() -> None:
    assert roofline.reached([replace(ONE, cached_tokens=None)], 2.0, 5.0, ROOF) == {}
    assert set(roofline.reached([ONE], 2.0, 5.0, None)) == {"prefill_tokens_per_s", "decode_tokens_per_s"}
    assert "bandwidth_share" not in roofline.reached([ONE], 2.0, None, ROOF)


@pytest.mark.parametrize("case", ["realistic", "best", "worst"])
@pytest.mark.parametrize("concurrency", [1, 24, 64])
def test_a_card_as_fast_as_its_limit_does_not_pass_it(case: str, concurrency: int) -> None:
    launch = recipe.launch("l4", "fp8", "synthetic:qwen3-4b-fp8", 1, True, ())
    work, roof = workload.load("coding-agent"), capacity.roof(launch)
    assert roof is not None
    server = foresight.simulated("fp8", launch, roof, tokens=300_000)
    played = foresight.play(server, Level("fp8", case, concurrency, 0, 60), work, 0)
    row = stats.reduce(played.records, played.samples, roof=roof)
    assert row.matrix_share is not None
    assert row.bandwidth_share is not None
    assert 0 < row.matrix_share <= 1
    assert 0 < row.bandwidth_share <= 1
    assert max(row.matrix_share, row.bandwidth_share) > 0.5, "it does nothing else"


MEASURED = """
[roof]
bf16_tflops = { value = 700, source = "measured here" }
fp8_tflops = { value = 1400, source = "measured here" }
bandwidth_gb_s = { value = 4000, source = "measured here" }
"""


def test_what_was_measured_wins_over_the_data_sheet(tmp_path: Path) -> None:
    sheet = recipe.launch("h200", "fp8", "synthetic:qwen3-4b", 1, True, ())
    own = tmp_path / "mine.toml"
    own.write_text(Path("launch/h200.toml").read_text() + MEASURED)
    found = recipe.launch(str(own), "fp8", "synthetic:qwen3-4b", 2, True, ())
    by_sheet, seen = capacity.roof(sheet), capacity.roof(found)
    assert by_sheet is not None
    assert seen is not None
    assert seen.source == "measured here", "said once"
    assert by_sheet.token_s / seen.token_s == pytest.approx(2 * 700 / 989.4)  # two cards
    assert by_sheet.read_s / seen.read_s == pytest.approx(2 * 4000 / 4800)
    assert capacity.speed(replace(found, tp=1)) == capacity.speed(sheet), "a forecast rests on shares of data sheets"


def test_what_was_not_measured_is_taken_from_the_data_sheet_and_said(tmp_path: Path) -> None:
    own = tmp_path / "mine.toml"
    lines = [line for line in MEASURED.splitlines() if not line.startswith("fp8")]
    own.write_text(Path("launch/h200.toml").read_text() + "\n".join(lines))
    seen, sheet = (
        capacity.roof(recipe.launch(name, "fp8", "synthetic:qwen3-4b-fp8", 1, True, ())) for name in (str(own), "h200")
    )
    assert seen is not None
    assert sheet is not None
    assert seen.token_s == sheet.token_s
    assert seen.source == "measured here; as bf16, twice the rate"


@pytest.mark.parametrize("model", ["deepseek-v2-lite", "gemma-3-1b", "gpt-oss-20b"])
def test_attention_of_another_kind_is_not_counted_as_this_one(model: str) -> None:
    launch = recipe.launch("h200", "fp16", f"synthetic:{model}", 1, True, ())
    assert capacity.roof(launch) is None


def test_a_run_says_how_close_it_came(at: Path) -> None:  # noqa: F811
    out, ran = at / "plan", bench(*PLAN, "--levels", "1,16")
    assert ran.returncode == 0, ran.stderr
    said = " ".join(ran.stdout.split())
    assert "Cost: at 16 sessions a thousand tasks of 12 turns each take $" in said
    assert "of its bandwidth: " in said
    assert "What it could have done: the data sheet of NVIDIA H200 SXM." in (out / "table.md").read_text()
    assert "| realistic | 16 |" in (out / "table.md").read_text().partition("## How close to the card's limit")[2]
    assert "How close to the card's limit" in (out / "report.html").read_text()
    card = json.loads((out / "run.json").read_text())["verdict"]["variants"]["fp8 (simulated)"]["card"]
    assert 0 < card["matrix_share"] < 1
    assert card["joules_per_1000_tasks"] is None, "nothing was drawn"


def test_a_damaged_limit_is_refused(at: Path) -> None:  # noqa: F811
    out, _ = at / "plan", bench(*PLAN, "--levels", "1", "--no-bounds")
    told = json.loads((out / "run.json").read_text())
    for wrong in ("fast", -1, None):
        told["variants"]["fp8 (simulated)"]["roof"]["token_s"] = wrong
        (out / "run.json").write_text(json.dumps(told))
        ran = bench("report", "plan")
        assert ran.returncode == 4
        assert f"token_s: a quantity should stand there, not {wrong!r}" in ran.stderr
