"""MODELS: a family is a file and a line here."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import nn

from hvdlm.config import tagged_union
from hvdlm.models.cnn import CnnConfig
from hvdlm.models.convolutional import ConvConfig
from hvdlm.models.hmm import HmmConfig
from hvdlm.models.interface import FamilyConfig, LanguageModel, Vocabulary
from hvdlm.models.maxent import MaxentConfig
from hvdlm.models.min_gru import MinGruConfig
from hvdlm.models.ngram import NgramConfig
from hvdlm.models.recurrent import GruConfig, LstmConfig, RnnConfig
from hvdlm.models.transformer import TransformerConfig
from hvdlm.models.vae import VaeConfig

MODELS: dict[str, type[FamilyConfig]] = {
    "transformer": TransformerConfig,
    "rnn": RnnConfig,
    "gru": GruConfig,
    "lstm": LstmConfig,
    "mingru": MinGruConfig,
    "conv": ConvConfig,
    "cnn": CnnConfig,
    "hmm": HmmConfig,
    "ngram": NgramConfig,
    "maxent": MaxentConfig,
    "vae": VaeConfig,
}

ModelConfig = Annotated[FamilyConfig, tagged_union(MODELS, "family")]


def build_model(config: FamilyConfig, vocabulary: Vocabulary, seed: int) -> LanguageModel:
    """A freshly initialized model; the same (config, vocabulary, seed) gives the same weights."""
    torch.manual_seed(seed)
    return config.build(vocabulary)


def num_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
