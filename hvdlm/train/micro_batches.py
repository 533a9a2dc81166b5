"""What a rank does with the micro-batches of a step, whatever the order that its schedule says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from hvdlm.compute.draws import Draws
from hvdlm.models import LanguageModel, Part
from hvdlm.parallel.pipeline import Chunk
from hvdlm.sync import Sync
from hvdlm.tasks import Batch, Sums
from hvdlm.train.noise_scale import NoiseScale


class MicroBatch(NamedTuple):
    """A batch of this rank's examples, of which it has `rows`, and the draws that they share."""

    rows: slice
    batch: Batch
    draws: Draws | None

    @property
    def is_there(self) -> bool:
        """Else it stands in for one, and counts for nothing: all ranks meet as often."""
        return self.rows.stop > self.rows.start


class StepWork:
    """A `pipeline.Work` of one step."""

    def __init__(  # noqa: PLR0913 - what a step's passes meet
        self,
        parts: list[MicroBatch],
        model: LanguageModel,
        loss: Callable[[Any, MicroBatch], Sums],
        *,
        weight: float,
        totals: Tensor,
        room: Callable[[Batch], Tensor],
        sync: Sync,
        noise_scale: NoiseScale,
    ) -> None:
        self._parts, self._model, self._loss, self._weight = parts, model, loss, weight
        self._room, self._sync, self._noise_scale = room, sync, noise_scale
        self.totals = totals  # the task's sums over them, float64; 0 where no loss is computed

    def forward(self, micro_batch: int, part: Part | None) -> Tensor:
        one = self._parts[micro_batch]
        sums = self._loss(self._model if part is None else Chunk(self._model, part), one)
        if not one.is_there:
            return sums.aim * 0.0
        self.totals += sums.values
        return sums.aim * self._weight

    def room(self, micro_batch: int) -> Tensor:
        return self._room(self._parts[micro_batch].batch)

    def begins(self, micro_batch: int) -> None:
        self._noise_scale.listens = micro_batch == 0

    def accumulated(self) -> None:
        self._sync.accumulated()
