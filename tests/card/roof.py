"""`make roof`: what this machine computes and moves at most, as the table that a launch file takes.

Run by vLLM's own Python, whose torch knows the card. Random numbers: zeros are multiplied faster, for they draw less.
"""

import datetime
import platform
import sys
import time
from collections.abc import Callable, Iterator

try:
    import torch
except ImportError:
    sys.exit("no torch here: make roof VLLM_PYTHON=..., the Python that runs vLLM")

CUDA = torch.cuda.is_available()
SIDE, BYTES = (8192, 8 << 30) if CUDA else (2048, 1 << 30)
ROUNDS, WARM_UPS = 20, 3


def durations(work: Callable[[], object]) -> Iterator[float]:
    for at in range(WARM_UPS + ROUNDS):
        if CUDA:
            torch.cuda.synchronize()
        began = time.perf_counter()
        work()
        if CUDA:
            torch.cuda.synchronize()
        if at >= WARM_UPS:
            yield time.perf_counter() - began


def line(name: str, amount: float, how: str, work: Callable[[], object]) -> str:
    rates = sorted(amount / taken for taken in durations(work))
    spread = f"{rates[0]:.4g} to {rates[-1]:.4g}, median {rates[len(rates) // 2]:.4g}"
    where = torch.cuda.get_device_name() if CUDA else f"{torch.get_num_threads()} threads of {platform.machine()}"
    source = (
        f"measured {datetime.date.today()} on {where}: {how}, fastest of {ROUNDS} ({spread}), torch {torch.__version__}"
    )
    return f'{name} = {{ value = {rates[-1]:.4g}, source = "{source}" }}'


def lines() -> Iterator[str]:
    device = "cuda" if CUDA else "cpu"
    operations, how = 2 * SIDE**3 / 1e12, f"a product of {SIDE} x {SIDE}"
    one, other = (torch.randn(SIDE, SIDE, device=device, dtype=torch.bfloat16) for _ in range(2))
    yield line("bf16_tflops", operations, how, lambda: one @ other)
    if CUDA and torch.cuda.get_device_capability() >= (8, 9):
        unit = torch.ones((), device=device)
        left, right = one.to(torch.float8_e4m3fn), other.to(torch.float8_e4m3fn).t()
        yield line(
            "fp8_tflops", operations, how,
            lambda: torch._scaled_mm(left, right, scale_a=unit, scale_b=unit, out_dtype=torch.bfloat16),
        )  # fmt: skip
    first, second = (torch.empty(BYTES // 2, device=device, dtype=torch.uint8) for _ in range(2))
    first.random_()
    yield line(
        "bandwidth_gb_s", BYTES / 1e9, f"a copy, {BYTES >> 30} GiB read and written", lambda: second.copy_(first)
    )


if __name__ == "__main__":
    print("[roof]")
    for found in lines():
        print(found, flush=True)
