"""`bench sweep --search` as a user runs, interrupts and resumes it, on a server whose cache holds three sessions."""

import json
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from bench import calibrate
from bench.records import Folder, attempts, is_last
from tests.test_cli import HERE, SMALL, at, bench, fake, fine  # noqa: F401

SMALL_CACHE = ("sweep", "--gpu", str(HERE / "real" / "small.toml"), "--kv", "fp16", "--model", "M", *SMALL)
STRICT = ("--search", "--slo", "ttft_p99<1ms")  # nothing keeps it: levels below the knee end at once


def plan_of(run: Path) -> dict[int, int]:
    told = json.loads((run / "run.json").read_text())
    return {level["concurrency"]: level["requests"] for level in told["levels"]}


def on_file(run: Path) -> dict[int, int]:
    """Requests of the attempts that count."""
    records = Folder.open(run).records()
    last = attempts(records)
    return dict(Counter(one.concurrency for one in records if one.turn > 0 and is_last(last, one)))


def checked(run: Path, ceiling: bool = False) -> dict[str, Any]:
    """A search that came to its end, on a server whose cache holds three sessions."""
    told = json.loads((run / "run.json").read_text())
    verdict: dict[str, Any] = told["verdict"]
    assert told["ended"] == "finished"
    assert plan_of(run) == on_file(run)
    assert verdict["ledger"]["planned"] == verdict["ledger"]["ok"] == sum(on_file(run).values())
    assert verdict["ledger"]["never_sent"] == 0
    assert verdict["knee"] in ([3, 4], [4, 5]), "who comes first of those who come together is a matter of time"
    assert ceiling or verdict["ceiling"] is None
    return verdict


def test_a_user_sees_why_each_level_is_played_and_prediction_and_outcome_side_by_side(at: Path) -> None:  # noqa: F811
    ran = bench(*SMALL_CACHE, *STRICT, *fake("small"), "--out", "run")
    assert fine(ran), ran.stderr
    lo, hi = checked(at / "run")["knee"]
    requests = plan_of(at / "run")
    assert min(requests[lo], requests[hi]) < 200, "a level ends when what it is played for is certain"
    assert requests[1] < 20, "of the promise alone a few requests tell"
    assert "C = 4: the first level past the knee, as predicted." in ran.stderr
    assert lo == 4 or "C = 3: the last level before the knee, as predicted." in ran.stderr
    assert f"certain after {min(requests[lo], requests[hi])} of 200 requests" in ran.stderr
    said = " ".join(ran.stdout.split())
    assert f"predicted (arithmetic: 3.1 sessions fit) the last level before the knee 3, found {lo} to {hi}" in said
    assert "--search: levels end when they are certain" in said
    fitted = calibrate.rows(Folder.open(at / "run"), "fp16")
    assert {level.concurrency: row.requests for level, row in fitted.items()} == requests
    again = bench("report", "run")
    assert again.returncode == ran.returncode
    checked(at / "run")


def test_where_the_speed_is_known_the_first_level_corrects_what_is_expected(at: Path) -> None:  # noqa: F811
    speed = {"step_s": 1e-3, "weights_s": 0, "token_s": 1e-5, "attend_s": 0, "read_s": 0, "sequence_s": 0,
             "request_s": 1e-3, "said_s": 0}  # fmt: skip
    told = (
        (HERE / "real" / "small.toml").read_text() + "\n[speed]\n" + "".join(f"{k} = {v}\n" for k, v in speed.items())
    )
    (at / "known.toml").write_text(told)
    ran = bench("sweep", "--gpu", "known.toml", *SMALL_CACHE[3:], "--search", "--slo", "ttft_p99<40ms",
                *fake("small-paced"), "--out", "run")  # fmt: skip
    assert fine(ran), ran.stderr
    checked(at / "run", ceiling=True)
    (facts,) = json.loads((at / "run" / "run.json").read_text())["variants"].values()
    assert facts["search"]["prediction"]["how"] == "simulated"
    assert "times as slow as assumed" in facts["search"]["corrected"]["how"]


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_search_that_was_cut_goes_on_from_what_is_on_file(at: Path, how: signal.Signals) -> None:  # noqa: F811
    command = [sys.executable, "-m", "bench", *SMALL_CACHE, *STRICT, *fake("small-paced"), "--out", "run"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    journal = at / "run" / "journal.jsonl"
    while not journal.is_file() or len(journal.read_text().splitlines()) < 3:  # the second level is begun
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(0.2)
    process.send_signal(how)
    assert process.wait(60) == (130 if how == signal.SIGINT else -9)
    told = json.loads((at / "run" / "run.json").read_text())
    assert [level["concurrency"] for level in told["levels"]] in ([3, 4], [4, 5])
    if how == signal.SIGINT:
        assert [row.split(",")[2] for row in (at / "run" / "levels.csv").read_text().splitlines()[1:]] == ["4"]
    ran = bench("sweep", "--resume", "run")
    assert fine(ran), ran.stderr
    checked(at / "run")
    begun = Counter((one.concurrency, one.attempt) for one in Folder.open(at / "run").records() if one.turn > 0)
    assert (4, 1) not in begun or "C = 4 is played again" in ran.stderr


BAD = {
    "levels": (("--levels", "1,2"), "--search and --levels exclude each other"),
    "the SDK": (("--client", "openai"), "--search and --client openai exclude each other"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_a_search_cannot_be_asked_with_is_refused(at: Path, case: str) -> None:  # noqa: F811
    words, says = BAD[case]
    ran = bench(*SMALL_CACHE, "--search", *words, *fake("healthy"))
    assert ran.returncode == 2
    assert says in ran.stderr


def test_a_rehearsal_says_where_it_would_begin(at: Path) -> None:  # noqa: F811
    ran = bench("sweep", "--gpu", "cpu", "--search", "--dry-run", *fake("healthy"))
    assert ran.returncode == 0, ran.stderr
    assert "fp8: sessions (requests): 13(200)  14(200)\n" in ran.stdout
    assert "predicted: the last level before the knee 13, the ceiling 13 (simulated)" in ran.stdout
