"""LAMB: Adam with a trust ratio for each layer (You et al. 2020, "Large Batch Optimization for Deep Learning")."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hvdlm.optim.tensors import Betas, GroupOptimizer, trust_ratios


class Lamb(GroupOptimizer):
    """u = Adam's direction + weight_decay * w, then w -= lr * |w| / |u| * u; plain lr * u for gains and biases."""

    def __init__(
        self, params: Any, lr: float = 1e-3, betas: Betas = (0.9, 0.999), eps: float = 1e-6, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    def update(self, weights: list[Tensor], grads: list[Tensor], group: dict[str, Any]) -> None:
        updates = self._directions(weights, grads, group)
        torch._foreach_add_(updates, weights, alpha=group["weight_decay"])
        ratios = trust_ratios(weights, torch._foreach_norm(weights), torch._foreach_norm(updates))
        torch._foreach_mul_(updates, ratios)
        torch._foreach_add_(weights, updates, alpha=-group["lr"])

    def _directions(self, weights: list[Tensor], grads: list[Tensor], group: dict[str, Any]) -> tuple[Tensor, ...]:
        """Adam's bias-corrected mean gradient over the root of its mean square; new tensors."""
        beta1, beta2 = group["betas"]
        for weight in weights:
            self.state[weight]["step"] = self.state[weight].get("step", 0) + 1
        steps = [self.state[weight]["step"] for weight in weights]
        means, mean_squares = self.entries(weights, "mean"), self.entries(weights, "mean_square")
        torch._foreach_lerp_(means, grads, 1.0 - beta1)
        torch._foreach_mul_(mean_squares, beta2)
        torch._foreach_addcmul_(mean_squares, grads, grads, value=1.0 - beta2)
        roots = torch._foreach_sqrt(mean_squares)
        torch._foreach_div_(roots, [(1.0 - beta2**step) ** 0.5 for step in steps])
        torch._foreach_add_(roots, group["eps"])
        directions = torch._foreach_div(means, roots)
        torch._foreach_div_(directions, [1.0 - beta1**step for step in steps])
        return directions
