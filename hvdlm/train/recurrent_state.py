"""The recurrent state that truncated backpropagation through time carries from step to step (Werbos 1990)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hvdlm.partition import slice_of
from hvdlm.world.interface import World


class RecurrentState:
    """State of this rank's streams, (…, streams, C) along dimension 1, detached between steps."""

    def __init__(self, model: Any, global_batch: int, world: World, device: torch.device) -> None:
        self._world, self._global_batch = world, global_batch
        self._device = device
        self._state: Tensor = model.initial_state(len(slice_of(world.rank, world.size, global_batch)), device)

    def forward(self, model: Any, inputs: Tensor, draws: Any, rows: slice, *, anew: bool) -> Tensor:
        """Logits of the streams `rows`, continued from where they stand, or from zero."""
        before = self._state[:, rows]
        logits, after = model.forward_from(inputs, draws, torch.zeros_like(before) if anew else before.clone())
        self._state[:, rows] = after.detach()
        return logits

    def gather(self) -> Tensor:
        """The state of all streams in their order, (…, global batch, C), on all ranks; collective."""
        parts = self._world.gather_rows(self._state.contiguous().view(-1))
        return torch.cat([part.view_as(self._state) for part in parts], dim=1)

    def load(self, everything: Tensor) -> None:
        """Take this rank's streams out of what `gather` returned at any number of ranks."""
        mine = slice_of(self._world.rank, self._world.size, self._global_batch)
        self._state = everything[:, mine.start : mine.stop].clone().to(self._device)
