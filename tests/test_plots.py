"""What a reader of a figure would miss, or be misled by."""

import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from bench import lives, plots, stats
from bench.records import TurnRecord
from bench.stats import LevelRow
from bench.svg import Panel, Scale, curve, end_labels, number, spread

Rows = Callable[..., LevelRow]
SVG = "{http://www.w3.org/2000/svg}"
LEVELS = {8: (0.3, 0.6, 0.8, 0), 12: (0.3, 0.6, 0.9, 0), 14: (0.4, 2.0, 5.0, 11), 16: (0.4, 7.0, 12.0, 34)}
EVIL = '<script>alert("1")</script>\x00\x1b[2J&\'"'


def record(variant: str, level: int, session: int, turn: int, **known: Any) -> TurnRecord:
    sent = session + 0.9 * turn
    told = TurnRecord(
        variant=variant, case="realistic", concurrency=level, repeat=0, session=session, turn=turn, status="ok",
        intended_s=sent, sent_s=sent, first_s=sent + 0.3, last_s=sent + 0.8, end_s=sent + 0.8,
        planned_prompt_tokens=12000, planned_output_tokens=75, prompt_tokens=12000, output_tokens=75,
        cached_tokens=12000, eligible_tokens=12000,
    )  # fmt: skip
    return replace(told, **known)


def level(row: Rows, variant: str, case: str, c: int, p50: float, p95: float, p99: float, unlucky: int) -> LevelRow:
    return row(
        variant=variant, case=case, concurrency=c, ttft_p50_s=p50, ttft_p95_s=p95, ttft_p99_s=p99,
        ttft_p99_lo_s=p99 * 0.8, ttft_p99_hi_s=p99 * 1.2, needs_p50=0, needs_p95=0, needs_p99=24, req_per_s=80 / c,
        unlucky=unlucky, eligible_hit_rate=1 - unlucky / 200, kv_usage_max=min(1.0, c / 13), preemptions=0.0,
        working_set_tokens=10_000 + c * 12_879, wait_compute_s=p50, wait_lost_s=p99 - p50, wait_client_s=0.01,
    )  # fmt: skip


def run(variants: list[str], knee: list[int] | None = None, **known: Any) -> dict[str, Any]:
    verdict = {"knee": knee, "ceiling": 12, "slo": "ttft_p99<2s", "predicted_knee": 13.04, "highest": 16} | known
    facts = {"launch": None, "server": {"cache": {"tokens": 177_920}}, "capacity": None}
    return {
        "workload": {"name": EVIL},
        "typical": {"shared_tokens": 10_000, "own_tokens": 12_804.0, "output_tokens": 75.0, "turns": 12.0},
        "variants": {name: facts for name in variants},
        "verdict": {"variants": {name: verdict for name in variants}},
    }


@pytest.fixture
def drawn(row: Rows) -> Callable[..., dict[str, str]]:
    """Four levels with a cliff between 12 and 14, and both bounds at 8 and 12."""

    def draw(*variants: str, change: Callable[[LevelRow], LevelRow] = lambda row: row, **known: Any) -> dict[str, str]:
        names = list(variants) or ["fp8"]
        rows = [level(row, name, "realistic", c, *of) for name in names for c, of in LEVELS.items()]
        rows += [level(row, name, "best", c, 0.04, 0.05, 0.06, 0) for name in names for c in (8, 12)]
        rows += [level(row, name, "worst", c, 1.2, 9.0, 11.0, 0) for name in names for c in (8, 12)]
        records = [record(name, c, s, t) for name in names for c in LEVELS for s in range(c) for t in range(1, 5)]
        records += [record(name, 14, 1, 5, cached_tokens=4_000, first_s=9.5, end_s=10.0) for name in names]
        return plots.draw(run(names, known.pop("knee", [12, 14]), **known), list(map(change, rows)), records, [])

    return draw


def marks(picture: str, class_: str) -> dict[int, tuple[float, float]]:
    """Level -> where its mark stands."""
    found = {}
    for group in ET.fromstring(picture).iter(f"{SVG}g"):
        shape = group.find(f"{SVG}path")
        if group.get("data-level") and shape is not None and (shape.get("class") or "").split()[0] == class_:
            circle = group.find(f"{SVG}circle")
            assert circle is not None
            found[int(group.get("data-level", ""))] = (float(circle.get("cx", "")), float(circle.get("cy", "")))
    return found


def element(picture: str, class_: str) -> ET.Element:
    return next(one for one in ET.fromstring(picture).iter() if one.get("class") == class_)


def words(picture: str) -> str:
    return " | ".join("".join(one.itertext()) for one in ET.fromstring(picture).iter(f"{SVG}text"))


def tips(picture: str) -> list[str]:
    return [tip for one in ET.fromstring(picture).iter() if (tip := one.get("data-tip"))]


def test_every_figure_is_there_whole_and_told_to_those_who_do_not_see_it(drawn: Any) -> None:
    figures = drawn()
    assert set(figures) == {
        f"{name}.svg" for name in ("curve", "band", "memory", "luck", "timeline", "server", "waits")
    }
    for picture in figures.values():
        top = ET.fromstring(picture)
        named = {one.get("id"): one.text for one in top.iter() if one.get("id")}
        assert top.get("class") == "fig"
        assert top.get("role") == "img"
        assert all(named[key] for key in top.get("aria-labelledby", "").split())
        assert not re.search(r"\b(nan|inf|None)\b", picture), "a value that was not measured became a coordinate"


def test_each_precision_has_its_own_figures_and_no_id_stands_twice_on_a_page(drawn: Any) -> None:
    figures = drawn("fp8", "a b", "a-b", EVIL)
    assert "precisions.svg" in figures
    assert {"curve-fp8.svg", "curve-a-b.svg"} <= set(figures)
    assert all(re.fullmatch(r"[\w.+-]+", name) for name in figures)
    assert len(figures) == 4 * 7 + 1
    ids = [one.get("id") for picture in figures.values() for one in ET.fromstring(picture).iter() if one.get("id")]
    assert len(ids) == len(set(ids))
    for picture in figures.values():
        own = {one.get("id") for one in ET.fromstring(picture).iter()}
        assert set(re.findall(r"url\(#([^)]*)\)", picture)) <= own


def test_hostile_names_are_words_and_nothing_else(drawn: Any) -> None:
    for picture in drawn(EVIL, "fp8", slo=f"ttft_p99<2s{EVIL}").values():
        assert {one.tag.removeprefix(SVG) for one in ET.fromstring(picture).iter()} <= {
            "svg", "title", "desc", "style", "rect", "text", "path", "g", "circle", "pattern",
        }  # fmt: skip
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", picture)
    assert any(name.get("data-variant", "").startswith("<script>") for name in ET.fromstring(
        drawn(EVIL)["curve.svg"]).iter(f"{SVG}g"))  # fmt: skip


def test_more_sessions_stand_further_right_and_equal_ratios_equally_far_apart(drawn: Any) -> None:
    points = marks(drawn()["curve.svg"], "c")
    xs = [points[c][0] for c in LEVELS]
    assert xs == sorted(xs)
    assert xs[3] - xs[2] == pytest.approx((xs[1] - xs[0]) / 2, abs=0.2)
    scale = Scale(0.1, 10, 300, 100, log=True)
    assert scale(0.2) - scale(0.4) == pytest.approx(scale(2) - scale(4))
    assert scale(10) < scale(0.1), "slower is higher"
    assert [f"{tick:g}" for tick in scale.ticks()] == ["0.1", "0.3", "1", "3", "10"]


def test_the_knee_is_shaded_from_bracket_to_bracket(drawn: Any) -> None:
    picture = drawn()["curve.svg"]
    points, shade = marks(picture, "c"), element(picture, "shade")
    left = float(shade.get("x", ""))
    assert left == pytest.approx(points[12][0], abs=0.2)
    assert left + float(shade.get("width", "")) == pytest.approx(points[14][0], abs=0.2)
    assert "knee 12\N{EN DASH}14" in words(picture)
    assert "13.0 sessions fit" in words(picture)


def test_without_a_knee_nothing_is_shaded(drawn: Any) -> None:
    picture = drawn(knee=None)["curve.svg"]
    assert 'class="shade"' not in picture
    assert "No cliff up to 16 sessions" in words(picture)


def test_the_promise_is_a_line_at_its_limit(drawn: Any) -> None:
    picture = drawn(slo="ttft_p99<900ms")["curve.svg"]
    height = float(re.findall(r"M\S+ (\S+)L", element(picture, "rule").get("d", ""))[0])
    assert height == pytest.approx(marks(picture, "c")[12][1], abs=0.2), "p99 at 12 sessions is 900 ms"
    assert marks(picture, "ink")[12][1] != 0
    assert "ceiling 12" in words(picture)


@pytest.mark.parametrize("slo", ["req_per_s>1", "errors<1", "ttft_p99<", "tpot_p50<50ms"])
def test_a_promise_on_anything_else_is_no_line_among_times(drawn: Any, slo: str) -> None:
    assert 'class="rule"' not in drawn(slo=slo)["curve.svg"]


def test_the_arithmetic_beyond_the_levels_is_an_arrow_and_not_a_place(drawn: Any) -> None:
    assert "\N{RIGHTWARDS ARROW} 60.2 sessions fit" in words(drawn(predicted_knee=60.2)["curve.svg"])


def test_a_failed_level_is_a_cross_at_the_top_that_says_so(drawn: Any) -> None:
    def fails(row: LevelRow) -> LevelRow:
        return replace(row, ttft_p99_s=math.inf, ttft_p99_hi_s=math.inf) if row.concurrency == 16 else row

    picture = drawn(change=fails)["curve.svg"]
    points = marks(picture, "c")
    assert points[16][1] < min(y for c, (_, y) in points.items() if c != 16)
    assert "failed" in words(picture)
    assert any("p99 failed" in tip for tip in tips(picture))
    lines = [one.get("d", "") for one in ET.fromstring(picture).iter() if one.get("class") == "curve c"]
    assert number(points[16][0]) not in " ".join(lines), "no line leads to what was not measured"


def test_what_was_not_measured_leaves_a_gap(drawn: Any) -> None:
    def gone(row: LevelRow) -> LevelRow:
        return replace(row, ttft_p95_s=None, eligible_hit_rate=None, req_per_s=None) if row.concurrency == 12 else row

    figures = drawn(change=gone)
    assert set(marks(figures["curve.svg"], "b")) == {8, 14, 16}
    assert curve([(0, 0), (1, 1), None, (3, 3), (4, 4)], "a").count("M") == 2
    assert "12" not in {tip.split(" ")[2] for tip in tips(figures["server.svg"]) if "own history" in tip}


def test_a_percentile_without_its_floor_is_hollow_and_the_legend_says_why(drawn: Any) -> None:
    picture = drawn()["curve.svg"]
    assert 'class="c hollow"' in picture
    assert 'class="a hollow"' not in picture
    assert "hollow: too few sessions" in words(picture)
    assert any(
        tip == "C = 14 \u00b7 p99 5.00 s (4.00\N{EN DASH}6.00 s), needs 24 more sessions" for tip in tips(picture)
    )
    assert "hollow" not in words(drawn(change=lambda row: replace(row, needs_p99=0))["curve.svg"])


def test_a_percentile_that_is_only_a_limit_for_time_outs_has_an_arrow_and_the_legend_says_why(drawn: Any) -> None:
    def late(row: LevelRow) -> LevelRow:
        known = replace(row, needs_p99=0)
        return replace(known, at_least="p99", timeouts=20, errors=22) if row.concurrency == 16 else known

    picture = drawn(change=late)["curve.svg"]
    arrows = [one.get("d", "") for one in ET.fromstring(picture).iter() if one.get("class") == "c line"]
    x, y = marks(picture, "c")[16]
    assert [arrow.split("v")[0] for arrow in arrows] == [f"M{number(x)} {number(y)}"]
    assert "or more: requests timed out" in words(picture)
    assert "hollow" not in words(picture)
    assert "2+20t err" in words(picture)
    assert "p99 goes from 900 ms to" in words(picture)
    told = "p99 ≥12.0 s (9.60\N{EN DASH}14.4 s); of 200 requests 2 failed, 20 timed out"
    assert f"C = 16 \u00b7 {told}" in tips(picture)
    assert "or more" not in words(drawn()["curve.svg"])


def test_the_worth_of_the_cache_is_no_ratio_of_limits(drawn: Any) -> None:
    def late(row: LevelRow) -> LevelRow:
        return replace(row, at_least="p50 p95 p99") if row.case == "worst" else row

    assert "It divides p50 by" in words(drawn()["band.svg"])
    told = words(drawn(change=late)["band.svg"])
    assert "It divides p50 by" not in told
    assert "arrow: for time-outs" in told


def test_a_level_without_percentiles_is_a_cross_that_says_why(drawn: Any) -> None:
    why = "no percentiles: 50 of 200 requests failed (50x connection refused)"

    def fails(row: LevelRow) -> LevelRow:
        none = replace(row, errors=50, why_none=why, **stats.NO_PERCENTILES)
        return none if row.concurrency == 16 else row

    figures = drawn(change=fails)
    assert f"C = 16 \u00b7 {why}" in tips(figures["curve.svg"])
    assert set(marks(figures["curve.svg"], "c")) == {8, 12, 14}
    assert not any("C = 16" in tip for tip in tips(figures["waits.svg"])), "a mean over the survivors"
    assert not re.search(r"\b(nan|inf|None)\b", "".join(figures.values()))


def test_what_there_is_no_data_for_is_not_drawn(row: Rows) -> None:
    assert plots.draw(run(["fp8"], highest=None, ceiling=None), [], [], []).keys() == {"memory.svg"}
    bare = run(["fp8"], predicted_knee=None)
    bare["variants"]["fp8"] = {"launch": None}
    assert plots.draw(bare, [], [], []) == {}
    plain = row(concurrency=4, ttft_p50_s=0.3, ttft_p95_s=0.4, ttft_p99_s=0.5)
    untold = [record("fp8", 4, s, 1, cached_tokens=None) for s in range(4)]
    assert plots.draw(bare | {"typical": run([])["typical"]}, [plain], untold, []).keys() == {"curve.svg"}


def test_memory_shows_as_many_sessions_as_fit(drawn: Any) -> None:
    picture = drawn()["memory.svg"]
    assert len([tip for tip in tips(picture) if tip.startswith("session ")]) == 13
    assert "session 14 no longer fits" in words(picture)


@pytest.mark.parametrize("held", [5_000, 10_000, 23_000, 90_000_000])
def test_memory_of_any_size_has_no_bar_of_negative_width(held: int) -> None:
    told = run(["fp8"])
    told["variants"]["fp8"] = {"server": {"cache": {"tokens": held}}}
    widths = [float(one.get("width", "0")) for one in ET.fromstring(
        plots.draw(told, [], [], [])["memory.svg"]).iter(f"{SVG}rect")]  # fmt: skip
    assert min(widths) >= 0


def test_memory_adds_up_from_the_card_to_the_tokens() -> None:
    told = run(["fp8"])
    told["variants"]["fp8"]["capacity"] = {
        "tokens": 180_000, "why": "", "memory_gb": 24.0, "usable_gb": 21.6, "weights_gb": 8.0, "other_gb": 0.4,
        "pool_gb": 13.2, "bytes_per_token": 73_728.0,
    }  # fmt: skip
    said = words(plots.draw(told, [], [], [])["memory.svg"])
    for part in ("24.0 GB", "\N{MINUS SIGN}2.4 GB", "\N{MINUS SIGN}8.0 GB", "\N{MINUS SIGN}0.4 GB", "13.2 GB"):
        assert part in said
    assert "180,000 tokens by arithmetic, 177,920 by the server (+1.2% off)" in said


def test_the_timeline_colours_a_request_by_what_it_lost_and_stays_small(drawn: Any) -> None:
    picture = drawn()["timeline.svg"]
    assert any("lost 8,000 tokens" in tip for tip in tips(picture))
    assert '"r3"' in picture
    assert "lose its history was sent after" in words(picture)
    crowd = [record("fp8", 16, s, t) for s in range(200) for t in range(1, 13)]
    rows = run(["fp8"])
    many = plots.draw(rows, [], crowd, [])["timeline.svg"]
    assert len(tips(many)) <= lives.BARS
    assert "every 4th session shown" in words(many)


def test_luck_names_the_share_of_those_who_lost(drawn: Any) -> None:
    said = words(drawn()["luck.svg"])
    assert "11 of 200 \u00b7 5.5%" in said
    assert "34 of 200 \u00b7 17.0%" in said


def test_waits_stack_up_to_the_mean(drawn: Any) -> None:
    bars = [one for one in ET.fromstring(drawn()["waits.svg"]).iter(f"{SVG}g") if one.get("data-level") == "14"]
    heights = [float(bar.find(f"{SVG}rect").get("height", "")) for bar in bars]  # type: ignore[union-attr]
    assert sorted(heights, reverse=True)[0] / sum(heights) == pytest.approx(4.6 / 5.01, abs=0.02)
    assert "lost history" in words(drawn()["waits.svg"])


def test_the_band_says_what_the_cache_is_worth(drawn: Any) -> None:
    said = words(drawn(change=lambda r: replace(r, req_per_s=1.0) if r.case == "worst" else r)["band.svg"])
    assert "At 12 sessions 6.7 times what full depth without the cache would answer" in said
    assert "divides p50 by 4.0" in said


def test_names_at_line_ends_do_not_touch_and_stay_inside() -> None:
    placed = spread([100.0, 101.0, 99.0, 300.0], 14, 90, 300)
    assert all(abs(a - b) >= 14 for at, a in enumerate(placed) for b in placed[:at])
    assert max(placed) <= 300
    assert placed[2] < placed[0] < placed[1], "in the order of their lines"
    panel = Panel(Scale(0, 1, 0, 100), Scale(0, 1, 300, 90))
    assert end_labels(panel, [(300.0, "p50", "a")]).count("<text") == 1


def test_a_wide_range_of_levels_doubles_in_equal_steps(row: Rows) -> None:
    rows = [row(concurrency=c, ttft_p50_s=0.3, ttft_p95_s=0.4, ttft_p99_s=0.5) for c in (1, 2, 64, 128)]
    points = marks(plots.draw(run(["fp8"], highest=128), rows, [], [])["curve.svg"], "a")
    assert points[2][0] - points[1][0] == pytest.approx(points[128][0] - points[64][0], abs=0.2)
