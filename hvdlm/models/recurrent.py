"""Recurrent language models: a stack of LSTMs (Hochreiter and Schmidhuber 1997).

Over independent windows, or over a stream whose state is carried from window to window (truncated backpropagation
through time: Zaremba et al. 2014, Merity et al. 2018).
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from hvdlm.compute.draws import Draws, dropout
from hvdlm.models.interface import FamilyConfig


class LstmConfig(FamilyConfig):
    """`model: {family: lstm, …}`."""

    family: Literal["lstm"] = "lstm"
    layers: int = Field(2, ge=1, le=10_000, description="LSTMs one above the other")
    width: int = Field(256, ge=1, le=1_000_000, description="size of embedding and hidden state, C")
    dropout: float = Field(0.0, ge=0, lt=1, description="after the embedding and after each layer")
    embed_dropout: float | None = Field(None, ge=0, lt=1, description="after the embedding; null: as dropout")
    variational: bool = Field(False, description="one dropout mask for all time steps of a window")
    tie_embeddings: bool = Field(True, description="the output layer shares the input embedding")

    carries_state = True
    without_cpu_fp16 = "an LSTM"
    of_training = frozenset({"variational"})

    def build(self, vocab_size: int) -> nn.Module:
        return Lstm(self, vocab_size)


class Lstm(nn.Module):
    """(B, T) ids -> (B, T, V) logits."""

    def __init__(self, config: LstmConfig, vocab_size: int) -> None:
        super().__init__()
        self.dropouts = [config.dropout if config.embed_dropout is None else config.embed_dropout]
        self.dropouts += [config.dropout] * config.layers
        self.shared_dims = (1,) if config.variational else ()  # Gal and Ghahramani 2016
        self.embed = nn.Embedding(vocab_size, config.width)
        self.layers = nn.ModuleList(nn.LSTM(config.width, config.width, batch_first=True) for _ in range(config.layers))
        self.head = nn.Linear(config.width, vocab_size, bias=False)
        nn.init.normal_(self.embed.weight, std=0.05)
        if config.tie_embeddings:
            self.head.weight = self.embed.weight

    def initial_state(self, batch: int, device: torch.device | str) -> Tensor:
        """Zeros (2 x layers, B, C) float32: of each layer its output, then its cell. Samples lie along dim 1."""
        return torch.zeros(2 * len(self.layers), batch, self.embed.embedding_dim, device=device)

    def forward(self, ids: Tensor, draws: Draws | None = None) -> Tensor:
        return self.forward_from(ids, draws, self.initial_state(len(ids), ids.device))[0]

    def forward_from(self, ids: Tensor, draws: Draws | None, state: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of windows that go on from `state`, and the state after them, detached: gradients stop here."""
        x = self._dropped(self.embed(ids), draws, 0)  # (B, T, C)
        after = []
        for number, layer in enumerate(self.layers):
            x, last = layer(x, tuple(state[2 * number : 2 * number + 2].to(x.dtype).split(1)))
            x = self._dropped(x, draws, 1 + number)
            after += last
        return self.head(x), torch.cat(after).detach().float()

    def _dropped(self, x: Tensor, draws: Draws | None, site: int) -> Tensor:
        return dropout(x, self.dropouts[site], draws, site, shared_dims=self.shared_dims)
