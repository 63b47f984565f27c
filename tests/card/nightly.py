"""The nightly workflow by hand, from its own file: each `run` step of the job that sweeps, as a runner would take it.

python -m tests.card.nightly CARD: with `vllm` on PATH and PyYAML at hand. Where there is no package index, pip's own
variables (PIP_NO_INDEX, PIP_FIND_LINKS) say where the wheels of locks/run.txt and of the build lie.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

WORKFLOW = Path(".github/workflows/nightly.yml")


def main(card: str) -> int:
    job = yaml.safe_load(WORKFLOW.read_text())["jobs"]["sweep"]
    failed = 0
    with tempfile.TemporaryDirectory() as made:
        places = {name: f"{made}/{name}" for name in ("GITHUB_PATH", "GITHUB_STEP_SUMMARY")}
        for path in places.values():
            Path(path).touch()
        env = {**os.environ, **places, "RUNNER_TEMP": made, "CARD": card, "KV": job["env"]["KV"]}
        for step in (one for one in job["steps"] if "run" in one and (not failed or one.get("if") == "always()")):
            print(f"--- {step['name']}", flush=True)
            added = Path(places["GITHUB_PATH"]).read_text().split()
            env["PATH"] = os.pathsep.join([*reversed(added), os.environ["PATH"]])
            ran = subprocess.run(["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]], env=env)
            failed = failed or ran.returncode
        print(f"--- its summary\n{Path(places['GITHUB_STEP_SUMMARY']).read_text()}\n--- exit code {failed}")
    return failed


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
