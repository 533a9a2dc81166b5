"""Which parameters share options: weight decay for matrices alone, exceptions by name, Muon's matrices."""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor, nn

from hvdlm.errors import UserError
from hvdlm.optim.config import OptimConfig

HEAD = "head"  # the attribute that every model family has its output layer in


def parameter_groups(model: nn.Module, config: OptimConfig) -> list[dict[str, Any]]:
    """The groups that OPTIMIZERS take: `params`, `weight_decay`, `lr_scale`, and `algorithm` for muon.

    Gains and biases (fewer than two dimensions) do not decay. UserError if a rule of `config.groups` is no
    parameter's first match.
    """
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    names = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    patterns = [re.compile(rule.match) for rule in config.groups]
    groups: dict[tuple, dict[str, Any]] = {}
    used = set()
    for name, parameter in names:
        is_embedding = id(parameter) in embeddings
        decays = parameter.dim() >= 2 and (config.decay_embeddings or not is_embedding)
        options = {"weight_decay": config.weight_decay if decays else 0.0, "lr_scale": 1.0}
        if config.name == "muon":
            options |= _muon_options(name, parameter, is_embedding, config)
        number = next((number for number, pattern in enumerate(patterns) if pattern.search(name)), None)
        if number is not None:
            used.add(number)
            rule = config.groups[number]
            options["lr_scale"] *= rule.lr_scale
            options["weight_decay"] = options["weight_decay"] if rule.weight_decay is None else rule.weight_decay
        groups.setdefault(tuple(options.values()), {"params": [], **options})["params"].append(parameter)
    _check_rules(config, used, [name for name, _ in names])
    return list(groups.values())


def _muon_options(name: str, parameter: Tensor, is_embedding: bool, config: OptimConfig) -> dict[str, Any]:
    is_head = name.split(".")[-2:-1] == [HEAD]
    if parameter.dim() == 2 and not is_embedding and not is_head:
        return {"algorithm": "muon"}
    return {"algorithm": "adamw", "lr_scale": config.muon.adamw_lr_scale}


def _check_rules(config: OptimConfig, used: set[int], names: list[str]) -> None:
    for number, rule in enumerate(config.groups):
        if number not in used:
            earlier = " that no earlier rule has" if any(re.search(rule.match, name) for name in names) else ""
            raise UserError(
                f"optim.groups.{number}: match {rule.match!r} finds no parameter{earlier};"
                f" names are {', '.join(names[:3])}{' …' if len(names) > 3 else ''}"
            )
