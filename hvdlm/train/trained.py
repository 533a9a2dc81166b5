"""The model that a run trains, and which of its parameters: all, what is not frozen, or adapters."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from hvdlm.errors import UserError
from hvdlm.models import LanguageModel, Vocabulary, build_model
from hvdlm.models.lora import add_lora
from hvdlm.tables import counted
from hvdlm.tasks import Task
from hvdlm.train.config import RunConfig
from hvdlm.train.parts import model_vocabulary

LAYER = re.compile(r"((?:.*\.)?(?:blocks|layers)\.)(\d+)(\..*)")


def model_of(config: RunConfig, vocabulary: Vocabulary, task: Task) -> LanguageModel:
    """The run's model on the CPU, with the head of its task, its adapters, and with what is frozen.

    The same config and data give the same weights.
    """
    model = build_model(config.model, model_vocabulary(config, vocabulary), config.seed)
    task.fit(model)
    if config.lora is not None:
        add_lora(model, config.lora)
    freeze(model, config.freeze)
    return model


def freeze(model: nn.Module, patterns: tuple[str, ...]) -> None:
    """Parameters in whose names a pattern is found are not trained; UserError for a pattern that finds none."""
    named = dict(model.named_parameters())
    for pattern in patterns:
        found = [parameter for name, parameter in named.items() if re.search(pattern, name)]
        if not found:
            names = ", ".join(list(named)[:3])
            raise UserError(f"freeze: {pattern!r} finds no parameter; names are {names} …")
        for parameter in found:
            parameter.requires_grad_(False)
    if patterns and not any(parameter.requires_grad for parameter in named.values()):
        raise UserError("freeze: nothing is left to train; leave a pattern out")


def in_words(model: nn.Module, groups: Iterable[Mapping[str, Any]]) -> list[str]:
    """A line on how much is trained, and one for each of the optimizer's groups."""
    named = dict(model.named_parameters())
    names = {id(parameter): name for name, parameter in named.items()}
    trained = sum(parameter.numel() for parameter in named.values() if parameter.requires_grad)
    total = sum(parameter.numel() for parameter in named.values())
    lines = [f"training {trained:,} of {total:,} parameters ({trained / max(1, total):.2%})"]
    for group in groups:
        kinds = without_numbers(names[id(parameter)] for parameter in group["params"])
        numbers = sum(parameter.numel() for parameter in group["params"])
        rates = f"lr x {group.get('lr_scale', 1.0):.4g}, weight decay {group['weight_decay']:g}"
        lines.append(f"group of {counted(numbers, 'parameter')}: {rates}: {', '.join(kinds)}")
    return lines


def without_numbers(names: Iterable[str]) -> list[str]:
    """Names of parameters, those of layers that differ in their number alone as one.

    >>> without_numbers(["embed.weight", "blocks.0.mlp.2.bias", "blocks.1.mlp.2.bias", "blocks.1.norm.bias"])
    ['embed.weight', 'blocks.0-1.mlp.2.bias', 'blocks.1.norm.bias']
    """
    found: dict[tuple[str, str], list[int]] = {}
    for name in names:
        layer = LAYER.fullmatch(name)
        numbers = found.setdefault((layer[1], layer[3]) if layer else (name, ""), [])
        if layer:
            numbers.append(int(layer[2]))
    return [before + _span(numbers) + after for (before, after), numbers in found.items()]


def _span(numbers: list[int]) -> str:
    if not numbers:
        return ""
    return str(numbers[0]) if len(numbers) == 1 else f"{min(numbers)}-{max(numbers)}"
