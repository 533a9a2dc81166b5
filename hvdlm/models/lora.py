"""Low-rank adapters: a frozen matrix W, and beside it a trained product of two small ones, W + alpha / r B A.

Source: Hu et al. 2022, "LoRA".
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator
from torch import Tensor, nn

from hvdlm.config import Section
from hvdlm.errors import UserError

DOWN, UP = "lora_a", "lora_b"  # A (r, inputs) and B (outputs, r), beside `weight` and `bias`


def compiled(patterns: tuple[str, ...]) -> tuple[str, ...]:
    """The patterns; ValueError for one that is no regular expression."""
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"{pattern!r} is not a regular expression: {error}") from None
    return patterns


class LoraConfig(Section):
    """The `lora` section: the model is frozen, and trained are adapters of some of its layers."""

    rank: int = Field(8, ge=1, le=65_536, description="r, the inner width of each adapter")
    alpha: float = Field(16.0, gt=0, description="adapters count alpha / rank times")
    targets: tuple[str, ...] = Field(
        (r"attention\.",),
        strict=False,
        min_length=1,
        description="regular expressions, found in the names of linear layers that get an adapter",
    )
    full: tuple[str, ...] = Field(
        (), strict=False, description="the same for parameters that are trained themselves, such as ^head of a new head"
    )

    _compile = field_validator("targets", "full")(compiled)

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


class LoraLinear(nn.Module):
    """A linear layer, whose parameters it takes over under their names, with an adapter that begins as 0."""

    def __init__(self, linear: nn.Linear, rank: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.weight = linear.weight
        self.bias: nn.Parameter | None = linear.bias
        down, up = torch.empty(rank, linear.in_features), torch.zeros(linear.out_features, rank)
        nn.init.uniform_(down, -(linear.in_features**-0.5), linear.in_features**-0.5)
        self.lora_a, self.lora_b = nn.Parameter(down), nn.Parameter(up)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias) + self.scale * F.linear(F.linear(x, self.lora_a), self.lora_b)


def add_lora(model: nn.Module, config: LoraConfig) -> None:
    """Give the layers an adapter and freeze all else; UserError for a target that is no layer, or may have none."""
    linear = {name: layer for name, layer in model.named_modules() if type(layer) is nn.Linear}
    tied = {id(layer.weight) for layer in model.modules() if isinstance(layer, nn.Embedding)}
    for pattern in config.targets:
        found = [name for name in linear if re.search(pattern, name)]
        _refuse_head(model, pattern, tied)
        if not found:
            raise UserError(
                f"lora.targets: {pattern!r} finds no linear layer; they are {', '.join(list(linear)[:4])}"
                f"{' …' if len(linear) > 4 else ''}"
            )
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for name, layer in linear.items():
        if any(re.search(pattern, name) for pattern in config.targets):
            if config.rank > min(layer.weight.shape):
                raise UserError(f"lora.rank: {config.rank} is more than {name} has, {tuple(layer.weight.shape)}")
            parent, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(parent), attribute, LoraLinear(layer, config.rank, config.scale))
    for pattern in config.full:
        matched = [parameter for name, parameter in model.named_parameters() if re.search(pattern, name)]
        if not matched:
            raise UserError(f"lora.full: {pattern!r} finds no parameter")
        for parameter in matched:
            parameter.requires_grad_(True)


def _refuse_head(model: nn.Module, pattern: str, tied: set[int]) -> None:
    """An adapter of a matrix that the embedding shares would be lost in one of the two when it is merged."""
    head = getattr(model, "head", None)
    weight = getattr(head, "weight", None)
    if re.search(pattern, "head") and weight is not None:
        if id(weight) in tied:
            raise UserError(
                f"lora.targets: {pattern!r} finds the head, whose matrix is the embedding too; leave it out, or take a"
                " model with tie_embeddings: false"
            )
        if type(head) is not nn.Linear:
            raise UserError(f"lora.targets: {pattern!r} finds the head, which takes no adapter; use lora.full: [^head]")


def is_of_adapter(name: str) -> bool:
    return name.endswith((f".{DOWN}", f".{UP}"))


def with_adapter(name: str) -> tuple[str, ...]:
    """A tensor's name, and those of the adapter that is for it alone."""
    layer, _, last = name.rpartition(".")
    return (name, f"{layer}.{DOWN}", f"{layer}.{UP}") if last == "weight" else (name,)


def _adapters(tensors: Mapping[str, Tensor]) -> Iterator[str]:
    """Names of the layers that have one."""
    return (name.removesuffix(f".{DOWN}") for name in tensors if name.endswith(f".{DOWN}"))


@torch.no_grad()
def merged(tensors: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """A model's tensors with each adapter added to its matrix, in float32 as these are; others as they are."""
    adapters = set(_adapters(tensors))
    found = {}
    for name, tensor in tensors.items():
        layer, _, last = name.rpartition(".")
        if layer in adapters and last in (DOWN, UP):
            continue
        if layer in adapters and last == "weight":
            tensor = tensor + scale * (tensors[f"{layer}.{UP}"].float() @ tensors[f"{layer}.{DOWN}"].float())
        found[name] = tensor
    return found
