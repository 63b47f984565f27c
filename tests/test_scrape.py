import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from bench import scrape
from bench.errors import BenchError
from bench.records import Folder
from bench.scrape import Sample

PAGE = """
# HELP vllm:prefix_cache_hits_total x
vllm:prefix_cache_hits_total{engine="0",model_name="a \\"b\\""} 100.0
vllm:prefix_cache_hits_total{engine="1",model_name="m"} 28.0
vllm:kv_cache_usage_perc{engine="0"} 0.5
vllm:kv_cache_usage_perc{engine="1"} 0.7
vllm:num_requests_running{engine="0"} 3.0
vllm:cache_config_info{block_size="16",cache_dtype="fp8",num_gpu_blocks="100",num_gpu_blocks_override="None"} 1.0
python_info{x="y"} 1.0
"""


def test_engines_add_up_shares_are_averaged_and_absent_is_none() -> None:
    sample = scrape.parse(PAGE)
    assert sample["prefix_hits"] == 128
    assert sample["kv_usage"] == 0.6
    assert sample["running"] == 3
    assert sample["preemptions"] is None


def test_the_names_of_older_versions_are_known() -> None:
    assert scrape.parse("vllm:gpu_cache_usage_perc 0.25\n")["kv_usage"] == 0.25


def test_capacity_is_counted_where_it_is_not_stated() -> None:
    facts = scrape.cache_facts(PAGE)
    assert (facts.block_size, facts.tokens, facts.dtype) == (16, 1600, "fp8")
    stated = scrape.cache_facts(PAGE.replace('block_size="16"', 'block_size="16",kv_cache_size_tokens="1584"'))
    assert stated.tokens == 1584
    assert scrape.cache_facts("nothing here").tokens is None


async def watched(keep: Callable[[float, Sample], None], body: asyncio.Event) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + PAGE.encode())
        await writer.drain()
        writer.close()

    async with asyncio.timeout(60), await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with scrape.watching(url, None, lambda: 1.0, keep):
            await body.wait()


def test_samples_that_cannot_be_kept_end_what_they_are_taken_of(tmp_path: Path) -> None:
    (tmp_path / "server.jsonl").symlink_to("/dev/full")
    with pytest.raises(BenchError, match="No space left on device"):
        asyncio.run(watched(lambda at, sample: Folder(tmp_path).append("server.jsonl", sample), asyncio.Event()))


def test_the_end_of_what_is_watched_ends_the_watch() -> None:
    kept: list[Sample] = []

    async def go() -> None:
        enough = asyncio.Event()
        await watched(lambda at, sample: (kept.append(sample), enough.set())[1], enough)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(go())
    assert kept[0]["prefix_hits"] == 128
