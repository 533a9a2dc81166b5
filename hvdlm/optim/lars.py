"""LARS: momentum with a learning rate for each layer (You et al. 2017, "Large Batch Training of …")."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from hvdlm.optim.tensors import gradients, loss_of, trust_ratios, updated_together


class Lars(torch.optim.Optimizer):
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

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = loss_of(closure)
        for group in self.param_groups:
            decay = group["weight_decay"]
            for weights in updated_together(group["params"]):
                grads = gradients(weights)
                for weight in weights:
                    if not self.state[weight]:
                        self.state[weight]["update"] = torch.zeros_like(weight)
                updates = [self.state[weight]["update"] for weight in weights]
                sizes = torch._foreach_norm(weights)
                limits = torch._foreach_add(torch._foreach_norm(grads), sizes, alpha=decay)
                scaled = torch._foreach_mul(sizes, group["trust_coefficient"])
                steps = torch._foreach_add(grads, weights, alpha=decay)
                torch._foreach_mul_(steps, trust_ratios(weights, scaled, limits))
                torch._foreach_mul_(updates, group["momentum"])
                torch._foreach_add_(updates, steps, alpha=group["lr"])
                torch._foreach_sub_(weights, updates)
        return loss
