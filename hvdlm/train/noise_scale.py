"""Gradient noise scale (McCandlish et al. 2018): the batch at which more data a step stops paying, almost free."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn


class NoiseScale:
    """Compares the gradient of one micro-batch with that of the global batch, in the steps it is armed for.

    Of the parameters that it is given, those that a replica has here: their sum over the ranks of one replica is that
    of the model. The first micro-batch's squared norm is taken tensor by tensor, as its gradients come and are still in
    cache; the global gradient's norm is known from clipping.
    """

    MEMORY = 0.9  # of the running means: single estimates are very noisy

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self._weight = 1.0  # what a micro-batch's sum of losses is multiplied with
        self.targets = self.all_targets = 1  # of the micro-batch that is measured, and of the global batch
        self.listens = True  # the micro-batch whose gradients come is the first
        self._is_armed = False
        self._squares: list[Tensor] = []
        self.small: float | None = None  # squared norm of this rank's micro-batch gradient
        self.large: float | None = None  # of the global batch's
        self._noise = self._signal = 0.0
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        self._has_none = not trained  # as a stage that is frozen, whose part of the norm is 0
        for parameter in trained:
            parameter.register_post_accumulate_grad_hook(self._arrived)

    def arm(self) -> None:
        """Measure in the coming step."""
        self._is_armed, self._squares, self.small, self.large = True, [], None, None

    def weigh(self, weight: float, targets: int, all_targets: int) -> None:
        """Say of the coming micro-batch what its sum is multiplied with, and its and the global batch's targets."""
        self._weight, self.targets, self.all_targets = weight, targets, all_targets

    def _arrived(self, parameter: Tensor) -> None:
        if self._is_armed and self.listens and parameter.grad is not None:
            self._squares.append(torch.linalg.vector_norm(parameter.grad) ** 2)

    def take(self, norm: Tensor) -> None:
        """The norm of the mean gradient over the global batch."""
        if self.targets and (self._squares or (self._is_armed and self._has_none)):
            square = float(torch.stack(self._squares).sum()) if self._squares else 0.0
            self.small = square / (self._weight * self.targets) ** 2
            self.large = float(norm) ** 2
            self._squares = []
        self._is_armed = False

    def estimate(self, small: float, large: float, micro_batch: float, global_batch: float) -> float | None:
        """From squared norms at two batch sizes, in whose unit it is (appendix A.1); None if not positive or unknown.

        Of micro-batches of several sizes these are the mean of the norms and the harmonic mean of the sizes.
        """
        if math.isclose(micro_batch, global_batch) or not (math.isfinite(small) and math.isfinite(large)):
            return None
        signal = (global_batch * large - micro_batch * small) / (global_batch - micro_batch)
        noise = (small - large) / (1 / micro_batch - 1 / global_batch)
        self._signal += (1 - self.MEMORY) * (signal - self._signal)
        self._noise += (1 - self.MEMORY) * (noise - self._noise)
        return self._noise / self._signal if self._signal > 0 and self._noise > 0 else None
