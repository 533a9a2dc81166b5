"""One flat buffer over the world: every gradient is a view into it, so a step is one reduction."""

from __future__ import annotations

import torch
from torch import nn

from hvdlm.world.interface import World


class AllreduceSync:
    """Plain data parallelism with any world, and the serial case: a sum over one rank."""

    kind = "allreduce"

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, world: World) -> None:
        self.optimizer = optimizer
        self._world = world
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._flat = torch.zeros(sum(p.numel() for p in parameters), device=parameters[0].device)
        start = 0
        for parameter in parameters:
            end = start + parameter.numel()
            parameter.grad = self._flat[start:end].view_as(parameter)
            start = end

    def reduce(self) -> None:
        self._world.sum_(self._flat)
        self._flat.div_(self._world.size)

    def step(self) -> None:
        self.optimizer.step()

    def zero_grad(self) -> None:
        self._flat.zero_()
