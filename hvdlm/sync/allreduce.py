"""Plain data parallelism over any world: gradients summed in place, large ones alone, small ones in buckets."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.optim import Optimizer

from hvdlm.sync.compress import CompressConfig, CompressedSync
from hvdlm.sync.interface import StrategyConfig, Sync, gradients, ring_bytes
from hvdlm.sync.zero import ZeroSync
from hvdlm.world.interface import Pending, World

ALONE_BYTES = 1 << 20  # a gradient of this size travels as it lies; copying smaller ones together costs nothing


class AllreduceConfig(StrategyConfig):
    """`sync: {kind: allreduce, …}`."""

    kind: Literal["allreduce"] = "allreduce"
    compress: CompressConfig | None = Field(None, description="send less than float32, with error feedback")
    overlap: bool | None = Field(None, description="reduce during backward; None: where the world has a thread for it")

    gives_plain_mean = True
    knobs: ClassVar[dict[str, tuple[float | bool | None, ...]]] = {"overlap": (None, False, True)}

    @model_validator(mode="after")
    def _check(self) -> AllreduceConfig:
        if self.compress is not None and self.overlap:
            raise ValueError("compress encodes the whole gradient at once; leave overlap out")
        return self

    @property
    def sharing(self) -> StrategyConfig | None:
        return None if self.compress or self.overlap else self

    def build_sharing(self, model: nn.Module, optimizer: Optimizer, world: World) -> Sync:
        return ZeroAllreduceSync(model, optimizer, world)

    def build(self, model: nn.Module, optimizer: Optimizer, world: World) -> Sync:
        if self.compress is not None:
            return CompressedSync(self.compress, model, optimizer, world)
        return AllreduceSync(self, model, optimizer, world)


class AllreduceSync(Sync):
    """Each gradient is summed once a step. Where it overlaps, a bucket leaves as soon as its last gradient is there.

    Buckets are filled and leave in reverse order of the parameters, the order in which backward finishes
    them, and never overtake one another: so all ranks start the same sums in the same order.
    """

    def __init__(self, config: AllreduceConfig, model: nn.Module, optimizer: Optimizer, world: World) -> None:
        super().__init__(model, optimizer, world)
        self._buckets = _fill_buckets(self.parameters)
        self._step_bytes = ring_bytes(self.parameters, world.size)
        self._overlaps = world.overlaps if config.overlap is None else config.overlap
        self._passes_left = 0
        self._missing = [0] * len(self._buckets)
        self._under_way: list[tuple[_Bucket, Pending]] = []
        if self._overlaps and world.size > 1:
            for number, bucket in enumerate(self._buckets):
                for parameter in bucket.parameters:
                    parameter.register_post_accumulate_grad_hook(self._hook_of(number))

    def begin(self, step: int, passes: int) -> None:
        self._passes_left = passes
        self._missing = [len(bucket.parameters) for bucket in self._buckets]

    def accumulated(self) -> None:
        self._passes_left -= 1

    def _hook_of(self, number: int) -> Callable[[Tensor], None]:
        def arrived(parameter: Tensor) -> None:
            if self._passes_left == 1:
                self._missing[number] -= 1
                self._start_complete()

        return arrived

    def _start_complete(self) -> None:
        """Start the buckets that are complete, in order."""
        while len(self._under_way) < len(self._buckets) and not self._missing[len(self._under_way)]:
            self._start_next()

    def _start_next(self) -> None:
        bucket = self._buckets[len(self._under_way)]
        self._under_way.append((bucket, self.world.start_sum(bucket.collect())))

    def reduce(self) -> None:
        if self.world.size == 1:
            return
        if self._overlaps:
            while len(self._under_way) < len(self._buckets):  # a parameter without gradient never arrived
                self._start_next()
            for bucket, pending in self._under_way:
                pending.wait()
                bucket.spread()
            self._under_way = []
        else:
            for bucket in self._buckets:
                self.world.sum_(bucket.collect())
                bucket.spread()
        self.bytes_sent += self._step_bytes


class ZeroAllreduceSync(ZeroSync):
    """Gradients travel to their owners, which add them up in rank order where their own lie."""

    def _reduced(self) -> list[Tensor]:
        found = [gradient.reshape(-1) for gradient in gradients(self.parameters)]
        room: Tensor | None = None
        for columns in self._columns():
            width = columns.stop - columns.start
            if room is None:  # the first part is the widest
                room = torch.zeros(self.world.size * width, device=self._rows.device)
            rows = room[: self.world.size * width].view(self.world.size, width)
            for rank, row in enumerate(rows):
                self._copy(found, rank, columns, row, into_row=True)
            received = self._traffic.exchange_rows(rows)
            for row in received[1:]:
                received[0] += row
            self._copy(found, self.world.rank, columns, received[0], into_row=False)
        return [found[part.number][part.elements.start : part.elements.stop] for part in self.slices]

    def _copy(self, found: list[Tensor], rank: int, columns: slice, row: Tensor, *, into_row: bool) -> None:
        """Between the gradients and the columns of a rank's row."""
        parts = list(self._layout.sections(self._owned_by(rank)[columns]))
        theirs = [found[part.number][part.elements.start : part.elements.stop] for part in parts]
        ours = [row[part.place :][: len(part.elements)] for part in parts]
        if parts:
            torch._foreach_copy_(*((ours, theirs) if into_row else (theirs, ours)))


class _Bucket:
    """Gradients that travel as one buffer."""

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self.parameters = parameters
        total = sum(p.numel() for p in parameters)
        self._flat = torch.empty(total, device=parameters[0].device) if len(parameters) > 1 else None

    def collect(self) -> Tensor:
        """The gradients as one contiguous tensor."""
        grads = gradients(self.parameters)
        if self._flat is None:
            self.parameters[0].grad = grads[0].contiguous()
            return self.parameters[0].grad.view(-1)
        return torch.cat([grad.reshape(-1) for grad in grads], out=self._flat)

    def spread(self) -> None:
        if self._flat is not None:
            grads = gradients(self.parameters)
            parts = self._flat.split([grad.numel() for grad in grads])
            torch._foreach_copy_(grads, [part.view_as(grad) for part, grad in zip(parts, grads, strict=True)])


def _fill_buckets(parameters: list[nn.Parameter]) -> list[_Bucket]:
    """Large parameters alone, the small ones between them together up to ALONE_BYTES, in reverse order."""
    buckets: list[list[nn.Parameter]] = []
    room = 0
    for parameter in reversed(parameters):
        size = 4 * parameter.numel()
        if size >= ALONE_BYTES:
            buckets.append([parameter])
            room = 0
            continue
        if room < size:
            buckets.append([])
            room = ALONE_BYTES
        buckets[-1].append(parameter)
        room -= size
    return [_Bucket(bucket) for bucket in buckets]
