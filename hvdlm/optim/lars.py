"""LARS: momentum with a learning rate for each layer (You et al. 2017, "Large Batch Training of …")."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hvdlm.optim.tensors import GroupOptimizer, trust_ratios


class Lars(GroupOptimizer):
    """u = momentum * u + lr * ratio * (g + weight_decay * w), then w -= u.

    ratio = trust_coefficient * |w| / (|g| + weight_decay * |w|) for matrices, and 1 for gains and biases, as usual.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1.0,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust_coefficient: float = 0.001,
    ) -> None:
        options = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust_coefficient": trust_coefficient}
        super().__init__(params, options)

    def update(self, weights: list[Tensor], grads: list[Tensor], group: dict[str, Any]) -> None:
        decay, updates = group["weight_decay"], self.entries(weights, "update")
        sizes = torch._foreach_norm(weights)
        limits = torch._foreach_add(torch._foreach_norm(grads), sizes, alpha=decay)
        scaled = torch._foreach_mul(sizes, group["trust_coefficient"])
        steps = torch._foreach_add(grads, weights, alpha=decay)
        torch._foreach_mul_(steps, trust_ratios(weights, scaled, limits))
        torch._foreach_mul_(updates, group["momentum"])
        torch._foreach_add_(updates, steps, alpha=group["lr"])
        torch._foreach_sub_(weights, updates)
