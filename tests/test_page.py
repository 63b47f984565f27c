"""The report as a reader meets it: whole, inert, honest about what it lacks, and alive under mouse and keyboard."""

import base64
import hashlib
import json
import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest

from bench import plots
from bench.conclusion import Conclusion, conclude
from bench.page import page
from bench.records import Folder
from bench.stats import LevelRow
from tests.browser import Browser, browser
from tests.parsed import Parsed
from tests.test_report import run_folder

Row = Callable[..., LevelRow]
HOSTILE = (
    "</style></script></title><script>alert(1)</script><img src=x onerror=alert(2)> \"' onload=x ]]> \x1b[31m &lt;"
)


def concluded(tmp_path: Path, name: str = "fp8") -> Conclusion:
    """A small run with a knee, in which everything that somebody else may choose is `name`."""
    folder = run_folder(tmp_path)
    run = folder.manifest()
    facts = run["variants"].pop("fp8")
    facts["server"] |= {"command": shlex.join(["vllm", "serve", name]), "version": name, "model": name}
    facts["dialect"]["name"] = name
    run["workload"] |= {"name": name, "digest": name, "file": {"summary": name}}
    run["machine"] |= {"bench": name, "cpu": name, "system": name, "python": name}
    run |= {"argv": ["bench", name], "variants": {name: facts}}
    run["levels"] = [{**level, "variant": name} for level in run["levels"]]
    folder.write_manifest(run)
    records = (folder.path / "requests.jsonl").read_text()
    (folder.path / "requests.jsonl").write_text(records.replace('"fp8"', json.dumps(name)))
    return conclude(folder)


def html(done: Conclusion, rows: Sequence[LevelRow] | None = None) -> str:
    figures = plots.draw(done.run, done.rows, done.records, done.samples)
    return page(done.run, done.rows if rows is None else rows, figures)


def said(run: dict[str, Any], **verdict: Any) -> dict[str, Any]:
    return {**run, "verdict": {**run["verdict"], **verdict}}


def test_no_name_becomes_more_than_text(tmp_path: Path) -> None:
    harmless, hostile = (
        Parsed(html(concluded(tmp_path / folder, name))) for folder, name in (("a", "x"), ("b", HOSTILE))
    )
    assert hostile.shape == harmless.shape
    assert [script.text for script in hostile.of("script")] == [script.text for script in harmless.of("script")]
    assert [style.text for style in hostile.of("style")] == [style.text for style in harmless.of("style")]
    assert not [element for element in hostile.elements if any(name.startswith("on") for name in element.attributes)]
    body = hostile.of("body")[0].text
    assert "<script>alert(1)</script>" in body
    assert "\x1b" not in body


def test_advice_and_checks_cannot_smuggle_anything_in(tmp_path: Path) -> None:
    run = concluded(tmp_path).run
    shapes = []
    for text in ("x", HOSTILE):
        advice = [{"what": text, "why": text, "try_next": text, "fatal": True}]
        checks = [{"name": text, "passed": None, "detail": text}]
        variants = {"fp8": {**run["verdict"]["variants"]["fp8"], "cause": text, "slo": text}}
        told = said(run, valid=False, warnings=advice, checks=checks, departures=[text], variants=variants)
        shapes.append(Parsed(page(told, [], {})).shape)
    assert shapes[0] == shapes[1]


def test_nothing_is_fetched_and_no_script_runs_but_ours(tmp_path: Path) -> None:
    seen = Parsed(html(concluded(tmp_path)))
    links = {element["href"] or "" for element in seen.having("href")}
    assert {link for link in links if not link.startswith("#")} == {"data:,", "levels.csv", "run.json"}
    assert not [e for name in ("src", "srcset", "action", "xlink:href", "data", "ping") for e in seen.having(name)]
    styles = [style.text for style in seen.of("style")] + [element["style"] or "" for element in seen.having("style")]
    assert not re.search(r"@import|url\(|https?:", "".join(styles))
    (policy,) = [meta["content"] or "" for meta in seen.of("meta") if meta["http-equiv"] == "Content-Security-Policy"]
    (script,) = seen.of("script")
    digest = base64.b64encode(hashlib.sha256(script.text.encode()).digest()).decode()
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["script-src"] == f"'sha256-{digest}'"
    assert not re.search(r"\b(fetch|XMLHttpRequest|eval|innerHTML|import)\b", script.text)


def test_every_level_can_be_picked_and_has_its_row(tmp_path: Path, row: Row) -> None:
    levels = [1, 2, 24, 128]
    rows = [row(variant="fp8", concurrency=level) for level in levels]
    seen = Parsed(html(concluded(tmp_path), rows))
    chips = [chip["data-pick"] for chip in seen.having("data-pick")]
    assert chips == ["", *map(str, levels)]
    assert [line["C"].text for line in seen.cells()] == list(map(str, levels))


def test_what_was_not_measured_is_a_dash(tmp_path: Path, row: Row) -> None:
    seen = Parsed(page(concluded(tmp_path).run, [row()], {}))
    (line,) = seen.cells()
    assert {line[name].text for name in ("TTFT p50", "p99", "req/s", "hit", "unlucky", "KV used")} == {"-"}
    assert line["TTFT p50"]["data-value"] is None
    assert not re.search(r"\b(None|nan|inf)\b", seen.of("main")[0].text)


def test_a_percentile_of_too_few_requests_is_a_limit_everywhere(tmp_path: Path, row: Row) -> None:
    few = row(ttft_p99_s=0.697, ttft_p99_lo_s=0.344, needs_p99=40, ttft_p50_s=0.1, ttft_p50_lo_s=0.09)
    seen = Parsed(page(concluded(tmp_path).run, [few], {}))
    (line,) = seen.cells()
    assert (line["p99"].text, line["p99"]["data-value"]) == ("≥344 ms", "0.344")
    assert "needs 40 more sessions" in (line["p99"]["title"] or "")
    assert (line["TTFT p50"].text, line["TTFT p50"]["title"]) == ("100 ms", None)
    assert "697 ms" not in seen.of("body")[0].text


def test_a_cohort_too_small_for_its_percentile_stands_in_brackets(tmp_path: Path, row: Row) -> None:
    halves = row(requests=200, unlucky=11, lucky_p95_s=0.4, unlucky_p50_s=2.0, unlucky_p99_s=5.0, first_unlucky_turn=12)
    seen = Parsed(page(concluded(tmp_path).run, [halves], {}))
    (line,) = seen.cells(2)  # after the table of levels, and that of what the wait was spent on
    assert [line[name].text for name in ("lucky p95", "unlucky p50", "unlucky p99", "first at turn")] == [
        "400 ms", "2.00 s", "(5.00 s)", "12",
    ]  # fmt: skip
    assert "too few" in (line["unlucky p99"]["title"] or "")


def test_the_rows_past_the_knee_are_marked(tmp_path: Path) -> None:
    seen = Parsed(html(concluded(tmp_path)))
    assert [line["C"]["title"] for line in seen.cells()] == [None, "past the knee"]


def test_pictures_that_are_missing_leave_no_hole(tmp_path: Path) -> None:
    done = concluded(tmp_path)
    with_none, with_one = page(done.run, done.rows, {}), page(done.run, done.rows, {"curve.svg": "<svg></svg>"})
    assert with_none.count("<figure") == 0
    assert with_one.count("<figure") == 1
    assert "The curve" not in with_none
    assert "The curve" in with_one


def test_a_page_is_in_order(tmp_path: Path) -> None:
    seen = Parsed(html(concluded(tmp_path)))
    ids = [element["id"] for element in seen.having("id")]
    assert len(ids) == len(set(ids))
    named = " ".join(element["aria-labelledby"] or "" for element in seen.having("aria-labelledby")).split()
    assert set(named) <= set(ids)
    assert {f"#{name}" for name in ids} >= {link["href"] for link in seen.of("a") if (link["href"] or "")[0] == "#"}
    depths = [int(element.tag[1]) for element in seen.of("h1", "h2", "h3", "h4")]
    assert depths.count(1) == 1
    assert all(after - before <= 1 for before, after in zip([0, *depths], depths, strict=False))
    assert [len(seen.of(tag)) for tag in ("header", "nav", "main", "footer")] == [1, 1, 1, 1]
    assert seen.of("html")[0]["lang"] == "en"


def test_the_verdict_comes_first_and_an_invalid_run_says_so(tmp_path: Path) -> None:
    run = concluded(tmp_path).run
    advice = {"what": "the server died", "why": "it had no memory", "try_next": "a smaller model", "fatal": True}
    told = said(run, valid=False, warnings=[advice], departures=["seed 3"], checks=[])
    seen = Parsed(page(told, [], {}))
    assert seen.of("h1")[0].text.startswith("Knee: between 1 and 2 sessions")
    stamp = next(element for element in seen.of("p") if "stamp" in (element["class"] or ""))
    assert stamp.text == "INVALID the server died"
    assert "Departs from the published recipe: seed 3." in seen.of("header")[0].text
    assert "Try: a smaller model." in seen.of("main")[0].text
    valid = Parsed(page(run, [], {}))
    assert "VALID" in [element.text for element in valid.of("strong")]


def test_commands_are_ready_to_be_copied(tmp_path: Path) -> None:
    seen = Parsed(html(concluded(tmp_path)))
    assert [block.text for block in seen.of("pre")] == ["bench fp8", "vllm serve fp8"]
    assert "Of 20 planned requests: 20 answered." in seen.of("main")[0].text


def crowd(folder: Folder, sessions: int) -> Conclusion:
    """Both levels of a small run with so many sessions, each of them as quick as chance has it."""
    rng, file = np.random.default_rng(0), folder.path / "requests.jsonl"
    ones = [json.loads(line) for line in file.read_text().splitlines()]
    many = [one | {"session": session} for session in range(sessions) for one in ones]
    for one, ttft in zip(many, rng.lognormal(size=len(many)).tolist(), strict=True):
        one |= {name: one["intended_s"] + ttft for name in ("first_s", "last_s", "end_s")}
    file.write_text("\n".join(map(json.dumps, many)) + "\n")
    run = folder.manifest()
    folder.write_manifest({**run, "levels": [{**level, "requests": 10 * sessions} for level in run["levels"]]})
    return conclude(folder)


def test_a_report_of_many_requests_stays_small_and_says_what_it_leaves_out(tmp_path: Path) -> None:
    few, some, many = (html(crowd(run_folder(tmp_path / str(n)), n)) for n in (20, 200, 800))
    assert len(many) < 1.1 * len(some) < 500_000
    told = "of over 600 crosses one a pixel is drawn."
    assert told in Parsed(many).of("main")[0].text
    assert told not in Parsed(few).of("main")[0].text
    assert "every 27th session shown" in Parsed(many).of("main")[0].text
    assert "session shown" not in Parsed(few).of("main")[0].text


def test_a_run_of_an_older_version_has_a_page_too(tmp_path: Path) -> None:
    run = concluded(tmp_path).run
    kept = ("knee", "seen_in", "ceiling", "slo", "highest", "predicted_knee", "cause")
    verdict = {name: run["verdict"]["variants"]["fp8"][name] for name in kept}
    old = {
        **run,
        "verdict": {**verdict, "valid": True, "warnings": [], "variants": {"fp8": {**verdict, "cause": "why"}}},
    }
    assert "Cause: why." in Parsed(page(old, [], {})).of("main")[0].text


def test_several_precisions_stand_side_by_side(tmp_path: Path) -> None:
    done = concluded(tmp_path)
    fp8 = done.run["verdict"]["variants"]["fp8"]
    tq4 = {**fp8, "knee": None, "highest": 8}
    run = said({**done.run, "variants": {**done.run["variants"], "tq4": done.run["variants"]["fp8"]}},
               variants={"fp8": fp8, "tq4": tq4})  # fmt: skip
    rows = [*done.rows, *(replace(row, variant="tq4") for row in done.rows)]
    seen = Parsed(page(run, rows, plots.draw(run, rows, done.records, done.samples)))
    assert seen.of("h1")[0].text == "Knees: fp8 1 to 2, tq4 none up to 8 sessions."
    assert [chip["data-pick"] for chip in seen.having("data-pick")] == ["", "1", "2", "", "fp8", "tq4"]
    assert {figure["data-variant"] for figure in seen.of("figure")} >= {"fp8", "tq4"}
    blocks = {block["data-variant"] for block in seen.of("div") for table in seen.of("table") if block in table.inside}
    assert blocks >= {"fp8", "tq4"}


# --- in a browser ---


@pytest.fixture(scope="module")
def reader() -> Iterator[Browser]:
    with browser() as started:
        yield started


@pytest.fixture
def opened(reader: Browser, tmp_path: Path, row: Row) -> Browser:
    done = concluded(tmp_path)
    rows = [*done.rows, row(concurrency=10, ttft_p50_s=0.05), row(concurrency=9)]
    (tmp_path / "report.html").write_text(html(done, rows))
    reader.open(tmp_path / "report.html")
    return reader


def column(page: Browser, at: int) -> list[str]:
    found = page.run(
        f"return [...document.querySelector('table').tBodies[0].rows].map(row => row.cells[{at}].textContent)"
    )
    assert isinstance(found, list)
    return found


def test_a_column_is_sorted_by_its_header(opened: Browser) -> None:
    assert column(opened, 0) == ["1", "2", "10", "9"]
    opened.click("th:nth-child(1) button")
    assert column(opened, 0) == ["1", "2", "9", "10"]
    opened.press("th:nth-child(1) button", "Enter")
    assert column(opened, 0) == ["10", "9", "2", "1"]
    assert opened.run("return document.querySelector('th').getAttribute('aria-sort')") == "descending"
    for _ in range(2):  # what was not measured stays at the end
        opened.click("th:nth-child(2) button")
        assert column(opened, 1)[-1] == "-"


def test_levels_are_picked_by_the_keyboard(opened: Browser) -> None:
    dim = "return [...document.querySelectorAll('%s [data-level].off')].map(one => one.dataset.level)"
    opened.press("[data-pick='']", "Right", "Right", "Space")
    assert opened.run("return document.activeElement.dataset.pick") == "2"
    assert opened.run("return document.activeElement.getAttribute('aria-pressed')") == "true"
    assert set(opened.run(dim % "svg")) == {"1"}
    assert set(opened.run(dim % "table")) == {"1", "9", "10"}
    opened.click("[data-pick='']")
    assert opened.run(dim % "body") == []


def test_a_mark_tells_its_values_to_mouse_and_keyboard(opened: Browser) -> None:
    tip = "const tip = document.getElementById('tip'); return tip.hidden ? null : tip.textContent"
    opened.hover("svg .mark[data-tip^='C = 1 ']")
    assert opened.run(tip).startswith("C = 1")
    opened.press("svg .mark", "Escape")
    assert opened.run(tip) is None
    opened.press("svg .mark", "Right")
    assert opened.run(tip) == opened.run("return document.querySelectorAll('svg .mark')[1].dataset.tip")
    assert opened.run("return document.querySelectorAll('svg')[0].querySelectorAll('[tabindex=\"0\"]').length") == 1


def test_a_table_is_copied_as_markdown_and_with_exact_numbers(opened: Browser) -> None:
    catch = (
        "Object.defineProperty(navigator, 'clipboard', { value: { writeText: async text => { window.got = text; } } })"
    )
    opened.run(catch)
    opened.click("[data-copy=markdown]")
    lines = opened.run("return window.got").splitlines()
    assert lines[0].startswith("| C | TTFT p50 | p95 |")
    assert lines[1].startswith("| ---: | ---: |")
    assert lines[4].startswith("| 10 | 50 ms | - |")
    opened.click("[data-copy=csv]")
    lines = opened.run("return window.got").splitlines()
    assert lines[0].startswith("C,TTFT p50 [s],p95 [s],")
    assert lines[3].startswith("10,0.05,,")
    opened.click("[data-copy=text]")
    assert opened.run("return window.got") == "bench fp8"
    assert opened.run("return document.getElementById('said').textContent") == "Copied"


def test_a_phone_scrolls_the_tables_and_not_the_page(opened: Browser, tmp_path: Path) -> None:
    opened.open(tmp_path / "report.html", width=360)
    assert opened.run("return document.documentElement.scrollWidth") == 360
    assert opened.run("const box = document.querySelector('.scroll'); return box.scrollWidth > box.clientWidth")


@contextmanager
def lure() -> Iterator[tuple[str, list[str]]]:
    """An address that should never be asked, and what it was asked."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()


def attack(url: str) -> str:
    return (
        f"\"'></style></script></title></svg><script>window.got=1</script><img src={url}/i onerror=window.got=2>"
        f"<svg onload=window.got=3><image href={url}/s></image></svg><link rel=stylesheet href={url}/l>"
        f"<iframe src={url}/f></iframe><style>body{{background:url({url}/b)}}</style>"
        "<a href=javascript:window.got=4>x</a>"
    )


def test_an_attack_in_a_name_neither_runs_nor_reaches_anybody(reader: Browser, tmp_path: Path) -> None:
    bait, got = "document.querySelector('a[href^=javascript]')?.click()", "return window.got || 0"
    with lure() as (url, asked):
        done = concluded(tmp_path, attack(url))
        told = html(done)
        smuggled = told.replace("<main", f"{attack(url)}<main", 1)
        figures = plots.draw(done.run, done.rows, done.records, done.samples)
        assert any("window.got" in figure for figure in figures.values())
        for name, page in {"named.html": told, "smuggled.html": smuggled, **figures}.items():
            (tmp_path / name).write_text(page)
            reader.open(tmp_path / name)
            reader.run(bait)
            assert reader.run(got) == 0, name
            assert asked == [], name
            assert bool(reader.complaints()) == (name == "smuggled.html"), "our policy stops what our escaping does not"
        (tmp_path / "open.html").write_text(re.sub("<meta http-equiv[^>]*>", "", smuggled))
        reader.open(tmp_path / "open.html")
        assert reader.run(got) > 0, "without policy and escaping it would have run"
        assert set(asked) >= {"/i", "/s", "/l", "/f", "/b"}
    reader.complaints()


def test_the_browser_has_nothing_to_complain_of(opened: Browser) -> None:
    assert opened.complaints() == []
