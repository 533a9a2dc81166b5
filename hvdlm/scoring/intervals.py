"""95 % intervals of figures over records, so that a small test set does not pass for a large one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np

Interval = tuple[float, float]
Figure = Callable[[np.ndarray], float]

Z = 1.959963984540054  # of the normal distribution 95 % lies within so many deviations
TAILS = (2.5, 97.5)  # percent
# More records than these are resampled in so many random groups: a draw costs the same for any number of records, and
# the interval's width is known to about 1 / sqrt(2 * groups) of it, far below what 1,000 resamples leave open.
MOST_UNITS = 1 << 13
_CHUNK = 1 << 22  # draws held at once


def ratio(part: float, whole: float) -> float:
    """0 where there is nothing to divide by."""
    return float(part) / float(whole) if whole else 0.0


def wilson(successes: int, trials: int) -> Interval:
    """Of a proportion (Wilson 1927); it never leaves 0 to 1, and is right for few trials too.

    >>> tuple(round(end, 4) for end in wilson(1128, 1200))
    (0.9251, 0.9521)
    >>> wilson(0, 0)
    (0.0, 1.0)
    """
    if not trials:
        return 0.0, 1.0
    share, spread = successes / trials, Z * Z / trials
    middle = share + spread / 2
    half = Z * math.sqrt((share * (1 - share) + spread / 4) / trials)
    # What rounding leaves at the ends would shut out a share of 0 or 1.
    low = 0.0 if successes == 0 else (middle - half) / (1 + spread)
    high = 1.0 if successes == trials else (middle + half) / (1 + spread)
    return low, high


def bootstrap(rows: np.ndarray, figure: Figure, *, resamples: int = 1000, seed: int = 0) -> Interval:
    """Of a figure of sums: the middle 95 % of what records drawn with replacement make of it (Efron 1979).

    `rows` (n, K) are the records' parts of the sums, `figure` takes sums (K,). Records above MOST_UNITS are put into
    that many groups at random, in which they are drawn together. NaN where there is no record.
    """
    if not len(rows):
        return math.nan, math.nan
    random = np.random.default_rng(seed)
    units = _grouped(rows, random) if len(rows) > MOST_UNITS else rows.astype(np.float64)
    return percentiles([figure(sums) for sums in _resampled(units, resamples, random)])


def bootstrap_of_kinds(counts: np.ndarray, figure: Figure, *, resamples: int = 1000, seed: int = 0) -> Interval:
    """The same where records are of a few kinds, such as the cells of a confusion matrix: `counts` of them (M,).

    `figure` takes such counts. It is the plain bootstrap at any number of records: resamples of equal records are
    multinomial.
    """
    total, there = int(counts.sum()), np.flatnonzero(counts)
    if not total:
        return math.nan, math.nan
    random, found = np.random.default_rng(seed), []
    for _ in range(resamples):
        drawn = np.zeros(len(counts), dtype=np.int64)
        drawn[there] = random.multinomial(total, counts[there] / total)
        found.append(figure(drawn))
    return percentiles(found)


def percentiles(found: list[float]) -> Interval:
    low, high = np.percentile(found, TAILS)
    return float(low), float(high)


def _grouped(rows: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Sums (MOST_UNITS, K) of random groups of about equal size: data in any order is as good as shuffled."""
    starts = np.arange(MOST_UNITS) * len(rows) // MOST_UNITS
    return np.add.reduceat(rows[random.permutation(len(rows))], starts, axis=0).astype(np.float64)


def _resampled(units: np.ndarray, resamples: int, random: np.random.Generator) -> Iterator[np.ndarray]:
    """Sums (K,) of each resample; of integers below 2^53 they are exact, so that their order does not matter."""
    num = len(units)
    at_once = max(1, _CHUNK // num)
    for begin in range(0, resamples, at_once):
        size = min(at_once, resamples - begin)
        drawn = random.integers(num, size=(size, num)) + num * np.arange(size)[:, None]
        times = np.bincount(drawn.ravel(), minlength=size * num).reshape(size, num)
        yield from times @ units
