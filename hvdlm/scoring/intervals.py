"""95 % intervals of figures over records, so that a small test set does not pass for a large one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

Interval = tuple[float, float]

Z = 1.959963984540054  # of the normal distribution 95 % lies within so many deviations
TAILS = (2.5, 97.5)  # percent
RESAMPLES = 1000
# More records than these are resampled in so many random groups. What an interval costs is then the same for any
# number of records, and its ends are off by about 1 / sqrt(2 * groups), below what 1,000 resamples leave open.
MOST_UNITS = 1 << 13
_DRAWS_AT_ONCE = 1 << 22


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
    half = Z * math.sqrt((share * (1 - share) + spread / 4) / trials)
    # What rounding leaves at the ends would shut out a share of 0 or 1.
    low = 0.0 if successes == 0 else (share + spread / 2 - half) / (1 + spread)
    high = 1.0 if successes == trials else (share + spread / 2 + half) / (1 + spread)
    return low, high


def bootstrap(
    rows: np.ndarray, figure: Callable[[np.ndarray], float], *, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """Of a figure of sums: the middle 95 % of what records drawn with replacement make of it (Efron 1979).

    `rows` (n, K) are what each record adds to the sums, of which `figure` is made: float64 (K,). NaN without records.
    """
    return middle([figure(sums) for sums in resampled(rows, resamples=resamples, seed=seed)])


def middle(found: Sequence[float] | np.ndarray) -> Interval:
    """The interval of what resamples made of a figure; NaN where there are none."""
    if not len(found):
        return math.nan, math.nan
    low, high = np.percentile(found, TAILS)
    return float(low), float(high)


def resampled(rows: np.ndarray, *, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """The sums of each resample, float64 (resamples, K); of integers whose sums stay below 2^53 they are exact.

    Records above MOST_UNITS are put into that many groups at random, which are drawn as a whole.
    """
    if not len(rows):
        return np.empty((0, rows.shape[1]))
    random = np.random.default_rng(seed)
    units = _grouped(rows, random) if len(rows) > MOST_UNITS else rows.astype(np.float64)
    return np.concatenate([times @ units for times in _times(len(units), resamples, random)])


def resampled_kinds(counts: np.ndarray, *, resamples: int = RESAMPLES, seed: int = 0) -> Iterator[np.ndarray]:
    """The same where records are of a few kinds, of which there are `counts` (M,): how many of each, (M,) a time.

    It is the plain bootstrap for any number of records: draws of equal records are multinomial.
    """
    random, total = np.random.default_rng(seed), int(counts.sum())
    for _ in range(resamples if total else 0):
        yield random.multinomial(total, counts / total)


def _grouped(rows: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Sums (MOST_UNITS, K) of groups of equal size or one more: by chance, for files come sorted."""
    starts = np.arange(MOST_UNITS) * len(rows) // MOST_UNITS
    return np.add.reduceat(rows[random.permutation(len(rows))], starts, axis=0, dtype=np.float64)


def _times(num_units: int, resamples: int, random: np.random.Generator) -> Iterator[np.ndarray]:
    """How often each unit is drawn, float64 (some resamples, num_units)."""
    at_once = max(1, _DRAWS_AT_ONCE // num_units)
    for begin in range(0, resamples, at_once):
        size = min(at_once, resamples - begin)
        drawn = random.integers(num_units, size=(size, num_units)) + num_units * np.arange(size)[:, None]
        yield np.bincount(drawn.ravel(), minlength=size * num_units).reshape(size, num_units).astype(np.float64)
