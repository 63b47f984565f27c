"""What is measured on a card, a stage at a time: on a machine that is lent for minutes, and has nothing but vLLM.

python -m tests.card.stages STAGE --into DIR [--minutes 9]: plays the stage, or goes on with it, ends in order when its
time is over, and leaves DIR/STAGE.tar.xz, the run's folder without the model. At home: tar -xf it into results/runs/,
`bench report`, `bench publish`. `rehearsal` needs no card.
"""

import argparse
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

HERE = Path(__file__).parent
RUNS = Path("results/runs/card")
SMALL = ("--gpu", "h200", "--model", "synthetic:qwen3-4b-fp8")
STUDY = ("--gpu", str(HERE / "h200-as-l4.toml"), "--max-c", "48", "--bounds-at", "1,6,12")
AT_A_FEW = (*SMALL, "--kv", "fp8", "--levels", "1,16,64", "--no-bounds")
STAGES = {
    # The study's geometry, and the whole card at each precision up to past its knee.
    "study-fp8": (*STUDY, "--kv", "fp8"),
    "study-fp16": (*STUDY, "--kv", "fp16"),
    "study-tq4": (*STUDY, "--kv", "tq4"),
    "whole-fp8": (*SMALL, "--kv", "fp8", "--levels", "1,16,64,112,128,136"),
    "whole-fp16": (*SMALL, "--kv", "fp16", "--levels", "1,16,32,48,64,72"),
    "whole-tq4": (*SMALL, "--kv", "tq4", "--levels", "1,64,128,160,176"),
    # Larger models, then one lever each.
    "8b": ("--gpu", "h200", "--model", "synthetic:qwen3-8b-fp8", "--levels", "1,32,64,120,136", "--no-bounds"),
    "32b": ("--gpu", "h200", "--model", "synthetic:qwen3-32b-fp8", "--levels", "8,32,56,60", "--no-bounds"),
    "graphs": (*AT_A_FEW, "--vary", "enforce-eager=off,on"),
    "chunks": (*AT_A_FEW, "--vary", "max-num-batched-tokens=2048,8192,32768"),
    "chunked": (*AT_A_FEW, "--vary", "enable-chunked-prefill=on,off", "--", "--max-num-batched-tokens", "32768"),
    "speculation": (*AT_A_FEW, "--serve-params", str(HERE / "speculation.json")),
    "offload": (*SMALL, "--kv", "fp8", "--levels", "128,144", "--no-bounds", "--serve-params",
                str(HERE / "offload.json")),
    # What the runner itself does, tried without a card.
    "rehearsal": ("--gpu", "tests/real/small.toml", "--workload", "tests/real/small-agents.toml", "--kv", "fp16",
                  "--levels", "1,2,3,4,5,6", "--requests", "200"),
}  # fmt: skip


def play(stage: str, minutes: float) -> int:
    """Asked to end as by Ctrl-C when the time is over: what had ended is on file, and the next call goes on."""
    run = RUNS / stage
    words = ["--resume", str(run)] if (run / "run.json").is_file() else [*STAGES[stage]]
    if "--resume" not in words:
        cut = words.index("--") if "--" in words else len(words)
        words[cut:cut] = ["--out", str(run)]
    process = subprocess.Popen([sys.executable, "-m", "bench", "sweep", *words])
    try:
        return process.wait(minutes * 60)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        return process.wait()


def pack(stage: str, into: Path) -> Path:
    into.mkdir(parents=True, exist_ok=True)
    packed = into / f"{stage}.tar.xz"
    with tarfile.open(packed, "w:xz") as file:
        file.add(RUNS / stage, stage, filter=lambda one: None if one.name == f"{stage}/model" else one)
    return packed


def main() -> None:
    parser = argparse.ArgumentParser(prog="tests.card.stages", description=__doc__)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--into", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=9)
    asked = parser.parse_args()
    code = play(asked.stage, asked.minutes)
    print(f"{pack(asked.stage, asked.into)}: exit code {code}", flush=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
