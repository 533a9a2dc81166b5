"""From the hidden vectors of a text to one: padding has no part in it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Pooling = Callable[[Tensor, Tensor], Tensor]  # hidden (B, T, C), lengths (B,) of at least 1 -> (B, C)


def _known(hidden: Tensor, lengths: Tensor) -> Tensor:
    """Which vectors are no padding: bool (B, T, 1)."""
    return (torch.arange(hidden.shape[1], device=hidden.device) < lengths.unsqueeze(1)).unsqueeze(2)


def _last(hidden: Tensor, lengths: Tensor) -> Tensor:
    return hidden[torch.arange(len(hidden), device=hidden.device), lengths - 1]


def _mean(hidden: Tensor, lengths: Tensor) -> Tensor:
    return hidden.masked_fill(~_known(hidden, lengths), 0.0).sum(1) / lengths.unsqueeze(1).to(hidden.dtype)


def _max(hidden: Tensor, lengths: Tensor) -> Tensor:
    return hidden.masked_fill(~_known(hidden, lengths), -torch.inf).amax(1)


def _cls(hidden: Tensor, lengths: Tensor) -> Tensor:
    return hidden[:, 0]


POOLINGS: dict[str, Pooling] = {"last": _last, "mean": _mean, "max": _max, "cls": _cls}
