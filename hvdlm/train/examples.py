"""What a rank computes of each step: its examples, in micro-batches, and how many targets they and all others bring."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hvdlm.compute.draws import draws_for
from hvdlm.data.manifest import Manifest
from hvdlm.data.orders import OrderSettings, order_over
from hvdlm.data.record_batches import RecordBatches
from hvdlm.data.records import Records
from hvdlm.data.windows import IGNORED
from hvdlm.errors import UserError
from hvdlm.partition import slice_of
from hvdlm.tasks import Task
from hvdlm.tasks.records import RecordTask
from hvdlm.train.batch_plan import BatchPlan
from hvdlm.train.config import RunConfig
from hvdlm.train.learner import Source
from hvdlm.train.micro_batches import MicroBatch
from hvdlm.train.token_plan import TokenPlan


@dataclass(frozen=True)
class Share:
    """A part of a step's global batch, read."""

    places: np.ndarray  # of its examples in the order, int64 (n,)
    slices: list[range]  # which examples of the global batch each micro-batch has; of some parts some have none
    ids: Tensor  # int64 (n, T + 1), on the host
    spare: Tensor | None  # (1, T + 1), one example of another part, where some micro-batch has none
    targets: int  # the denominator that they bring in
    all_targets: int  # that of the global batch


class Examples:
    """Of the training order over texts, or over records as the task lays them out, for `num_parts` data ranks.

    The task has seen its model before: what it lays out may depend on it.
    """

    def __init__(
        self, config: RunConfig, source: Source, task: Task, manifest: Manifest, num_parts: int, device: torch.device
    ) -> None:
        train = config.train
        self.batches: Any = _order_of(config, source, task, manifest)
        self.plan = TokenPlan(self.batches) if train.batch_tokens else BatchPlan(train.global_batch, train.ramp)
        self.num_parts = num_parts
        self._config, self._task, self._device = config, task, device
        self._padding = Padding()
        self._is_proven = False  # whether the task was seen to count ahead what its loss adds up

    @property
    def num_cut(self) -> int:
        """Labelled records of which some tokens have no place in an example."""
        return self.batches.layout.num_cut if isinstance(self.batches, RecordBatches) else 0

    @property
    def remark(self) -> str:
        """What may not be as it was meant of the labelled records."""
        return self.batches.layout.remark if isinstance(self.batches, RecordBatches) else ""

    def tokens_before(self, step: int) -> int:
        samples = self.plan.samples_before(step)
        if isinstance(self.batches, RecordBatches):
            return self.batches.tokens_before(samples)
        return round(samples * self.batches.tokens_per_sample)

    def padding(self) -> dict[str, float]:
        """What part of the places in this rank's batches held nothing since the last time."""
        return self._padding.share()

    def slices(self, step: int, part: int) -> list[range]:
        """Which examples of a step's global batch each micro-batch of a part of it has, the same at any size.

        With a budget of tokens their number differs from step to step. Where it cannot be shared evenly the last parts
        have micro-batches without an example, for all ranks meet as often.
        """
        train, batch = self._config.train, self.plan.batch_at(step)
        total = min(batch, (train.global_batch if train.batch_tokens else batch) // train.micro_batch)
        passes = -(-total // self.num_parts)
        mine = range(part * passes, (part + 1) * passes)
        return [slice_of(number, total, batch) if number < total else range(batch, batch) for number in mine]

    def places(self, step: int, part: int, left_out: int) -> np.ndarray:
        """Places in the order, int64 (n,), of a part of a step's batch, after so many samples that were passed over."""
        mine = self.slices(step, part)
        return self._first(step, left_out) + np.arange(mine[0].start, mine[-1].stop, dtype=np.int64)

    def _first(self, step: int, left_out: int) -> int:
        return self.plan.samples_before(step) + left_out

    def read(self, step: int, part: int, left_out: int) -> Share:
        """Its examples and what they count; on the host, from where a GPU copies pinned memory while it computes."""
        places, slices = self.places(step, part, left_out), self.slices(step, part)
        ids = self.batches.windows(places, step)
        everybody = self._first(step, left_out) + np.arange(self.plan.batch_at(step), dtype=np.int64)
        mine, total = self._task.count(ids), self._task.count_of(self.batches.lengths(everybody))
        if total is None:  # it depends on what stands in the examples of others
            others = [self.places(step, other, left_out) for other in range(self.num_parts) if other != part]
            total = mine + sum(self._task.count(self.batches.windows(each, step)) for each in others)
        pages, spare = torch.from_numpy(ids), None
        if not all(slices):
            spare = torch.from_numpy(self.batches.windows(everybody[:1], step))
        pages = pages.pin_memory() if self._device.type == "cuda" else pages
        return Share(places, slices, pages, spare, mine, total)

    def micro_batches(self, step: int, share: Share, *, takes_draws: bool) -> Iterator[MicroBatch]:
        """Of a share, on this rank's device; with the draws of its examples where somebody takes them."""
        ids, begin = share.ids.to(self._device, non_blocking=True), share.slices[0].start
        for mine in share.slices:
            rows = slice(mine.start - begin, mine.stop - begin)
            at, host, there = share.places[rows], share.ids[rows], ids[rows]
            if share.spare is not None and not mine:
                at, host, there = np.zeros(1, dtype=np.int64), share.spare, share.spare.to(self._device)
            width = self._width(host)
            draws = draws_for(self._config.seed, step, at).to(self._device) if takes_draws else None
            yield MicroBatch(rows, self._task.batch(there[:, :width], None, draws, training=True), draws)

    def _width(self, ids: Tensor) -> int:
        """Columns of examples on the host up to the last that holds more than padding."""
        if not self.batches.pads:
            return ids.shape[1]
        is_there = (ids != IGNORED).any(0)
        last = int(is_there.nonzero()[-1]) + 1 if bool(is_there.any()) else 1
        self._padding.count(ids, last)
        columns = self._task.columns
        return min(ids.shape[1], max(2, -(-last // columns) * columns))

    def prove(self, share: Share, sums: Tensor) -> None:
        """UserError if gradients were divided by another number than that of what the loss is a sum of."""
        if self._is_proven:
            return
        kind, name = self._config.task.kind, self._task.denominator
        added = round(float(sums[self._task.sums.index(name)]))
        ahead = self._task.count_of(self.batches.lengths(share.places))
        for function, counted in (("count", share.targets), ("count_of", ahead)):
            if counted is not None and counted != added:
                raise UserError(
                    f"task: {kind}: its loss adds up {added} {name} where `{function}` tells {counted} of the same"
                    f" examples, and a step is divided by that; make `{function}` tell what the loss counts"
                )
        self._is_proven = True


class Padding:
    """What part of the places in this rank's batches holds nothing."""

    def __init__(self) -> None:
        self._places = self._there = 0

    def count(self, ids: Tensor, width: int) -> None:
        self._places += len(ids) * width
        self._there += int((ids != IGNORED).sum())

    def share(self) -> dict[str, float]:
        """Of all since the last time; nothing where nothing is padded."""
        found = {"padding": 1 - self._there / self._places} if self._places else {}
        self._places = self._there = 0
        return found


def _order_of(config: RunConfig, source: Source, task: Task, manifest: Manifest) -> Any:
    data, train = config.data, config.train
    if isinstance(source, Records):
        assert isinstance(task, RecordTask)
        layout = task.layout(source, data.seq_len, training=True)
        return RecordBatches(layout, seed=config.seed, most=train.global_batch, batch_tokens=train.batch_tokens)
    return order_over(source, OrderSettings(data.seq_len, train.global_batch, config.seed, manifest.eos_id), data.order)
