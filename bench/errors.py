"""The one error a user sees, and what each exit code means."""

from enum import IntEnum


class Exit(IntEnum):
    FINE = 0
    USAGE = 2
    SERVER = 3  # vLLM did not start, or died
    INVALID = 4  # the numbers must not be believed
    THRESHOLD = 5
    CLEANUP = 6  # something we started may still be running
    INTERRUPTED = 130


class BenchError(Exception):
    """What happened to which file or flag, and how to go on."""

    def __init__(self, message: str, hint: str = "", exit: Exit = Exit.USAGE) -> None:
        super().__init__(message, hint, exit)  # all of it, for it may come from another process
        self.message = message
        self.hint = hint
        self.exit = exit

    def __str__(self) -> str:
        return self.message
