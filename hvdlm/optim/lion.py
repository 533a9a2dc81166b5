"""Lion: the sign of an interpolated momentum (Chen et al. 2023, "Symbolic Discovery of Optimization Algorithms")."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hvdlm.optim.tensors import Betas, GroupOptimizer


class Lion(GroupOptimizer):
    """w -= lr * (sign(beta1 * m + (1 - beta1) * g) + weight_decay * w), then m = beta2 * m + (1 - beta2) * g.

    The paper takes betas (0.9, 0.99), and a learning rate 3 to 10 times smaller than AdamW's.
    """

    def __init__(self, params: Any, lr: float = 1e-4, betas: Betas = (0.9, 0.99), weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    def update(self, weights: list[Tensor], grads: list[Tensor], group: dict[str, Any]) -> None:
        lr, (beta1, beta2) = group["lr"], group["betas"]
        momenta = self.entries(weights, "momentum")
        updates = torch._foreach_lerp(momenta, grads, 1.0 - beta1)
        torch._foreach_sign_(updates)
        if group["weight_decay"]:
            torch._foreach_mul_(weights, 1.0 - lr * group["weight_decay"])
        torch._foreach_add_(weights, updates, alpha=-lr)
        torch._foreach_lerp_(momenta, grads, 1.0 - beta2)
