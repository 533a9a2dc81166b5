"""OPTIMIZERS by name, and the learning rate as a pure function of the step. Neither knows the world size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from hvdlm.optim.config import GroupRule, MuonConfig, OptimConfig
from hvdlm.optim.groups import parameter_groups
from hvdlm.optim.lamb import Lamb
from hvdlm.optim.lars import Lars
from hvdlm.optim.lion import Lion
from hvdlm.optim.muon import MuonAdamW
from hvdlm.optim.schedules import SCHEDULES, lr_at, plateau_factor
from hvdlm.optim.torch_classes import from_torch, fused

__all__ = [
    "OPTIMIZERS",
    "SCHEDULES",
    "GroupRule",
    "Lamb",
    "Lars",
    "Lion",
    "MuonAdamW",
    "MuonConfig",
    "OptimConfig",
    "build_optimizer",
    "lr_at",
    "parameter_groups",
    "plateau_factor",
    "set_lr",
]

Groups = list[dict[str, Any]]


def _adafactor(groups: Groups, config: OptimConfig) -> torch.optim.Optimizer:
    # torch's first eps bounds a mean square from below in one place and its root in another. At its default, 1e-7,
    # the estimate is too small for gradients of an RMS below 3e-4; 1e-15 is near the paper's 1e-30 for squares.
    return from_torch("Adafactor", "2.5")(groups, eps=(1e-15, 1e-3))


def _adagrad(groups: Groups, config: OptimConfig) -> torch.optim.Optimizer:
    return torch.optim.Adagrad(groups, eps=config.eps, **fused("adagrad", groups))


def _adam(groups: Groups, config: OptimConfig) -> torch.optim.Optimizer:
    return torch.optim.Adam(groups, betas=config.betas, eps=config.eps, **fused("adam", groups))


def _adamw(groups: Groups, config: OptimConfig) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, betas=config.betas, eps=config.eps, **fused("adamw", groups))


def _lamb(groups: Groups, config: OptimConfig) -> torch.optim.Optimizer:
    return Lamb(groups, betas=config.betas, eps=config.eps)


def _lars(groups: Groups, config: OptimConfig) -> torch.optim.Optimizer:
    return Lars(groups, momentum=config.momentum, trust_coefficient=config.trust_coefficient)


def _lion(groups: Groups, config: OptimConfig) -> torch.optim.Optimizer:
    return Lion(groups, betas=config.betas)


def _muon(groups: Groups, config: OptimConfig) -> torch.optim.Optimizer:
    muon = {
        "momentum": config.muon.momentum, "nesterov": config.muon.nesterov,
        "ns_steps": config.muon.newton_schulz_steps, "adjust_lr_fn": config.muon.scale,
    }  # fmt: skip
    adamw = {"betas": config.betas, "eps": config.eps, **fused("adamw", groups)}
    return MuonAdamW([{**group, **(muon if group["algorithm"] == "muon" else adamw)} for group in groups])


def _sgd(groups: Groups, config: OptimConfig) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, momentum=config.momentum, nesterov=config.nesterov, **fused("sgd", groups))


OPTIMIZERS: dict[str, Callable[[Groups, OptimConfig], torch.optim.Optimizer]] = {
    "adafactor": _adafactor,
    "adagrad": _adagrad,
    "adam": _adam,
    "adamw": _adamw,
    "lamb": _lamb,
    "lars": _lars,
    "lion": _lion,
    "muon": _muon,
    "sgd": _sgd,
}


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """The optimizer over the model's `parameter_groups`, at the peak learning rate.

    Every option is in its groups, so `type(optimizer)(optimizer.param_groups)` is the same optimizer without
    its state, which is how Horovod wraps it.
    """
    groups = parameter_groups(model, config)
    for group in groups:
        group["lr"] = config.lr * group["lr_scale"]
    return OPTIMIZERS[config.name](groups, config)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group `lr` times its `lr_scale`."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)
