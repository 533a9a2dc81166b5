"""The optimizer over groups of parameters that share options: weight decay for matrices alone, exceptions by name."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from hvdlm.errors import UserError
from hvdlm.numerals import LARGEST_FLOAT
from hvdlm.optim.layer_rates import layer_factors
from hvdlm.optim.optimizers import OPTIMIZERS, OptimConfig
from hvdlm.optim.roles import Role, roles_of
from hvdlm.optim.torch_classes import spare_dynamo


def parameter_groups(
    model: nn.Module,
    config: OptimConfig,
    roles: Mapping[str, Role] | None = None,
    trained: Sequence[str] | None = None,
) -> list[dict[str, Any]]:
    """The groups that OPTIMIZERS take: `params`, `weight_decay`, `lr_scale`, and the optimizer's own options.

    `roles` by name are those of the modules where nobody says otherwise. Vectors, as gains and biases, do not decay.
    UserError if a rule of `config.groups` is no parameter's first match. Of a model that ranks share, `roles` and
    names of what is `trained` are the whole one's: a rule may be for what another rank holds. Where this one has
    nothing to train it is one group without parameters.
    """
    roles = roles_of(model) if roles is None else roles
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    factors = layer_factors(roles, config.layer_decay)
    patterns = [re.compile(rule.match) for rule in config.groups]
    groups: dict[tuple, dict[str, Any]] = {}
    firsts = {name: _first_match(patterns, name) for name in trained or named}
    for name, parameter in named.items():
        role = roles[name]
        decays = role != "vector" and (config.decay_embeddings or role != "embedding")
        options = {"weight_decay": config.weight_decay if decays else 0.0, "lr_scale": 1.0}
        options |= OPTIMIZERS[config.name].parameter_options(role, parameter, config)
        options["lr_scale"] *= factors[name]
        number = firsts[name]
        if number is not None:
            rule = config.groups[number]
            options["lr_scale"] *= rule.lr_scale
            options["weight_decay"] = options["weight_decay"] if rule.weight_decay is None else rule.weight_decay
        groups.setdefault(tuple(options.values()), {"params": [], **options})["params"].append(parameter)
    _check_rules(config, {number for number in firsts.values() if number is not None}, list(firsts))
    if not groups:
        options = OPTIMIZERS[config.name].parameter_options("vector", torch.empty(0), config)
        return [{"params": [], "weight_decay": 0.0, "lr_scale": 1.0, **options}]
    return list(groups.values())


def _first_match(patterns: Sequence[re.Pattern], name: str) -> int | None:
    return next((number for number, pattern in enumerate(patterns) if pattern.search(name)), None)


def _check_rules(config: OptimConfig, used: set[int], names: list[str]) -> None:
    for number, rule in enumerate(config.groups):
        if number not in used:
            earlier = " that no earlier rule has" if any(re.search(rule.match, name) for name in names) else ""
            raise UserError(
                f"optim.groups.{number}: match {rule.match!r} finds no parameter{earlier};"
                f" names are {', '.join(names[:3])}{' …' if len(names) > 3 else ''}"
            )


def build_optimizer(
    model: nn.Module,
    config: OptimConfig,
    roles: Mapping[str, Role] | None = None,
    trained: Sequence[str] | None = None,
) -> Optimizer:
    """The optimizer over the model's `parameter_groups`, at the peak learning rate.

    Every option is in its groups, so `type(optimizer)(optimizer.param_groups)` is the same optimizer without
    its state, which is how Horovod wraps it.
    """
    spare_dynamo()
    groups = parameter_groups(model, config, roles, trained)
    for group in groups:
        group["lr"] = config.lr * group["lr_scale"]
        if group["lr"] * max(1.0, group["weight_decay"]) > LARGEST_FLOAT:
            raise UserError(
                f"optim.lr {config.lr:g} x lr_scale {group['lr_scale']:g} x weight_decay {group['weight_decay']:g}"
                " is more than a float32 holds; make them smaller"
            )
    return OPTIMIZERS[config.name].build(groups, config)


def set_lr(optimizer: Optimizer, lr: float) -> None:
    """Give every group `lr` times its `lr_scale`."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)
