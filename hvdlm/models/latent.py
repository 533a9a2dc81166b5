"""Models with a latent variable: text x comes from a hidden z of a standard normal prior p(z).

An encoder guesses the z behind a text, q(z | x), a normal distribution with a diagonal covariance (Kingma and Welling
2014, "Auto-encoding variational Bayes"); a decoder says p(x | z), token by token.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from hvdlm.compute.draws import Draws
from hvdlm.models.interface import LanguageModel, State

LOG_2PI = math.log(2 * math.pi)


class Posterior(NamedTuple):
    """q(z | x) of a batch of texts, float32."""

    mean: Tensor  # (B, Z)
    log_variance: Tensor  # (B, Z)

    def kl(self) -> Tensor:
        """KL(q(z | x) || p(z)) of each dimension, in nats: (B, Z), which add up to that of z."""
        return 0.5 * (self.mean.square() + self.log_variance.exp() - 1 - self.log_variance)

    def sample(self, noise: Tensor) -> Tensor:
        """z (B, Z) from standard normal noise (B, Z), differentiable in both parameters."""
        return self.mean + (0.5 * self.log_variance).exp() * noise

    def log_weight(self, noise: Tensor) -> Tensor:
        """log p(z) - log q(z | x) at the z that `noise` (B, Z) gives: (B,)."""
        z = self.sample(noise)
        return 0.5 * (noise.square() + self.log_variance - z.square()).sum(1)


class LatentModel(LanguageModel):
    """Its state is z (B, Z), then what the decoder remembers; without one it decodes from z = 0, the prior's mean."""

    latent: int  # dimensions of z, Z
    draws_state = True

    @abstractmethod
    def encode(self, ids: Tensor, lengths: Tensor, draws: Draws | None = None) -> Posterior:
        """What is guessed from texts: ids (B, T), of which those behind `lengths` (B,) are padding; none may be 0."""

    @abstractmethod
    def decode(
        self, ids: Tensor, z: Tensor, state: State | None = None, draws: Draws | None = None
    ) -> tuple[Tensor, State]:
        """(B, T) ids and z (B, Z) -> hidden (B, T, C), and the decoder's state after them.

        Position t has seen z and the ids up to t. Without a state a text begins.
        """

    @abstractmethod
    def begin(self, z: Tensor) -> State:
        """The decoder's state where texts of z (B, Z) begin."""

    def initial_state(self, num: int) -> State:
        z = torch.zeros(num, self.latent, device=self.device)
        return (z, *self.begin(z))

    def sampled_state(self, num: int, random: torch.Generator) -> State:
        z = torch.randn(num, self.latent, generator=random).to(self.device)
        return (z, *self.begin(z))

    def forward(
        self, ids: Tensor, state: State | None = None, draws: Draws | None = None, *, lengths: Tensor | None = None
    ) -> tuple[Tensor, State | None]:
        z, *before = self.initial_state(len(ids)) if state is None else state
        hidden, after = self.decode(ids, z, tuple(before), draws)
        return hidden, None if state is None else (z, *after)
