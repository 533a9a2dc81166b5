"""LAMB: Adam with a trust ratio for each layer (You et al. 2020, "Large Batch Optimization for Deep Learning")."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hvdlm.optim.tensors import Betas, gradients, loss_of, trust_ratios, updated_together


class Lamb(torch.optim.Optimizer):
    """u = Adam's direction + weight_decay * w, then w -= lr * |w| / |u| * u; plain lr * u for gains and biases."""

    def __init__(
        self, params: Any, lr: float = 1e-3, betas: Betas = (0.9, 0.999), eps: float = 1e-6, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = loss_of(closure)
        for group in self.param_groups:
            for weights in updated_together(group["params"]):
                updates = self._directions(weights, group)
                torch._foreach_add_(updates, weights, alpha=group["weight_decay"])
                ratios = trust_ratios(weights, torch._foreach_norm(weights), torch._foreach_norm(updates))
                torch._foreach_mul_(updates, ratios)
                torch._foreach_add_(weights, updates, alpha=-group["lr"])
        return loss

    def _directions(self, weights: list[Tensor], group: dict[str, Any]) -> tuple[Tensor, ...]:
        """Adam's bias-corrected mean gradient over the root of its mean square; new tensors."""
        grads, (beta1, beta2) = gradients(weights), group["betas"]
        for weight in weights:
            state = self.state[weight]
            if not state:
                state.update(step=0, mean=torch.zeros_like(weight), mean_square=torch.zeros_like(weight))
            state["step"] += 1
        means = [self.state[weight]["mean"] for weight in weights]
        mean_squares = [self.state[weight]["mean_square"] for weight in weights]
        steps = [self.state[weight]["step"] for weight in weights]
        torch._foreach_lerp_(means, grads, 1.0 - beta1)
        torch._foreach_mul_(mean_squares, beta2)
        torch._foreach_addcmul_(mean_squares, grads, grads, value=1.0 - beta2)
        roots = torch._foreach_sqrt(mean_squares)
        torch._foreach_div_(roots, [(1.0 - beta2**step) ** 0.5 for step in steps])
        torch._foreach_add_(roots, group["eps"])
        directions = torch._foreach_div(means, roots)
        torch._foreach_div_(directions, [1.0 - beta1**step for step in steps])
        return directions
