"""What a layout of Hugging Face's is: its settings beside ours, its names beside ours."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from hvdlm.exchange.settings import Settings
from hvdlm.exchange.weights import Weight
from hvdlm.models.transformer import TransformerConfig

ACTIVATIONS = {  # theirs -> ours, of layers without a gate; of several names for one the first is written
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu": "gelu",
    "relu": "relu",
}


@dataclass(frozen=True)
class HeadPlace:
    """Where a class of transformers for a task has the layer that it adds."""

    architecture: str
    name: str  # of the layer
    has_bias: bool = True
    prefix: str | None = None  # of the body, where it is another one than usual
    pooling: str | None = None  # of a head that is asked once an example: the hidden vector that it reads, last or cls
    has_pooler: bool = False  # a layer and tanh before it


@dataclass(frozen=True)
class Layout:
    """Names of theirs stand without the `prefix` of the body."""

    model_type: str
    architecture: str  # the class with the head for text
    prefix: str
    read: Callable[[Settings], dict[str, Any]]  # config.json -> our `model` section
    write: Callable[[TransformerConfig], dict[str, Any]]  # the reverse, without what all layouts have
    body: Callable[[TransformerConfig], list[Weight]]
    head: Callable[[TransformerConfig], list[Weight]]  # for text, but for a tied matrix
    lacks: Callable[[TransformerConfig], list[str]]  # settings of our body that it cannot say
    lacks_head: Callable[[TransformerConfig], list[str]]  # the same of the head for text
    places: Mapping[str, HeadPlace]  # kinds of tasks that have a class with a head of their own
    tied_name: str  # the head's matrix
    ignored_settings: frozenset[str] = frozenset()
    ignored_weights: re.Pattern[str] = field(default_factory=lambda: re.compile(r"(?!)"))  # buffers that are computed

    @property
    def prefixes(self) -> set[str]:
        return {self.prefix, *(place.prefix for place in self.places.values() if place.prefix)}


def unsaid(options: TransformerConfig, said: Mapping[str, Any]) -> list[str]:
    """`model.KEY: VALUE` for each setting that has another value than the only one that can be said."""
    found = {key: getattr(options, key) for key in said}
    return [f"model.{key}: {found[key]}" for key, value in said.items() if found[key] != value]


PLAIN_BODY = {"encoder_layers": 0, "qk_norm": False, "embed_scale": False, "attention_softcap": None}
PLAIN_HEAD = {"logit_softcap": None, "head_transform": False, "head_bias": False}


def dropouts(embed: float, residual: float, attention: float) -> dict[str, float]:
    """Our settings; one for all where they are alike, so that `model.dropout` changes it."""
    if embed == residual == attention:
        return {"dropout": embed}
    return {"embed_dropout": embed, "residual_dropout": residual, "attention_dropout": attention}


def wrong_positions(options: TransformerConfig, kind: str) -> list[str]:
    return [] if options.positions.kind == kind else [f"model.positions: {options.positions.kind}"]


def odd_heads(options: TransformerConfig) -> list[str]:
    """Heads that do not share the width, or share keys, where a layout has no key for that."""
    found = [f"model.kv_heads: {options.kv_heads}"] if options.num_kv_heads != options.heads else []
    is_odd = options.width_of_head * options.heads != options.width
    return found + ([f"model.head_width: {options.head_width}"] if is_odd else [])


def gated(options: TransformerConfig) -> list[str]:
    return [] if options.activation in ACTIVATIONS.values() else [f"model.activation: {options.activation}"]


def activation_name(options: TransformerConfig) -> str:
    return next(theirs for theirs, ours in ACTIVATIONS.items() if ours == options.activation)
