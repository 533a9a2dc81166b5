"""All gradients of a model as one float32 vector, padded so that it cuts into one row for each rank."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

ROW_MULTIPLE = 256  # floats: rows start on cache lines, and whole blocks of the int8 codec fit in


class FlatLayout:
    """Where each gradient lies: in the model's order without gaps, then zeros up to `padded` floats."""

    def __init__(self, parameters: Sequence[nn.Parameter], size: int) -> None:
        self.parameters = parameters
        self.size = size
        self.numel = sum(p.numel() for p in parameters)
        self.padded = -(-self.numel // (size * ROW_MULTIPLE)) * size * ROW_MULTIPLE

    def zeros(self) -> Tensor:
        """A buffer of this layout, float32 (padded,), where the parameters are."""
        return torch.zeros(self.padded, device=self.parameters[0].device)

    def views(self, flat: Tensor) -> list[Tensor]:
        """The buffer's part of each parameter, in its shape."""
        parts = flat[: self.numel].split([p.numel() for p in self.parameters])
        return [part.view(p.shape) for part, p in zip(parts, self.parameters, strict=True)]

    def gradients(self) -> list[Tensor]:
        """Every `p.grad`; a parameter that took no part in the backward has zeros."""
        return [p.grad if p.grad is not None else torch.zeros_like(p) for p in self.parameters]

    def collect(self, flat: Tensor) -> None:
        """Copy every gradient into the buffer."""
        torch._foreach_copy_(self.views(flat), self.gradients())

    def spread(self, flat: Tensor) -> None:
        """Make every `p.grad` a view of the buffer: nothing is copied."""
        for parameter, view in zip(self.parameters, self.views(flat), strict=True):
            parameter.grad = view

    def clear(self) -> None:
        """Drop the gradients, so that the next backward writes new ones instead of adding."""
        for parameter in self.parameters:
            parameter.grad = None
