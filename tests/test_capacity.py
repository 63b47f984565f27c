"""The study's printed arithmetic, from the card and the model's config alone."""

import pytest

from bench import capacity, recipe, workload
from bench.model import Geometry, geometry


def qwen3_4b() -> Geometry:
    found = geometry("Qwen/Qwen3-4B-FP8")
    assert found is not None
    return found


@pytest.mark.parametrize(("dtype", "printed"), [("auto", 147_456), ("fp8", 73_728), ("turboquant_4bit_nc", 50_688)])
def test_bytes_per_token_of_qwen3_4b(dtype: str, printed: int) -> None:
    assert capacity.kv_bytes_per_token(qwen3_4b(), dtype) == printed


@pytest.mark.parametrize(
    ("kv", "tokens", "sessions"), [("fp16", 89_000, 6), ("fp8", 178_000, 13), ("tq4", 209_000, 15)]
)
def test_an_l4_holds_what_the_study_printed(kv: str, tokens: int, sessions: int) -> None:
    found = capacity.expected(recipe.launch("l4", kv, None, 1, True, ())).tokens
    assert found == pytest.approx(tokens, rel=0.015)
    assert int(capacity.sessions_that_fit(found, workload.load("coding-agent"))) == sessions


def test_fp8_weights_of_qwen3_4b_are_4_4_gb() -> None:
    assert qwen3_4b().weights_bytes / 1e9 == pytest.approx(4.4, abs=0.05)


def test_what_is_not_on_file_is_unknown_not_guessed() -> None:
    unknown_model = capacity.expected(recipe.launch("l4", "fp8", "someone/else", 1, True, ()))
    assert unknown_model.tokens is None
    assert "geometry" in unknown_model.why
    assert capacity.expected(recipe.launch("l4", "nvfp4", None, 1, True, ())).tokens is None


def test_the_cpu_is_pinned_to_the_l4() -> None:
    assert capacity.expected(recipe.launch("cpu", "fp8", None, 1, True, ())).tokens == 177_920
