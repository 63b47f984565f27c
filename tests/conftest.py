from collections.abc import Callable
from dataclasses import replace

import pytest

from bench.stats import LevelRow

BLANK = LevelRow(
    variant="fp8", case="realistic", concurrency=1, requests=200, errors=0, ttft_p50_s=None, ttft_p95_s=None,
    ttft_p99_s=None, ttft_p99_lo_s=None, ttft_p99_hi_s=None, req_per_s=None, eligible_hit_rate=None,
    prefix_hit_rate=None, lost_tokens=None, preemptions=None, kv_usage_max=None, duration_s=1.0, unlucky=None,
    sessions=20, tpot_p50_s=None, late_p99_s=None,
)  # fmt: skip


@pytest.fixture
def row() -> Callable[..., LevelRow]:
    return lambda **known: replace(BLANK, **known)
