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
from hvdlm.models.interface import FamilyConfig, LanguageModel, OfTraining, State, Vocabulary


class LstmConfig(FamilyConfig):
    """`model: {family: lstm, …}`."""

    family: Literal["lstm"] = "lstm"
    layers: int = Field(2, ge=1, le=10_000, description="LSTMs one above the other")
    width: int = Field(256, ge=1, le=1_000_000, description="size of embedding and hidden state, C")
    dropout: OfTraining[float] = Field(0.0, ge=0, lt=1, description="after the embedding and after each layer")
    embed_dropout: OfTraining[float | None] = Field(
        None, ge=0, lt=1, description="after the embedding; null: as dropout"
    )
    variational: OfTraining[bool] = Field(False, description="one dropout mask for all time steps of a window")
    tie_embeddings: bool = Field(True, description="the output layer shares the input embedding")

    carries_state = True
    without_cpu_fp16 = "an LSTM"

    def build(self, vocabulary: Vocabulary) -> LanguageModel:
        return Lstm(self, vocabulary.size)


class Lstm(LanguageModel):
    """Embedding, layers, head. The state is (B, 2 x layers, C) float32: of each layer its output, then its cell."""

    def __init__(self, config: LstmConfig, vocab_size: int) -> None:
        super().__init__()
        self.dropouts = [config.dropout if config.embed_dropout is None else config.embed_dropout]
        self.dropouts += [config.dropout] * config.layers
        self.takes_draws = any(self.dropouts)
        self.shared_dims = (1,) if config.variational else ()  # Gal and Ghahramani 2016
        self.embed = nn.Embedding(vocab_size, config.width)
        self.layers = nn.ModuleList(nn.LSTM(config.width, config.width, batch_first=True) for _ in range(config.layers))
        self.head = nn.Linear(config.width, vocab_size, bias=False)
        nn.init.normal_(self.embed.weight, std=0.05)
        if config.tie_embeddings:
            self.head.weight = self.embed.weight

    def initial_state(self, num: int) -> State:
        return (torch.zeros(num, 2 * len(self.layers), self.embed.embedding_dim, device=self.device),)

    def forward(
        self, ids: Tensor, state: State | None = None, draws: Draws | None = None
    ) -> tuple[Tensor, State | None]:
        x = self._dropped(self.embed(ids), draws, 0)  # (B, T, C)
        (before,) = self.initial_state(len(ids)) if state is None else state
        before = before.to(x.dtype).transpose(0, 1).contiguous()  # (2 x layers, B, C)
        after = []
        for number, layer in enumerate(self.layers):
            x, last = layer(x, tuple(before[2 * number : 2 * number + 2].split(1)))
            x = self._dropped(x, draws, 1 + number)
            after += last
        return x, None if state is None else (torch.cat(after).transpose(0, 1).float(),)

    def _dropped(self, x: Tensor, draws: Draws | None, site: int) -> Tensor:
        return dropout(x, self.dropouts[site], draws, site, shared_dims=self.shared_dims)
