"""The parent of one vLLM: however its processes detach or rename themselves they stay its descendants, and when bench
ends, be it by kill -9, so do they. A program of its own, run by its path; it imports little, to be up in no time.

It hears on stdin how many seconds a server may take to end, the last word counts; the end of stdin is the end of bench.
It tells on stdout: `pid N`, `exit N`, and when all are gone `left WHAT` for what could not be removed, and `gone`.
"""

import contextlib
import ctypes
import os
import select
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterable

SUBREAPER, DEATH_SIGNAL = 36, 1  # of prctl: who adopts orphans, and what a child gets when its parent dies
SHM = "/dev/shm"
TAG = "BENCH_OWNER"  # in the environment of all we start: "pid:start time:folder of the run"
NOTE = "family"  # the session of a server and its tag: for a process that lost its tag, should we be killed
GRACE_S = 2.0  # for those whose leader is gone: what cleans up after it ends by itself
LOOK_S = 30.0
LOG_LIMIT = 64 << 20
LOG_HEAD = 1 << 20  # what a start tells


def main(patience: str, log: str, limit: str, temporary: str, *command: str) -> None:
    keeper = Keeper(float(patience), log, int(limit), temporary)
    keeper.start(command)
    keeper.keep()
    keeper.tell("gone")


class Keeper:
    def __init__(self, patience_s: float, log: str, limit: int, temporary: str) -> None:
        self._patience_s, self._log, self._limit, self._temporary = patience_s, log, limit, temporary
        self._leader = 0
        self._process: subprocess.Popen[bytes] | None = None  # never asked: to forget it would reap its process
        self._code: int | None = 0  # of the leader; None while it lives
        self._kill_at: float | None = None
        self._deaf = False
        self._segments = Segments()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, lambda *_: None)  # not SIG_IGN, which the command would inherit
        self._stirred, stir = os.pipe()
        os.set_blocking(stir, False)
        os.set_blocking(self._stirred, False)
        signal.set_wakeup_fd(stir, warn_on_full_buffer=False)

    def start(self, command: Iterable[str]) -> None:
        adopt_orphans()
        try:
            os.mkdir(self._temporary, 0o700)
            self._process = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=2,
                start_new_session=True,
                preexec_fn=dying_with(os.getpid()),
            )
            self._leader, self._code = self._process.pid, None
            with open(f"{self._temporary}/{NOTE}", "w") as note:
                note.write(f"{self._leader} {os.environ.get(TAG, '')}")
        except OSError as error:
            self.tell(f"left it cannot be run: {error.filename or self._temporary}: {error.strerror}")
            self._hurry(0)
        else:
            self.tell(f"pid {self._leader}")

    def keep(self) -> None:
        while self._kill_at is None or self._code is None or descendants(os.getpid()):
            self._wait(1.0 if self._kill_at is None else 0.05)
            self._reap()
            if self._kill_at is None:
                self._segments.look(os.getpid())
                trim(self._log, self._limit)
            elif time.monotonic() >= self._kill_at:
                send(descendants(os.getpid()) | ({self._leader} if self._code is None else set()), signal.SIGKILL)
        self._reap()  # those that were killed last
        for what in tidy(self._segments, self._temporary):
            self.tell(f"left {what}")

    def tell(self, word: str) -> None:
        with contextlib.suppress(OSError):  # bench is gone
            os.write(1, f"{word}\n".encode())

    def _wait(self, seconds: float) -> None:
        heard, _, _ = select.select([self._stirred, *([] if self._deaf else [0])], [], [], seconds)
        if self._stirred in heard:
            os.read(self._stirred, 4096)
        if 0 in heard:
            words = os.read(0, 4096).split()
            self._deaf = not words
            self._end(float(words[-1]) if words else self._patience_s)

    def _end(self, patience_s: float) -> None:
        if self._kill_at is None:
            self._segments.look(os.getpid(), closely=True)
            # By the number of a leader that was reaped, and of its group, others may go by now.
            send({-self._leader} if self._code is None else descendants(os.getpid()), signal.SIGTERM)
        self._hurry(patience_s if self._code is None else min(patience_s, GRACE_S))

    def _hurry(self, seconds: float) -> None:
        at = time.monotonic() + seconds
        self._kill_at = at if self._kill_at is None else min(self._kill_at, at)

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                if ended[0] == self._leader and self._code is None:
                    self._code = os.waitstatus_to_exitcode(ended[1])
                    self.tell(f"exit {self._code}")
                    if self._kill_at is not None:
                        self._hurry(GRACE_S)


def adopt_orphans() -> None:
    """Of all that descends from us, whatever loses its parent becomes our child."""
    if hasattr(LIBC, "prctl"):
        LIBC.prctl(SUBREAPER, 1, 0, 0, 0)


LIBC = ctypes.CDLL(None)


def dying_with(parent: int) -> Callable[[], None]:
    def ask() -> None:
        if hasattr(LIBC, "prctl"):
            LIBC.prctl(DEATH_SIGNAL, int(signal.SIGKILL), 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)

    return ask


def processes() -> dict[int, tuple[int, int, str]]:
    """Parent, session and beginning (in the kernel's ticks) of every process but those that only wait to be reaped."""
    return {pid: (parent, session, began) for pid, (lives, parent, session, began) in table().items() if lives}


def table() -> dict[int, tuple[bool, int, int, str]]:
    """The dead too: their children may not be handed on yet. One whose first thread ended lives in the others."""
    found = {}
    for name in os.listdir("/proc") if os.path.isdir("/proc") else ():
        if name.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{name}/stat", errors="replace") as file:
                words = file.read().rpartition(")")[2].split()
                lives = words[0] not in "ZX" or int(words[17]) > 1
                found[int(name)] = (lives, int(words[1]), int(words[3]), words[19])
    return found


def descendants(root: int) -> set[int]:
    everyone = table()
    found: set[int] = set()
    while more := {pid for pid, (_, parent, *_) in everyone.items() if parent in found | {root}} - found:
        found |= more
    return {pid for pid in found if everyone[pid][0]}


def reap(but: set[int]) -> None:
    """The dead of other sessions that came to us: who adopts them after us may never ask for them."""
    for pid, (lives, parent, session, _) in table().items():
        if not lives and parent == os.getpid() and session != os.getsid(0) and pid not in but:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)


def send(pids: Iterable[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


class Segments:
    """Shared memory that a family has in use, and that was not there before it: a model kept in memory is not ours."""

    def __init__(self) -> None:
        self._foreign = self._seen = frozenset(_names())
        self._ours: dict[str, int] = {}
        self._next = 0.0

    def look(self, root: int, closely: bool = False) -> None:
        """Whose a new one is shows while its owners live. To read their maps is dear, and done when names changed."""
        seen = frozenset(_names())
        if closely or seen != self._seen or time.monotonic() > self._next:
            self._seen, self._next = seen, time.monotonic() + LOOK_S
            for name in _used(descendants(root)) & seen - self._foreign:
                with contextlib.suppress(OSError):
                    self._ours[name] = os.stat(f"{SHM}/{name}").st_ino

    def remove(self) -> None:
        """Those that nobody uses any more."""
        left = self._ours and _used(processes())
        for name, number in self._ours.items():
            with contextlib.suppress(OSError):
                about = os.stat(f"{SHM}/{name}")
                if name not in left and (about.st_ino, about.st_uid) == (number, os.geteuid()):
                    os.unlink(f"{SHM}/{name}")

    def left(self) -> list[str]:
        return [f"{SHM}/{name}" for name in sorted(self._ours) if os.path.exists(f"{SHM}/{name}")]


def _names() -> list[str]:
    """shm_open makes plain files and no folders."""
    with contextlib.suppress(OSError), os.scandir(SHM) as entries:
        return [entry.name for entry in entries if stat.S_ISREG(entry.stat(follow_symlinks=False).st_mode)]
    return []


def _used(pids: Iterable[int]) -> set[str]:
    """Names under /dev/shm that these have mapped or open."""
    paths: set[str] = set()
    for pid in pids:
        with contextlib.suppress(OSError), open(f"/proc/{pid}/maps", errors="replace") as maps:
            paths |= {line.split(maxsplit=5)[5].rstrip("\n") for line in maps if SHM in line}
        with contextlib.suppress(OSError):
            for number in os.listdir(f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError):
                    paths.add(os.readlink(f"/proc/{pid}/fd/{number}"))
    return {path.removeprefix(f"{SHM}/") for path in paths if path.startswith(f"{SHM}/")}


def tidy(segments: Segments, temporary: str) -> list[str]:
    """After the last process of a family; what could not be removed."""
    segments.remove()
    shutil.rmtree(temporary, ignore_errors=True)
    return segments.left() + ([temporary] if os.path.exists(temporary) else [])


def trim(log: str, limit: int) -> None:
    """Its first lines stay, the rest moves to LOG.1 in place of what was there: the start and the newest remain. What
    is written between copy and cut is lost. A full disk is given the room back."""
    with contextlib.suppress(OSError), open(log, "r+b") as file:
        if file.seek(0, os.SEEK_END) <= limit:
            return
        file.seek(0)
        head = file.read(LOG_HEAD).rpartition(b"\n")[0]
        file.seek(len(head) + 1)
        try:
            with open(f"{log}.1", "wb") as older:
                shutil.copyfileobj(file, older)
        except OSError:
            os.unlink(f"{log}.1")
        file.truncate(len(head) + 1)


if __name__ == "__main__":
    main(*sys.argv[1:])
