"""Model families behind one interface. A family is a file and a line here.

`model(ids, draws=None)`: (B, T) ids -> (B, T, V) logits. Training gives the draws that dropout is made from;
without them there is no dropout, whatever mode the module is in.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import nn

from hvdlm.models.recurrent import Lstm, LstmConfig
from hvdlm.models.transformer import Transformer, TransformerConfig

ModelConfig = Annotated[TransformerConfig | LstmConfig, Field(discriminator="family")]

MODELS: dict[str, Callable[[Any, int], nn.Module]] = {"transformer": Transformer, "lstm": Lstm}


def build_model(config: TransformerConfig | LstmConfig, vocab_size: int, seed: int) -> nn.Module:
    """A freshly initialized model; the same (config, vocab_size, seed) gives the same weights."""
    torch.manual_seed(seed)
    return MODELS[config.family](config, vocab_size)


def is_random(config: TransformerConfig | LstmConfig) -> bool:
    """Whether training the model takes draws."""
    return any(getattr(config, name) for name in type(config).model_fields if name.endswith("dropout"))


def num_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
