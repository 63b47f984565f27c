"""A card's driver where there is none: the few calls of NVML that are made, compiled from nvml.c."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

needs_compiler = pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler for a stand-in: apt-get install gcc")


def installed(folder: Path) -> dict[str, str]:
    """The environment in which it is found."""
    library = folder / "libnvidia-ml.so.1"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, Path(__file__).with_name("nvml.c")], check=True)
    return {**os.environ, "LD_LIBRARY_PATH": str(folder)}
