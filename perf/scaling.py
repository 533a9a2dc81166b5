"""Speedup and efficiency with intervals, from step times alone. Pure: numbers in, numbers out.

Rules followed: Hoefler and Belli, "Scientific Benchmarking of Parallel Computing Systems" (SC15): the
base and its absolute speed are stated, medians and nonparametric intervals instead of means, no
averages of ratios. Formulas: throughput X = tokens / median step time; speedup S(p) = X(p) / X(b);
efficiency E(p) = S(p) b / p for a base of b ranks. With a fixed global batch that is T(b) b / (T(p) p)
(strong), with a fixed batch a rank T(b) / T(p) (weak).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Mode = Literal["strong", "weak"]

CONFIDENCE = 0.95
BOOTSTRAP_DRAWS = 2000
ACCEPTED_EFFICIENCY = 0.75  # what CSC and others ask of a proposal: 1.5 x for twice the ranks


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % confidence interval."""

    value: float
    low: float
    high: float

    def contains(self, number: float) -> bool:
        return self.low <= number <= self.high


@dataclass(frozen=True)
class Sample:
    """Step times of one point: `runs[i]` are the timed steps of repeat i, in seconds."""

    ranks: int
    tokens_per_step: int
    runs: tuple[tuple[float, ...], ...]
    is_oversubscribed: bool = False

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
    step_s: Interval
    p95_s: float
    max_s: float
    tokens_per_s: Interval
    speedup: Interval
    efficiency: Interval
    karp_flatt: float | None
    is_base: bool
    is_oversubscribed: bool


def median_interval(values: Sequence[float] | np.ndarray, confidence: float = CONFIDENCE) -> Interval:
    """Median with the distribution-free interval between order statistics (Le Boudec 2010, 2.2.2).

    With fewer than six values no such interval reaches 95 %: it is the range then.

    >>> median_interval([1, 2, 3, 4, 5, 6, 7, 8, 9, 10])
    Interval(value=5.5, low=2.0, high=9.0)
    """
    ordered = np.sort(np.asarray(values, dtype=float))
    n = len(ordered)
    below = np.cumsum([math.comb(n, k) for k in range(n + 1)]) / 2.0**n if n < 60 else None
    if below is not None:
        # the widest tail that keeps P(low <= median <= high) >= confidence, by Binomial(n, 1/2)
        tail = (1 - confidence) / 2
        rank = int(np.searchsorted(below, tail, side="right"))
    else:
        rank = math.floor(n / 2 - 1.96 * math.sqrt(n) / 2)
    rank = max(rank, 1)
    return Interval(float(np.median(ordered)), float(ordered[rank - 1]), float(ordered[n - rank]))


def bootstrap_medians(sample: Sample, random: np.random.Generator) -> np.ndarray:
    """Medians (BOOTSTRAP_DRAWS,) of step times resampled in two stages: repeats, then steps in them.

    Steps of one run share its luck with the machine, so repeats are what the interval must rest on.
    """
    lengths = np.array([len(run) for run in sample.runs])
    offsets = np.cumsum(lengths) - lengths
    runs = random.integers(len(lengths), size=(BOOTSTRAP_DRAWS, len(lengths), 1))
    within = random.random((BOOTSTRAP_DRAWS, len(lengths), lengths.max()))
    steps = offsets[runs] + (within * lengths[runs]).astype(int)
    return np.median(sample.steps[steps], axis=(1, 2))


def karp_flatt(speedup: float, ranks: float) -> float | None:
    """Experimentally determined serial fraction (Karp and Flatt 1990); `ranks` relative to the base.

    Constant over ranks: the serial part limits. Growing: communication or imbalance does.

    >>> karp_flatt(speedup=1 / (0.1 + 0.9 / 4), ranks=4)  # Amdahl with 10 % serial
    0.1
    """
    if ranks <= 1:
        return None
    return round((1 / speedup - 1 / ranks) / (1 - 1 / ranks), 12)


def analyse(samples: Sequence[Sample], mode: Mode, seed: int = 0) -> list[ScalingPoint]:
    """The rows of one series, smallest number of ranks first; that one is the base."""
    samples = sorted(samples, key=lambda sample: sample.ranks)
    medians = [bootstrap_medians(sample, np.random.default_rng([seed, sample.ranks])) for sample in samples]
    base = samples[0]
    return [_point(sample, base, draws, medians[0], mode) for sample, draws in zip(samples, medians, strict=True)]


def _point(sample: Sample, base: Sample, draws: np.ndarray, base_draws: np.ndarray, mode: Mode) -> ScalingPoint:
    step = median_interval(sample.steps)
    tokens = sample.tokens_per_step
    work = tokens / base.tokens_per_step
    relative_ranks = sample.ranks / base.ranks
    value = work * float(np.median(base.steps)) / step.value
    ratios = np.ones(1) if sample is base else work * base_draws / draws
    low, high = np.quantile(ratios, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    speedup = Interval(value, float(low), float(high))
    return ScalingPoint(
        mode=mode,
        ranks=sample.ranks,
        tokens_per_step=tokens,
        num_runs=len(sample.runs),
        num_steps=len(sample.steps),
        step_s=step,
        p95_s=float(np.quantile(sample.steps, 0.95)),
        max_s=float(sample.steps.max()),
        tokens_per_s=Interval(tokens / step.value, tokens / step.high, tokens / step.low),
        speedup=speedup,
        efficiency=Interval(*(x / relative_ranks for x in (speedup.value, speedup.low, speedup.high))),
        karp_flatt=karp_flatt(value, relative_ranks) if mode == "strong" else None,
        is_base=sample is base,
        is_oversubscribed=sample.is_oversubscribed,
    )


def diagnose(points: Sequence[ScalingPoint]) -> str:
    """One sentence about a series that a reader could check against its table."""
    evidence = [point for point in points if not point.is_base and not point.is_oversubscribed]
    if not evidence:
        return "No point beyond the base has a core for each of its threads, so this is no evidence of scaling."
    last = evidence[-1]
    accepted = f"{100 * ACCEPTED_EFFICIENCY:.0f} %"
    percent = f"{100 * last.efficiency.value:.0f} % [{100 * last.efficiency.low:.0f}, {100 * last.efficiency.high:.0f}]"
    if last.efficiency.contains(1.0):
        verdict = "not distinguishable from ideal"
    elif last.efficiency.low >= ACCEPTED_EFFICIENCY:
        verdict = f"above the {accepted} that proposals ask for"
    elif last.efficiency.high < ACCEPTED_EFFICIENCY:
        verdict = f"below the {accepted} that proposals ask for"
    else:
        verdict = f"the interval includes {accepted}, so more repeats are needed to tell"
    return f"{last.mode.capitalize()} scaling to {last.ranks} ranks: efficiency {percent}, {verdict}."
