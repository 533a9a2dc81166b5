"""The learning rate as a pure function of the step and the config; it does not know the world size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

from hvdlm.optim.optimizers import LR_SCALINGS, OptimConfig
from hvdlm.optim.schedules import SCHEDULES, Moment

_SETTINGS = [field.name for field in fields(Moment) if field.name in OptimConfig.model_fields]


def lr_at(
    step: int, total_steps: int, config: OptimConfig, *, global_batch: int = 0, val_losses: Sequence[float] = ()
) -> float:
    """Learning rate of a step (from 0): linear warm-up to `lr`, then the schedule, down to `min_lr` at the lowest.

    `global_batch` (sequences) is for `lr_scaling`, `val_losses` (one a validation, oldest first) for the plateau.
    """
    scale = lr_scale(config, global_batch)
    if step < config.warmup_steps:
        return scale * (config.lr * (step + 1) / config.warmup_steps)
    schedule = SCHEDULES[config.schedule]
    settings = {name: getattr(config, name) for name in _SETTINGS}
    factor = schedule.shape(Moment(step, total_steps, val_losses, **settings))
    if schedule.spans_min_lr:
        return scale * (config.min_lr + (config.lr - config.min_lr) * factor)
    return scale * max(config.min_lr, config.lr * factor)


def lr_scale(config: OptimConfig, global_batch: int) -> float:
    """What the batch does to the learning rate."""
    if not config.scales_lr:
        return 1.0
    if global_batch < 1:
        raise ValueError(f"lr_scaling {config.lr_scaling} needs the global batch, got {global_batch}")
    return LR_SCALINGS[config.lr_scaling](global_batch / config.lr_reference_batch)
