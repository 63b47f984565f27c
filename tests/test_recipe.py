import json
from pathlib import Path

import pytest

from bench import recipe, tables, vary, workload
from bench.errors import BenchError
from bench.recipe import Launch
from bench.vary import Cell


def launch(gpu: str = "l4", kv: str = "fp8", **chosen: object) -> Launch:
    given = {"model": None, "tp": 1, "prefix_caching": True, "extra": ()} | chosen
    return recipe.launch(gpu, kv, **given)  # type: ignore[arg-type]


def test_all_that_moves_between_versions_is_stated() -> None:
    words = launch().arguments("M", 1234)
    for flag in (
        "--host",
        "--port",
        "--max-model-len",
        "--max-num-batched-tokens",
        "--max-num-seqs",
        "--gpu-memory-utilization",
        "--kv-cache-dtype",
        "--tensor-parallel-size",
        "--enable-prefix-caching",
        "--enable-chunked-prefill",
    ):
        assert words.count(flag) == 1
    assert words[words.index("--host") + 1] == "127.0.0.1"


def test_precisions_become_vllms_own_names() -> None:
    dtypes = {kv: launch(kv=kv).flag("--kv-cache-dtype") for kv in ("fp16", "fp8", "tq4", "int8_per_token_head")}
    assert dtypes == {
        "fp16": "auto",
        "fp8": "fp8",
        "tq4": "turboquant_4bit_nc",
        "int8_per_token_head": "int8_per_token_head",
    }
    assert launch(kv="tq4").utilization == 0.8
    assert launch(kv="fp8").utilization == 0.9


def test_the_users_flags_replace_ours_in_any_spelling() -> None:
    extra = ("--max_num_seqs=4", "--no-enable-chunked-prefill", "-pp", "2", "--port", "8123", "--brand-new", "x")
    words = launch(extra=extra).arguments("M", 1)
    assert launch(extra=extra).number("--max-num-seqs") == 4
    assert launch(extra=extra, tp=2).cards == 4
    assert tuple(words[-len(extra) :]) == extra
    ours = words[: -len(extra)]
    for flag in ("--max-num-seqs", "--enable-chunked-prefill", "--port"):
        assert flag not in ours


@pytest.mark.parametrize("flag", ["-tp", "--tensor_parallel_size=2", "--kv-cache-dtype", "--no-enable-prefix-caching"])
def test_what_bench_counts_with_has_one_place_to_be_said(flag: str) -> None:
    with pytest.raises(BenchError, match="bench counts with it"):
        launch(extra=(flag, "2"))


def test_switches_turn_off() -> None:
    assert "--no-enable-prefix-caching" in launch(prefix_caching=False).arguments("M", 1)


def test_the_context_is_what_the_last_word_says() -> None:
    assert launch().context == 32_768
    assert launch(extra=("--max-model-len", "64k")).context == 64_000
    assert launch(extra=("--max-model-len=16K",)).context == 16_384


def test_the_cpu_has_the_tokens_of_an_l4_at_each_precision() -> None:
    blocks = {kv: launch("cpu", kv).flag("--num-gpu-blocks-override") for kv in ("fp16", "fp8", "tq4")}
    assert blocks == {"fp16": "690", "fp8": "1390", "tq4": "1633"}


def test_a_synthetic_model_needs_no_hub() -> None:
    made = launch("h200", model="synthetic:qwen3-4b-fp8")
    words = made.arguments("/folder", 1)
    assert words[words.index("--load-format") + 1] == "dummy"
    assert words[words.index("--quantization") + 1] == "fp8"
    assert made.environment()["HF_HUB_OFFLINE"] == "1"


def test_every_card_says_where_each_figure_comes_from() -> None:
    for name in tables.shipped("launch"):
        file = recipe.load(name)[1]
        if name != "cpu":
            assert file.card is not None
            facts = (file.card.memory_gb, file.card.bandwidth_gb_s, file.card.bf16_tflops, file.card.price_usd_h)
            assert all(fact.source for fact in facts)
            assert {"fp16", "fp8", "tq4"} <= set(file.kv)


def varied(base: Launch, axes: tuple[str, ...], file: Path | None = None) -> dict[str, Launch]:
    cells = vary.vary(Cell(base, workload.load("coding-agent")), axes, file)
    assert {cell.workload.name for cell in cells.values()} == {"coding-agent"}
    return {name: cell.launch for name, cell in cells.items()}


def test_vary_makes_every_combination_by_name() -> None:
    made = varied(launch(), ("kv=fp16,fp8", "max-num-seqs=4,64", "enable-chunked-prefill=off"))
    assert set(made) == {
        f"{kv}, max-num-seqs={seqs}, enable-chunked-prefill=off" for kv in ("fp16", "fp8") for seqs in ("4", "64")
    }
    one = made["fp16, max-num-seqs=4, enable-chunked-prefill=off"].arguments("M", 1)
    assert one[one.index("--kv-cache-dtype") + 1] == "auto"
    assert one.count("--max-num-seqs") == 1
    assert "--no-enable-chunked-prefill" in one
    assert list(varied(launch(), ())) == ["fp8"]
    assert varied(launch(), ("tp=1,2",))["tp=2"].tp == 2


def test_what_the_agents_do_can_be_varied_like_the_server() -> None:
    axes = ("workload=coding-agent,steady-agents", "workload.session.output-tokens=50,100", "kv=fp16,fp8")
    made = vary.vary(Cell(launch(), workload.load("coding-agent")), axes)
    assert len(made) == 8
    cell = made["steady-agents, session.output-tokens=50, fp16"]
    assert (cell.launch.kv, cell.workload.file.session.output_tokens) == ("fp16", 50)
    assert cell.workload.name == "steady-agents with session.output_tokens=50"
    assert len({cell.workload.digest for cell in made.values()}) == 4
    (spread,) = vary.vary(Cell(launch(), workload.load("coding-agent")), ("workload.arrivals.start=spread",)).values()
    assert spread.workload.file.arrivals.start == "spread"


def test_keys_of_a_workload_are_changed_in_the_one_that_is_varied_wherever_that_stands() -> None:
    axes = ("workload.session.turns=3,5", "workload=short-qa,coding-agent")
    made = vary.vary(Cell(launch(), workload.load("coding-agent")), axes)
    assert {cell.workload.file.session.turns for cell in made.values()} == {3, 5}
    assert len(made) == 4


@pytest.mark.parametrize(
    "axes",
    [("kv=fp16,fp16",), ("kv=fp16,fp8", "kv=fp8,tq4"), ("max-num-seqs=4", "max_num_seqs=8"), ("kv-cache-dtype=fp8",)],
)
def test_variants_that_could_not_be_told_apart_are_refused(axes: tuple[str, ...]) -> None:
    with pytest.raises(BenchError, match=r"one name|twice|different things|counts with it"):
        varied(launch(), axes)


@pytest.mark.parametrize(
    ("axis", "says"),
    [
        ("workload.arrivals.sessions_per_s=0", "no session would ever begin"),
        ("workload=nothing", "no file workloads/nothing.toml"),
        ("workload.turns=6", "unknown key 'turns'"),
        ("workload.session.turns=many", "should be"),
        ("workload.summary.turns=6", "summary has no keys of its own"),
        ("workload.session.turns=0", "at least one turn"),
    ],
)
def test_a_workload_that_is_none_is_refused(axis: str, says: str) -> None:
    with pytest.raises(BenchError, match=says):
        vary.vary(Cell(launch(), workload.load("coding-agent")), (axis,))


SAME = {
    "a": {"max_num_seqs": 4, "enable_prefix_caching": False},
    "b": {"kv_cache_dtype": "auto", "tensor-parallel-size": 2},
}


@pytest.mark.parametrize("form", [SAME, [{"_benchmark_name": name, **record} for name, record in SAME.items()]])
def test_vllms_own_records_of_flags_are_servers_too(tmp_path: Path, form: object) -> None:
    file = tmp_path / "serve.json"
    file.write_text(json.dumps(form))
    made = varied(launch(), (), file)
    assert made["a"].flag("--max-num-seqs") == "4"
    assert not made["a"].prefix_caching
    assert (made["b"].precision.dtype, made["b"].tp) == ("auto", 2)
    crossed = varied(launch(), ("block-size=16,32",), file)
    assert list(crossed) == ["a, block-size=16", "a, block-size=32", "b, block-size=16", "b, block-size=32"]


@pytest.mark.parametrize(
    ("form", "says"),
    [
        ([], "no list of records"),
        (7, "no list of records"),
        ([{}], "no list of records"),
        ([{"max_num_seqs": 4}, {"max_num_seqs": 4}], "two records are called max_num_seqs=4"),
        ([{"api_key": "CANARY-CANARY"}], "api-key is a secret"),
        ([{"max_model_len": 8}], "max-model-len stands after -- too"),
    ],
)
def test_records_that_are_none_are_refused(tmp_path: Path, form: object, says: str) -> None:
    file = tmp_path / "serve.json"
    file.write_text(json.dumps(form))
    with pytest.raises(BenchError, match=says) as caught:
        varied(launch(extra=("--max-model-len", "4096")), (), file)
    assert "CANARY" not in str(caught.value)
