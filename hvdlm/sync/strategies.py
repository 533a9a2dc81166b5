"""How the ranks' gradients become one: each way is a small file and a line in SYNCS."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping
from typing import Annotated, Literal

import torch
from pydantic import BeforeValidator
from torch import nn

from hvdlm.config import by_name, tagged_union
from hvdlm.errors import UserError
from hvdlm.sync.allreduce import AllreduceConfig
from hvdlm.sync.async_sgd import AsyncConfig
from hvdlm.sync.diloco import DilocoConfig
from hvdlm.sync.horovod import HorovodConfig
from hvdlm.sync.interface import StrategyConfig, Sync
from hvdlm.sync.local_sgd import LocalSgdConfig
from hvdlm.sync.tree import TreeConfig
from hvdlm.world.interface import World

SYNCS: dict[str, type[StrategyConfig]] = {
    "horovod": HorovodConfig,
    "allreduce": AllreduceConfig,
    "tree": TreeConfig,
    "local_sgd": LocalSgdConfig,
    "diloco": DilocoConfig,
    "async": AsyncConfig,
}


class AutoConfig(StrategyConfig):
    """`sync: auto`: horovod in a horovod world and allreduce in any other."""

    kind: Literal["auto"] = "auto"

    preferred_world = "horovod"
    gives_plain_mean = True

    def resolved(self, world_kind: str) -> StrategyConfig:
        return HorovodConfig() if world_kind == "horovod" else AllreduceConfig()

    @property
    def sharing(self) -> StrategyConfig:
        return AllreduceConfig()

    def build(self, model: nn.Module, optimizer: torch.optim.Optimizer, world: World) -> Sync:
        return self.resolved(world.kind).build(model, optimizer, world)


# `sync: tree` or `sync: {kind: tree, …}`; ChainMap's first comes last.
ALL_SYNCS: Mapping[str, type[StrategyConfig]] = ChainMap(SYNCS, {"auto": AutoConfig})
SyncConfig = Annotated[StrategyConfig, tagged_union(ALL_SYNCS, "kind"), BeforeValidator(by_name("kind"))]


def build_sync(
    config: StrategyConfig, model: nn.Module, optimizer: torch.optim.Optimizer, world: World, *, shares: bool = False
) -> Sync:
    """Wrap an optimizer that has no state yet; with `shares` each rank keeps its state of a part (ZeRO-1)."""
    for name, parameter in model.named_parameters():
        if parameter.dtype != torch.float32:
            raise UserError(f"parameter {name} is {parameter.dtype}; keep float32 and set train.precision: bf16")
    if shares:
        found = config.sharing
        if found is None:
            raise UserError(cannot_share(config))
        config, sync = found, found.build_sharing(model, optimizer, world)
    else:
        config = config.resolved(world.kind)
        sync = config.build(model, optimizer, world)
    sync.kind = config.kind
    return sync


def cannot_share(config: StrategyConfig) -> str:
    """Why ranks that combine gradients so cannot share the optimizer's state."""
    return (
        f"parallel.zero: 1 is for sync: tree, or allreduce without compress and overlap, not for {config.label}; take"
        " one of them, or leave parallel.zero at 0"
    )


def preferred_world(config: StrategyConfig) -> Literal["mpi", "horovod"]:
    """The world that `world: auto` shall be: on hosts MPI sums in pieces and in this thread, which is faster."""
    return config.preferred_world or ("horovod" if torch.cuda.is_available() else "mpi")
