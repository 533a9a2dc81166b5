"""Linear layers whose backward pass gives the gradient of the input at once, and of the weights when it is asked for.

Source: Qi et al. 2023, "Zero bubble pipeline parallelism", section 2. What is left for later is a product of the
layer's input and its output's gradient, the one that torch's own backward pass computes, so that the bits are the same.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _Product(NamedTuple):
    weight: Tensor
    of_output: Tensor  # its gradient, (N, O)
    x: Tensor  # the input, (N, I), in the type that was multiplied


class Deferred:
    """Products that wait, under the key that was set when they were put off."""

    def __init__(self) -> None:
        self.key: Any = None
        self._waiting: dict[Any, list[_Product]] = defaultdict(list)

    def put(self, weight: Tensor, of_output: Tensor, x: Tensor) -> None:
        self._waiting[self.key].append(_Product(weight, of_output, x))

    @torch.no_grad()
    def flush(self, key: Any) -> None:
        """Add what waits under a key to `p.grad`, in the order of the backward pass; hooks run as after any."""
        for weight, of_output, x in self._waiting.pop(key, []):
            torch.autograd.backward([weight], [(of_output.t() @ x).to(weight.dtype)])

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """`F.linear` with the gradient of a trained weight put off."""
        if not weight.requires_grad:
            return F.linear(x, weight, bias)
        # Another leaf stands in the graph: the weight's hooks, such as those of a sync, run when its gradient comes.
        return _Deferred.apply(x, weight.detach().requires_grad_(), bias, partial(self.put, weight))


class _Deferred(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, put: Callable) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.put, ctx.has_bias = put, bias is not None
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        flat, kind = gradient.reshape(-1, gradient.shape[-1]), gradient.dtype
        ctx.put(flat, x.reshape(-1, x.shape[-1]).to(kind))
        of_x = (gradient @ weight.to(kind)).to(x.dtype)
        return of_x, None, flat.sum(0).to(weight.dtype) if ctx.has_bias else None, None


class DeferredLinear(nn.Module):
    """A linear layer with the parameters of another one."""

    def __init__(self, layer: nn.Linear, deferred: Deferred) -> None:
        super().__init__()
        self.weight, self.bias, self._deferred = layer.weight, layer.bias, deferred

    def forward(self, x: Tensor) -> Tensor:
        return self._deferred.linear(x, self.weight, self.bias)


def defer(layers: nn.Module) -> Deferred:
    """Put off the products of all linear layers in `layers`, in place; those of other kinds stay as they are."""
    deferred = Deferred()
    for parent in list(layers.modules()):
        if hasattr(parent, "product"):  # a layer that tensor ranks share
            parent.product = deferred.linear  # type: ignore[assignment]
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                setattr(parent, name, DeferredLinear(child, deferred))
    return deferred
