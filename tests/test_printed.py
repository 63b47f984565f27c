"""Every number that the three source documents print of capacity, from our own functions; docs/arithmetic.md has why.

Beside each stands the assumption it rests on where vLLM does not share it.
"""

import random

import pytest

from bench import capacity, kv, model, recipe, workload
from bench.geometry import Geometry

GIB = 1 << 30
AGENT = workload.load("coding-agent")


def shapes(name: str) -> Geometry:
    return model.shapes(name)


class TestDocument000:
    def test_a_70b_model_takes_320_kb_a_token(self) -> None:
        assert capacity.kv_bytes_per_token(shapes("llama-3.1-70b"), "auto") == 320 * 1024

    def test_a_task_of_30_000_tokens_takes_9_6_gb(self) -> None:
        """320 KB taken as 320,000 B; with KB of 1,024 it is 9.8 GB."""
        assert 30_000 * 320e3 / 1e9 == 9.6
        assert 30_000 * (capacity.kv_bytes_per_token(shapes("llama-3.1-70b"), "auto") or 0) / 1e9 == pytest.approx(
            9.83, abs=0.005
        )

    def test_16_tasks_fit(self) -> None:
        """A pool of 153.6 GB that is not printed; four 80 GB cards at 0.9 leave 150 GB, which is 15 tasks."""
        assert capacity.fit(int(153.6e9 / 320e3), 0, 30_000) == 16
        found = capacity.expected(recipe.launch("h100", "fp16", "llama-3.1-70b", 4, True, ()))
        assert found.pool_gb == pytest.approx(150, abs=0.5)
        assert found.tokens is not None
        assert int(capacity.fit(found.tokens, 0, 30_000)) == 15

    def test_a_task_of_20_calls_meets_the_slowest_percent_in_18_of_100(self) -> None:
        """Calls taken as independent; under load the slow ones come together."""
        assert round(1 - 0.99**20, 2) == 0.18


class TestDocument001:
    """Pool: 80 - 26 - 6 printed as GB and used as GiB, all memory of the card; vLLM takes a share of it."""

    TOKEN = 819_200
    POOL = 48 * GIB

    def test_a_13b_model_takes_819_200_b_a_token(self) -> None:
        assert capacity.kv_bytes_per_token(shapes("llama-2-13b"), "auto") == self.TOKEN

    def test_48_gb_are_left(self) -> None:
        assert 80 - round(shapes("llama-2-13b").weights_bytes / 1e9) - 6 == 48
        assert self.POOL == 48 * GIB

    def test_a_sequence_takes_1677_7_mb(self) -> None:
        assert round(2048 * self.TOKEN / 1e6, 1) == 1677.7

    def test_30_sequences_fit_and_112_that_share_their_prompt(self) -> None:
        tokens = self.POOL // self.TOKEN
        alone, sharing = int(capacity.fit(tokens, 0, 2048)), int(capacity.fit(tokens, 1500, 548))
        assert (alone, sharing) == (30, 112)
        assert round(sharing / alone, 2) == 3.73

    def test_in_vllms_terms_it_is_28_and_102(self) -> None:
        """0.9 of the 85.9 GB of the card, less 26.0 and the 4.2 assumed besides: 47.1 GB, not 51.5."""
        found = capacity.expected(recipe.launch("a100", "fp16", "llama-2-13b", 1, True, ("--max-model-len", "4096")))
        assert found.tokens is not None
        assert int(capacity.fit(found.tokens, 0, 2048)) == 28
        assert int(capacity.fit(found.tokens, 1500, 548)) == 102

    def test_static_and_continuous_batching(self) -> None:
        """A step taken as 12 ms whatever is in it, every slot refilled at once; vLLM has no static mode to compare."""
        drawn = random.Random(7)
        lengths = [drawn.choice([20, 30, 40, 350, 512]) for _ in range(16)]
        steps, total, step_s = max(lengths), sum(lengths), 0.012
        static, continuous = total / (steps * step_s), 16 / step_s
        assert (round(static, 1), round(continuous, 1)) == (463.2, 1333.3)
        assert round(total / (16 * steps), 2) == 0.35
        assert round(continuous / static, 2) == 2.88


class TestDocument002:
    @pytest.mark.parametrize(("dtype", "printed"), [("auto", 147_456), ("fp8", 73_728)])
    def test_bytes_a_token(self, dtype: str, printed: int) -> None:
        assert capacity.kv_bytes_per_token(shapes("Qwen/Qwen3-4B-FP8"), dtype) == printed

    def test_38_700_b_a_token_is_all_layers_packed(self) -> None:
        """vLLM keeps the first and last two of 36 layers in 16 bit: 50,688."""
        found = kv.layer_bytes(shapes("Qwen/Qwen3-4B-FP8"), "turboquant_4bit_nc")
        assert round(36 * found[18], -2) == pytest.approx(38_700, rel=0.005)
        assert sum(found) == 50_688

    @pytest.mark.parametrize(
        ("precision", "each", "printed", "pool_gb"),
        [("fp16", 147_456, 89_000, 13.0), ("fp8", 73_728, 178_000, 13.0), ("tq4", 38_700, 275_000, 10.6)],
    )
    def test_tokens_of_the_printed_pool(self, precision: str, each: int, printed: int, pool_gb: float) -> None:
        """The printed 13 GB are a rounded 13.1."""
        assert pool_gb * 1e9 / each == pytest.approx(printed, rel=0.012)

    @pytest.mark.parametrize(("precision", "ours"), [("fp16", 89_000), ("fp8", 178_000), ("tq4", 209_000)])
    def test_tokens_from_the_card(self, precision: str, ours: int) -> None:
        """275K rests on a layout that vLLM does not have."""
        found = capacity.expected(recipe.launch("l4", precision, None, 1, True, ()))
        assert found.tokens == pytest.approx(ours, rel=0.015)

    @pytest.mark.parametrize(("tokens", "printed"), [(178_000, 13), (89_000, 6), (275_000, 21)])
    def test_sessions_at_12_800_tokens_each(self, tokens: int, printed: int) -> None:
        """Sessions all at their deepest; 20.7 is printed as 21."""
        assert capacity.fit(tokens, 10_000, 12_800) == pytest.approx(printed, abs=0.35)

    @pytest.mark.parametrize(("precision", "whole"), [("fp16", 6), ("fp8", 13), ("tq4", 15)])
    def test_sessions_of_the_workload(self, precision: str, whole: int) -> None:
        found = capacity.expected(recipe.launch("l4", precision, None, 1, True, ()))
        assert found.tokens is not None
        assert int(capacity.sessions_that_fit(found.tokens, AGENT)) == whole
