"""Recurrent language models over independent windows: an LSTM (Hochreiter and Schmidhuber 1997)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from hvdlm.config import Section


class LstmConfig(Section):
    """`model: {family: lstm, …}`."""

    family: Literal["lstm"] = "lstm"
    layers: int = Field(2, ge=1)
    width: int = Field(256, ge=1, description="size of embedding and hidden state, C")
    dropout: float = Field(0.0, ge=0, lt=1)
    tie_embeddings: bool = Field(True, description="the output layer shares the input embedding")


class Lstm(nn.Module):
    """(B, T) ids -> (B, T, V) logits; the state is zero at the start of each window."""

    def __init__(self, config: LstmConfig, vocab_size: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocab_size, config.width)
        self.drop = nn.Dropout(config.dropout)
        between = config.dropout if config.layers > 1 else 0.0
        self.lstm = nn.LSTM(config.width, config.width, config.layers, batch_first=True, dropout=between)
        self.head = nn.Linear(config.width, vocab_size, bias=False)
        nn.init.normal_(self.embed.weight, std=0.05)
        if config.tie_embeddings:
            self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        states, _ = self.lstm(self.drop(self.embed(ids)))  # (B, T, C)
        return self.head(self.drop(states))
