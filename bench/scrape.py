"""What the server says of itself: its Prometheus page as numbers, absent ones as None."""

import asyncio
import math
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from bench import asking

CACHE = re.compile(r"^vllm:cache_config_info\{(.*)\}[ \t]", re.MULTILINE)
LABEL = re.compile(r'\b(\w+)="((?:[^"\\]|\\.)*)"')

# Our name -> the names it has had, newest first. Counters of several engines add up; shares are averaged.
SERIES: dict[str, tuple[str, ...]] = {
    "prefix_queries": ("vllm:prefix_cache_queries_total", "vllm:prefix_cache_queries"),
    "prefix_hits": ("vllm:prefix_cache_hits_total", "vllm:prefix_cache_hits"),
    "preemptions": ("vllm:num_preemptions_total", "vllm:num_preemptions"),
    "kv_usage": ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"),
    "running": ("vllm:num_requests_running",),
    "waiting": ("vllm:num_requests_waiting",),
    "prompt_tokens": ("vllm:prompt_tokens_total",),
    "generated_tokens": ("vllm:generation_tokens_total",),
    "queue_s": ("vllm:request_queue_time_seconds_sum",),
    "prefill_s": ("vllm:request_prefill_time_seconds_sum",),
    "finished": ("vllm:request_queue_time_seconds_count",),
    "ttft_s": ("vllm:time_to_first_token_seconds_sum",),
    "steps": ("vllm:iteration_tokens_total_count",),  # of the engine, that gave a token
    "first_tokens": ("vllm:time_to_first_token_seconds_count",),
}
NAMED = re.compile(
    rf"^({'|'.join(name for names in SERIES.values() for name in names)})(?:\{{.*\}})?[ \t]+(\S+)", re.MULTILINE
)
AVERAGED = {"kv_usage"}
Sample = dict[str, float | None]


def parse(page: str) -> Sample:
    """Only what we have a name for: a page has a thousand lines, and whoever reads them all keeps others waiting."""
    found: dict[str, list[float]] = {}
    for name, text in NAMED.findall(page):
        if (value := _value(text)) is not None:
            found.setdefault(name, []).append(value)
    return {
        ours: _total(ours, next((found[name] for name in names if name in found), None))
        for ours, names in SERIES.items()
    }


def _value(text: str) -> float | None:
    """NaN is what Prometheus says for nothing; nor is infinity a measure."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _total(ours: str, values: list[float] | None) -> float | None:
    if values is None:
        return None
    return sum(values) / (len(values) if ours in AVERAGED else 1)


@dataclass(frozen=True, slots=True)
class CacheFacts:
    block_size: int | None
    blocks: int | None
    tokens: int | None
    dtype: str | None


def cache_facts(page: str) -> CacheFacts:
    line = CACHE.search(page)
    if line is None:
        return CacheFacts(None, None, None, None)
    labels = dict(LABEL.findall(line[1]))
    size, blocks = _number(labels.get("block_size")), _number(labels.get("num_gpu_blocks"))
    stated = _number(labels.get("kv_cache_size_tokens"))
    counted = size * blocks if size and blocks else None
    return CacheFacts(size, blocks, stated if stated is not None else counted, labels.get("cache_dtype"))


def _number(text: str | None) -> int | None:
    return int(text) if text and re.fullmatch("[0-9]{1,12}", text) else None


async def fetch(base_url: str, key: str | None = None, limit_s: float = 60) -> str | None:
    """The metrics page, or None where a server has none."""
    try:
        reply = await asking.reply_later(f"{base_url}/metrics", key, limit_s)
    except OSError:
        return None
    return reply.text if reply.status == 200 else None


@asynccontextmanager
async def watching(
    base_url: str,
    key: str | None,
    now: Callable[[], float],
    keep: Callable[[float, Sample], None],
    every_s: float = 1.0,
    limit_s: float = 60,
) -> AsyncIterator[None]:
    """Hand a sample to `keep` every `every_s` seconds while the body runs."""

    async def watch() -> None:
        reply: asking.Reply | None = None
        while reply is None or reply.status == 200:
            with suppress(OSError):  # a server too busy to answer once is asked again
                reply = None
                reply = await asking.reply_later(f"{base_url}/metrics", key, limit_s)
            if reply is not None and reply.status == 200:
                keep(now(), parse(reply.text))
            await asyncio.sleep(every_s)

    try:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(watch())
            yield
            task.cancel()
    except BaseExceptionGroup as several:  # the body's, or that a sample cannot be kept, which ends the body
        raise several.exceptions[0] from None
