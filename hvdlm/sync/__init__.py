"""How the ranks' gradients become one: SYNCS names the ways, each a small file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol

import torch
from torch import nn

from hvdlm.config import Section
from hvdlm.errors import UserError
from hvdlm.world.interface import World


class SyncConfig(Section):
    """The `sync` section: `auto` is horovod in a horovod world and allreduce in any other."""

    kind: Literal["auto", "horovod", "allreduce"] = "auto"


class Sync(Protocol):
    """Between the last backward of a step and the optimizer.

    After `reduce` every `p.grad` is the mean over all ranks, equal on all; it may be clipped; `step`
    applies it; `zero_grad` makes ready for the next backward.
    """

    kind: str
    optimizer: torch.optim.Optimizer

    def reduce(self) -> None: ...
    def step(self) -> None: ...
    def zero_grad(self) -> None: ...


def _horovod(model: nn.Module, optimizer: torch.optim.Optimizer, world: World, passes: int) -> Sync:
    from hvdlm.sync.horovod import HorovodSync

    if world.kind != "horovod":
        raise UserError(f"sync.kind: horovod needs world: horovod, this is {world.kind}; or use sync.kind: allreduce")
    return HorovodSync(model, optimizer, passes)


def _allreduce(model: nn.Module, optimizer: torch.optim.Optimizer, world: World, passes: int) -> Sync:
    from hvdlm.sync.allreduce import AllreduceSync

    return AllreduceSync(model, optimizer, world)


SYNCS: dict[str, Callable[[nn.Module, torch.optim.Optimizer, World, int], Sync]] = {
    "horovod": _horovod,
    "allreduce": _allreduce,
}


def build_sync(
    config: SyncConfig, model: nn.Module, optimizer: torch.optim.Optimizer, world: World, passes: int
) -> Sync:
    """Wrap an optimizer that has no state yet; `passes` is the number of backwards before each step."""
    for name, parameter in model.named_parameters():
        if parameter.dtype != torch.float32:
            raise UserError(f"parameter {name} is {parameter.dtype}; keep float32 and set train.precision: bf16")
    kind = config.kind if config.kind != "auto" else ("horovod" if world.kind == "horovod" else "allreduce")
    return SYNCS[kind](model, optimizer, world, passes)
