"""The `optim` section: which of OPTIMIZERS, over which groups of parameters, at which learning rate."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor
from torch.optim import Optimizer

from hvdlm.config import Section, choice_of
from hvdlm.optim.lamb import Lamb
from hvdlm.optim.lars import Lars
from hvdlm.optim.lion import Lion
from hvdlm.optim.muon import MuonAdamW
from hvdlm.optim.roles import Role
from hvdlm.optim.schedules import DECAY_SHAPES, SCHEDULES
from hvdlm.optim.torch_classes import eager, from_torch, fused

Groups = list[dict[str, Any]]
Build = Callable[[Groups, "OptimConfig"], Optimizer]


def _adafactor(groups: Groups, config: OptimConfig) -> Optimizer:
    # torch's first eps bounds a mean square from below in one place and its root in another. At its default, 1e-7,
    # the estimate is too small for gradients of an RMS below 3e-4; 1e-15 is near the paper's 1e-30 for squares.
    return from_torch("Adafactor", "2.5")(groups, eps=(1e-15, 1e-3))


def _adafactor_size(parameter: Tensor) -> int:
    """Of a matrix a number a row and a column, else one an element; and how many steps were made."""
    if parameter.dim() < 2:
        return parameter.numel() + 1
    rows, columns = parameter.shape[-2:]
    return parameter.numel() // columns + parameter.numel() // rows + 1


def _built(of: Callable[..., Optimizer], *keys: str, kernel: str = "") -> Build:
    """`of` over the groups; the settings `keys` are its options of the same name, `kernel` torch's fused one."""

    def build(groups: Groups, config: OptimConfig) -> Optimizer:
        options = {key: getattr(config, key) for key in keys}
        return of(groups, **options, **(fused(kernel, groups) if kernel else {}))

    return build


def _muon(groups: Groups, config: OptimConfig) -> Optimizer:
    muon: dict[str, Any] = {"momentum": config.muon.momentum, "nesterov": config.muon.nesterov}
    muon |= {"ns_steps": config.muon.newton_schulz_steps, "adjust_lr_fn": config.muon.scale}
    adamw = {"betas": config.betas, "eps": config.eps, **fused("adamw", groups)}
    return MuonAdamW([{**group, **(muon if group["algorithm"] == "muon" else adamw)} for group in groups])


def _muon_options(role: Role, parameter: Tensor, config: OptimConfig) -> dict[str, Any]:
    if role == "matrix" and parameter.dim() == 2:
        return {"algorithm": "muon"}
    return {"algorithm": "adamw", "lr_scale": config.muon.adamw_lr_scale}


def _no_options(role: Role, parameter: Tensor, config: OptimConfig) -> dict[str, Any]:
    return {}


@dataclass(frozen=True)
class OptimizerChoice:
    """How an optimizer is built from `parameter_groups`, and what it wants to know of each parameter beside them."""

    build: Build
    parameter_options: Callable[[Role, Tensor, OptimConfig], dict[str, Any]] = _no_options
    # An element's update depends on nothing but that element: its state may be shared out, whatever the borders.
    by_element: bool = False
    # Numbers that it keeps of a parameter, where a step without values would not tell.
    state_size: Callable[[Tensor], int] | None = None


OPTIMIZERS = {
    "adafactor": OptimizerChoice(_adafactor, state_size=_adafactor_size),
    "adagrad": OptimizerChoice(_built(eager(torch.optim.Adagrad), "eps", kernel="adagrad"), by_element=True),
    "adam": OptimizerChoice(_built(eager(torch.optim.Adam), "betas", "eps", kernel="adam"), by_element=True),
    "adamw": OptimizerChoice(_built(eager(torch.optim.AdamW), "betas", "eps", kernel="adamw"), by_element=True),
    "lamb": OptimizerChoice(_built(Lamb, "betas", "eps")),
    "lars": OptimizerChoice(_built(Lars, "momentum", "trust_coefficient")),
    "lion": OptimizerChoice(_built(Lion, "betas"), by_element=True),
    "muon": OptimizerChoice(_muon, _muon_options),
    "sgd": OptimizerChoice(_built(eager(torch.optim.SGD), "momentum", "nesterov", kernel="sgd"), by_element=True),
}

# What lr is multiplied by where the global batch is so many times lr_reference_batch.
LR_SCALINGS: dict[str, Callable[[float], float]] = {
    "none": lambda ratio: 1.0,
    "linear": lambda ratio: ratio,  # Goyal et al. 2017
    "sqrt": math.sqrt,  # Krizhevsky 2014
}


Fraction = Annotated[float, Field(ge=0, lt=1)]
Milestone = Annotated[float, Field(gt=0, strict=True)]


class GroupRule(Section):
    """What holds for parameters of certain names; the first rule that matches a name counts."""

    match: str = Field(description="regular expression, found anywhere in the parameter's name")
    lr_scale: float = Field(1.0, ge=0, description="times the learning rate")
    weight_decay: float | None = Field(None, ge=0, description="instead of the usual one; also for gains and biases")

    @field_validator("match")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"{pattern!r} is not a regular expression: {error}") from None
        return pattern


class MuonConfig(Section):
    """`optim.name: muon`: hidden matrices go to Muon; embeddings, head, gains and biases to AdamW.

    `optim.lr` is Muon's, and AdamW's is `adamw_lr_scale` times as much on the same schedule. With `match_rms_adamw`
    an update of Muon is as large as one of AdamW (Liu et al. 2025), so one learning rate, a usual one of AdamW,
    fits both. `original` (Jordan et al. 2024) wants a learning rate near 0.02 and an `adamw_lr_scale` near 0.02.
    """

    momentum: float = Field(0.95, ge=0, lt=1, description="of the gradients, before they are made orthogonal")
    nesterov: bool = Field(True, description="look one momentum step ahead")
    newton_schulz_steps: int = Field(5, ge=1, lt=100, description="iterations that make the update orthogonal")
    scale: Literal["match_rms_adamw", "original"] = Field("match_rms_adamw", description="size of the update")
    adamw_lr_scale: float = Field(1.0, gt=0, description="the AdamW part's learning rate is so many times optim.lr")


class OptimConfig(Section):
    """The `optim` section. The learning rate depends on what is written here and the step, never on the ranks."""

    name: Annotated[str, choice_of(OPTIMIZERS)] = Field("adamw", description="how weights follow from gradients")
    lr: float = Field(1e-3, gt=0, description="peak learning rate; adafactor: the largest relative step")
    min_lr: float = Field(0.0, ge=0, description="where linear, cosine, polynomial and wsd end; else never below it")
    weight_decay: float = Field(
        0.1,
        ge=0,
        description="of matrices and embeddings; part of the gradient in adagrad, adam, lars and sgd, else decoupled",
    )
    decay_embeddings: bool = Field(True, description="false: weight_decay is not for embeddings")
    layer_decay: float = Field(
        1.0, gt=0, le=1, description="fine-tuning: times lr for each layer from the head down, embeddings the lowest"
    )
    groups: tuple[GroupRule, ...] = Field((), strict=False, description="exceptions by parameter name")
    betas: tuple[Fraction, Fraction] = Field(
        (0.9, 0.95), strict=False, description="adam, adamw, lamb, lion, and the AdamW part of muon"
    )
    eps: float = Field(1e-8, gt=0, description="adagrad, adam, adamw, lamb, and the AdamW part of muon")
    momentum: float = Field(0.9, ge=0, lt=1, description="sgd and lars")
    nesterov: bool = Field(False, description="sgd: look one momentum step ahead")
    trust_coefficient: float = Field(0.001, gt=0, description="lars: size of an update relative to the weights")
    muon: MuonConfig = MuonConfig()
    schedule: Annotated[str, choice_of(SCHEDULES)] = Field("cosine", description="the learning rate after warm-up")
    warmup_steps: int = Field(100, ge=0, description="linear, from lr / warmup_steps to lr")
    power: float = Field(2.0, gt=0, description="polynomial: lr falls as (1 - progress)^power")
    milestones: tuple[Milestone, ...] = Field(
        (),
        strict=False,
        description="step: where lr is multiplied by factor; below 1 a fraction of the run, else a step",
    )
    factor: float = Field(0.1, gt=0, lt=1, description="step and plateau: what lr is multiplied by")
    patience: int = Field(3, ge=1, description="plateau: so many validations in a row without a better loss")
    threshold: float = Field(1e-4, ge=0, lt=1, description="plateau: better is lower by this fraction")
    decay_fraction: float = Field(0.1, gt=0, le=1, description="wsd: the part of the run in which lr falls")
    decay_shape: Annotated[str, choice_of(DECAY_SHAPES)] = Field("linear", description="wsd")
    lr_scaling: Annotated[str, choice_of(LR_SCALINGS)] = Field(
        "none", description="times global_batch / lr_reference_batch, or its square root"
    )
    lr_reference_batch: int = Field(0, ge=0, description="sequences: the global batch that lr and min_lr are meant for")
    clip: float = Field(1.0, ge=0, description="largest norm of the averaged gradient; 0 is no limit")

    @model_validator(mode="after")
    def _check(self) -> OptimConfig:
        if self.min_lr > self.lr:
            raise ValueError(f"min_lr {self.min_lr} is above lr {self.lr}")
        if self.scales_lr != (self.lr_reference_batch > 0):
            raise ValueError("lr_scaling (linear or sqrt) and lr_reference_batch go together; give both or neither")
        if SCHEDULES[self.schedule].needs_milestones and not self.milestones:
            raise ValueError(f"schedule: {self.schedule} needs milestones, for example [0.5, 0.75]")
        if any(milestone >= 1 and not milestone.is_integer() for milestone in self.milestones):
            raise ValueError(f"milestones {list(self.milestones)}: from 1 on they are steps, which are whole numbers")
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs a momentum above 0")
        return self

    @property
    def scales_lr(self) -> bool:
        return self.lr_scaling != "none"

    @property
    def is_by_element(self) -> bool:
        """Whether an element's update depends on nothing but that element."""
        return OPTIMIZERS[self.name].by_element

    @property
    def has_own_rates(self) -> bool:
        """Whether some parameters have another rate or decay than their kind."""
        return bool(self.groups) or self.layer_decay != 1

    @property
    def needs_validation(self) -> bool:
        """Whether the learning rate follows from validation losses."""
        return SCHEDULES[self.schedule].needs_validation
