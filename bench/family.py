"""What is ours and how it ends: a command in its keeper's hands, all that came of it, what an earlier bench left."""

import os
import secrets
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from signal import SIGKILL, SIGSTOP

from bench import interrupt, keeper
from bench.errors import BenchError, Exit
from bench.keeper import NOTE, TAG

KEEPER_S = 30.0  # it is up in a tenth of a second
PROOF_S = 10.0  # after SIGKILL
SOCKET_PATHS = 70  # bytes, of the 107 that the path of a socket may have, before the name that vLLM gives it


class Kept:
    """A command in the hands of its keeper."""

    def __init__(
        self,
        command: Sequence[str],
        inherited: Mapping[str, str],
        environment: Mapping[str, str],
        log: Path,
        run: Path,
        patience_s: float,
    ) -> None:
        keeper.adopt_orphans()  # should the keeper be killed, they come to us
        self.tag = f"{os.getpid()}:{started(os.getpid())}:{run.resolve()}"
        self.returncode: int | None = None
        self._patience_s = patience_s
        self.pid = 0
        self._before = set(keeper.processes())
        self._segments = keeper.Segments()
        self._temporary = _temporary()
        self._unread = b""
        self._left: list[str] = []
        self._gone = self._over = False
        # What torch compiled is kept from one start to the next, as it is where TMPDIR is not ours.
        compiled = {"TORCHINDUCTOR_CACHE_DIR": f"{tempfile.gettempdir()}/torchinductor_{os.getuid()}"}
        private = {"TMPDIR": self._temporary, "VLLM_RPC_BASE_PATH": self._temporary}
        words = [keeper.__file__, str(patience_s), str(log), str(keeper.LOG_LIMIT), self._temporary, *command]
        with log.open("ab") as out:
            self._keeper = subprocess.Popen(
                [sys.executable, "-I", "-S", *words],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=out,
                start_new_session=True,
                # Ours stand behind what there was: whoever changes the first variable cannot rename itself any more.
                env={**inherited, **compiled, **inherited, **private, **environment, TAG: self.tag},
            )
        deadline = time.monotonic() + KEEPER_S
        while not (self.pid or self._over) and time.monotonic() < deadline:
            self._hear(0.1)
        if not self.pid:
            self._close()
            raise BenchError(f"{command[0]}: {', '.join(self._left) or 'nothing starts it'}", f"see {log}", Exit.SERVER)

    def poll(self, wait_s: float = 0) -> int | None:
        while self.returncode is None and self._hear(wait_s):
            pass
        return self.returncode

    def look(self, closely: bool = True) -> None:
        """What memory it shares: should keeper and leader be killed at once, nobody else knows."""
        self._segments.look(self._keeper.pid, closely)

    def members(self) -> set[int]:
        found = keeper.descendants(self._keeper.pid)
        return found | self._strays() if self._over and not self._gone else found

    def end(self) -> list[str]:
        """Asks, makes, and tells what is left for all that."""
        self.look()
        patience_s = 0.0 if interrupt.times() > 1 else self._patience_s
        self._say(patience_s)
        deadline = time.monotonic() + patience_s + PROOF_S
        while not self._over and time.monotonic() < deadline:
            self._hear(0.1)
            if patience_s and interrupt.times() > 1:
                patience_s = 0.0
                self._say(patience_s)
                deadline = time.monotonic() + PROOF_S
        if self._over and not self._gone:
            self._end_strays()
        if self._over:
            self._close()
        tagged = {pid for pid, owner in owned() if owner == self.tag}
        return [*self._left, *(f"process {name(pid)}" for pid in sorted(tagged | self.members()))]

    def _say(self, patience_s: float) -> None:
        assert self._keeper.stdin is not None
        with suppress(OSError):  # it was killed
            self._keeper.stdin.write(f"{patience_s}\n".encode())
            self._keeper.stdin.flush()

    def _hear(self, wait_s: float) -> bool:
        """True if it said something."""
        assert self._keeper.stdout is not None
        if self._over or not select.select([self._keeper.stdout], [], [], wait_s)[0]:
            return False
        said = os.read(self._keeper.stdout.fileno(), 4096)
        *lines, self._unread = (self._unread + said).split(b"\n")
        for line in lines:
            what, _, value = line.decode(errors="replace").partition(" ")
            match what:
                case "pid":
                    self.pid = int(value)
                case "exit":
                    self.returncode = int(value)
                case "left":
                    self._left.append(value)
                case "gone":
                    self._gone = True
        if not said:
            self._over = True
            self.returncode = -SIGKILL if self.returncode is None else self.returncode  # it dies with its keeper
        return True

    def _strays(self) -> set[int]:
        """Of a keeper that was killed: they came to us from another session, and were not there before. What we start
        ourselves stays in our session, or has a keeper that lives."""
        everyone = keeper.processes()
        elsewhere = {pid for pid, (_, session, _) in everyone.items() if session != os.getsid(0)}
        ours = keeper.descendants(os.getpid()) & elsewhere - self._before
        kept = {pid for pid in ours if keeps(pid)}
        return ours - kept - set().union(*(keeper.descendants(pid) for pid in kept))

    def _end_strays(self) -> None:
        deadline = time.monotonic() + PROOF_S
        while (strays := self._strays()) and time.monotonic() < deadline:
            keeper.send(strays, SIGSTOP)  # what they made while we look at what they have would be nobody's
            for pid in strays:
                self._segments.look(pid, closely=True)
            keeper.send(strays, SIGKILL)
            time.sleep(0.02)
        keeper.reap({self._keeper.pid})
        self._left += keeper.tidy(self._segments, self._temporary)

    def _close(self) -> None:
        assert self._keeper.stdin is not None
        assert self._keeper.stdout is not None
        with suppress(OSError):
            self._keeper.stdin.close()
        self._keeper.stdout.close()
        with suppress(subprocess.TimeoutExpired):
            self._keeper.wait(PROOF_S)


def _temporary() -> str:
    """The name of a folder for sockets and temporary files of one server."""
    place = tempfile.gettempdir()
    name = f"bench-{os.getpid()}-{secrets.token_hex(4)}"
    return os.path.join("/tmp" if len(os.fsencode(f"{place}/{name}")) > SOCKET_PATHS else place, name)


def keeps(pid: int) -> bool:
    with suppress(OSError):
        return keeper.__file__.encode() in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[:4]
    return False


def name(pid: int) -> str:
    with suppress(OSError):
        return f"{pid} ({Path(f'/proc/{pid}/comm').read_text().strip()})"
    return str(pid)


def left() -> list[str]:
    """Of all servers of this bench, as far as it can be seen at a glance."""
    everyone = keeper.processes()
    ours = [pid for pid in keeper.descendants(os.getpid()) if pid in everyone and everyone[pid][1] != os.getsid(0)]
    return [name(pid) for pid in sorted(ours) if not keeps(pid)]


def listeners(port: int) -> set[str]:
    """The sockets that listen on a port, by their numbers; none where the system does not tell."""
    found = set()
    for table in ("tcp", "tcp6"):
        with suppress(OSError):
            rows = [line.split() for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]]
            found |= {row[9] for row in rows if row[3] == "0A" and row[1].endswith(f":{port:04X}")}
    return found


def holders(sockets: set[str], pids: Iterable[int]) -> dict[str, int]:
    """Which of these processes has which of these sockets."""
    found = {}
    for pid in pids:
        with suppress(OSError):
            for entry in os.listdir(f"/proc/{pid}/fd"):
                with suppress(OSError):
                    kind, _, number = os.readlink(f"/proc/{pid}/fd/{entry}").partition(":[")
                    if kind == "socket" and number[:-1] in sockets:
                        found[number[:-1]] = pid
    return found


def stranger(port: int, members: set[int]) -> str | None:
    """Who else listens there: vLLM shares its port with whoever asks for it in the same way."""
    foreign = listeners(port)
    foreign -= set(holders(foreign, members))
    if not foreign:
        return None
    known = holders(foreign, keeper.processes())
    return ", ".join(f"process {name(pid)}" for pid in sorted(set(known.values()))) or "a process of another user"


def bindable(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def owned() -> Iterator[tuple[int, str]]:
    """Every process that carries our tag."""
    for pid in keeper.processes():
        try:
            variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:
            continue
        for variable in variables:
            if variable.startswith(f"{TAG}=".encode()):
                yield pid, variable.decode(errors="replace").partition("=")[2]


@dataclass(frozen=True, slots=True)
class Orphan:
    """What an earlier bench left running when it was killed."""

    pids: tuple[int, ...]
    group: int
    run: str


def orphans(place: str | None = None) -> list[Orphan]:
    """By their tag or their session, and with them whoever descends from such a process: vLLM's engine renames itself
    and loses its tag. Where a keeper lives it is about to end them. A note of which nobody is left is removed."""
    by_owner: dict[str, set[int]] = {}
    for pid, owner in owned():
        if _widowed(owner):
            by_owner.setdefault(owner, set()).add(pid)
    for note, owner, pids in _noted(place or tempfile.gettempdir()):
        if pids:
            by_owner.setdefault(owner, set()).update(pids)
        elif owner not in by_owner:
            shutil.rmtree(note.parent, ignore_errors=True)
    return [
        Orphan(tuple(sorted(_kin(pids))), _group(min(pids)), owner.split(":", 2)[2])
        for owner, pids in by_owner.items()
        if not any(keeps(pid) for pid in pids)
    ]


def _widowed(owner: str) -> bool:
    """Its bench is gone."""
    bench, began, _ = [*owner.split(":", 2), "", ""][:3]
    return bench.isdigit() and started(int(bench)) != began


def _noted(place: str) -> Iterator[tuple[Path, str, set[int]]]:
    """Who is in the session of a server whose bench is gone. No process gets a number that a session has; where one
    leads it, it would be a later one, for ours had its tag."""
    everyone = keeper.processes()
    for note in {*Path(place).glob(f"bench-*/{NOTE}"), *Path("/tmp").glob(f"bench-*/{NOTE}")}:
        with suppress(OSError, ValueError):
            session, _, owner = note.read_text().partition(" ")
            if note.stat().st_uid == os.geteuid() and _widowed(owner):
                members = {pid for pid, (_, led_by, _) in everyone.items() if led_by == int(session)}
                yield note, owner, members if int(session) not in everyone else set()


def _kin(pids: set[int]) -> set[int]:
    everyone = keeper.processes()
    sessions = {everyone[pid][1] for pid in pids if pid in everyone and everyone[pid][1] in pids}  # led by one of them
    found = pids | {pid for pid, (_, session, _) in everyone.items() if session in sessions}
    return found.union(*(keeper.descendants(pid) for pid in found))


def _group(pid: int) -> int:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return pid


def started(pid: int) -> str:
    """When a process began, in the kernel's ticks: tells it from a later one of the same number."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""
