"""The recurrent state that truncated backpropagation through time carries from step to step (Werbos 1990)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hvdlm.errors import UserError
from hvdlm.models import LanguageModel, State
from hvdlm.partition import slice_of
from hvdlm.world.interface import World


class RecurrentState:
    """State of this rank's streams, detached between steps."""

    def __init__(self, model: LanguageModel, global_batch: int, world: World) -> None:
        self._world, self._global_batch = world, global_batch
        mine = slice_of(world.rank, world.size, global_batch)
        self._state = tuple(part.clone() for part in model.initial_state(len(mine)))
        self._fresh = tuple(part.clone() for part in self._state)

    def before(self, rows: slice, *, anew: bool) -> State:
        """Where the streams `rows` stand, or where they begin."""
        return tuple(part[rows].clone() for part in (self._fresh if anew else self._state))

    def keep(self, rows: slice, after: State) -> None:
        """Where they have come to; gradients stop here."""
        for part, now in zip(self._state, after, strict=True):
            part[rows] = now.detach()

    def gather(self) -> list[Tensor]:
        """The state of all streams in their order, on all ranks; collective."""
        everything = []
        for part in self._state:
            rows = self._world.gather_rows(part.contiguous().view(-1))
            everything.append(torch.cat([row.view(part.shape) for row in rows]))
        return everything

    def load(self, everything: Sequence[Tensor]) -> None:
        """Take this rank's streams out of what `gather` returned at any number of ranks."""
        found, wanted = ([tuple(part.shape[1:]) for part in state] for state in (everything, self._state))
        if found != wanted:
            raise UserError(
                f"the checkpoint's carried state is of another version of hvdlm (tensors of {found} a stream, not"
                f" {wanted}); begin a new run with these weights (init.from)"
            )
        if len(everything) != len(self._state):
            raise UserError(
                f"the checkpoint carries {len(everything)} tensors of state, this model has {len(self._state)}:"
                " it was not trained with data.order: contiguous"
            )
        mine = slice_of(self._world.rank, self._world.size, self._global_batch)
        for part, whole in zip(self._state, everything, strict=True):
            part.copy_(whole[mine.start : mine.stop])
