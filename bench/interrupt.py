"""How often we were asked to stop: once is in order, twice is now, three times is at once. Asked by whatever waits."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

ONE_S = 0.3  # a terminal that closes, or a tool that passes a signal on, sends it twice
ASKED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SAID = {
    1: b"bench: stopping in order: records, server, report; once more to stop now\n",
    2: b"bench: stopping now, without a report; once more to leave at once\n",
}


class _State:
    times = 0
    last_at = float("-inf")
    held = False
    owed = False
    instead: Callable[[], object] | None = None
    terminals: tuple[int, ...] = ()


def listen(leave: Callable[[], object]) -> None:
    """`leave` is called at the third time, from wherever we are, and does not return. What nohup ignores stays so."""
    _State.terminals = tuple(number for number in (0, 1, 2) if os.isatty(number))

    def heard(number: int, _: FrameType | None) -> None:
        if number == signal.SIGHUP:
            _forget_terminals()
        if time.monotonic() - _State.last_at < ONE_S:
            return
        _State.last_at = time.monotonic()
        _State.times += 1
        with suppress(OSError):
            os.write(2, SAID.get(_State.times, b""))
        _act(leave)

    for number in ASKED:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, heard)


def _act(leave: Callable[[], object]) -> None:
    if _State.times > 2:
        leave()
    elif _State.instead is not None and _State.times == 1:
        _State.instead()
    elif _State.held:
        _State.owed = True
    else:
        raise KeyboardInterrupt


def _forget_terminals() -> None:
    """One that hung up answers every write with an error."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for number in _State.terminals:
        os.dup2(nowhere, number)
    os.close(nowhere)


def times() -> int:
    return _State.times


@contextmanager
def held() -> Iterator[None]:
    """No KeyboardInterrupt in here: one that came is raised at the end, unless something worse is under way."""
    before, _State.held = _State.held, True
    try:
        yield
    finally:
        _State.held = before
    _deliver()


@contextmanager
def free() -> Iterator[None]:
    """Within what is held, a part that may be interrupted after all."""
    before, _State.held = _State.held, False
    try:
        _deliver()
        yield
    finally:
        _State.held = before


def hold() -> None:
    """From here to the end of the program."""
    _State.held = True


def _deliver() -> None:
    if _State.owed and not _State.held:
        _State.owed = False
        raise KeyboardInterrupt


@contextmanager
def instead(act: Callable[[], object]) -> Iterator[None]:
    """The first one is not raised here but leads to this; the second is raised."""
    before, _State.instead = _State.instead, act
    try:
        if _State.owed:
            _State.owed = False
            act()
        yield
    finally:
        _State.instead = before
