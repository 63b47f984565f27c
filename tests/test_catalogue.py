"""The index of what is published: a line for each precision, its price, and nothing in it that a name could do."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any

import pytest

from bench.catalogue import Entry, entries, index_html, index_markdown
from bench.stats import LevelRow
from bench.tables import slug
from tests.browser import Browser, browser
from tests.parsed import Parsed

Row = Callable[..., LevelRow]
HOSTILE = "</td><script>alert(1)</script>|`\"' onload=x ](javascript:x) \x1b[31m"
CARD = {"price_usd_h": {"value": 0.9, "source": "a price list"}}
FOUND = Entry(
    card="l4", model="qwen3-4b", precision="fp8", workload="coding-agent", knee="12 to 14", knee_least=12,
    knee_confidence=0.96, ceiling=12, slo="ttft_p99<2s", req_per_s=8.0, usd_per_1000_tasks=0.75,
    joules_per_1000_tasks=9e5, date="2026-11-20", vllm="0.32.0", bench="0.1.0", departures="",
    place=PurePath("l4/qwen3-4b/fp8/20261120-coding-agent"),
)  # fmt: skip


def published(launch: dict[str, Any] | None) -> dict[str, Any]:
    """A run of two precisions."""
    verdict = {"knee": [12, 14], "knee_confidence": 0.96, "highest": 16, "ceiling": 12, "slo": "ttft_p99<2s"}
    facts = {"launch": launch, "server": {"model": "qwen3-4b", "version": "0.32.0"}}
    return {
        "started": "2026-11-20T20:00:00+00:00",
        "workload": {"name": "coding-agent"},
        "typical": {"turns": 12.0},
        "machine": {"bench": "0.1.0", "gpus": [{"name": "NVIDIA L4"}]},
        "variants": {"fp8": facts, "tq4": facts},
        "verdict": {"variants": {"fp8": verdict, "tq4": {**verdict, "knee": None, "ceiling": None}}},
    }


def made(row: Row, launch: dict[str, Any] | None) -> list[Entry]:
    rows = [row(variant="fp8", case=at, concurrency=12, req_per_s=8.0, power_w=600.0) for at in ("realistic", "best")]
    return list(entries(published(launch), rows, PurePath("l4/a/b/c")))


def test_each_precision_has_its_line(row: Row) -> None:
    fp8, tq4 = made(row, {"name": "l4", "tp": 2, "extra": [], "file": {"card": CARD}})
    assert (fp8.precision, fp8.knee, fp8.ceiling, fp8.req_per_s) == ("fp8", "12 to 14", 12, 8.0)
    assert (tq4.precision, tq4.knee, tq4.ceiling) == ("tq4", "none up to 16", None)
    assert (tq4.req_per_s, tq4.usd_per_1000_tasks) == (None, None)


def test_a_thousand_tasks_cost_what_all_cards_take_for_a_thousand_sessions(row: Row) -> None:
    fp8, _ = made(row, {"name": "l4", "tp": 2, "extra": [], "file": {"card": CARD}})
    assert fp8.usd_per_1000_tasks == pytest.approx(1000 * 12 / 8.0 / 3600 * 0.9 * 2)  # 1,500 s of two cards
    assert fp8.joules_per_1000_tasks == pytest.approx(1500 * 600)
    line, _ = Parsed(index_html([fp8, fp8])).cells()
    assert line["MJ / 1,000 tasks"].text == "0.90"


def test_what_has_no_price_has_a_dash(row: Row) -> None:
    for launch in (None, {"name": "cpu", "tp": 1, "extra": [], "file": {"card": None}}):
        line, _ = Parsed(index_html(made(row, launch))).cells()
        assert line["$ / 1,000 tasks"].text == "-"
    assert made(row, None)[0].card == "NVIDIA L4"


def test_no_name_becomes_more_than_text() -> None:
    hostile = replace(
        FOUND, card=HOSTILE, model=HOSTILE, precision=HOSTILE, workload=HOSTILE, vllm=HOSTILE, departures=HOSTILE,
        place=PurePath("javascript:alert(1)", "a\"b'c|d)e"),
    )  # fmt: skip
    page = Parsed(index_html([hostile]))
    assert page.shape == Parsed(index_html([FOUND])).shape
    assert page.of("a")[0]["href"] == "javascript%3Aalert%281%29/a%22b%27c%7Cd%29e/report.html"
    lines = index_markdown([hostile]).splitlines()
    assert lines[-1].count(" | ") == lines[-3].count(" | ")
    assert "<script>" not in lines[-1].replace("\\<", "")
    assert "](javascript:" not in lines[-1].replace("\\]", "")
    assert "\x1b" not in lines[-1]


def test_a_line_leads_to_its_report() -> None:
    place = "l4/qwen3-4b/fp8/20261120-coding-agent"
    assert Parsed(index_html([FOUND])).of("a")[0]["href"] == f"{place}/report.html"
    assert f"[l4]({place}/table.md)" in index_markdown([FOUND])


def test_an_index_of_nothing_says_how_to_publish() -> None:
    assert "bench publish RUN" in Parsed(index_html([])).of("main")[0].text


@pytest.mark.parametrize("text", ["", "..", "/etc/passwd", "../../x", "-rf", HOSTILE, "\x00", "Qwen/Qwen3-4B"])
def test_any_name_makes_a_folder_of_its_own(text: str, tmp_path: Path) -> None:
    made = tmp_path / slug(text)
    made.mkdir()
    assert made.resolve().parent == tmp_path.resolve()
    assert made.resolve() != tmp_path.resolve()


# --- in a browser ---


@pytest.fixture(scope="module")
def reader() -> Iterator[Browser]:
    with browser() as started:
        yield started


def shown(reader: Browser) -> list[str]:
    found = reader.run(
        "return [...document.querySelectorAll('tbody tr')].filter(r => !r.hidden).map(r => r.cells[0].textContent)"
    )
    assert isinstance(found, list)
    return found


def test_the_index_is_filtered_and_sorted(reader: Browser, tmp_path: Path) -> None:
    found = [
        FOUND,
        replace(FOUND, card="h200", usd_per_1000_tasks=None),
        replace(FOUND, card="a100", usd_per_1000_tasks=0.5),
    ]
    (tmp_path / "index.html").write_text(index_html(found))
    reader.open(tmp_path / "index.html")
    reader.click("th:nth-child(10) button")
    assert shown(reader) == ["a100", "l4", "h200"]
    reader.type("input", "qwen3 200")
    assert shown(reader) == ["h200"]
    assert reader.run("return document.getElementById('count').textContent") == "1 of 3"
    reader.type("input", " nothing")
    assert shown(reader) == []
    reader.open(tmp_path / "index.html")
    reader.click("option[value=a100]")
    assert shown(reader) == ["a100"]
    reader.open(tmp_path / "index.html", width=360)
    assert reader.run("return document.documentElement.scrollWidth") == 360
    assert reader.complaints() == []
