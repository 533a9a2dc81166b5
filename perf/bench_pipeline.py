"""`hvdlm bench pipeline`, under a launcher: the real executor, with sleeps for compute, beside the simulator.

Sleeps take no core, so that stages may be more than cores; messages of the given size are really sent. On a machine
that others use, a sleep ends late: the simulator is asked twice, with the sleeps as they should be and as they were.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hvdlm.host import affinity
from hvdlm.models import Part
from hvdlm.parallel.pipeline import Handed, Layout, Pipeline
from hvdlm.parallel.schedule import SCHEDULES, build
from hvdlm.parallel.simulator import Costs, simulate
from hvdlm.tables import figure, table
from hvdlm.world.interface import World


@dataclass(frozen=True)
class PipelineBenchOptions:
    schedules: tuple[str, ...]
    micro_batches: int = 8
    chunks: int = 2  # of interleaved
    forward_ms: float = 100.0  # of a stage and micro-batch
    backward_ms: float = 100.0
    weights_ms: float = 100.0
    kilobytes: int = 512  # of a message
    rounds: int = 5


class _Slept(torch.autograd.Function):
    """The identity; its backward pass takes a while."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, work: _Sleeps) -> Tensor:
        ctx.work = work
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        ctx.work.sleep("B", ctx.work.backward_s)
        return gradient.clone(), None


@dataclass
class _Sleeps:
    """A `pipeline.Work`, and what stands for gradients of weights."""

    forward_s: float
    backward_s: float
    weights_s: float
    floats: int
    slept: dict[str, list[float]] = field(default_factory=lambda: {"F": [], "B": [], "W": []})
    key: Any = None

    def sleep(self, kind: str, seconds: float) -> None:
        begin = time.perf_counter()
        time.sleep(seconds)
        self.slept[kind].append(time.perf_counter() - begin)

    def forward(self, micro_batch: int, part: Part | None) -> Tensor:
        self.sleep("F", self.forward_s)
        x = None if part is None else part.received
        y = _Slept.apply(self.room(0).requires_grad_() if x is None else x, self)
        if part is not None and not part.is_last:
            raise Handed(y)
        return y.sum()

    def room(self, micro_batch: int) -> Tensor:
        return torch.zeros(1, 1, self.floats)

    def begins(self, micro_batch: int) -> None:
        """There are no gradients."""

    def accumulated(self) -> None:
        """Nor sums of them."""

    def flush(self, key: Any) -> None:
        self.sleep("W", self.weights_s)


def bench(options: PipelineBenchOptions, world: World) -> dict[str, Any]:
    """Idle time of the stages, which are all ranks, as measured and as simulated; collective."""
    rows = {name: _measured(name, options, world) for name in options.schedules}
    return {"stages": world.size, "cores": len(affinity()), **vars(options), "schedules": rows}


def _measured(name: str, options: PipelineBenchOptions, world: World) -> dict[str, Any]:
    kind, num = SCHEDULES[name], options.micro_batches
    chunks = options.chunks if kind.takes_chunks else 1
    f, b, w = (ms / 1000 / chunks for ms in (options.forward_ms, options.backward_ms, options.weights_ms))
    work = _Sleeps(f, b if kind.splits_backward else b + w, w, options.kilobytes * 256)
    layout = Layout([range(n, n + 1) for n in range(world.size * chunks)], chunks)
    deferred: Any = work if kind.splits_backward else None
    pipeline = Pipeline(world, layout, name, parameters=[[]] * chunks, deferred=deferred)
    plan, spans, simulated = build(name, world.size, num, chunks), [], []
    for _ in range(options.rounds + 1):
        work.slept = {"F": [], "B": [], "W": []}
        world.barrier()
        start = time.perf_counter()
        pipeline.run(work, num)
        spans.append(max(world.gather(time.perf_counter() - start)))
        slept = world.gather(work.slept)
        simulated.append(simulate(plan, _costs(slept, chunks), chunks).makespan)
    idle = [1 - num * (f + b + w) * chunks / span for span in spans[1:]]  # the first warms up
    expected = simulate(plan, Costs(f, b, w), chunks)
    found = statistics.median(spans[1:])
    return {
        "seconds": [round(span, 4) for span in spans[1:]],
        "idle": round(statistics.median(idle), 4),
        "idle_simulated": round(expected.idle_of_total, 4),
        "makespan": round(found, 4),
        "makespan_simulated": round(expected.makespan, 4),
        "makespan_to_simulated": round(found / expected.makespan, 4),
        "makespan_to_simulated_as_slept": round(
            statistics.median(span / other for span, other in zip(spans[1:], simulated[1:], strict=True)), 4
        ),
    }


def _costs(slept: list[dict[str, list[float]]], chunks: int) -> Costs:
    """What an F, a B and a W took on average, by virtual stage; a rank's chunks take as long."""
    f, b, w = ([statistics.fmean(rank[kind] or [0.0]) for rank in slept] * chunks for kind in ("F", "B", "W"))
    return Costs(f, b, w)


def to_text(found: dict[str, Any]) -> str:
    rows = [
        [
            name,
            f"{row['idle']:.1%}",
            f"{row['idle_simulated']:.1%}",
            figure(row["makespan"]),
            figure(row["makespan_simulated"]),
            f"{row['makespan_to_simulated']:.3f}",
            f"{row['makespan_to_simulated_as_slept']:.3f}",
        ]
        for name, row in found["schedules"].items()
    ]
    beyond = f" on {found['cores']} cores" if found["stages"] > found["cores"] else ""
    head = (
        f"{found['stages']} stages{beyond}, {found['micro_batches']} micro-batches, {found['kilobytes']} kB a message"
    )
    return f"{head}, medians of {found['rounds']}\n" + table(
        ["schedule", "idle", "simulated", "s a step", "simulated", "ratio", "as slept"], rows
    )
