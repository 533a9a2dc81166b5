"""What the optimizers that torch lacks share: the step over groups, its tensors, the ratio of layer-wise ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

Betas = tuple[float, float]


class GroupOptimizer(torch.optim.Optimizer):
    """An optimizer that is its `update` of some weights by their gradients, under the options of their group."""

    def update(self, weights: list[Tensor], grads: list[Tensor], group: dict[str, Any]) -> None:
        """Change `weights` in place."""
        raise NotImplementedError

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = loss_of(closure)
        for group in self.param_groups:
            for weights in updated_together(group["params"]):
                self.update(weights, [weight.grad for weight in weights if weight.grad is not None], group)
        return loss

    def entries(self, weights: list[Tensor], name: str) -> list[Tensor]:
        """The state `name` of each weight, zeros of its shape at first."""
        for weight in weights:
            if name not in self.state[weight]:
                self.state[weight][name] = torch.zeros_like(weight)
        return [self.state[weight][name] for weight in weights]


def updated_together(parameters: list[Tensor]) -> Iterator[list[Tensor]]:
    """Lists, for `torch._foreach_*`, of the parameters that have a gradient.

    A GPU wants them all at once, since it pays for each kernel's start. A CPU wants one at a time: its values stay in
    cache from the first operation to the last (Lion at 10.7 M parameters: 8 ms instead of 11).
    """
    having = [parameter for parameter in parameters if parameter.grad is not None]
    if having and having[0].device.type == "cpu":
        yield from ([parameter] for parameter in having)
    elif having:
        yield having


def loss_of(closure: Callable[[], Any] | None) -> Any:
    """What torch's `Optimizer.step(closure)` returns: the loss computed anew, or None."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


def trust_ratios(
    parameters: Sequence[Tensor], numerators: Sequence[Tensor], denominators: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """numerator / denominator for each parameter, scalar tensors; 1 where one is 0, and for gains and biases.

    Tensors, since a GPU would have to be waited for to get numbers.
    """
    above, below = torch.stack(list(numerators)), torch.stack(list(denominators))  # each (n,)
    is_matrix = torch.tensor([parameter.dim() >= 2 for parameter in parameters], device=above.device)
    applies = is_matrix & (above > 0) & (below > 0)
    return torch.where(applies, above / below, torch.ones_like(above)).unbind()
