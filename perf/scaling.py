"""Speedup and efficiency with intervals, from step times alone. Pure: numbers in, numbers out.

Rules followed: Hoefler and Belli, "Scientific Benchmarking of Parallel Computing Systems" (SC15): the
base and its absolute speed are stated, medians stand for skewed step times, ratios are not averaged.

The steps of one run share its luck with the machine, so a run is one observation: the median of its
steps. A point's figure is the geometric mean of its runs, its 95 % interval Student's t on their
logarithms; a ratio of two points adds their variances. One run has no interval.

Formulas: throughput X = tokens / step time; speedup S(p) = X(p) / X(b); efficiency E(p) = S(p) b / p
for a base of b ranks. With a fixed global batch that is T(b) b / (T(p) p) (strong), with a fixed batch
a rank T(b) / T(p) (weak).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from hvdlm.tables import counted

from .confidence import ConfidenceInterval, of_logarithm

Mode = Literal["strong", "weak"]

ACCEPTED_EFFICIENCY = 0.75  # what CSC and others ask of a proposal: 1.5 x for twice the ranks


@dataclass(frozen=True)
class StepTimes:
    """Step times of one point: `runs[i]` are the timed steps of repeat i, in seconds.

    `is_comparable`: on the machine and with the software of its base.
    """

    ranks: int
    tokens_per_step: int
    runs: tuple[tuple[float, ...], ...]
    is_oversubscribed: bool = False
    is_comparable: bool = True

    @property
    def steps_a_run(self) -> tuple[int, int]:
        """The fewest and the most timed steps of a run."""
        return min(map(len, self.runs)), max(map(len, self.runs))

    @property
    def steps(self) -> np.ndarray:
        return np.concatenate([np.asarray(run) for run in self.runs])


@dataclass(frozen=True)
class ScalingPoint:
    """A row of the report. `speedup`, `efficiency` and `karp_flatt` are against the smallest point."""

    mode: Mode
    ranks: int
    tokens_per_step: int
    num_runs: int
    num_steps: int
    steps_a_run: tuple[int, int]
    step_s: ConfidenceInterval
    p95_s: float
    max_s: float
    tokens_per_s: ConfidenceInterval
    speedup: ConfidenceInterval
    efficiency: ConfidenceInterval
    karp_flatt: float | None
    is_base: bool
    is_oversubscribed: bool
    is_comparable: bool

    @property
    def has_interval(self) -> bool:
        return math.isfinite(self.efficiency.high)

    @property
    def is_above_ideal(self) -> bool:
        """Beyond what the intervals explain."""
        return self.has_interval and self.efficiency.low > 1 and not self.is_base

    @property
    def is_evidence(self) -> bool:
        """Of how the software scales: not the base itself, with a core for each thread, like measured with like."""
        return not (self.is_base or self.is_oversubscribed) and self.is_comparable


@dataclass(frozen=True)
class LogEstimate:
    """Mean and variance of the mean of the logarithms of some runs' medians; `degrees` is runs - 1."""

    mean: float
    variance: float
    degrees: int

    def __sub__(self, other: LogEstimate) -> LogEstimate:
        """The logarithm of a ratio; with the smaller of the two degrees, which is on the safe side."""
        return LogEstimate(self.mean - other.mean, self.variance + other.variance, min(self.degrees, other.degrees))

    def interval(self, scale: float = 1.0) -> ConfidenceInterval:
        """`scale` x exp of the mean, with its 95 % interval."""
        return of_logarithm(self.mean, self.variance, self.degrees).scaled(scale)


def estimate(sample: StepTimes) -> LogEstimate:
    """The step time of a point: each run counts once, by the median of its steps."""
    logs = np.log([np.median(run) for run in sample.runs])
    variance = float(logs.var(ddof=1)) / len(logs) if len(logs) > 1 else math.inf
    return LogEstimate(float(logs.mean()), variance, len(logs) - 1)


def karp_flatt(speedup: float, ranks: float) -> float | None:
    """Experimentally determined serial fraction (Karp and Flatt 1990); `ranks` relative to the base.

    Constant over ranks: the serial part limits. Growing: communication or imbalance does.

    >>> karp_flatt(speedup=1 / (0.1 + 0.9 / 4), ranks=4)  # Amdahl with 10 % serial
    0.1
    """
    if ranks <= 1:
        return None
    return round((1 / speedup - 1 / ranks) / (1 - 1 / ranks), 12)


def analyse(samples: Sequence[StepTimes], mode: Mode) -> list[ScalingPoint]:
    """The rows of one series, smallest number of ranks first; that one is the base."""
    samples = sorted(samples, key=lambda sample: sample.ranks)
    return [_point(sample, samples[0], mode) for sample in samples]


def _point(sample: StepTimes, base: StepTimes, mode: Mode) -> ScalingPoint:
    seconds = estimate(sample)
    step = seconds.interval()
    tokens = sample.tokens_per_step
    relative_ranks = sample.ranks / base.ranks
    speedup = ConfidenceInterval(1.0, 1.0, 1.0)
    if sample is not base:
        speedup = (estimate(base) - seconds).interval(tokens / base.tokens_per_step)
    return ScalingPoint(
        mode=mode,
        ranks=sample.ranks,
        tokens_per_step=tokens,
        num_runs=len(sample.runs),
        num_steps=len(sample.steps),
        steps_a_run=sample.steps_a_run,
        step_s=step,
        p95_s=float(np.quantile(sample.steps, 0.95)),
        max_s=float(sample.steps.max()),
        tokens_per_s=step.rate_of(tokens),
        speedup=speedup,
        efficiency=ConfidenceInterval(*(x / relative_ranks for x in (speedup.value, speedup.low, speedup.high))),
        karp_flatt=karp_flatt(speedup.value, relative_ranks) if mode == "strong" else None,
        is_base=sample is base,
        is_oversubscribed=sample.is_oversubscribed,
        is_comparable=sample.is_comparable,
    )


def diagnose(points: Sequence[ScalingPoint]) -> str:
    """One sentence about a series that a reader could check against its table."""
    series = f"{points[0].mode.capitalize()} scaling"
    beyond = [point for point in points if not point.is_base]
    evidence = [point for point in beyond if point.is_evidence]
    if not beyond:
        return f"{series}: only {counted(points[0].ranks, 'rank')} measured, so there is nothing to compare."
    if not evidence and all(point.is_oversubscribed for point in beyond):
        return f"{series}: no point beyond the base has a core for each of its threads: no evidence of scaling."
    last = (evidence or beyond)[-1]
    percent = last.efficiency.scaled(100).shown("{:.0f}", " %")
    found = f"{series} to {counted(last.ranks, 'rank')}: efficiency {percent}"
    if not evidence:
        return f"{found}, but measured on another machine or with other software than its base: no evidence of scaling."
    return f"{found}, {_verdict(last)}."


def _verdict(point: ScalingPoint) -> str:
    accepted, efficiency = f"{100 * ACCEPTED_EFFICIENCY:.0f} %", point.efficiency
    if not point.has_interval:
        return (
            f"of single runs: these tell nothing of their error, so no verdict on {accepted}; use --repeats 3 or more"
        )
    if efficiency.low < ACCEPTED_EFFICIENCY <= efficiency.high:
        return f"but the interval includes {accepted}: more repeats are needed to tell"
    if efficiency.high < ACCEPTED_EFFICIENCY:
        return f"below the {accepted} that proposals ask for"
    if efficiency.contains(1.0):
        return f"not distinguishable from ideal, above the {accepted} that proposals ask for"
    if point.is_above_ideal:
        return f"more than ideal: above the {accepted} that proposals ask for, but look at the base first"
    return f"above the {accepted} that proposals ask for"
