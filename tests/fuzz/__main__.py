"""`make fuzz TARGET=sse MINUTES=5`: coverage leads the way into what reads others' bytes. Not a test: it has no end.

What it finds lies in .fuzz/TARGET/ and becomes a plain test; more than 2 GiB of memory or 20 s for one input is a find.
"""

import argparse
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["bench"]):
    from tests.fuzz.targets import TARGETS, Target, spared

PART_S = 60  # after which it goes on in a new process: what atheris adds to the code loses a megabyte a second


def taking(target: Target, folder: Path) -> None:
    def one(data: bytes) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        spared(target.feed, data, folder)

    atheris.Setup(sys.argv, one)
    atheris.Fuzz()


def main() -> None:
    parser = argparse.ArgumentParser(prog="tests.fuzz", description=__doc__)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--home", type=Path, default=Path(".fuzz"))
    given = parser.parse_args()
    home = given.home / given.target
    home.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(TARGETS[given.target].seeds()):
        (home / f"seed-{number}").write_bytes(seed)
    limits = ["-rss_limit_mb=2048", "-timeout=20", "-print_final_stats=1", f"-artifact_prefix={home}/found-"]
    end = time.monotonic() + given.minutes * 60
    while (left := end - time.monotonic()) >= 1:
        sys.argv = [sys.argv[0], *limits, f"-max_total_time={min(PART_S, round(left))}", str(home)]
        with tempfile.TemporaryDirectory() as folder:
            if not (child := os.fork()):
                taking(TARGETS[given.target], Path(folder) / "fed")
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status:
            sys.exit(status)


if __name__ == "__main__":
    main()
