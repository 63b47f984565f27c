"""Every way out of the program: what is said, and the exit code. The only place that prints an error."""

import errno
import os
import sys
import traceback
from collections.abc import Callable
from contextlib import nullcontext, suppress
from typing import Any, NoReturn

import click

from bench import inert, interrupt, secret
from bench.errors import BenchError, Exit


def end(command: Callable[[], object]) -> NoReturn:
    sys.excepthook = _crashed
    try:
        interrupt.listen(_leave)
        code = _ended(command)
    except KeyboardInterrupt:  # between two lines of this
        code = Exit.INTERRUPTED
    interrupt.hold()
    if code == Exit.INTERRUPTED:
        click.echo("bench: interrupted", err=True)
    exec("")  # noqa: S102 - Python notes a Ctrl-C that cut another exec short, as of a dataclass, and would die of it
    sys.exit(code)


def _ended(command: Callable[[], object]) -> int:
    try:
        code = _run(command)
        return code if isinstance(code, int) else Exit.FINE
    except click.exceptions.Exit as done:
        return done.exit_code
    except click.ClickException as error:
        error.show()
        return Exit.USAGE
    except BenchError as error:
        explain(error)
        return error.exit
    except (KeyboardInterrupt, click.Abort):
        return Exit.INTERRUPTED


def explain(error: BenchError) -> None:
    tell(f"bench: {error.message}", err=True)
    if error.hint:
        tell(f"  {error.hint}", err=True)


def plain(error: BenchError | OSError) -> BenchError:
    """What the system says, of a full disk for example, is no mistake of ours; an OSError without a number is."""
    if isinstance(error, BenchError):
        return error
    if error.errno is None:
        raise error
    hint = "make room where the run's folder and temporary files lie" if error.errno == errno.ENOSPC else ""
    return BenchError(": ".join(str(said) for said in (error.filename, error.strerror) if said is not None), hint)


def _leave() -> None:
    """Asked for the third time. Their keeper goes on to end what is left."""
    from bench import family

    left = family.left()
    told = f"bench: left while these were still there: {', '.join(left)}\n" if left else "bench: interrupted\n"
    with suppress(OSError):
        os.write(2, told.encode())
    os._exit(Exit.CLEANUP if left else Exit.INTERRUPTED)


def _crashed(*problem: Any) -> None:
    """A mistake of ours is told with its place, for whoever mends it, and without what it may quote."""
    click.echo(secret.without("".join(traceback.format_exception(*problem))), err=True)


def tell(text: str, err: bool = False) -> None:
    """Texts of servers, logs and files among it: none of them gets to move the cursor."""
    with suppress(OSError) if err else nullcontext():  # a log that takes no more is no reason to fail
        click.echo(inert.screen(text), err=err)


def _run(command: Callable[[], object]) -> object:
    if given := secret.betrayed(sys.argv[1:]):
        raise BenchError(
            f"{given}: a secret on the command line is seen by every user of this machine, and goes into run.json",
            "vLLM inherits what you export: VLLM_API_KEY, HF_TOKEN, ... For --endpoint, set BENCH_API_KEY or "
            "BENCH_API_KEY_FILE",
        )
    try:
        return command()
    except OSError as error:
        raise plain(error) from None
