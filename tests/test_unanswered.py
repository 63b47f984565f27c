"""Percentiles include who was not answered: a time-out is a limit, a failure infinite, and neither is dropped."""

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from bench import export, knee, plays, progress, report, stats, table, words
from bench.conclusion import conclude
from bench.load import Level
from bench.records import Folder, TurnRecord
from bench.stats import PERCENTILES, LevelRow
from tests.parsed import Parsed
from tests.test_report import run_folder
from tests.test_stats import ONE

Row = Callable[..., LevelRow]
GIVEN_UP_S = 60.0
TTFT = [f"ttft_{name}_s" for name in PERCENTILES]


def answered(count: int, seed: int = 0) -> list[TurnRecord]:
    """One request a session, so that no percentile lacks sessions for their likeness."""
    times = np.random.default_rng(seed).lognormal(-1, 0.5, count).tolist()
    return [replace(ONE, session=n, first_s=ONE.intended_s + t, end_s=ONE.end_s + t) for n, t in enumerate(times)]


def timed_out(record: TurnRecord) -> TurnRecord:
    cut = replace(
        record, status="timeout", first_s=None, last_s=None, cached_tokens=None, error="no answer within 60 s"
    )
    return replace(cut, end_s=record.intended_s + GIVEN_UP_S)


def failed(record: TurnRecord, error: str = "connection refused") -> TurnRecord:
    return replace(record, status="failed", first_s=None, last_s=None, cached_tokens=None, error=error)


def some(records: Sequence[TurnRecord], count: int, change: Callable[[TurnRecord], TurnRecord]) -> list[TurnRecord]:
    return [change(record) if n < count else record for n, record in enumerate(records)]


def values(row: LevelRow) -> list[float]:
    return [getattr(row, name) for name in TTFT]


@pytest.mark.parametrize("count", [0, 1, 2, 5, 20, 50, 51, 99, 100])
def test_what_is_said_of_those_who_timed_out_is_true_whatever_they_would_have_taken(count: int) -> None:
    rng = np.random.default_rng(count)
    whole = answered(100)
    row = stats.reduce(some(whole, count, timed_out), [])
    assert row.timeouts == row.errors == count
    for _ in range(20):
        would_have = GIVEN_UP_S + rng.exponential(100, count)
        truth = [*would_have.tolist(), *(record.ttft_s or 0.0 for record in whole[count:])]
        for name, share in PERCENTILES.items():
            told, true = getattr(row, f"ttft_{name}_s"), float(np.quantile(truth, share))
            if stats.is_limit(row, f"ttft_{name}_s"):
                assert told <= true * (1 + 1e-12)
            else:
                assert told == pytest.approx(true)
    assert row.at_least == ("p50 p95 p99" if count >= 50 else "p95 p99" if count >= 5 else "p99" if count else "")


def test_a_request_whose_first_token_was_seen_before_it_was_given_up_has_a_ttft() -> None:
    late = replace(ONE, status="timeout", last_s=None, end_s=ONE.intended_s + GIVEN_UP_S)
    row = stats.reduce([late] * 3, [])
    assert row.ttft_p99_s == pytest.approx(0.5)
    assert (row.at_least, row.errors, row.timeouts, row.req_per_s) == ("", 3, 3, 0.0)
    assert row.tpot_p50_s is None, "its answer was not whole"


def test_half_an_answer_is_none_however_soon_it_began() -> None:
    half = [replace(record, status="truncated") for record in answered(2)]
    row = stats.reduce([*half, *answered(18)], [])
    assert row.ttft_p99_s == math.inf
    assert not row.at_least, "that is known"
    assert row.timeouts == 0


def test_no_request_that_is_not_answered_makes_a_level_faster_and_to_drop_it_would() -> None:
    dropping_differs = 0
    for seed in range(30):
        rng = np.random.default_rng(seed)
        records = answered(40, seed)
        slow = sorted(records, key=lambda record: -(record.ttft_s or 0.0))[: int(rng.integers(1, 5))]
        change = failed if seed % 2 else timed_out
        hit = [change(record) if record in slow else record for record in records]
        before, after, dropped = (
            values(stats.reduce(of, [])) for of in (records, hit, [r for r in records if r not in slow])
        )
        assert all(a >= b for a, b in zip(after, before, strict=True))
        assert all(a >= d for a, d in zip(after, dropped, strict=True))
        dropping_differs += dropped[-1] < before[-1]
    assert dropping_differs == 30, "percentiles over the survivors: the slowest are gone and the tail looks better"


def test_an_interval_goes_from_what_they_had_waited_to_no_limit() -> None:
    row = stats.reduce(some(answered(600), 20, timed_out), [])
    assert (row.ttft_p99_s, row.ttft_p99_lo_s, row.ttft_p99_hi_s) == (60.0, 60.0, math.inf)
    assert (row.ttft_p50_hi_s or 0.0) < 1.0
    assert stats.show(row, "ttft_p99_s") == "≥60.0 s"
    assert stats.show(row, "ttft_p50_s")[0] != "≥"


def test_the_two_reasons_for_a_limit_are_told_apart() -> None:
    few = stats.reduce(answered(100), [])
    late = stats.reduce(some(answered(600), 20, timed_out), [])
    both = stats.reduce(some(answered(100), 20, timed_out), [])
    assert [stats.show(row, "ttft_p99_s")[0] for row in (few, late, both)] == ["≥"] * 3
    assert "more sessions a level" in "".join(words.footnotes([few]))
    assert "timed out" not in "".join(words.footnotes([few]))
    (note,) = words.footnotes([late])
    assert "requests timed out (v, realistic, C = 2: p99)" in note
    assert len(words.footnotes([both])) == 2
    assert table.cell(late, "ttft_p99_s") == "≥60.0 s (20 timed out)"
    assert "≥60.0 s seen, needs" in table.cell(both, "ttft_p99_s")
    assert words.footnotes([stats.reduce(answered(600), [])]) == []


def test_errors_and_time_outs_stand_beside_each_other_on_80_columns(row: Row) -> None:
    shown = [
        stats.show(row(errors=errors, timeouts=late), "errors") for errors, late in ((3, 0), (3, 3), (3, 1), (4, None))
    ]
    assert shown == ["3", "3t", "2+1t", "4"]
    assert len(table.line(row(errors=200, timeouts=180))) <= 80


def test_above_a_tenth_of_failures_there_are_no_percentiles_but_a_reason() -> None:
    refused = some(answered(100), 10, failed)
    assert stats.reduce(refused, []).why_none == ""
    worse = [*some(refused, 2, lambda record: failed(record, "HTTP 500: oh\x1b[2J\nno")), *map(failed, answered(2))]
    row = stats.reduce(worse, [])
    assert row.why_none == "no percentiles: 12 of 102 requests failed (10x connection refused, 2x HTTP 500: oh[2Jno)"
    told = asdict(row)
    survivors = [name for name in told if name.split("_")[0] in ("ttft", "tpot", "wait", "punctual", "lucky", "needs")]
    assert len(survivors) > 20
    assert {name: told[name] for name in survivors} == dict.fromkeys(survivors)
    assert row.req_per_s is not None, "that is of the answered, and says so"
    assert stats.reduce(some(answered(100), 100, timed_out), []).why_none == "", "they are slow, which is an answer"


def test_a_table_of_all_this_is_read_back_the_same_and_an_older_one_too() -> None:
    rows = [
        stats.reduce(some(answered(600), 20, timed_out), []),
        stats.reduce(some(answered(20), 12, failed), []),
        stats.reduce(some(answered(20), 1, failed), []),
    ]
    text = table.to_csv(rows)
    assert table.from_csv(text) == rows
    new = ("timeouts", "at_least", "why_none")
    at = text.splitlines()[0].split(",").index(new[0])  # from there on all is of a later version
    assert set(new) <= set(text.splitlines()[0].split(",")[at:])
    older = "\n".join(",".join(line.split(",")[:at]) for line in table.to_csv(rows[:1]).splitlines())
    (read,) = table.from_csv(older)
    assert (read.timeouts, read.at_least, read.why_none) == (None, "", "")


@pytest.mark.parametrize("folder", sorted(Path(__file__).parent.parent.glob("results/*/*/*/*/levels.csv")))
def test_published_tables_are_still_read(folder: Path) -> None:
    rows = table.from_csv(folder.read_text())
    assert rows
    assert words.footnotes(rows) is not None
    assert all(table.line(row) for row in rows)


# --- what follows from it ---


@pytest.mark.parametrize(
    ("p99", "promise", "kept"),
    [
        (1.1, "ttft_p99<2s", None),
        (60.0, "ttft_p99<2s", False),
        (60.0, "ttft_p50<2s", True),
        (60.0, "ttft_p99>2s", True),
        (1.1, "ttft_p99>2s", None),
    ],
)
def test_a_promise_is_kept_only_where_that_is_certain(row: Row, p99: float, promise: str, kept: bool | None) -> None:
    here = row(ttft_p50_s=0.1, ttft_p99_s=p99, at_least="p99")
    assert knee.parse_slo(promise).met(here) is kept


def test_a_level_without_percentiles_keeps_no_promise(row: Row) -> None:
    assert not knee.parse_slo("req_per_s>1").met(row(req_per_s=50.0, why_none="no percentiles: all failed"))


def test_a_jump_from_what_is_only_a_limit_is_no_knee(row: Row) -> None:
    tails = {1: 0.2, 2: 0.2, 4: 5.0, 6: 5.0, 8: 5.0}
    rows = [row(concurrency=c, ttft_p50_s=0.1, ttft_p99_s=p99) for c, p99 in tails.items()]
    found = knee.knee(rows)
    assert found is not None
    assert (found.lo, found.hi) == (2, 4)
    above = [replace(row, at_least="p99") if row.concurrency > 2 else row for row in rows]
    assert knee.knee(above) == found, "they are slower still"
    below = [replace(row, at_least="p99") if row.concurrency <= 2 else row for row in rows]
    assert knee.knee(below) is None
    assert knee.knee([replace(row, at_least="p50 p99") if row.concurrency > 2 else row for row in rows]) is None


def test_a_ceilings_certainty_counts_whoever_may_have_broken_the_promise() -> None:
    slo = knee.parse_slo("ttft_p99<100s")
    kept, late = answered(300), some(answered(300), 30, timed_out)
    assert knee.ceiling_confidence(slo, kept, []) == pytest.approx(0.98, abs=0.02)
    assert knee.ceiling_confidence(slo, late, []) == pytest.approx(0.0, abs=0.01), "they may have taken over 100 s"
    assert knee.ceiling_confidence(slo, kept, late) == pytest.approx(0.0, abs=0.05), "or not"


def test_a_knees_certainty_takes_the_level_below_for_slow_and_the_one_above_for_fast(row: Row) -> None:
    found = knee.Knee(2, 4, knee.SEEN_IN[False])
    rows = [row(concurrency=2), row(concurrency=4)]
    sound, late, broken = (some(answered(300), count, of) for count, of in ((0, failed), (30, timed_out), (30, failed)))
    assert knee.knee_confidence(found, rows, sound, late) == 1.0
    assert knee.knee_confidence(found, rows, sound, broken) == 1.0
    assert knee.knee_confidence(found, rows, late, late) == 0.0, "nobody knows how slow the level below is"
    assert knee.knee_confidence(found, rows, late, broken) == 0.0


def test_in_a_comparison_whoever_was_not_answered_ranks_last() -> None:
    seen = replace(ONE, status="timeout", turn=2)
    (play,) = plays.of([ONE, seen, timed_out(replace(ONE, turn=3)), failed(replace(ONE, turn=4))])
    assert play.sessions == ((0.5, math.inf, math.inf, math.inf),)
    told = plays.from_json(plays.to_json([play]))
    assert told == (play,)


def a_run(tmp_path: Path, levels: dict[int, tuple[int, int]]) -> Folder:
    """Of each level 600 requests, of which so many fail and time out; past 8 sessions a sixth loses its history."""
    folder = run_folder(tmp_path)
    (folder.path / "requests.jsonl").write_text("")
    for level, (bad, late) in levels.items():
        for n, record in enumerate(some(some(answered(600), bad + late, timed_out), bad, failed)):
            lost = 4000 if level > 8 and n % 6 == 0 else 0
            known = None if record.cached_tokens is None else 6000 - lost
            here = replace(record, variant="fp8", concurrency=level, eligible_tokens=6000, cached_tokens=known)
            folder.keep(replace(here, prompt_tokens=None))
    run = folder.manifest()
    run["levels"] = [asdict(Level("fp8", "realistic", level, 0, 600)) for level in levels]
    folder.write_manifest(run)
    return folder


def test_a_level_that_failed_is_evidence_of_nothing_but_a_broken_promise(tmp_path: Path) -> None:
    folder = a_run(tmp_path, {4: (0, 0), 8: (0, 0), 12: (300, 0), 16: (0, 20), 32: (0, 30), 64: (100, 0)})
    done = conclude(folder)
    report.write(folder, done)
    verdict = done.run["verdict"]
    assert verdict["knee"] == [8, 16], "12 says nothing"
    assert verdict["ceiling"] == 8
    assert verdict["highest"] == 32
    why = "no percentiles: 300 of 600 requests failed (300x connection refused)"
    said = report.closing(done, folder).replace("\n  ", " ")
    assert f"fp8, realistic, C = 12: {why}." in said
    assert "Failed: too many requests at 12, 64 sessions" in said
    assert "C = 16: p99; fp8, realistic, C = 32: p95, p99" in said
    for name in ("levels.csv", "table.md", "report.html"):
        assert why in (folder.path / name).read_text()
    assert any(f"C = 12: {why}" in warning["what"] and warning["fatal"] for warning in verdict["warnings"])
    assert not [w for w in verdict["warnings"] if "C = 12" in w["what"] and "client" in w["what"]]


def test_the_highest_level_that_kept_the_promise_is_not_the_highest_measured_if_one_failed(tmp_path: Path) -> None:
    whole, cut = (
        words.sentences(conclude(a_run(tmp_path / name, levels)).run)[-1]
        for name, levels in (("a", {4: (0, 0), 8: (0, 0)}), ("b", {4: (0, 0), 8: (0, 0), 16: (300, 0)}))
    )
    assert "the highest level measured" in whole
    assert cut.startswith("Ceiling: 8 sessions")
    assert "the highest level measured" not in cut


def test_what_the_official_sdk_saw_is_not_told_where_it_is_a_limit(tmp_path: Path) -> None:
    folder = a_run(tmp_path, {4: (0, 0)})
    for record in folder.records():
        folder.keep(timed_out(replace(record, case="openai")))
    run = folder.manifest()
    run["levels"].append(asdict(Level("fp8", "openai", 4, 0, 600)))
    folder.write_manifest(run)
    done = conclude(folder)
    assert done.run["verdict"]["sdk"][0]["sdk_ttft_p50_s"] is None
    assert "Official SDK: no level was answered through both clients." in words.sentences(done.run)


def test_the_page_says_it_in_its_cells_and_under_its_table(tmp_path: Path) -> None:
    folder = a_run(tmp_path, {4: (0, 0), 8: (1, 20), 16: (100, 0)})
    done = conclude(folder)
    seen = Parsed(report.files(done)["report.html"])
    whole, late, none = seen.cells()
    assert [line["errors"].text for line in (whole, late, none)] == ["0", "1+20t", "100"]
    assert (late["p99"].text, late["p99"]["title"], late["p99"]["data-value"]) == (
        "≥60.0 s", "≥60.0 s (20 timed out)", "60.0",
    )  # fmt: skip
    assert (none["p99"].text, none["p99"]["data-value"]) == ("-", None)
    assert (none["p99"]["title"] or "").startswith("no percentiles: 100 of 600 requests failed")
    assert none["KV used"]["title"] is None, "that was merely not measured"
    notes = [note.text for note in seen.of("p") if note["class"] == "note"]
    assert any("≥ is all that is known where requests timed out" in note for note in notes)
    assert any("C = 16: no percentiles" in note for note in notes)


def test_a_run_of_which_every_level_failed_does_not_say_that_none_was_played(tmp_path: Path) -> None:
    folder = a_run(tmp_path, {4: (300, 0), 8: (600, 0)})
    done = conclude(folder)
    report.write(folder, done)
    assert words.sentences(done.run) == ["Failed: too many requests at 4, 8 sessions to say how slow the others were."]
    assert done.run["verdict"]["ceiling"] is None
    assert not done.valid


def test_a_level_that_timed_out_altogether_is_at_least_so_slow(tmp_path: Path) -> None:
    folder = a_run(tmp_path, {4: (0, 0), 8: (0, 600)})
    done = conclude(folder)
    report.write(folder, done)
    assert values(done.rows[1]) == [60.0, 60.0, 60.0]
    assert done.run["verdict"]["ceiling"] == 4


@pytest.mark.parametrize("schema", [1, 2, 3])
def test_a_run_of_before_has_its_time_outs_now_too(tmp_path: Path, schema: int) -> None:
    folder = a_run(tmp_path, {4: (0, 20)})
    folder.write_manifest(folder.manifest() | {"schema": schema})
    (row,) = conclude(folder).rows
    assert (row.ttft_p99_s, row.at_least) == (60.0, "p99")


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_times_that_run_backwards_are_a_warning_and_no_crash(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    folder = a_run(tmp_path, {4: (0, 0), 16: (3, 20)})
    records = folder.records()
    (folder.path / "requests.jsonl").write_text("")
    for record in records:
        times = rng.normal(0, 10, 5).tolist() if seed else [10.0, 9.0, 8.0, 7.0, 6.0]
        seen = dict(zip(("intended_s", "sent_s", "first_s", "last_s", "end_s"), times, strict=True))
        folder.keep(replace(record, **seen))
    done = conclude(folder)
    report.write(folder, done)
    for form in export.FORMS if seed else ():
        export.export(done.run, done.rows, done.records, form)
    told = [getattr(row, name) for row in done.rows for name in (*TTFT, "tpot_p50_s", "duration_s", "req_per_s")]
    assert all((value or 0.0) >= 0 for value in told)
    (warning,) = [one for one in done.warnings if "backwards" in one.what]
    assert not warning.fatal


def test_the_line_of_a_level_says_at_once_why_it_has_no_percentiles(row: Row) -> None:
    out = io.StringIO()
    progress.Terminal(out).level_ended(row(errors=150, why_none="no percentiles: 150 of 200 requests failed (150x oh)"))
    assert "no percentiles: 150 of 200" in out.getvalue()
