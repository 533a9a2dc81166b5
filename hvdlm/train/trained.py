"""The model that a run trains, and which of its parameters: all, what is not frozen, or adapters."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from torch import nn

from hvdlm.checkpoint import Cut
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


class Trained(NamedTuple):
    """What is trained of a model, or of the part of it that a rank has."""

    sizes: dict[str, int]  # of all parameters, whole, by name
    trained: list[str]
    groups: dict[str, list[str]]  # the optimizer's, by their rates


def trained_of(model: nn.Module, groups: Iterable[Mapping[str, Any]], cuts: Mapping[str, Cut]) -> Trained:
    """By `cuts` a rank has parts of parameters."""
    named = dict(model.named_parameters())
    names = {id(parameter): name for name, parameter in named.items()}
    sizes = {name: math.prod(cuts[name].shape) if name in cuts else p.numel() for name, p in named.items()}
    by_rates: dict[str, list[str]] = {}
    for group in (each for each in groups if each["params"]):
        rates = f"lr x {group.get('lr_scale', 1.0):.4g}, weight decay {group['weight_decay']:g}"
        by_rates.setdefault(rates, []).extend(names[id(parameter)] for parameter in group["params"])
    return Trained(sizes, [name for name, parameter in named.items() if parameter.requires_grad], by_rates)


def in_words(parts: Iterable[Trained]) -> list[str]:
    """A line on how much is trained, and one for each of the optimizer's groups; of all parts of a model together."""
    sizes: dict[str, int] = {}
    trained: dict[str, None] = {}  # in their order, once
    groups: dict[str, dict[str, None]] = {}
    for part in parts:
        sizes |= part.sizes
        trained |= dict.fromkeys(part.trained)
        for rates, names in part.groups.items():
            groups.setdefault(rates, {}).update(dict.fromkeys(names))
    num, total = sum(sizes[name] for name in trained), sum(sizes.values())
    lines = [f"training {num:,} of {total:,} parameters ({num / max(1, total):.2%})"]
    for rates, found in groups.items():
        numbers = counted(sum(sizes[name] for name in found), "parameter")
        lines.append(f"group of {numbers}: {rates}: {', '.join(without_numbers(found))}")
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
