"""Which of several candidates is faster, from runs made in rounds. Pure: numbers in, numbers out.

A run is one observation, as for scaling (docs/decisions/0005). Logarithms of seconds are explained by candidate
plus round, so what slows a whole round down touches no comparison; what is left over is the noise, taken to
be the same for all. Intervals hold for all comparisons with one candidate at once (Bonferroni).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from .confidence import ConfidenceInterval, of_logarithm

T = TypeVar("T")


@dataclass(frozen=True)
class Comparison(Generic[T]):
    """Candidates with the effect of the rounds taken out; `covariance` is that of `log_seconds`."""

    candidates: tuple[T, ...]
    log_seconds: np.ndarray  # (C,)
    covariance: np.ndarray  # (C, C)
    degrees: int

    @property
    def fastest(self) -> T:
        return self.candidates[int(np.argmin(self.log_seconds))]

    def ratio(self, one: T, other: T, *, error_rate: float = 0.05) -> ConfidenceInterval:
        """Seconds of `one` over those of `other`; the interval holds for all comparisons with one candidate at once."""
        i, j = self.candidates.index(one), self.candidates.index(other)
        difference = float(self.log_seconds[i] - self.log_seconds[j])
        if i == j:
            return ConfidenceInterval(1.0, 1.0, 1.0)
        variance = float(self.covariance[i, i] + self.covariance[j, j] - 2 * self.covariance[i, j])
        rate_of_each = error_rate / max(1, len(self.candidates) - 1)
        return of_logarithm(difference, variance, self.degrees, error_rate=rate_of_each)


def compare(seconds: Mapping[T, Mapping[int, float]]) -> Comparison[T]:
    """Least squares of log(seconds) = candidate + round, with one variance; the first round has no term."""
    candidates = tuple(seconds)
    rounds = sorted({number for runs in seconds.values() for number in runs})
    rows, values = [], []
    for column, runs in enumerate(seconds.values()):
        for number, value in runs.items():
            row = np.zeros(len(candidates) + len(rounds))
            row[[column, len(candidates) + rounds.index(number)]] = 1
            rows.append(np.delete(row, len(candidates)))
            values.append(math.log(value))
    design, logs = np.array(rows), np.array(values)
    inverse = np.linalg.pinv(design.T @ design)
    effects = inverse @ design.T @ logs
    degrees = len(logs) - int(np.linalg.matrix_rank(design))
    noise = float(np.sum((logs - design @ effects) ** 2)) / degrees if degrees else math.inf
    count = len(candidates)
    covariance = inverse[:count, :count] * noise if degrees else np.diag(np.full(count, math.inf))
    return Comparison(candidates, effects[:count], covariance, degrees)
