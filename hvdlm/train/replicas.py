"""Are the replicas still equal? A 64-bit digest of each tensor, compared over the ranks."""

from __future__ import annotations

from collections import Counter

import torch
from torch import nn

from hvdlm.world.interface import World


def tensor_digests(model: nn.Module) -> list[int]:
    """One number for each parameter: the sum of its bits as 32-bit integers. A flipped bit always changes it."""
    bits = [parameter.detach().view(torch.int32) for parameter in model.parameters()]
    return torch.stack([part.sum(dtype=torch.int64) for part in bits]).tolist()


def fold(digests: list[int]) -> tuple[int, int]:
    """Two 32-bit halves of one number for the model; both are exact as float64."""
    total = 0
    for digest in digests:
        total = (total * 0x100000001B3 + digest) % 2**64  # FNV's prime: the order of tensors counts
    return total >> 32, total & 0xFFFFFFFF


def name_stray(model: nn.Module, world: World) -> str:
    """Which rank differs from the others, and in which tensor first; collective."""
    everybody = world.gather(tensor_digests(model))
    for number, (name, _) in enumerate(model.named_parameters()):
        found = [digests[number] for digests in everybody]
        common, votes = Counter(found).most_common(1)[0]
        strays = [rank for rank, digest in enumerate(found) if digest != common]
        if strays and 2 * votes <= len(found):  # no majority: nobody can say who is right
            return f"ranks {', '.join(map(str, range(len(found) - 1)))} and {len(found) - 1} differ in {name}"
        if strays:
            return f"rank {', '.join(map(str, strays))} differs from the others in {name}"
    return "the ranks differed, and no longer do"
