"""Which key our requests carry: out of the environment or a file, for a command line can be read by everyone."""

import os
import re
from pathlib import Path

from bench.errors import BenchError
from bench.secret import KEY, KEY_FILE, filed

OF_OUR_SERVER = "VLLM_API_KEY"  # vLLM's own name
PLAIN = re.compile(r"[!#-&(-\[\]-~]+")  # what a header holds as it is, and JSON too


def of_endpoint() -> str | None:
    """For a server that someone else runs."""
    named, file = os.environ.get(KEY), os.environ.get(KEY_FILE)
    if named and file:
        raise BenchError(f"{KEY} and {KEY_FILE} are both set", "unset one of them")
    if not file:
        return _plain(named, KEY)
    try:
        text = filed(file)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not text"
        raise BenchError(f"{KEY_FILE}: {file} cannot be read: {why}", "it holds the key and nothing else") from None
    if not text:
        raise BenchError(f"{KEY_FILE}: {file} is empty", "it holds the key and nothing else")
    return _plain(text, KEY_FILE)


def of_our_server() -> str | None:
    """vLLM inherits it and asks everyone for it, us too."""
    return _plain(os.environ.get(OF_OUR_SERVER), OF_OUR_SERVER)


def lies_open() -> str | None:
    """The file of the key, if other users can read it."""
    file = os.environ.get(KEY_FILE)
    return file if file and Path(file).stat().st_mode & 0o044 else None


def _plain(key: str | None, source: str) -> str | None:
    if key and not PLAIN.fullmatch(key):
        raise BenchError(
            f"{source} holds no key: spaces, quotes, line ends and letters beyond ASCII cannot be part of one",
            "look at it with an editor: was more copied than the key?",
        )
    return key or None
