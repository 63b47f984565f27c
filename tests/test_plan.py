"""The answer before a GPU is paid for: what a planner types, and what comes back."""

import csv
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bench import foresight, plan, recipe, workload
from bench.knee import parse_slo
from tests.test_cli import at, bench  # noqa: F401

ROOT = Path(__file__).parent.parent
L4 = ("--gpu", "l4", "--kv", "fp8")


def test_the_study_is_foretold_and_marked_as_that_wherever_it_is_told(at: Path) -> None:  # noqa: F811
    ran = bench("plan", *L4, "--levels", "1,12,14,16", "--no-bounds", "--out", "run")
    assert ran.returncode == 0, ran.stderr
    run = json.loads((at / "run" / "run.json").read_text())
    assert run["verdict"]["knee"] == [12, 14]
    assert run["simulated"] is True
    assert "SIMULATED: nothing was measured" in ran.stdout
    assert "VALID" not in ran.stdout
    assert "% sure" not in ran.stdout, "it would come out the same again"
    with (at / "run" / "levels.csv").open() as file:
        assert {row["variant"] for row in csv.DictReader(file)} == {"fp8 (simulated)"}
    conditions = (at / "run" / "table.md").read_text().partition("## Conditions")[2]
    assert "no vLLM, simulated" in conditions
    assert "--port FREE" in conditions
    for name in ("table.md", "report.html", *(one.name for one in (at / "run").glob("*.svg"))):
        assert "simulated" in (at / "run" / name).read_text(), name
    again = bench("report", "run")
    assert "SIMULATED" in again.stdout
    assert json.loads((at / "run" / "run.json").read_text())["verdict"] == run["verdict"]


def test_a_run_that_did_not_happen_is_not_published(at: Path) -> None:  # noqa: F811
    bench("plan", *L4, "--levels", "2", "--requests", "12", "--no-bounds", "--out", "run")
    ran = bench("publish", "run", "--to", "results")
    assert ran.returncode == 4
    assert "a simulated run is no result" in ran.stderr


def test_memory_levers_and_price_are_told(at: Path) -> None:  # noqa: F811
    told = bench("plan", *L4, "--levels", "1,4", "--requests", "24", "--no-bounds", "--out", "run").stdout
    assert "13.1 GB   left for the KV cache, at 73,728 bytes a token" in told
    assert "13.0   sessions fit" in told
    moves = told[told.index("What would move the knee") :]
    assert "--kv fp16 6.1 sessions $1.32 an hour" in " ".join(moves.split())
    assert moves.index("--gpu h200") < moves.index("--gpu h100") < moves.index("--kv tq4") < moves.index("--kv fp16")
    assert "a thousand tasks of 12 turns each take $" in told
    bands = told[told.index("Expected of a real run") : told.index("What would move")].splitlines()
    assert "the data sheet of NVIDIA L4" in bands[0]
    assert [line.split()[0] for line in bands[1:] if line] == ["C", "1", "4"]
    page = (at / "run" / "report.html").read_text()
    assert "What would move it" in page
    assert "--gpu h200" in page
    bench("report", "run")
    assert (at / "run" / "report.html").read_text() == page


def test_several_precisions_stand_beside_each_other(at: Path) -> None:  # noqa: F811
    ran = bench("plan", "--gpu", "l4", "--vary", "kv=fp16,fp8", "--levels", "6,7", "--no-bounds", "--out", "run")
    lines = [line.split("  ") for line in ran.stdout.splitlines() if " (simulated)  " in line]
    told = [[cell.strip() for cell in line if cell] for line in lines]
    assert [line[:3] for line in told] == [
        ["fp16 (simulated)", "6.1", "6 to 7"],
        ["fp8 (simulated)", "13.0", "none up to 7"],
    ]
    assert f"| {' | '.join(told[0])} |" in (at / "run" / "table.md").read_text()
    assert "The variants beside each other" in (at / "run" / "report.html").read_text()


def test_two_plans_are_compared_without_a_word_of_chance(at: Path) -> None:  # noqa: F811
    for gpu in ("l4", "l40s"):
        bench("plan", "--gpu", gpu, "--levels", "2", "--requests", "24", "--no-bounds", "--out", gpu)
    told = bench("compare", "l4", "l40s")
    assert told.returncode == 0
    assert told.stdout.count("SIMULATED: nothing was measured") == 2
    assert "Three runs a side" not in told.stdout
    gate = bench("compare", "l40s", "l4", "--fail-on", "regression")
    assert gate.returncode == 4
    assert "judges only runs that were measured" in gate.stderr


def test_sessions_of_one_turn_are_never_met_at_another_depth(at: Path) -> None:  # noqa: F811
    words = ("--gpu", "l4", "--workload", "short-qa", "--levels", "1", "--requests", "12", "--no-bounds")
    assert "at random depths" not in bench("plan", *words).stdout


def test_each_workload_of_a_grid_is_told_by_its_own_sizes(at: Path) -> None:  # noqa: F811
    varied = ("--vary", "workload.session.turns=6,20", "--levels", "12,14", "--no-bounds", "--out", "run")
    ran = bench("plan", "--gpu", "l4", *varied, "--json")
    found = {name: one["predicted_knee"] for name, one in json.loads(ran.stdout)["verdict"]["variants"].items()}
    short, long = found.values()
    assert [*found] == ["session.turns=6 (simulated)", "session.turns=20 (simulated)"]
    assert (round(short, 1), round(long, 1)) == (25.9, 7.8)
    told = bench("report", "run").stdout
    assert told.startswith("coding-agent with session.turns=6, coding-agent with session.turns=20 on l4")
    dry = bench("sweep", "--gpu", "l4", *varied[:-2], "--vllm", "none", "--dry-run")
    assert dry.stdout.count("sessions fit") == 2


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--gpu", "l4", "--model", "synthetic:qwen3-32b"), "does not fit"),
        (("--gpu", "l4", "--workload", "reviewer"), "longest context is 50,"),
        (("--gpu", "l4", "--slo", "soon"), "is not METRIC<VALUE"),
        (("--gpu", "h100", "--model", "synthetic:gemma-3-1b"), "are not simulated"),
        (("--gpu", "l4", "--kv", "fp16", "--", "--max-model-len", "131072"), "than the 40,960 tokens"),
        (("--gpu", "a10g", "--model", "synthetic:qwen3-8b", "--kv", "fp16"), "unless one request of --max-model-len"),
        (("--gpu", "l4", "--model", "someone/unheard-of"), "not known before the server reports it"),
        (("--gpu", "cpu", "--model", "synthetic:qwen3-4b"), "nobody knows how fast it is"),
        (("--gpu", "l4", "--", "--data-parallel-size", "2"), "replicas are not simulated"),
        (("--gpu", "l4", "--", "--max-num-seqs", "0"), "--max-num-seqs 0: vLLM would not start"),
        (("--agents", "3", "--tp", "2"), "leave tp out"),
        ((), "--gpu is missing"),
        (("--calibrate", "nowhere"), "is not the folder of a run"),
    ],
)
def test_what_cannot_be_planned_says_why(at: Path, words: tuple[str, ...], says: str) -> None:  # noqa: F811
    ran = bench("plan", *words)
    assert ran.returncode == 2, ran.stderr
    assert says in ran.stderr
    assert not (at / "results").exists()


def test_where_it_is_the_first_turns_at_once_that_break_the_promise_it_is_said(at: Path) -> None:  # noqa: F811
    words = (*L4, "--levels", "1,12", "--no-bounds", "--slo", "ttft_p99<1500ms")
    together, spread = (
        " ".join(bench("plan", *words, *more, "--out", out).stdout.split())
        for out, *more in (("a",), ("b", "--vary", "workload.arrivals.start=spread"))
    )
    assert "requests that break it open the first sessions, all at once" in together
    assert "all at once" not in spread
    arriving = ("--vary", "workload.arrivals.sessions_per_s=9", "--vary", "workload.session.turns=1", "--out", "c")
    words = (*L4, "--levels", "4", "--requests", "6", "--no-bounds", "--slo", "ttft_p99<1ms")
    ran = bench("plan", *words, *arriving)
    assert "no level measured keeps ttft_p99<1ms" in ran.stdout
    assert "all at once" not in ran.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_plan_that_is_stopped_says_so_and_no_more(at: Path, number: signal.Signals) -> None:  # noqa: F811
    words = [sys.executable, "-m", "bench", "plan", *L4, "--levels", "3000", "--no-bounds", "--out", "run"]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while not (at / "run" / "run.json").is_file():
        assert process.poll() is None
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.splitlines()[-1] == "bench: interrupted"
    assert not [word for word in ("Traceback", "never awaited", "never retrieved", "destroyed") if word in said]
    assert "bench plan makes it again" in bench("sweep", "--resume", "run").stderr
    assert "plan it again" in bench("report", "run").stderr


def test_two_stages_are_two_cards_to_pay_for(at: Path) -> None:  # noqa: F811
    ran = bench("plan", *L4, "--levels", "1", "--requests", "12", "--no-bounds", "--json", "--", "-pp", "2")
    (variant,) = json.loads(ran.stdout)["variants"].values()
    prices = {lever["what"]: lever["price_usd_h"] for lever in variant["outlook"]["levers"]}
    assert prices["half as many turns"] == pytest.approx(2 * 1.3237, rel=0.01)
    assert prices["--tp 2"] == pytest.approx(4 * 1.3237, rel=0.01)


def test_past_the_knee_the_band_is_that_of_what_is_past_it(at: Path) -> None:  # noqa: F811
    speed = (
        "[speed]\nstep_s = 0.001\nweights_s = 0.02\ntoken_s = 2e-4\nattend_s = 2e-8\nread_s = 3e-7\nsequence_s = 0\n"
    )
    told = (
        (ROOT / "launch" / "l4.toml").read_text() + speed + "request_s = 0.005\nsaid_s = 0\nbelow = 1.1\npast = 3.0\n"
    )
    (at / "my.toml").write_text(told)
    words = ("--levels", "1,2", "--no-prefix-caching", "--requests", "24", "--no-bounds", "--json")
    (variant,) = json.loads(bench("plan", "--gpu", "my.toml", *words).stdout)["variants"].values()
    low, high = variant["outlook"]["bands"][0]["ttft_p50_s"]
    assert high == pytest.approx(9 * low)


def test_sizing_asks_of_each_machine_what_a_plan_of_it_asks(at: Path) -> None:  # noqa: F811
    told = bench("plan", "--agents", "2", "--model", "synthetic:qwen3-8b", "--workload", "short-qa").stdout
    assert "1 x 2 l4 " in told, "on one the cache would hold 15,654 tokens, and vLLM would not start"
    assert "1 x l4 " not in told
    none = bench("plan", "--agents", "2", "--kv", "nonsense").stdout
    assert "No machine on file does it." in none
    assert "not h100: its file has no precision nonsense" in none


def test_the_best_level_is_the_last_that_keeps_the_promise() -> None:
    launch = recipe.launch("l4", "fp8", None, 1, True, ())
    server, work, slo = foresight.simulated("fp8", launch), workload.load("short-qa"), parse_slo("ttft_p99<2s")
    row = plan.best(server, slo, work, 0, 40)
    assert row is not None
    assert slo.met(row)
    above = foresight.Level("fp8", "realistic", row.concurrency + 1, 0, row.requests)
    assert not slo.met(foresight.row(server, above, work, 0))


def test_two_hundred_agents_are_sized_the_cheapest_first(at: Path) -> None:  # noqa: F811
    told = bench("plan", "--agents", "20", "--workload", "short-qa").stdout.splitlines()
    fleets = [line for line in told if " an hour" in line]
    prices = [float(line.partition("$")[2].partition(" an hour")[0].replace(",", "")) for line in fleets]
    assert len(prices) == 6
    assert prices == sorted(prices)
    assert any("the price of h100: " in line and "p5.48xlarge / 8" in line for line in told)
