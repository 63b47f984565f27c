"""A run that is cut: what had ended is on file, the rest can be had, and both are what they would have been."""

import json
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from bench.journal import Journal
from bench.records import LINES, Folder, TurnRecord
from tests.test_cli import SMALL, at, bench, fake, fine  # noqa: F401

SESSIONS, REQUESTS = 2, 30
PROBES = 2  # requests before the first level
WORDS = ("--gpu", "l4", *SMALL, "--levels", f"1,{SESSIONS}", "--requests", str(REQUESTS), "--no-bounds", "--model", "M")
CHAINS = [(seed, 10) for seed in range(5)]  # of so many kills each
OF_TIME = ("intended_s", "sent_s", "first_s", "last_s", "end_s", "queue_s", "prefill_s", "read_late_s", "attempt")


def without_times(records: list[TurnRecord]) -> dict[tuple[int, int, int], list[str]]:
    """Of each turn all that is not of its time."""
    names = [name for name in TurnRecord.__dataclass_fields__ if name not in OF_TIME]
    return {(r.concurrency, r.session, r.turn): [repr(getattr(r, name)) for name in names] for r in records}


def alike(a: list[TurnRecord], b: list[TurnRecord]) -> bool:
    """As many at each level, and each the same; who of two takes a level's last requests is a matter of time."""
    ours, theirs = without_times(a), without_times(b)
    sizes = [Counter(level for level, _, _ in told) for told in (ours, theirs)]
    single = [{key for key in told if key[0] == 1} for told in (ours, theirs)]
    return (
        sizes[0] == sizes[1]
        and single[0] == single[1]
        and all(ours[turn] == theirs[turn] for turn in ours if turn in theirs)
    )


def counted(records: list[TurnRecord]) -> list[TurnRecord]:
    """Of the attempts that count."""
    last: dict[int, int] = {}
    for record in records:
        last[record.concurrency] = max(last.get(record.concurrency, 0), record.attempt)
    return [record for record in records if record.attempt == last[record.concurrency]]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> list[TurnRecord]:
    """The same run, uninterrupted."""
    out = tmp_path_factory.mktemp("whole") / "run"
    assert fine(bench("sweep", *WORDS, *fake("healthy"), "--out", str(out)))
    return Folder.open(out).records()


def start(*words: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "bench", "sweep", *words]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)


def lines(path: Path) -> int:
    return len(path.read_text().splitlines()) if path.is_file() else 0


@pytest.mark.parametrize(("seed", "kills"), CHAINS)
def test_killed_at_any_moment_it_loses_nothing_that_had_ended(
    at: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    whole: list[TurnRecord],
    seed: int,
    kills: int,
) -> None:
    """At each kill as many requests are missing as were under way, or had ended in the very moment."""
    monkeypatch.setenv("FAKE_ASKED", str(at / "asked"))
    moments, struck, runs = random.Random(seed), 0, [at / "0"]
    while struck < kills:
        run = runs[-1]
        begun = (run / "run.json").is_file()
        asked, kept, over = lines(at / "asked"), lines(run / "requests.jsonl"), lines(run / "journal.jsonl")
        process = start(*(("--resume", str(run)) if begun else (*WORDS, *fake("paced"), "--out", str(run))))
        time.sleep(moments.uniform(0.3, 3.0))
        struck += process.poll() is None
        process.kill()
        process.wait()
        new, on_file = lines(at / "asked") - asked, lines(run / "requests.jsonl") - kept
        assert on_file >= new - PROBES - 2 * SESSIONS
        assert lines(run / "journal.jsonl") >= over
        if finished(run):
            runs.append(at / str(len(runs)))
    for run in runs[: None if (runs[-1] / "run.json").is_file() else -1]:
        if not finished(run):
            ran = bench("sweep", "--resume", str(run))
            assert fine(ran), ran.stderr
        records = Folder.open(run).records()
        assert alike(counted(records), whole)
        verdict = json.loads((run / "run.json").read_text())["verdict"]
        assert verdict["ledger"]["ok"] == 2 * REQUESTS
        assert verdict["ledger"]["begun_anew"] == sum(record.turn > 0 for record in records) - 2 * REQUESTS
        for before, after in product(records, records):
            if before.concurrency == after.concurrency and before.attempt < after.attempt:
                assert before.end_s < after.sent_s, "times go on where those before them ended"


def finished(run: Path) -> bool:
    told = json.loads((run / "run.json").read_text()) if (run / "run.json").is_file() else {}
    return told.get("ended") == "finished" and "verdict" in told


def cut(run: Path, mode: str = "paced") -> None:
    """A run of which the first level is over, and the second begun."""
    process = start(*WORDS, *fake(mode), "--out", str(run))
    while lines(run / "journal.jsonl") < 3 or lines(run / "requests.jsonl") < REQUESTS + 5:
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()


def test_a_level_that_is_over_is_not_played_again_and_a_torn_line_is_mended(at: Path) -> None:  # noqa: F811
    cut(at / "run")
    with (at / "run" / "requests.jsonl").open("a") as file:
        file.write('{"variant":"fp8","case":"real')
    ran = bench("sweep", "--resume", "run")
    assert fine(ran), ran.stderr
    assert "requests.jsonl: its last line was torn, and is mended" in ran.stderr
    attempts = Counter((r.concurrency, r.attempt) for r in Folder.open(at / "run").records() if r.turn > 0)
    assert attempts[1, 0] == attempts[SESSIONS, 1] == REQUESTS
    assert attempts[1, 1] == 0 or "is played again: fp8, realistic, C = 1: the client" in ran.stderr
    verdict = json.loads((at / "run" / "run.json").read_text())["verdict"]
    assert verdict["ledger"]["ok"] == 2 * REQUESTS
    assert verdict["ledger"]["begun_anew"] == attempts[SESSIONS, 0] + (attempts[1, 0] if attempts[1, 1] else 0)
    again = bench("sweep", "--resume", "run")
    assert again.returncode == ran.returncode, "a loop that goes on until all is well comes to its end"
    assert "is finished: nothing is left to be done" in again.stderr


def test_a_level_with_too_many_failures_is_played_again(at: Path) -> None:  # noqa: F811
    cut(at / "run")
    file = at / "run" / "requests.jsonl"
    file.write_text(file.read_text().replace('"status":"ok"', '"status":"failed"', 3))
    assert fine(bench("sweep", "--resume", "run"))
    attempts = Counter((r.concurrency, r.attempt) for r in Folder.open(at / "run").records() if r.turn > 0)
    assert attempts[1, 0] == attempts[1, 1] == REQUESTS


def edited(run: Path, change: Any) -> None:
    told = json.loads((run / "run.json").read_text())
    change(told)
    (run / "run.json").write_text(json.dumps(told))


OTHER = {
    "host": lambda run: run["machine"].update(host="elsewhere"),
    "levels": lambda run: run["levels"].pop(),
    "launch of fp8": lambda run: run["variants"]["fp8"]["launch"].update(digest="another"),
    "older bench": lambda run: run.update(schema=3),
    "not what it was": lambda run: run["variants"]["fp8"]["settings"][0].update(version="0.1"),
    "its variants was": lambda run: run["variants"].clear(),
    "then ['fp16', 'fp8'], now ['fp8']": lambda run: run["variants"].update(fp16={"launch": None}),
    "resumed: a list": lambda run: run.update(resumed=5),
    "settings: a history": lambda run: run["variants"]["fp8"].update(settings=[]),
    "has no 'settings'": lambda run: run["variants"]["fp8"].pop("settings"),
    "has no 'server'": lambda run: run["variants"]["fp8"].pop("server"),
    "has no 'dialect'": lambda run: run["variants"]["fp8"].pop("dialect"),
}


def test_what_is_not_the_same_run_is_not_gone_on_with(at: Path) -> None:  # noqa: F811
    cut(at / "run")
    for says, change in OTHER.items():
        shutil.copytree(at / "run", at / "other")
        edited(at / "other", change)
        before = (at / "other" / "requests.jsonl").read_bytes()
        ran = bench("sweep", "--resume", "other")
        assert ran.returncode in (2, 4), ran.stderr
        assert says in ran.stderr
        assert "Traceback" not in ran.stderr
        assert (at / "other" / "requests.jsonl").read_bytes() == before
        shutil.rmtree(at / "other")


def test_a_run_that_comes_to_its_end_meanwhile_is_left_as_it_is(
    at: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cut(at / "run")
    (at / "gate").touch()
    with monkeypatch.context() as late:
        late.setenv("FAKE_GATE", str(at / "gate"))
        command = [sys.executable, "-m", "bench", "sweep", "--resume", "run"]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while not (at / "gate.reached").exists():
        assert process.poll() is None
        time.sleep(0.01)
    assert fine(bench("sweep", "--resume", "run"))
    whole = {path.name: path.read_bytes() for path in (at / "run").iterdir()}
    (at / "gate").unlink()
    _, said = process.communicate(timeout=60)
    assert process.returncode == 2, said
    assert "is finished" in said
    assert {path.name: path.read_bytes() for path in (at / "run").iterdir()} == whole


def test_two_do_not_write_into_one_folder(at: Path) -> None:  # noqa: F811
    process = start(*WORDS, "--requests", "1000000", *fake("healthy"), "--out", "run")
    try:
        while not lines(at / "run" / "journal.jsonl"):
            assert process.poll() is None
            time.sleep(0.01)
        ran = bench("sweep", "--resume", "run")
        assert ran.returncode == 2
        assert "another bench is writing" in ran.stderr
    finally:
        process.terminate()
        process.wait()


def test_a_server_that_dies_is_started_again_and_its_level_begun_anew(at: Path) -> None:  # noqa: F811
    ran = bench("sweep", *WORDS, *fake("dies-once"), "--out", "run")
    assert fine(ran), ran.stderr
    assert "vLLM ended with exit code 9" in ran.stderr
    assert "started again, and this level begun anew" in ran.stderr
    records = Folder.open(at / "run").records()
    assert "failed" in {record.status for record in records if record.attempt == 0 and record.concurrency == SESSIONS}
    assert {record.status for record in counted(records)} == {"ok"}
    verdict = json.loads((at / "run" / "run.json").read_text())["verdict"]
    assert any("the server was lost" in warning["what"] for warning in verdict["warnings"])
    assert verdict["ledger"]["ok"] == verdict["ledger"]["planned"] == 2 * REQUESTS


def test_a_server_that_lives_and_answers_no_more_is_started_again(at: Path) -> None:  # noqa: F811
    ran = bench("sweep", *WORDS, *fake("deaf-late"), "--timeout", "0.3", "--out", "run")
    assert fine(ran), ran.stderr
    assert "answered none of 3 requests in a row" in ran.stderr
    told = Counter((record.attempt, record.status) for record in Folder.open(at / "run").records())
    assert told[0, "timeout"] >= 3
    assert set(told) <= {(0, "ok"), (0, "timeout"), (0, "cut"), (1, "ok")}


def may_mount() -> str:
    ran = subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True, text=True)
    return ran.stderr


@pytest.mark.skipif(bool(may_mount()), reason="needs user namespaces: sysctl kernel.unprivileged_userns_clone=1")
def test_a_full_disk_ends_the_run_and_keeps_what_is_on_it(at: Path) -> None:  # noqa: F811
    (at / "small").mkdir()
    command = [sys.executable, "-m", "bench", "sweep", *WORDS, *fake("healthy"), "--out", "small/run"]
    fill = "while ! grep -q over small/run/journal.jsonl 2>/dev/null; do sleep 0.02; done; cat /dev/zero > small/full"
    save = "code=$?; wait; rm small/full; cp -r small/run kept; exit $code"
    inside = f'mount -t tmpfs -o size=3m none small && ({fill}) 2>/dev/null & sleep 0.3; "$@"; {save}'
    words = ["unshare", "-rm", "sh", "-c", inside, "sh", *command]
    ran = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 4, ran.stderr
    assert "No space left on device" in ran.stderr
    assert "--resume" in ran.stderr
    assert "Traceback" not in ran.stderr
    kept = Folder.open(at / "kept")
    assert len(kept.records()) >= 19
    assert kept.manifest()["ended"].startswith("failed: cannot write to")


def test_lines_that_are_torn_anywhere_are_mended(tmp_path: Path) -> None:
    level = {"variant": "v", "case": "c", "concurrency": 1, "repeat": 0, "attempt": 0}
    row = {"t_s": 1.0, "what": "begun", **level, "why": "\u00e9" * 50}
    line = json.dumps(row, ensure_ascii=False).encode() + b"\n"
    for size in range(len(line), 2 * len(line) + 1):
        (tmp_path / "journal.jsonl").write_bytes((line + line)[:size])
        Folder(tmp_path).mend()
        rows = list(Folder(tmp_path).rows("journal.jsonl"))
        assert len(rows) == (2 if size >= 2 * len(line) - 1 else 1)
        assert Folder(tmp_path).mend() == []


def test_the_journal_counts_attempts_over_several_parts_of_a_run(tmp_path: Path) -> None:
    play = ("fp8", "realistic", 4, 0)
    first = Journal(Folder(tmp_path), lambda: 1.0)
    assert first.begin(play) == 0
    first.lose(play, "gone")
    second = Journal(Folder(tmp_path), lambda: 2.0)
    assert second.over() == {}
    assert second.begin(play) == 1
    second.end(play)
    assert Journal(Folder(tmp_path), lambda: 3.0).over() == {play: 1}
    assert set(LINES) >= {"journal.jsonl"}
