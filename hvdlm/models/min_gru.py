"""`model: {family: mingru, …}`: gates that see no past, so that all of a window is computed at once.

Feng et al. 2024, "Were RNNs all we needed?": h' = (1 - z) h + z g(v), with z = sigmoid(W x), v = V x and g(v) > 0.
A block is a short causal convolution and the recurrence, then an MLP, each on the normed stream and added to it.

The paper sums logarithms over the window. In float32 that loses a digit for each ten times the length, and torch's
logcumsumexp is the slowest part by far on CPUs; here the recurrence itself runs in chunks, in parallel.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from hvdlm.compute.draws import Draws
from hvdlm.models.interface import LanguageModel, State, Vocabulary
from hvdlm.models.stack import Dropout, Stack, StackConfig, fitted


class MinGruConfig(StackConfig):
    """`model: {family: mingru, …}`: minimal gated recurrent units (Feng et al. 2024), trained by a parallel scan."""

    family: Literal["mingru"] = "mingru"
    expansion: int = Field(2, ge=1, le=64, description="hidden units of the recurrence are so many times width")
    kernel: int = Field(4, ge=1, le=64, description="inputs that the convolution before it sees; 1 is none")

    carries_state = True
    drops_within_layers = True

    @property
    def state_shapes(self) -> list[list[tuple[int, ...]]]:
        pairs = zip(self.widths, self.widths[1:], strict=False)
        return [[(self.expansion * width,), (self.kernel - 1, inputs)] for inputs, width in pairs]

    def build(self, vocabulary: Vocabulary) -> LanguageModel:
        return MinGru(self, vocabulary.size)


class MinGru(Stack):
    """Embedding, blocks, head. The state is of each block its hidden units (B, E C) and last inputs (B, K - 1, C)."""

    end_std = 0.02  # what the head sees is normed, and larger than what recurrent layers give

    def __init__(self, config: MinGruConfig, vocab_size: int) -> None:
        first = 1 + config.layers
        super().__init__(config, vocab_size, (Block(config, n, site=first + 2 * n) for n in range(config.layers)))
        self.norm = nn.LayerNorm(config.widths[-1], bias=False)


class Block(nn.Module):
    """One layer; its draws have the sites `site` and `site` + 1."""

    def __init__(self, config: MinGruConfig, number: int, *, site: int) -> None:
        super().__init__()
        inputs, width = config.widths[number : number + 2]
        units = config.expansion * width
        self.norm1 = nn.LayerNorm(inputs, bias=False)
        # Of each channel for itself, so no matrix: begins as the mean of what it sees.
        self.taps = nn.Parameter(torch.full((config.kernel, 1, inputs), 1 / config.kernel))
        self.gates = nn.Linear(inputs, 2 * units)  # W and V
        self.out = nn.Linear(units, width, bias=False)
        self.residual = fitted(inputs, width)
        self.norm2 = nn.LayerNorm(width, bias=False)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width, bias=False),
            nn.GELU(approximate="tanh"),
            nn.Linear(4 * width, width, bias=False),
        )
        p = config.dropout_of(config.layer_dropout)
        self.drop1, self.drop2 = (Dropout(p, at, shared_dims=config.shared_dims) for at in (site, site + 1))

    def forward(self, x: Tensor, past: State, draws: Draws | None) -> tuple[Tensor, State]:
        before, inputs = past
        time = x.shape[1]
        seen = torch.cat((inputs.to(x.dtype), self.norm1(x)), dim=1)  # (B, K - 1 + T, C)
        mixed = sum(tap * seen[:, place : place + time] for place, tap in enumerate(self.taps))
        gates = self.gates(mixed)
        gate, value = gates.to(torch.promote_types(gates.dtype, torch.float32)).chunk(2, dim=-1)  # each (B, T, E C)
        update = gate.sigmoid()
        # 1 - sigmoid(gate) without cancellation; g is x + 1/2 above 0 and sigmoid(x) below.
        added = update * torch.where(value >= 0, value + 0.5, value.sigmoid())
        kept = (-gate).sigmoid()
        hidden = LinearRecurrence.apply(kept, added, before.to(kept.dtype))
        x = self.residual(x) + self.drop1(self.out(hidden.to(mixed.dtype)), draws)
        return x + self.drop2(self.mlp(self.norm2(x)), draws), (hidden[:, -1], seen[:, time:])


class LinearRecurrence(torch.autograd.Function):
    """h_t = a_t h_{t-1} + b_t along dimension 1 of a and b (B, T, C), from h_0 (B, C); h of all t."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, before: Tensor) -> Tensor:
        hidden = scan(a, torch.cat((b[:, :1] + a[:, :1] * before.unsqueeze(1), b[:, 1:]), dim=1))
        ctx.save_for_backward(a, hidden, before)
        return hidden

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The same recurrence from the end: d_t = gradient_t + a_{t+1} d_{t+1}."""
        a, hidden, before = ctx.saved_tensors
        of_b = scan(a.roll(-1, dims=1).flip(1), gradient.flip(1)).flip(1)  # the first factor meets nothing
        earlier = torch.cat((before.unsqueeze(1), hidden[:, :-1]), dim=1)
        return of_b * earlier, of_b, of_b[:, 0] * a[:, 0]


def scan(a: Tensor, b: Tensor) -> Tensor:
    """h_t = a_t h_{t-1} + b_t along dimension 1 of (B, T, C), with h_0 = 0: in about 2 sqrt(T) steps.

    The window is cut into sqrt(T) chunks that run side by side; then each is given what the chunk before it ended in.
    """
    batch, time, width = b.shape
    length = math.isqrt(time - 1) + 1
    chunks = (batch, -1, length, width)
    a, b = (F.pad(part, (0, 0, 0, -time % length)).view(chunks).clone() for part in (a, b))
    for place in range(1, length):
        b[:, :, place].addcmul_(a[:, :, place], b[:, :, place - 1])
        a[:, :, place] *= a[:, :, place - 1]
    for chunk in range(1, b.shape[1]):
        b[:, chunk].addcmul_(a[:, chunk], b[:, chunk - 1, -1:])
    return b.flatten(1, 2)[:, :time]
