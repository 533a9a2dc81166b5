"""OPTIMIZERS, and learning-rate SCHEDULES as pure functions of the step. Neither knows the world size."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator
from torch import nn

from hvdlm.config import Section

Fraction = Annotated[float, Field(ge=0, lt=1)]


class OptimConfig(Section):
    """The `optim` section. The learning rate is what is written here, at any number of ranks."""

    name: Literal["adamw", "sgd"] = "adamw"
    lr: float = Field(1e-3, gt=0, description="peak learning rate")
    min_lr: float = Field(0.0, ge=0, description="where the schedule ends")
    weight_decay: float = Field(0.1, ge=0, description="decoupled for adamw; matrices and embeddings only")
    betas: tuple[Fraction, Fraction] = Field((0.9, 0.95), strict=False, description="adamw")
    momentum: float = Field(0.9, ge=0, lt=1, description="sgd")
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup_steps: int = Field(100, ge=0)
    clip: float = Field(1.0, ge=0, description="largest norm of the averaged gradient; 0 is no limit")

    @model_validator(mode="after")
    def _check(self) -> OptimConfig:
        if self.min_lr > self.lr:
            raise ValueError(f"min_lr {self.min_lr} is above lr {self.lr}")
        return self


def cosine(progress: float) -> float:
    """From 1 to 0 as progress goes from 0 to 1 (Loshchilov and Hutter 2017)."""
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))


SCHEDULES: dict[str, Callable[[float], float]] = {"cosine": cosine, "constant": lambda progress: 1.0}


def lr_at(step: int, total_steps: int, config: OptimConfig) -> float:
    """Learning rate of a step (from 0): linear warm-up to `lr`, then the schedule down to `min_lr`."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, total_steps - config.warmup_steps)
    return config.min_lr + (config.lr - config.min_lr) * SCHEDULES[config.schedule](progress)


def _adamw(groups: list[dict], config: OptimConfig) -> torch.optim.Optimizer:
    # fused: one kernel for all parameters, 2.5-3 times faster on CPU too
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)


def _sgd(groups: list[dict], config: OptimConfig) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum)


OPTIMIZERS: dict[str, Callable[[Any, OptimConfig], torch.optim.Optimizer]] = {"adamw": _adamw, "sgd": _sgd}


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """The optimizer over two groups: matrices with weight decay, gains and biases without."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return OPTIMIZERS[config.name]([group for group in groups if group["params"]], config)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr
