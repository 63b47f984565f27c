"""How far a run has come: a line for each level that is begun, over, or lost with its server."""

from collections import Counter
from collections.abc import Callable

from bench.records import Folder, Play, play_of

FILE = "journal.jsonl"


class Journal:
    """Of one run, however often it was begun anew."""

    def __init__(self, folder: Folder, now: Callable[[], float]) -> None:
        rows = list(folder.rows(FILE))
        self._folder, self._now = folder, now
        self._begun = Counter(play_of(row) for row in rows if row["what"] == "begun")
        self._over = {play_of(row): row["attempt"] for row in rows if row["what"] == "over"}
        self._requests = {play_of(row): row["requests"] for row in rows if row["what"] == "over" and "requests" in row}

    def over(self) -> dict[Play, int]:
        """Those that were played to their end, and the attempt that was."""
        return dict(self._over)

    def requests(self) -> dict[Play, int]:
        """How many those had that ended when enough was known, and not when all that was planned was sent."""
        return dict(self._requests)

    def begin(self, play: Play) -> int:
        """Which attempt at it this is."""
        attempt = self._begun[play]
        self._begun[play] += 1
        self._note("begun", play, attempt)
        return attempt

    def end(self, play: Play, requests: int | None = None) -> None:
        self._over[play] = self._begun[play] - 1
        if requests is not None:
            self._requests[play] = requests
        self._note("over", play, self._over[play], requests=requests)
        self._folder.settle()

    def lose(self, play: Play, why: str) -> None:
        self._note("lost", play, self._begun[play] - 1, why)

    def _note(self, what: str, play: Play, attempt: int, why: str | None = None, requests: int | None = None) -> None:
        variant, case, concurrency, repeat = play
        level = {"variant": variant, "case": case, "concurrency": concurrency, "repeat": repeat, "attempt": attempt}
        counted = {} if requests is None else {"requests": requests}
        self._folder.append(FILE, {"t_s": self._now(), "what": what, **level, **counted, "why": why})
