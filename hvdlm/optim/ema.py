"""A running mean of the weights, often better than the last ones (Polyak and Juditsky 1992)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from pydantic import Field
from torch import Tensor, nn

from hvdlm.config import Section
from hvdlm.errors import UserError


class EmaConfig(Section):
    """The `ema` section."""

    decay: float = Field(0.0, ge=0, lt=1, description="of the mean each step, such as 0.999; 0 keeps no mean")
    warmup: bool = Field(
        True, description="decay at most (1 + step) / (10 + step), so that the first weights fade soon"
    )


class Ema:
    """Exponential moving average of a model's trained parameters: mean = decay * mean + (1 - decay) * weights.

    It starts at the weights of the first update (or of `load_state`), so it does not matter what the model held
    before; until then it is empty and `swapped` changes nothing.
    """

    def __init__(self, model: nn.Module, config: EmaConfig) -> None:
        self._config = config
        self._named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        self._parameters = [p for _, p in self._named]
        self._means: list[Tensor] = []

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after the optimizer's step number `step` (from 0)."""
        if not self._means:
            self._means = [p.detach().clone() for p in self._parameters]
            return
        torch._foreach_lerp_(self._means, [p.detach() for p in self._parameters], 1.0 - self.decay_at(step))

    def decay_at(self, step: int) -> float:
        """Weight of the old mean in the update of `step`."""
        if not self._config.warmup:
            return self._config.decay
        return min(self._config.decay, (1 + step) / (10 + step))

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """The mean is in the model inside, the weights are back afterwards; nothing is copied, so no bit changes."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for number, mean in enumerate(self._means):
            parameter = self._parameters[number]
            self._means[number], parameter.data = parameter.data, mean

    def state(self) -> dict[str, Tensor]:
        """The mean by parameter name, not copied; empty before the first update."""
        return {name: mean for (name, _), mean in zip(self._named, self._means, strict=False)}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take what `state` returned; UserError if it is of another model."""
        if not state:
            self._means = []
            return
        shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
        ours = {name: tuple(p.shape) for name, p in self._named}
        if shapes != ours:
            odd = sorted(name for name in shapes.keys() | ours.keys() if shapes.get(name) != ours.get(name))
            raise UserError(
                f"the running mean of the weights is of another model ({', '.join(odd[:3])} differ);"
                " resume with the settings it was saved with, or set ema.decay=0"
            )
        self._means = [state[name].to(p, copy=True) for name, p in self._named]
