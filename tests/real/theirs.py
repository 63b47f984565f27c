"""Scenarios through vLLM's own scheduler, no model behind it. Runs under vLLM's interpreter; tells what it saw."""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from vllm.config import CacheConfig, ModelConfig, SchedulerConfig, VllmConfig
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request
from vllm.v1.structured_output import StructuredOutputManager

from bench.simulate import Setup
from tests.real.scheduling import Ask, Scenario, Seen, Sitting, play, scenario

TEXT = 1 << 24  # tokens are told apart by the text they are of and where they stand in it


class Theirs:
    def __init__(self, scenario: Scenario, model: str) -> None:
        longest = max(sitting.longest for sitting in scenario.sittings) + 1
        self.scheduler = _scheduler(scenario.setup, longest, model)
        self._hasher = get_request_block_hasher(scenario.setup.block_size, sha256)
        self._known: dict[str, int] = {}  # blocks of a request that have been told
        self._queries = self._hits = self._preemptions = 0

    def add(self, session: int, number: int, sitting: Sitting, ask: Ask) -> None:
        tokens = list(range(sitting.shared))
        tokens += [TEXT + at for at in range(sitting.level)]
        tokens += [_own(session, at) for at in range(ask.own)]
        request = Request(
            request_id=f"{session} {number}",
            prompt_token_ids=tokens,
            sampling_params=SamplingParams(max_tokens=ask.output, ignore_eos=True),
            pooling_params=None,
            block_hasher=self._hasher if self.scheduler.cache_config.enable_prefix_caching else None,
        )
        request.before_own = sitting.shared + sitting.level
        self.scheduler.add_request(request)

    def step(self) -> Seen:
        planned = self.scheduler.schedule()
        scheduled = planned.num_scheduled_tokens
        preempted = sorted(planned.preempted_req_ids or ())
        for name in preempted:
            self._known.pop(name)
        seen = [self._seen(name, tokens) for name, tokens in scheduled.items()]
        told = self.scheduler.update_from_output(planned, self._answers(scheduled))
        outputs = [output for of_client in told.values() for output in of_client.outputs]
        stats = told[0].scheduler_stats
        self._queries += stats.prefix_cache_stats.queries
        self._hits += stats.prefix_cache_stats.hits
        self._preemptions += len(preempted)
        return {
            "scheduled": seen,
            "preempted": preempted,
            "free": self.scheduler.kv_cache_manager.block_pool.get_num_free_blocks(),
            "ended": [[int(part) for part in one.request_id.split()] for one in outputs if one.finish_reason],
            "running": [request.request_id for request in self.scheduler.running],
            "waiting": [request.request_id for request in self.scheduler.waiting],
            "prefix": [self._queries, self._hits],
            "preemptions": self._preemptions,
        }

    def _seen(self, name: str, tokens: int) -> list[Any]:
        request = self.scheduler.requests[name]
        (blocks,) = self.scheduler.kv_cache_manager.get_block_ids(name)
        new = blocks[self._known.get(name, 0) :]
        self._known[name] = len(blocks)
        return [name, tokens, request.num_computed_tokens - tokens, new]

    def _answers(self, scheduled: dict[str, int]) -> ModelRunnerOutput:
        requests = [self.scheduler.requests[name] for name in scheduled]
        return ModelRunnerOutput(
            req_ids=list(scheduled),
            req_id_to_index={name: at for at, name in enumerate(scheduled)},
            sampled_token_ids=[_sampled(request) for request in requests],
        )


def _own(session: int, at: int) -> int:
    return TEXT * (2 + session) + at


def _sampled(request: Request) -> list[int]:
    if request.num_computed_tokens < request.num_tokens:
        return []
    return [_own(int(request.request_id.split()[0]), request.num_tokens - request.before_own)]


def _scheduler(setup: Setup, longest: int, model: str) -> Scheduler:
    config = VllmConfig(
        model_config=ModelConfig(model=model, skip_tokenizer_init=True, dtype="float32", max_model_len=longest),
        cache_config=CacheConfig(block_size=setup.block_size, enable_prefix_caching=setup.caching),
        scheduler_config=SchedulerConfig(
            max_model_len=longest,
            is_encoder_decoder=False,
            max_num_batched_tokens=setup.budget,
            max_num_seqs=setup.most_sequences,
            enable_chunked_prefill=setup.chunked,
            long_prefill_token_threshold=min(setup.threshold, longest),
            async_scheduling=False,
        ),
    )
    config.cache_config.num_gpu_blocks = setup.blocks + 1
    spec = FullAttentionSpec(block_size=setup.block_size, num_kv_heads=1, head_size=1, dtype=torch.float32)
    return Scheduler(
        vllm_config=config,
        kv_cache_config=KVCacheConfig(setup.blocks + 1, [], [KVCacheGroupSpec(["layer"], spec)]),
        structured_output_manager=StructuredOutputManager(config),
        block_size=setup.block_size,
        log_stats=True,
    )


def main(model: str, out: str, *names: str) -> None:
    init_none_hash(sha256)
    with Path(out).open("w") as file:
        for name in names:
            kind, _, seed = name.rpartition(" ")
            given = scenario(kind, int(seed))
            print(json.dumps({"name": name, "steps": play(given, Theirs(given, model))}), file=file)


if __name__ == "__main__":
    main(*sys.argv[1:])
