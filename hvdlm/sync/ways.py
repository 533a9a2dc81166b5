"""How the ranks' gradients become one: each way is a small file, its config, and a line in SYNCS."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from pydantic import BeforeValidator, Field
from torch import nn

from hvdlm.config import Section
from hvdlm.errors import UserError
from hvdlm.sync.allreduce import AllreduceConfig, AllreduceSync
from hvdlm.sync.async_sgd import AsyncConfig, AsyncSync
from hvdlm.sync.compress import CompressedSync
from hvdlm.sync.diloco import DilocoConfig, DilocoSync
from hvdlm.sync.horovod import HorovodConfig, HorovodSync
from hvdlm.sync.interface import Sync
from hvdlm.sync.local_sgd import LocalSgdConfig, LocalSgdSync
from hvdlm.sync.tree import TreeConfig, TreeSync
from hvdlm.world.interface import World


class AutoConfig(Section):
    """`sync: auto`: horovod in a horovod world and allreduce in any other."""

    kind: Literal["auto"] = "auto"


def _by_name(value: Any) -> Any:
    """`sync: tree` for `sync: {kind: tree}`."""
    kind = value if isinstance(value, str) else value.get("kind") if isinstance(value, dict) else None
    if isinstance(kind, str) and kind not in (*SYNCS, "auto"):
        raise ValueError(f"{kind!r} is none of auto, {', '.join(SYNCS)}")
    return {"kind": value} if isinstance(value, str) else value


SyncConfig = Annotated[
    AutoConfig | HorovodConfig | AllreduceConfig | TreeConfig | LocalSgdConfig | DilocoConfig | AsyncConfig,
    Field(discriminator="kind"),
    BeforeValidator(_by_name),
]

SYNCS: dict[str, Any] = {
    "horovod": HorovodSync,
    "allreduce": AllreduceSync,
    "tree": TreeSync,
    "local_sgd": LocalSgdSync,
    "diloco": DilocoSync,
    "async": AsyncSync,
}


def build_sync(config: SyncConfig, model: nn.Module, optimizer: torch.optim.Optimizer, world: World) -> Sync:
    """Wrap an optimizer that has no state yet."""
    for name, parameter in model.named_parameters():
        if parameter.dtype != torch.float32:
            raise UserError(f"parameter {name} is {parameter.dtype}; keep float32 and set train.precision: bf16")
    if config.kind == "auto":
        config = HorovodConfig() if world.kind == "horovod" else AllreduceConfig()
    if config.kind == "horovod" and world.kind != "horovod":
        raise UserError(f"sync: horovod needs world: horovod, this is {world.kind}; or use sync: allreduce")
    if config.kind == "allreduce" and config.compress is not None:
        return CompressedSync(config.compress, model, optimizer, world)
    return SYNCS[config.kind](config, model, optimizer, world)


def preferred_world(config: SyncConfig) -> Literal["mpi", "horovod"]:
    """The world that `world: auto` shall be: Horovod's for its own optimizer and, over NCCL, for GPUs; else MPI's.

    On hosts MPI sums in pieces and in this thread, which is faster; it alone has the one-sided memory of `async`.
    """
    if config.kind == "async" or (config.kind not in ("auto", "horovod") and not torch.cuda.is_available()):
        return "mpi"
    return "horovod"


def world_environment(config: SyncConfig) -> dict[str, str]:
    """Variables that the world reads when it starts; the user's own win."""
    return config.environment if isinstance(config, HorovodConfig) else {}
