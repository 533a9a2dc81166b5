"""Horovod's DistributedOptimizer: its hooks reduce each gradient by ring-allreduce during backward."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator
from torch import nn
from torch.optim import Optimizer

from hvdlm.errors import UserError
from hvdlm.sync.allreduce import AllreduceConfig, AllreduceSync
from hvdlm.sync.interface import StrategyConfig, Sync, ring_bytes
from hvdlm.sync.local_sgd import average_state
from hvdlm.world.horovod import HorovodWorld, load_horovod, wait_for
from hvdlm.world.interface import World


class HorovodConfig(StrategyConfig):
    """`sync: {kind: horovod, …}`: everything that Horovod lets one choose; None is Horovod's own default."""

    kind: Literal["horovod"] = "horovod"
    op: Literal["average", "sum", "adasum"] = Field("average", description="adasum: Maleki et al. 2020")
    compression: Literal["none", "fp16"] = Field("none", description="what gradients travel as")
    predivide: float | None = Field(None, gt=0, description="divide by it before the sum; None: by the number of ranks")
    groups: int = Field(0, ge=0, description="reduce gradients in so many groups; 0: as they come")
    fusion_mb: float | None = Field(None, ge=0, description="fuse tensors up to so many MiB; None: 128")
    cycle_ms: float | None = Field(None, gt=0, description="ms between two looks for ready tensors; None: 1")

    preferred_world = "horovod"
    gives_plain_mean = True
    # Horovod's own defaults are 128 MiB and 1 ms, so these are not tried again.
    knobs: ClassVar[dict[str, tuple[float | bool | None, ...]]] = {
        "fusion_mb": (None, 0, 2, 8, 32),
        "cycle_ms": (None, 0.5, 2.5, 5),
        "groups": (0, 1, 4),
    }

    @model_validator(mode="after")
    def _check(self) -> HorovodConfig:
        if self.predivide is not None and self.op != "average":
            raise ValueError(f"predivide is of op: average, not {self.op}")
        if self.predivide is not None and self.groups:
            raise ValueError("Horovod ignores predivide in groups; set one of them")
        if self.op == "adasum" and self.groups:
            raise ValueError("Horovod's adasum knows no groups; set groups: 0")
        return self

    @property
    def reduces_to_mean(self) -> bool:
        return self.op == "average"

    @property
    def reduces_before_step(self) -> bool:
        return self.op != "adasum"

    @property
    def label(self) -> str:
        return super().label if self.reduces_before_step else f"sync.op: {self.op}"

    @property
    def environment(self) -> dict[str, str]:
        found = {}
        if self.fusion_mb is not None:
            found["HOROVOD_FUSION_THRESHOLD"] = str(round(self.fusion_mb * 2**20))
        if self.cycle_ms is not None:
            found["HOROVOD_CYCLE_TIME"] = str(self.cycle_ms)
        return found

    def build(self, model: nn.Module, optimizer: Optimizer, world: World) -> Sync:
        if world.kind != "horovod":
            raise UserError(f"sync: horovod needs world: horovod, this is {world.kind}; or use sync: allreduce")
        if not isinstance(world, HorovodWorld):  # no other rank has this part of the model: nothing is to be added up
            return AllreduceSync(AllreduceConfig(), model, optimizer, world)
        if self.groups and not world.is_whole:
            raise UserError(
                f"sync.groups: {self.groups}: Horovod makes groups among all ranks alone, and here they share a model;"
                " leave it out, or set parallel.pipeline and tensor to 1"
            )
        return HorovodSync(self, model, optimizer, world)


class HorovodSync(Sync):
    """Used the one way that is right with accumulation and clipping.

    Horovod sums over the backwards of a step and over ranks; the loss is divided beforehand, so that no
    pass over the gradients is spent on it and float16 on the wire cannot overflow by the sum.
    `synchronize` waits for the sums, so that clipping sees them, and `step` runs inside `skip_synchronize`,
    or everything would be reduced again. Adasum combines the updates, not the gradients: inside `step`.
    """

    def __init__(self, config: HorovodConfig, model: nn.Module, optimizer: Optimizer, world: HorovodWorld) -> None:
        super().__init__(model, optimizer, world)
        hvd = self._hvd = load_horovod()
        self._is_adasum = config.op == "adasum"
        if self._is_adasum and world.size & (world.size - 1):
            raise UserError(f"sync.op: adasum needs a power of two ranks, these are {world.size}; use op: average")
        self._sums = config.op == "average" and config.predivide is None
        op = {"average": hvd.Sum if self._sums else hvd.Average, "sum": hvd.Sum, "adasum": hvd.Adasum}[config.op]
        compression = {"none": hvd.Compression.none, "fp16": hvd.Compression.fp16}[config.compression]
        self._passes = 1
        self._step_bytes = ring_bytes(self.parameters, world.size) // (2 if config.compression == "fp16" else 1)
        named = [(world.prefix + name, parameter) for name, parameter in self.named]
        options = {"gradient_predivide_factor": config.predivide or 1.0, "groups": config.groups or None}
        options |= {"compression": compression, "op": op, "process_set": world.process_set}
        self.optimizer: Any = hvd.DistributedOptimizer(optimizer, named, **options)

    def weight(self, targets: int, all_targets: int) -> float:
        if self._is_adasum:  # it combines what each rank would do by itself
            return 1 / max(1, targets)
        return (1 if self._sums else self.world.size) / max(1, all_targets)

    def begin(self, step: int, passes: int) -> None:
        if passes != self._passes:
            self.optimizer.set_backward_passes_per_step(passes)
            self._passes = passes

    def reduce(self) -> None:
        if not self._is_adasum:
            for handle, _ in self.optimizer._handles.values():
                if handle is not None:
                    wait_for(self._hvd, handle)
            self.optimizer.synchronize()
        self.bytes_sent += self._step_bytes

    def step(self) -> None:
        if self._is_adasum:
            self.optimizer.step()
            return
        with self.optimizer.skip_synchronize():
            self.optimizer.step()

    def settle(self) -> None:
        if self._is_adasum:  # each rank's optimizer has followed its own gradients
            self.bytes_sent += average_state(self.world, self.optimizer, self.parameters)
