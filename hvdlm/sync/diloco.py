"""DiLoCo: many local steps, then one outer step with momentum along the way the ranks went on average.

Source: Douillard et al. 2023 (DiLoCo: Distributed low-communication training of language models).
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from hvdlm.errors import UserError
from hvdlm.sync.interface import StrategyConfig, Sync
from hvdlm.sync.local_sgd import LocalSgdConfig, LocalSgdSync
from hvdlm.world.interface import World


class DilocoConfig(StrategyConfig):
    """`sync: {kind: diloco, …}`; the inner optimizer is the one of the `optim` section."""

    kind: Literal["diloco"] = "diloco"
    every: int = Field(32, ge=1, description="local steps between outer steps, H")
    outer_lr: float = Field(0.7, gt=0, description="1 with outer_momentum 0 is local SGD")
    outer_momentum: float = Field(0.9, ge=0, lt=1, description="Nesterov's; 0 is plain SGD")

    keeps_replicas_equal = False

    def build(self, model: nn.Module, optimizer: torch.optim.Optimizer, world: World) -> Sync:
        return DilocoSync(self, model, optimizer, world)


class DilocoSync(LocalSgdSync):
    """After step s, if `every` divides s + 1, all ranks take the outer step and go on from its weights.

    The outer gradient is the global weights less the mean of the ranks' weights; Nesterov's SGD applies it to
    the global weights. As in local SGD this sits in `zero_grad`, which no rank leaves out, and the inner
    optimizer's state stays each rank's own until `settle`. What is evaluated between two outer steps is the
    mean of the ranks' present weights: the latest, while the global ones are up to `every` steps old.
    """

    def __init__(self, config: DilocoConfig, model: nn.Module, optimizer: torch.optim.Optimizer, world: World) -> None:
        super().__init__(LocalSgdConfig(every=config.every), model, optimizer, world)
        self._lr, self._momentum = config.outer_lr, config.outer_momentum
        self._outer: Outer | None = None  # until the first step: weights are still to be agreed on, or loaded

    def begin(self, step: int, passes: int) -> None:
        super().begin(step, passes)
        if self._outer is None:
            self._outer = Outer(self._weights.clone(), torch.zeros_like(self._weights))

    def meet(self) -> None:
        super().meet()
        assert self._outer is not None, "a step has begun"
        self._outer.step_towards(self._weights, self._lr, self._momentum)
        self._weights.copy_(self._outer.weights)

    def state(self) -> dict[str, Tensor]:
        return {} if self._outer is None else {"weights": self._outer.weights, "momentum": self._outer.momentum}

    def load_state(self, state: dict[str, Tensor]) -> None:
        self._outer = None
        if not state:  # saved before the first step
            return
        weights, momentum = (state[name].to(self._weights) for name in ("weights", "momentum"))
        if weights.shape != self._weights.shape:
            raise UserError(
                f"sync: the checkpoint's outer weights are {weights.numel()} numbers, this model has"
                f" {self._weights.numel()}; resume with the model of the checkpoint"
            )
        self._outer = Outer(weights.clone(), momentum.clone())


class Outer:
    """The global weights and their momentum, each (n,), the same on all ranks."""

    def __init__(self, weights: Tensor, momentum: Tensor) -> None:
        self.weights, self.momentum = weights, momentum

    def step_towards(self, mean: Tensor, lr: float, momentum: float) -> None:
        """One step of SGD with Nesterov momentum, as torch.optim.SGD takes it, on the gradient `weights - mean`."""
        gradient = self.weights - mean
        self.momentum.mul_(momentum).add_(gradient)
        self.weights.sub_(gradient.add_(self.momentum, alpha=momentum), alpha=lr)
