"""vLLM's KV cache, block by block: what a prompt finds there, what has to go for it, in vLLM's own order.

A block keeps its content until it is given out again: the longest unused first, of a request the tail before the head,
and before all of them those that were never full. A whole prompt is one array operation.
"""

from collections import deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]
NOTHING = -1
WIDEST = 1 << 32  # blocks of a text; beyond what any model reads


@dataclass(slots=True)
class Text:
    """Tokens that follow each other behind one beginning, and which block holds each stretch of them, if one does."""

    number: int
    blocks: Ids = field(default_factory=lambda: np.empty(0, np.int64))

    def content(self, count: int) -> Ids:
        return self.number * WIDEST + np.arange(count)


Texts = tuple[tuple[Text, int], ...]  # of a prompt, each with how many whole blocks it goes on for


class Blocks:
    def __init__(self, count: int, caching: bool = True) -> None:
        self.count, self.free, self.caching = count, count, caching
        self._users = np.zeros(count, np.int64)
        self._content = np.full(count, NOTHING, np.int64)
        self._turn = np.zeros(count, np.int64)  # of those nobody uses: when each became free
        self._queue: deque[tuple[Ids, int]] = deque([(np.arange(count), 0)])
        self._turns = 0
        self._twins: dict[int, tuple[Text, list[int]]] = {}  # further blocks of one content, in the order they came

    def found(self, texts: Texts) -> Ids:
        """The blocks that hold the prompt's beginning, up to the first that is not there any more."""
        here: list[Ids] = []
        for text, wanted in texts if self.caching else ():
            known = text.blocks[:wanted]
            held = self._content[known] == text.content(len(known))
            count = len(held) if held.all() else int(held.argmin())
            here.append(known[:count])
            if count < wanted:
                break
        return np.concatenate(here) if here else np.empty(0, np.int64)

    def unused(self, ids: Ids) -> int:
        """Of these, how many would not be free any more once they are used."""
        return int((self._users[ids] == 0).sum())

    def use(self, ids: Ids) -> None:
        self.free -= self.unused(ids)
        self._users[ids] += 1

    def take(self, count: int) -> Ids:
        """Blocks for new tokens; what they held is lost."""
        taken = []
        while count:
            ids, turn = self._queue.popleft()
            live = ids[(self._users[ids] == 0) & (self._turn[ids] == turn)]
            if len(live) > count:
                self._queue.appendleft((live[count:], turn))
            taken.append(live[:count])
            count -= len(taken[-1])
        new = np.concatenate(taken) if taken else np.empty(0, np.int64)
        if self._twins:
            self._succeed(new)
        self._content[new] = NOTHING
        self.use(new)
        return new

    def _succeed(self, lost: Ids) -> None:
        """What one of these blocks held, its first twin is now found to hold."""
        for block, content in zip(lost.tolist(), self._content[lost].tolist(), strict=True):
            if content not in self._twins:
                continue
            text, twins = self._twins[content]
            if block in twins:
                twins.remove(block)
            else:
                text.blocks[content % WIDEST] = twins.pop(0)
            if not twins:
                del self._twins[content]

    def fill(self, texts: Texts, ids: Ids, full: int, known: int) -> None:
        """From block `known` to `full` they hold the prompt now; what another block holds already stays its own."""
        at = 0
        for text, length in texts if self.caching else ():
            first, last = max(at, known), min(at + length, full)
            if first < last:
                self._hold(text, first - at, ids[first:last])
            at += length

    def _hold(self, text: Text, first: int, ids: Ids) -> None:
        end = first + len(ids)
        if len(text.blocks) < end:
            text.blocks = np.concatenate([text.blocks, np.zeros(end - len(text.blocks), np.int64)])
        content = text.number * WIDEST + np.arange(first, end)
        known = text.blocks[first:end]
        held = self._content[known] == content
        self._content[ids] = content
        text.blocks[first:end] = np.where(held, known, ids)
        for at in np.flatnonzero(held).tolist():
            self._twins.setdefault(int(content[at]), (text, []))[1].append(int(ids[at]))

    def release(self, ids: Ids) -> None:
        """The tail first; blocks that nobody can find go before all others."""
        self._users[ids] -= 1
        idle = ids[::-1][self._users[ids[::-1]] == 0]
        self.free += len(idle)
        kept = self._content[idle] != NOTHING
        self._line_up(idle[~kept], self._queue.appendleft)
        self._line_up(idle[kept], self._queue.append)

    def _line_up(self, ids: Ids, where: Any) -> None:
        if len(ids):
            self._turns += 1
            self._turn[ids] = self._turns
            where((ids, self._turns))
