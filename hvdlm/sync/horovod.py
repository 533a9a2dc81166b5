"""Horovod's DistributedOptimizer: its hooks reduce each gradient by ring-allreduce during backward."""

from __future__ import annotations

import torch
from torch import nn

from hvdlm.world.horovod import load_horovod


class HorovodSync:
    """Used the one way that is right with accumulation and clipping.

    Horovod sums over `passes` backwards (the caller scales the loss) and averages over ranks.
    `synchronize` waits for the averages, so that clipping sees them, and `step` runs inside
    `skip_synchronize`, or everything would be reduced again. Its `zero_grad` takes no argument.
    """

    kind = "horovod"

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, passes: int) -> None:
        hvd = load_horovod()
        self.optimizer = hvd.DistributedOptimizer(
            optimizer, named_parameters=model.named_parameters(), backward_passes_per_step=passes, op=hvd.Average
        )

    def reduce(self) -> None:
        self.optimizer.synchronize()

    def step(self) -> None:
        with self.optimizer.skip_synchronize():
            self.optimizer.step()

    def zero_grad(self) -> None:
        self.optimizer.zero_grad()
