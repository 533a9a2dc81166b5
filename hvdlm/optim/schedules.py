"""SCHEDULES: shapes of the learning rate as pure functions of the step, the settings and the validation losses."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Moment:
    """A step (from 0) after the warm-up, and what a schedule may know about it; settings as in OptimConfig."""

    step: int
    total_steps: int
    val_losses: Sequence[float]  # one a validation, oldest first
    warmup_steps: int
    power: float
    milestones: tuple[float, ...]
    factor: float
    patience: int
    threshold: float
    decay_fraction: float
    decay_shape: str

    @property
    def progress(self) -> float:
        """From 0 at the end of the warm-up to 1 at the end of the run."""
        return min(1.0, (self.step - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps))


def constant(at: Moment) -> float:
    return 1.0


def linear(at: Moment) -> float:
    return 1.0 - at.progress


def cosine(at: Moment) -> float:
    """Half a period of the cosine (Loshchilov and Hutter 2017)."""
    return 0.5 * (1.0 + math.cos(math.pi * at.progress))


def polynomial(at: Moment) -> float:
    return (1.0 - at.progress) ** at.power


DECAY_SHAPES: dict[str, Callable[[float], float]] = {
    "linear": lambda progress: 1.0 - progress,
    "1-sqrt": lambda progress: 1.0 - math.sqrt(progress),
}


def wsd(at: Moment) -> float:
    """Warm-up, stable, decay: flat until the last `decay_fraction` of the run.

    Hu et al. 2024 (MiniCPM); the shape 1 - sqrt is from Hägele et al. 2024. A run may be continued from a
    checkpoint before the decay with more steps, as if it had been planned so.
    """
    decay_steps = max(1, round(at.decay_fraction * at.total_steps))
    start = max(at.warmup_steps, at.total_steps - decay_steps)
    progress = min(1.0, max(0, at.step - start) / max(1, at.total_steps - start))
    return DECAY_SHAPES[at.decay_shape](progress)


def inverse_sqrt(at: Moment) -> float:
    """Falls as 1 / sqrt(step) from the end of the warm-up on (Vaswani et al. 2017); knows no end."""
    return math.sqrt(max(1, at.warmup_steps) / (at.step + 1))


def step(at: Moment) -> float:
    """Multiplied by `factor` at each milestone."""
    milestones = (milestone * at.total_steps if milestone < 1 else milestone for milestone in at.milestones)
    return at.factor ** sum(at.step >= milestone for milestone in milestones)


def plateau(at: Moment) -> float:
    return plateau_factor(at.val_losses, at.patience, at.factor, at.threshold)


def plateau_factor(losses: Sequence[float], patience: int, factor: float, threshold: float) -> float:
    """`factor`, once for each `patience` validations in a row that did not lower the best loss by `threshold` of it.

    >>> plateau_factor([3.0, 2.0, 2.0, 2.1], patience=2, factor=0.5, threshold=0.0)
    0.5
    """
    best, waited, reductions = math.inf, 0, 0
    for loss in losses:
        waited += 1
        if loss < best * (1.0 - threshold):
            best, waited = loss, 0
        if waited == patience:
            reductions, waited = reductions + 1, 0
    return factor**reductions


@dataclass(frozen=True)
class Schedule:
    """A shape, of which 1 is the peak, and 0 is `min_lr` if it `spans_min_lr`. Others end anywhere, not below it."""

    shape: Callable[[Moment], float]
    spans_min_lr: bool = True
    needs_milestones: bool = False
    needs_validation: bool = False


SCHEDULES = {
    "constant": Schedule(constant),
    "cosine": Schedule(cosine),
    "inverse_sqrt": Schedule(inverse_sqrt, spans_min_lr=False),
    "linear": Schedule(linear),
    "plateau": Schedule(plateau, spans_min_lr=False, needs_validation=True),
    "polynomial": Schedule(polynomial),
    "step": Schedule(step, spans_min_lr=False, needs_milestones=True),
    "wsd": Schedule(wsd),
}
