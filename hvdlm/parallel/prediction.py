"""How long a step will take on a mesh, by the FLOPs of its layers, a rank's speed and what messages cost.

The alpha-beta model of messages (Hockney 1994) on top of `simulator`. What is left out is what all meshes have alike:
data, the update, and that no product runs at the speed of the largest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from hvdlm.parallel.config import ParallelConfig
from hvdlm.parallel.mesh import Mesh, cut_by_cost
from hvdlm.parallel.schedule import build
from hvdlm.parallel.simulator import Costs, simulate

PIECE_BYTES = 8 << 20  # of a sum over data ranks, that travels at once


@dataclass(frozen=True)
class Machine:
    """A rank's FLOP/s, and the seconds of a message: alpha_s + bytes x beta_s."""

    flops_per_s: float
    alpha_s: float = 20e-6
    beta_s: float = 2e-10

    def ring_s(self, num_bytes: float, ranks: int, pieces: int = 1) -> float:
        """Of a sum of so many bytes over ranks: there and back, (ranks - 1) / ranks of them each."""
        return 2 * (pieces * self.alpha_s + (ranks - 1) / ranks * num_bytes * self.beta_s) if ranks > 1 else 0.0


@dataclass(frozen=True)
class StepShape:
    """What a step of a model is made of."""

    layer_flops: Sequence[float]  # of a micro-batch, forward and backward; the head is part of the last layer
    stream_bytes: int  # of a micro-batch between two layers
    global_batch: int  # micro-batches
    recomputes: bool = False  # the forward pass of each layer, in the backward pass


class Predicted(NamedTuple):
    step_s: float
    idle: float  # part of the time of all ranks in which a stage waits for others
    tensor_s: float  # what tensor ranks exchange within a step, on the busiest stage
    data_s: float  # the sum of gradients over data ranks


def predicted(
    shape: StepShape, mesh: Mesh, parallel: ParallelConfig, machine: Machine, gradient_bytes: int
) -> Predicted:
    """Of a step; `gradient_bytes` are those that the fullest rank adds up with others."""
    num, chunks = shape.global_batch // mesh.data, parallel.chunks
    parts = cut_by_cost(shape.layer_flops, mesh.pipeline * chunks)
    third = [sum(shape.layer_flops[n] for n in part) / (3 * mesh.tensor * machine.flops_per_s) for part in parts]
    met = [2 * len(part) * machine.ring_s(shape.stream_bytes, mesh.tensor) for part in parts]
    forward = [work + meeting for work, meeting in zip(third, met, strict=True)]
    backward = [2 * each if shape.recomputes else each for each in forward]
    costs = Costs(forward, backward, third, machine.alpha_s, machine.beta_s, shape.stream_bytes)
    found = simulate(build(parallel.schedule, mesh.pipeline, num, chunks), costs, chunks)
    times = num * (3 if shape.recomputes else 2)
    of_rank = [sum(met[rank :: mesh.pipeline]) * times for rank in range(mesh.pipeline)]
    data_s = machine.ring_s(gradient_bytes, mesh.data, pieces=-(-gradient_bytes // PIECE_BYTES))
    return Predicted(found.makespan + data_s, found.idle_of_total, max(of_rank), data_s)
