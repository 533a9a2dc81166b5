"""A curve of any length as a bounded number of points: the mean of each piece, and the least and greatest in it."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np

MOST = 200  # points of a curve; more than a picture of a page's width can tell apart


class Curve(NamedTuple):
    """Values at steps; float64 arrays (n,) of one length. Values may be NaN."""

    steps: np.ndarray
    values: np.ndarray

    @property
    def finite(self) -> np.ndarray:
        return self.values[np.isfinite(self.values)]


class Band(NamedTuple):
    """A curve in pieces: mean step, mean, least and greatest of the finite values; float64 arrays (n,).

    NaN where a piece has no finite value.
    """

    steps: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray

    @property
    def is_thinned(self) -> bool:
        return bool((self.low < self.high).any())


def thinned(curve: Curve, most: int = MOST) -> Band:
    """`curve` in at most `most` pieces of equal numbers of points.

    >>> thinned(Curve(np.arange(6.0), np.array([1.0, 3.0, np.nan, 5.0, np.nan, np.inf])), 3).mean.tolist()
    [2.0, 5.0, nan]
    """
    pieces = min(most, len(curve.steps))
    if not pieces:
        return Band(*(np.empty(0) for _ in Band._fields))
    starts = np.arange(pieces) * len(curve.steps) // pieces
    values = np.where(np.isfinite(curve.values), curve.values, np.nan)
    lengths = np.diff([*starts, len(values)])
    known = np.add.reduceat(np.isfinite(values).astype(float), starts)
    with warnings.catch_warnings(), np.errstate(invalid="ignore", divide="ignore"):
        warnings.simplefilter("ignore", RuntimeWarning)  # a piece without a finite value is NaN, as it shall be
        mean = np.add.reduceat(np.nan_to_num(values), starts) / known
        low, high = np.fmin.reduceat(values, starts), np.fmax.reduceat(values, starts)
    return Band(np.add.reduceat(curve.steps, starts) / lengths, mean, low, high)


def range_in_view(values: np.ndarray) -> tuple[float, float] | None:
    """The range of finite `values` to be shown where a few are so far out that they would flatten the others.

    None where all may be seen. The spread of the inner nine tenths may be missed by up to its threefold.

    >>> range_in_view(np.array([1.0] * 50 + [2.0] * 49 + [1e6])), range_in_view(np.array([1.0, 2.0, 9.0]))
    ((1.0, 3.0), None)
    """
    if len(values) < 20:
        return None
    low, high = np.quantile(values, (0.05, 0.95)).tolist()
    spread = high - low
    least, greatest = low - 3 * spread, high + 3 * spread
    if not spread or (least <= values.min() and values.max() <= greatest):
        return None
    return max(float(values.min()), low - spread), min(float(values.max()), high + spread)
