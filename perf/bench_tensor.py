"""`hvdlm bench tensor`, under a launcher: forward and backward of layers that ranks share, beside what it should take.

It should take compute / t, and for each layer the four sums of a (B, T, C), whose time is measured alone.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from hvdlm.models import Vocabulary, build_model
from hvdlm.parallel.exchange import summed
from hvdlm.parallel.tensor import cut_tensor
from hvdlm.tables import figure
from hvdlm.world.interface import World

from .gpt_shape import GptShape

SUMS = 4  # of a layer: two on the way there, two on the way back


@dataclass(frozen=True)
class TensorBenchOptions(GptShape):
    seq_len: int = 256
    batch: int = 4
    rounds: int = 7


def bench(options: TensorBenchOptions, world: World) -> dict[str, Any]:
    """Medians of rounds in turn, a thread a rank; collective."""
    torch.set_num_threads(1)
    shape = options.batch, options.seq_len, options.width
    x, tiny = torch.rand(shape), torch.zeros(world.size)
    config = options.config()
    whole, part = (build_model(config, Vocabulary(256, 0), 0) for _ in range(2))
    cut_tensor(part, world, shares_time=False)
    ids = torch.arange(options.batch * options.seq_len).remainder(256).view(options.batch, options.seq_len)

    def alone() -> None:
        if world.rank == 0:  # the others' cores are idle then
            whole(ids)[0].square().sum().backward()

    ways: dict[str, Callable[[], object]] = {
        "compute": alone,
        "sum": lambda: summed(x, world),
        "latency": lambda: summed(tiny, world),
        "shared": lambda: part(ids)[0].square().sum().backward(),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(options.rounds + 1):
        for name, way in ways.items():
            world.barrier()
            start = time.perf_counter()
            way()
            spent = max(world.gather(time.perf_counter() - start))
            if number:  # the first warms up
                seconds[name].append(spent)
    medians = {name: statistics.median(each) for name, each in seconds.items()}
    expected = medians["compute"] / world.size + SUMS * options.layers * medians["sum"]
    return {
        "ranks": world.size,
        **vars(options),
        "bytes_of_a_sum": x.nbytes,
        "seconds": {name: [round(spent, 6) for spent in each] for name, each in seconds.items()},
        "medians": {name: round(spent, 6) for name, spent in medians.items()},
        "expected": round(expected, 6),
        "shared_to_expected": round(medians["shared"] / expected, 3),
        "compute_to_shared": round(medians["compute"] / medians["shared"], 3),
    }


def to_text(found: dict[str, Any]) -> str:
    ms = {name: f"{figure(1000 * spent)} ms" for name, spent in found["medians"].items()}
    megabytes, expected = found["bytes_of_a_sum"] / 1e6, figure(1000 * found["expected"])
    lines = [
        f"{found['layers']} layers of width {found['width']} on {found['ranks']} ranks, medians of {found['rounds']}",
        f"one rank alone {ms['compute']}; a sum of {megabytes:.1f} MB {ms['sum']}, of nothing {ms['latency']}",
        f"shared {ms['shared']}, {found['compute_to_shared']:.2f} times as fast; expected {expected} ms: ratio"
        f" {found['shared_to_expected']:.2f}",
    ]
    return "\n".join(lines)
