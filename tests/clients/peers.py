"""Other people's load clients: each called by its own command line, as it publishes it, and read by its own report."""

import json
import sqlite3
from collections.abc import Sequence
from contextlib import closing

from tests.clients.contestants import ROOT, Cell, Contestant, Report, environment
from tests.clients.turns import OUTPUT_TOKENS, PROMPT_TOKENS

PROMPT, OUTPUT = str(PROMPT_TOKENS), str(OUTPUT_TOKENS)


def flags(**values: object) -> list[str]:
    return [text for name, value in values.items() for text in (f"--{name.replace('_', '-')}", str(value))]


def report(ttfts_ms: Sequence[float]) -> Report:
    return Report(tuple(ttft / 1e3 for ttft in ttfts_ms))


def vllm(cell: Cell) -> list[str]:
    asked = flags(
        backend="openai",
        base_url=cell.url,
        model="truth",
        tokenizer=cell.tokenizer,
        dataset_name="random",
        random_input_len=PROMPT,
        random_output_len=OUTPUT,
        num_prompts=cell.requests,
        max_concurrency=cell.concurrency,
        result_dir=cell.folder,
        result_filename="vllm.json",
    )
    return ["vllm", "bench", "serve", *asked, "--ignore-eos", "--save-result", "--save-detailed", "--disable-tqdm"]


def read_vllm(cell: Cell) -> Report:
    return Report(tuple(json.loads((cell.folder / "vllm.json").read_text())["ttfts"]))


def servebench(cell: Cell) -> list[str]:
    asked = flags(
        url=f"{cell.url}/v1",
        model="truth",
        endpoint="completions",
        concurrency=cell.concurrency,
        num_requests=cell.requests,
        input_len=PROMPT,
        output_len=OUTPUT,
        out=cell.folder / "servebench.json",
    )
    return ["servebench", "run", *asked, "--no-gpu"]


def read_servebench(cell: Cell) -> Report:
    told = json.loads((cell.folder / "servebench.json").read_text())["levels"][0]["requests"]
    return Report(tuple(request["ttft"] for request in told if request["ok"]))


def evalscope(cell: Cell) -> list[str]:
    asked = flags(
        url=f"{cell.url}/v1/completions",
        api="openai",
        model="truth",
        tokenizer_path=cell.tokenizer,
        dataset="random",
        min_prompt_length=PROMPT,
        max_prompt_length=PROMPT,
        prefix_length=0,
        min_tokens=OUTPUT,
        max_tokens=OUTPUT,
        number=cell.requests,
        parallel=cell.concurrency,
        outputs_dir=cell.folder / "evalscope",
    )
    return ["evalscope", "perf", *asked, "--no-test-connection", "--no-timestamp"]


def read_evalscope(cell: Cell) -> Report:
    (file,) = (cell.folder / "evalscope").rglob("benchmark_data.db")
    with closing(sqlite3.connect(file)) as records:
        rows = records.execute("SELECT first_chunk_latency FROM result WHERE success")
        return Report(tuple(seconds for (seconds,) in rows))


def aiperf(cell: Cell) -> list[str]:
    asked = flags(
        model="truth",
        url=cell.url,
        endpoint_type="completions",
        tokenizer=cell.tokenizer,
        concurrency=cell.concurrency,
        request_count=cell.requests,
        isl=PROMPT,
        osl=OUTPUT,
        prompt_corpus="random",
        num_dataset_entries=cell.requests,
        ui="none",
        artifact_dir=cell.folder / "aiperf",
    )
    return ["aiperf", "profile", *asked, "--streaming", "--no-gpu-telemetry", "--no-server-metrics"]


def read_aiperf(cell: Cell) -> Report:
    lines = (cell.folder / "aiperf" / "profile_export.jsonl").read_text().splitlines()
    told = (json.loads(line)["metrics"] for line in lines)
    return report([metrics["time_to_first_token"]["value"] for metrics in told if "time_to_first_token" in metrics])


def guidellm(cell: Cell) -> list[str]:
    asked = flags(
        backend=f"kind=openai_http,target={cell.url},model=truth",
        profile=f"kind=concurrent,streams={cell.concurrency}",
        constraint=f"kind=max_requests,count={cell.requests}",
        data=f"kind=json_file,path={cell.prompts}",
        tokenizer=f"kind=huggingface_auto,model={cell.tokenizer}",
        output=f"kind=json,path={cell.folder / 'guidellm.json'}",
    )
    return ["guidellm", "run", *asked, "--disable-console"]


def read_guidellm(cell: Cell) -> Report:
    (told,) = json.loads((cell.folder / "guidellm.json").read_text())["benchmarks"]
    return report([request["time_to_first_token_ms"] for request in told["requests"]["successful"]])


PEERS = (
    Contestant("vllm", "vllm", ROOT / ".engine" / "bin" / "python", vllm, read_vllm),
    Contestant("servebench", "servebench", environment("servebench"), servebench, read_servebench),
    Contestant("evalscope", "evalscope", environment("evalscope"), evalscope, read_evalscope),
    Contestant("aiperf", "aiperf", environment("aiperf"), aiperf, read_aiperf),
    Contestant("guidellm", "guidellm", environment("guidellm"), guidellm, read_guidellm),
)
