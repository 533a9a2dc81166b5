"""Learning-rate SCHEDULES as pure functions of the step, the config and the validation losses so far."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hvdlm.optim.config import OptimConfig


@dataclass(frozen=True)
class Moment:
    """A step (from 0) after the warm-up, and what a schedule may know about it."""

    step: int
    total_steps: int
    config: OptimConfig
    val_losses: Sequence[float] = ()

    @property
    def progress(self) -> float:
        """From 0 at the end of the warm-up to 1 at the end of the run."""
        warmup_steps = self.config.warmup_steps
        return min(1.0, (self.step - warmup_steps) / max(1, self.total_steps - warmup_steps))


def constant(at: Moment) -> float:
    return 1.0


def linear(at: Moment) -> float:
    return 1.0 - at.progress


def cosine(at: Moment) -> float:
    """Half a period of the cosine (Loshchilov and Hutter 2017)."""
    return 0.5 * (1.0 + math.cos(math.pi * at.progress))


def polynomial(at: Moment) -> float:
    return (1.0 - at.progress) ** at.config.power


def wsd(at: Moment) -> float:
    """Warm-up, stable, decay: flat until the last `decay_fraction` of the run.

    Hu et al. 2024 (MiniCPM); the shape 1 - sqrt is from Hägele et al. 2024. A run may be continued from a
    checkpoint before the decay with more steps, as if it had been planned so.
    """
    decay_steps = max(1, round(at.config.decay_fraction * at.total_steps))
    start = max(at.config.warmup_steps, at.total_steps - decay_steps)
    progress = min(1.0, max(0, at.step - start) / max(1, at.total_steps - start))
    return 1.0 - (progress if at.config.decay_shape == "linear" else math.sqrt(progress))


def inverse_sqrt(at: Moment) -> float:
    """Falls as 1 / sqrt(step) from the end of the warm-up on (Vaswani et al. 2017); knows no end."""
    return math.sqrt(max(1, at.config.warmup_steps) / (at.step + 1))


def step(at: Moment) -> float:
    """Multiplied by `factor` at each milestone."""
    milestones = (milestone * at.total_steps if milestone < 1 else milestone for milestone in at.config.milestones)
    return at.config.factor ** sum(at.step >= milestone for milestone in milestones)


def plateau(at: Moment) -> float:
    return plateau_factor(at.val_losses, at.config.patience, at.config.factor, at.config.threshold)


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


# 1 is the peak. 0 is `min_lr` for those of INTERPOLATED; it is the floor of the others, which end anywhere.
SCHEDULES: dict[str, Callable[[Moment], float]] = {
    "constant": constant,
    "cosine": cosine,
    "inverse_sqrt": inverse_sqrt,
    "linear": linear,
    "plateau": plateau,
    "polynomial": polynomial,
    "step": step,
    "wsd": wsd,
}
INTERPOLATED = ("constant", "cosine", "linear", "polynomial", "wsd")


def lr_at(
    step: int, total_steps: int, config: OptimConfig, *, global_batch: int = 0, val_losses: Sequence[float] = ()
) -> float:
    """Learning rate of a step (from 0): linear warm-up to `lr`, then the schedule, down to `min_lr` at the lowest.

    `global_batch` (sequences) is for `lr_scaling`, `val_losses` (one a validation, oldest first) for the plateau.
    """
    scale = lr_scale(config, global_batch)
    if step < config.warmup_steps:
        return scale * (config.lr * (step + 1) / config.warmup_steps)
    factor = SCHEDULES[config.schedule](Moment(step, total_steps, config, val_losses))
    if config.schedule in INTERPOLATED:
        return scale * (config.min_lr + (config.lr - config.min_lr) * factor)
    return scale * max(config.min_lr, config.lr * factor)


def lr_scale(config: OptimConfig, global_batch: int) -> float:
    """What the batch does to the learning rate: linear (Goyal et al. 2017) or by its root (Krizhevsky 2014)."""
    if config.lr_scaling == "none":
        return 1.0
    if global_batch < 1:
        raise ValueError(f"lr_scaling {config.lr_scaling} needs the global batch, got {global_batch}")
    ratio = global_batch / config.lr_reference_batch
    return ratio if config.lr_scaling == "linear" else math.sqrt(ratio)
