"""What vLLM's log says: how far its start has come, why it failed, and what to change."""

import re
import signal
from pathlib import Path

from bench import bounded, keeper
from bench.secret import without

LINE = 4000  # characters of a line that are looked into: whoever logs a prompt has longer ones

# Colours, the process that speaks, the level, time and place of a line.
PREFIX = re.compile(r"^(\s|\x1b\[[0-9;]*m|\([^)]*pid=\d+\)|(ERROR|INFO|WARNING) [\d: -]+\[[^\]]*\])+")
ERROR = re.compile(r"([\w.]+(Error|Exception|Exit)|(vllm|api_server).*: error): ")

STAGES = (
    (r"vLLM API server version|non-default args", "reading its arguments"),
    (r"Initializing a V1 LLM engine|Resolved architecture", "starting its engine"),
    (r"Starting to load model|Loading safetensors|Initializing model took", "loading the model"),
    (r"torch\.compile takes|Dynamo bytecode transform|Compiling a graph", "compiling"),
    (r"KV cache size", "laying out its cache"),
    (r"Capturing CUDA graph|Graph capturing", "capturing CUDA graphs"),
    (r"Route: |Started server process", "opening its port"),
)


def _lines(log: Path) -> list[str]:
    """Its beginning and its end; where its keeper moved older lines to LOG.1, they stand between the two."""
    text, older = bounded.ends(log), log.with_name(f"{log.name}.1")
    if older.is_file():
        text = text[: keeper.LOG_HEAD] + bounded.ends(older) + text[keeper.LOG_HEAD :]
    return [line[:LINE] for line in text.splitlines()]


def stage(log: Path) -> str:
    text = "\n".join(_lines(log))
    return next((what for pattern, what in reversed(STAGES) if re.search(pattern, text)), "loading its libraries")


# Cause in the log -> what to change.
CURES = (
    (r"larger than the available KV cache|KV cache is needed|exceeds the KV cache|No available memory for the cache",
     "the cache is too small for one request of --max-model-len: lower --max-model-len after --, raise"
     " --gpu-memory-utilization after --, or choose a narrower --kv"),
    (r"out of memory|OutOfMemory|less than desired GPU memory utilization|Free memory on device",
     "the card's memory is short: is another process on it (`nvidia-smi`)? Lower --gpu-memory-utilization after --"),
    (r"unrecognized arguments|invalid choice|expected one argument", "one of the flags after -- is not this vLLM's"),
    (r"Address already in use|address already in use", "another process took the port: run again"),
    (r"LocalEntryNotFound|offline|couldn't connect|Repository Not Found|valid model identifier|not a local folder",
     "the model could not be had: check its name and the network, or serve its geometry without weights:"
     " --model synthetic:qwen3-4b"),
    (r"Failed to infer device type|No CUDA|CUDA driver", "this machine has no GPU that vLLM can use: try --gpu cpu"),
    (r"Not enough allowed NUMA nodes|World size .* larger", "--tp is larger than what this machine has"),
)  # fmt: skip


KILLED = "killed (signal 9): by somebody, or by the kernel for want of memory, which `dmesg` would tell"


def diagnose(log: Path, code: int | None = None) -> tuple[str, str]:
    """The cause, and the way out where one is known: told by the cause itself if it can be, else by the whole log.
    Whoever is killed has no time to write down why."""
    if code == -signal.SIGKILL:
        return f"it was {KILLED}", ""
    why = cause(log)
    for text in (why, "\n".join(_lines(log))):
        for pattern, cure in CURES:
            if re.search(pattern, text):
                return why, f"{cure}; "
    return why, ""


def ended(code: int, log: Path | None) -> str:
    return f"vLLM was {KILLED}" if code == -signal.SIGKILL else f"vLLM ended with exit code {code}: {cause(log)}"


def cause(log: Path | None) -> str:
    """The engine's own error: the last `SomeError: ...` line that does not merely report another process's failure."""
    if log is None or not log.is_file():
        return "it left no log"
    lines = [PREFIX.sub("", line).strip() for line in _lines(log)]
    errors = [line for line in lines if ERROR.match(line)]
    own = [line for line in errors if "Engine core initialization failed" not in line and "WorkerProc" not in line]
    return without((own or errors or [line for line in lines if line] or ["it said nothing"])[-1])[:400]
