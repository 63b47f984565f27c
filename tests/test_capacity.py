"""From a card and a model's config to tokens and sessions, and what is said where that cannot be."""

from dataclasses import replace

import pytest

from bench import capacity, recipe, workload
from bench.errors import BenchError
from bench.recipe import Launch

AGENT = workload.load("coding-agent")


def launch(
    gpu: str = "l4", model: str | None = None, tp: int = 1, kv: str = "fp8", extra: tuple[str, ...] = ()
) -> Launch:
    return recipe.launch(gpu, kv, model, tp, True, extra)


def test_the_waterfall_adds_up() -> None:
    found = capacity.expected(launch("h100", "llama-3.1-70b", 4))
    assert None not in (found.usable_gb, found.weights_gb, found.other_gb, found.pool_gb, found.bytes_per_token)
    assert (found.usable_gb or 0) - (found.weights_gb or 0) - (found.other_gb or 0) == pytest.approx(found.pool_gb)
    assert (found.tokens or 0) * (found.bytes_per_token or 0) / 1e9 == pytest.approx(found.pool_gb, rel=1e-4)
    assert found.gpus == 4


def test_what_is_not_on_file_is_unknown_not_guessed() -> None:
    unknown_model = capacity.expected(launch(model="someone/else"))
    assert unknown_model.tokens is None
    assert "geometry" in unknown_model.why
    assert capacity.expected(launch(kv="nvfp4")).tokens is None
    windowed = capacity.expected(launch(model="gpt-oss-20b", kv="tq4"))
    assert windowed.tokens is None
    assert "with a window" in windowed.why
    assert capacity.expected(launch(extra=("--quantization", "bitsandbytes"))).tokens is None


def test_the_cpu_is_pinned_to_the_l4() -> None:
    found = capacity.expected(launch("cpu"))
    assert found.tokens == 177_920
    assert capacity.sessions(found, AGENT) == capacity.sessions_that_fit(177_920, AGENT)


def test_a_model_that_does_not_fit_says_by_how_much_and_what_would_hold_it() -> None:
    with pytest.raises(BenchError) as caught:
        capacity.expected(launch(model="qwen3-32b"))
    assert "65.5 GB of weights" in caught.value.message
    assert "48.0 GB a GPU more than 0.9 of the memory of 1 x NVIDIA L4" in caught.value.message
    assert "--tp 4" in caught.value.hint
    assert "--gpu h200" in caught.value.hint
    assert "--gpu l40s" not in caught.value.hint
    for gpu, tp in (("l4", 4), ("h200", 1)):
        assert (capacity.expected(launch(gpu, "qwen3-32b", tp)).tokens or 0) >= 32_768


def test_a_model_that_nothing_holds_says_so() -> None:
    with pytest.raises(BenchError) as caught:
        capacity.expected(launch(model="deepseek-v3"))
    assert "no shipped card" in caught.value.hint


def test_heads_that_cannot_be_divided_are_refused() -> None:
    with pytest.raises(BenchError, match="28 heads, 4 of keys and values"):
        capacity.expected(launch("h100", "qwen2.5-coder-7b", 8))
    with pytest.raises(BenchError, match="29 stages"):
        capacity.expected(launch("h100", "qwen2.5-coder-7b", extra=("--pipeline-parallel-size", "29")))


def test_stages_divide_a_model_as_gpus_of_a_layer_do() -> None:
    staged = capacity.expected(launch("h100", "llama-3.1-70b", 2, extra=("--pipeline-parallel-size", "2")))
    divided = capacity.expected(launch("h100", "llama-3.1-70b", 4))
    assert staged.gpus == divided.gpus == 4
    assert staged.tokens == pytest.approx(divided.tokens, rel=0.01)


def test_a_head_is_kept_by_every_gpu_that_needs_it() -> None:
    four, eight = (capacity.expected(launch("h100", "qwen3-30b-a3b", tp)) for tp in (4, 8))
    assert eight.bytes_per_token == pytest.approx(2 * (four.bytes_per_token or 0))
    assert "each is kept 2 times" in eight.notes[0]


def test_a_latent_vector_is_whole_on_every_gpu() -> None:
    one, four = (capacity.expected(launch("h100", "deepseek-v2-lite", tp)) for tp in (1, 4))
    assert (one.bytes_per_token, four.bytes_per_token) == (576 * 27, 4 * 576 * 27)


def test_a_session_that_keeps_a_window_of_most_layers_is_cheaper_than_vllms_tokens_say() -> None:
    found = capacity.expected(launch("h100", "gemma-3-27b-text"))
    assert found.windows.count(None) == 1
    assert len(found.windows) == 7
    each = capacity.sessions(found, AGENT)
    assert each is not None
    assert each > 2 * capacity.sessions_that_fit(found.tokens or 0, AGENT)


def test_a_workload_deeper_than_the_context_is_refused() -> None:
    capacity.check_context(launch(), AGENT)
    with pytest.raises(BenchError, match="longest context is"):
        capacity.check_context(launch(extra=("--max-model-len", "16384")), AGENT)
    with pytest.raises(BenchError, match="more than the 40,960 tokens"):
        capacity.check_context(launch(extra=("--max-model-len", "65536")), AGENT)
    with pytest.raises(BenchError, match="4,096 tokens"):
        capacity.check_context(launch("h100", "llama-2-13b"), AGENT)


def test_a_cache_too_small_for_one_request_of_the_longest_context_is_refused() -> None:
    with pytest.raises(BenchError, match="vLLM does not start") as caught:
        capacity.check_context(
            launch(model="qwen2.5-coder-7b", kv="fp16", extra=("--gpu-memory-utilization", "0.84")), AGENT
        )
    assert "lower --max-model-len" in caught.value.hint


def test_sessions_at_random_depths_need_less_than_all_at_their_deepest() -> None:
    together = capacity.sessions_that_fit(178_000, AGENT)
    mixed, mean = (capacity.mixed_depth_fit(178_000, AGENT, spread=spread) for spread in (2.33, 0))
    assert together < mixed < mean
    assert (mixed, mean) == (pytest.approx(16.5, abs=0.2), pytest.approx(20.8, abs=0.2)), "18 held, 20 did not"
    assert capacity.mixed_depth_fit(9_000, AGENT) == 0


def test_sessions_of_one_turn_are_always_at_their_deepest() -> None:
    """Those that have just ended take as much again."""
    file = AGENT.file
    single = replace(AGENT, file=replace(file, session=replace(file.session, turns=1)))
    together = capacity.sessions_that_fit(178_000, single)
    assert capacity.mixed_depth_fit(178_000, single) == pytest.approx(together / 2)


def test_only_the_experts_that_a_token_passes_cost_it_time() -> None:
    dense, sparse = (capacity.speed(launch("h100", model)) for model in ("qwen3-32b", "qwen3-30b-a3b"))
    assert dense is not None
    assert sparse is not None
    assert 8 < dense.token_s / sparse.token_s < 12
    assert 8 < dense.weights_s / sparse.weights_s < 12
