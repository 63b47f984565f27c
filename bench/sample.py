"""What a sample shows of the truth when its requests come in sessions, and those of one session are alike."""

import math
from collections.abc import Iterable, Iterator, Sequence
from functools import cache, lru_cache

import numpy as np
import numpy.typing as npt

RESAMPLES = 2000
DRAWN_AT_ONCE = 100
KEPT_SESSIONS = 4000  # draws of so many take 32 MB
BLOCKS = 32
FEW_SESSIONS = 5  # below this many an interval says nothing
CONFIDENCE = 0.95
POINTS = 1000  # of an integral

Groups = Sequence[Sequence[float]]  # a session's values each


def percentile(values: Sequence[float], share: float) -> float | None:
    """Linear between order statistics (numpy's default); a failure ranks as infinitely slow."""
    if not values:
        return None
    ordered = sorted(values)
    at = share * (len(ordered) - 1)
    low, high = ordered[math.floor(at)], ordered[math.ceil(at)]
    return low if low == high else low + (high - low) * (at - math.floor(at))


def redrawn(sessions: Groups, shares: Sequence[float], seed: int = 0) -> npt.NDArray[np.float64]:
    """The percentiles of many samples of as many whole sessions, drawn with replacement; a row a sample.

    All values are sorted once; a sample is how often each counts. Between two values it takes the higher one, which
    never mixes a number with the infinity of a failure. A percentile is looked for among blocks of values first, and
    then in one block: what a session has in each block is counted once for all samples.
    """
    count, owner = len(sessions), np.repeat(np.arange(len(sessions)), [len(session) for session in sessions])
    values = np.concatenate([np.asarray(session, float) for session in sessions])
    order = np.argsort(values, kind="stable")
    values, owner = values[order], owner[order]
    wide = math.ceil(len(values) / BLOCKS)
    counts = np.bincount(np.arange(len(values)) // wide * count + owner, minlength=BLOCKS * count)
    counts = counts.reshape(BLOCKS, count).astype(np.int32)
    owners = np.pad(owner, (0, BLOCKS * wide - len(owner))).reshape(BLOCKS, wide)
    sample, found = np.arange(DRAWN_AT_ONCE)[:, None, None] * count, []
    for times in _draws(count, seed):
        ends = np.pad(np.einsum("ds,bs->db", times, counts).cumsum(axis=1), ((0, 0), (1, 0)))
        ranks = np.ceil(np.outer(ends[:, -1] - 1, shares))
        block = (ends[:, 1:, None] <= ranks[:, None, :]).sum(axis=1)
        inside = times.ravel().take(sample + owners[block])
        below = np.take_along_axis(ends, block, axis=1)[:, :, None] + inside.cumsum(axis=2)
        found.append(values[block * wide + (below <= ranks[:, :, None]).sum(axis=2)])
    return np.concatenate(found)


Counts = npt.NDArray[np.int32]


def _draws(sessions: int, seed: int) -> Iterable[Counts]:
    """How often each session is in each sample; levels of as many sessions share theirs."""
    return _kept(sessions, seed) if sessions <= KEPT_SESSIONS else _drawn(sessions, seed)


@lru_cache(maxsize=2)
def _kept(sessions: int, seed: int) -> tuple[Counts, ...]:
    return tuple(_drawn(sessions, seed))


def _drawn(sessions: int, seed: int) -> Iterator[Counts]:
    rng = np.random.default_rng(seed)
    for _ in range(RESAMPLES // DRAWN_AT_ONCE):
        yield rng.multinomial(sessions, np.full(sessions, 1 / sessions), size=DRAWN_AT_ONCE).astype(np.int32)


def intervals(sessions: Groups, shares: Sequence[float]) -> list[tuple[float | None, float | None]]:
    """95 % intervals of percentiles from resampling whole sessions."""
    if len(sessions) < FEW_SESSIONS:
        return [(None, None)] * len(shares)
    edges = [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]
    low, high = np.quantile(redrawn(sessions, shares), edges, axis=0, method="nearest")
    return [(float(a), float(b)) for a, b in zip(low, high, strict=True)]


Flags = Sequence[tuple[int, int]]  # of each session: how many of its requests did it, and how many it has


def flags(sessions: Iterable[Iterable[object]]) -> Flags:
    return [(sum(map(bool, session)), len(session)) for session in map(list, sessions)]


def alike(sessions: Flags) -> float:
    """The design effect: how many requests of these say as much as one independent request (1: they are independent).

    From the intraclass correlation of ones and noughts.
    """
    ones, sizes = np.array(sessions, float).reshape(-1, 2).T
    n, k = float(sizes.sum()), len(sizes)
    if k < 2 or n <= k:
        return 1.0
    means = ones / sizes
    between = float((sizes * (means - ones.sum() / n) ** 2).sum() / (k - 1))
    within = float((ones * (1 - means)).sum() / (n - k))
    unequal = float((sizes**2).sum() / n)
    spread = between + ((n - unequal) / (k - 1) - 1) * within
    correlation = (between - within) / spread if spread > 0 else 0.0
    return 1 + (unequal - 1) * max(0.0, correlation)


@cache
def floor(share: float) -> int:
    """Independent requests below which a percentile has no upper limit worth the name: MLPerf's early stopping.

    The fewest of which, with 95 % confidence, at least two lie above the percentile: 8 for p50, 93 for p95, 473 for
    p99.
    """
    over, n = 1 - share, 2
    while share**n + n * over * share ** (n - 1) > 1 - CONFIDENCE:
        n += 1
    return n


def needs(sessions: Groups, share: float) -> int:
    """Sessions that are missing until a percentile has its floor; 0 when it has."""
    values = [value for session in sessions for value in session]
    edge = percentile(values, share)
    if edge is None:
        return 1
    effect = alike(flags([value > edge for value in session] for session in sessions))
    missing = floor(share) * effect - len(values)
    return max(0, math.ceil(missing / (len(values) / len(sessions))))


def chance_below(sessions: Flags, limit: float, more: int = 0) -> float:
    """How sure it is that the true share of ones is below `limit`: Jeffreys' posterior, of as many requests as these
    are worth; or would be, with so many more of the same. Cheap enough to be asked while a level is played."""
    if limit <= 0:
        return 0.5
    seen = sum(size for _, size in sessions)
    n = (seen + more) / alike(sessions)
    ones = n * sum(one for one, _ in sessions) / seen
    k, rest = ones + 0.5, n - ones + 0.5
    t = np.linspace(0.0, 1.0, POINTS + 1)[1:-1]  # x = limit t^2 has no pole
    logs = math.lgamma(n + 1) - math.lgamma(k) - math.lgamma(rest) + k * math.log(limit)
    inside = 2 * np.exp(logs + (2 * k - 1) * np.log(t) + (rest - 1) * np.log1p(-limit * t * t))
    return min(1.0, float(inside.sum() / POINTS))
