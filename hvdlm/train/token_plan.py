"""Steps that fill a budget of padded tokens, in place of a number of sequences."""

from __future__ import annotations

from bisect import bisect_right

import numpy as np

from hvdlm.data.record_batches import RecordBatches
from hvdlm.train.batch_plan import BatchPlan


class TokenPlan(BatchPlan):
    """As `BatchPlan`, for an order that tells itself where its batches end."""

    def __init__(self, batches: RecordBatches) -> None:
        self._batches = batches
        self._num = batches.layout.num_examples
        self._ends: list[np.ndarray] = []  # of the epochs that were asked for
        self._steps = [0]  # before each epoch

    def _reach(self, *, step: int = 0, epoch: int = 0) -> None:
        while self._steps[-1] <= step or len(self._ends) <= epoch:
            self._ends.append(self._batches.batch_ends(len(self._ends)))
            self._steps.append(self._steps[-1] + len(self._ends[-1]))

    def samples_before(self, step: int) -> int:
        self._reach(step=step)
        epoch = bisect_right(self._steps, step) - 1
        within = step - self._steps[epoch]
        return epoch * self._num + (int(self._ends[epoch][within - 1]) if within else 0)

    def batch_at(self, step: int) -> int:
        return self.samples_before(step + 1) - self.samples_before(step)

    def steps_for(self, num_samples: int) -> int:
        epoch, within = divmod(num_samples, self._num)
        self._reach(epoch=epoch)
        return self._steps[epoch] + (int(np.searchsorted(self._ends[epoch], within)) + 1 if within else 0)
