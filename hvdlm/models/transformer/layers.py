"""The small parts of a block by name: NORMS, ACTIVATIONS."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RmsNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps), times a gain for each element, in float32 (Zhang and Sennrich 2019)."""

    def __init__(self, width: int, eps: float, bias: bool) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        wide = x if x.dtype == torch.float64 else x.float()
        normed = wide * (wide.square().mean(-1, keepdim=True) + self.eps).rsqrt() * self.weight
        return normed if self.bias is None else normed + self.bias


NORMS: dict[str, Callable[[int, float, bool], nn.Module]] = {
    "layernorm": lambda width, eps, bias: nn.LayerNorm(width, eps=eps, bias=bias),
    "rmsnorm": RmsNorm,
}


class SwiGlu(nn.Module):
    """silu(first half) x second half of the last axis (Shazeer 2020)."""

    def forward(self, x: Tensor) -> Tensor:
        gate, value = x.chunk(2, dim=-1)
        return F.silu(gate) * value


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "gelu": nn.GELU,
    "gelu_tanh": lambda: nn.GELU(approximate="tanh"),
    "relu": nn.ReLU,
    "swiglu": SwiGlu,
}
GATED = {"swiglu"}  # they take twice the width that they give


def softcapped(x: Tensor, cap: float | None) -> Tensor:
    """x bent into (-cap, cap); None: as it is (Gemma Team 2024)."""
    return x if cap is None else cap * (x / cap).tanh()
