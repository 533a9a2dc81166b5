"""`hvdlm bench zero`, under a launcher: memory of a model that trains, the optimizer's state whole and shared.

Adam takes 16 bytes a parameter: weights, gradients and two moments, in float32. ZeRO-1 should take 8 + 8/d of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from hvdlm.compute.held import Held
from hvdlm.models import Vocabulary, build_model
from hvdlm.optim import OptimConfig, build_optimizer
from hvdlm.sync import SYNCS, build_sync
from hvdlm.tables import table
from hvdlm.world.interface import World

from .gpt_shape import GptShape

MICRO_BATCHES = 2  # of a step


@dataclass(frozen=True)
class ZeroBenchOptions(GptShape):
    vocab_size: int = 8192


def bench(options: ZeroBenchOptions, world: World) -> dict[str, Any]:
    """Bytes a parameter, of the rank that has most; collective, and for ranks that are processes of their own."""
    torch.set_num_threads(1)
    ways = {"whole": ("allreduce", False), "zero: 1": ("allreduce", True), "zero: 1, sync: tree": ("tree", True)}
    found = {name: _counted(options, world, sync, shares=shares) for name, (sync, shares) in ways.items()}
    expected = 8 + 8 / world.size
    return {
        "ranks": world.size,
        **vars(options),
        "bytes_a_parameter": found,
        "expected": round(expected, 3),
        "zero_to_expected": round(found["zero: 1"] / expected, 4),
    }


def _counted(options: ZeroBenchOptions, world: World, kind: str, *, shares: bool) -> float:
    """Bytes a parameter when a micro-batch's gradients are there, or all have been combined, whichever is more."""
    config, most = options.config(), 0
    with Held() as held:
        model = build_model(config, Vocabulary(options.vocab_size, 0), 0)
        numel = sum(parameter.numel() for parameter in model.parameters())
        before = held.now - 4 * numel  # tables of positions and the like
        sync = build_sync(SYNCS[kind](kind=kind), model, build_optimizer(model, OptimConfig()), world, shares=shares)
        ids = torch.arange(16).view(1, 16)
        for step in range(2):
            sync.begin(step, MICRO_BATCHES)
            for _ in range(MICRO_BATCHES):
                model(ids)[0].square().sum().backward()
                most = max(most, held.now - before)
                sync.accumulated()
            sync.reduce()
            most = max(most, held.now - before)
            sync.step()
            sync.zero_grad()
        sync.close()
    return round(max(world.gather(most)) / numel, 3)


def to_text(found: dict[str, Any]) -> str:
    rows = [[name, f"{each:.2f}"] for name, each in found["bytes_a_parameter"].items()]
    head = f"{found['layers']} layers of width {found['width']} on {found['ranks']} ranks"
    return "\n".join(
        [
            head,
            table(["optimizer's state", "bytes a parameter"], rows),
            f"zero: 1 should take {found['expected']:.2f}: ratio {found['zero_to_expected']:.3f}",
        ]
    )
