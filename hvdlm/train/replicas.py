"""Are the replicas still equal? A 64-bit digest of each tensor, compared over the ranks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence

import torch
from torch import nn

from hvdlm.parallel.mesh import Axis, Mesh
from hvdlm.world.interface import World


def tensor_digests(model: nn.Module, without: Collection[str] = ()) -> list[int]:
    """One number for each parameter: the sum of its bits as 32-bit integers. A flipped bit always changes it."""
    parts = [parameter for name, parameter in model.named_parameters() if name not in without]
    bits = [part.detach().view(torch.int32).sum(dtype=torch.int64) for part in parts]
    return torch.stack(bits).tolist() if bits else []


def fold(digests: list[int]) -> tuple[int, int]:
    """Two 32-bit halves of one number for the model; both are exact as float64."""
    total = 0
    for digest in digests:
        total = (total * 0x100000001B3 + digest) % 2**64  # FNV's prime: the order of tensors counts
    return total >> 32, total & 0xFFFFFFFF


Digests = tuple[int, int, int, int]  # of all that a rank holds, and of what tensor ranks hold alike


def digests_of(model: nn.Module, cut: Collection[str]) -> Digests:
    """Of the parameters `cut` tensor ranks hold different parts."""
    own = fold(tensor_digests(model))
    return *own, *(fold(tensor_digests(model, cut)) if cut else own)


def are_equal(mesh: Mesh, of_ranks: Sequence[Sequence[float]]) -> bool:
    """By the digests of each rank: of all that it holds, equal in all replicas, and of what tensor ranks hold alike."""
    digests, shared = [tuple(each[:2]) for each in of_ranks], [tuple(each[2:]) for each in of_ranks]
    axes: tuple[tuple[Sequence[tuple[float, ...]], tuple[Axis, ...]], ...]
    axes = (digests, ("data",)), (shared, ("data", "tensor"))
    return all(len({found[rank] for rank in group}) == 1 for found, along in axes for group in mesh.groups(*along))


def name_stray(model: nn.Module, world: World, mesh: Mesh, cut: Collection[str] = ()) -> str:
    """Which rank differs from the others that hold the same, and in which tensor first; collective.

    Of the parameters `cut` tensor ranks hold different parts.
    """
    names = [name for name, _ in model.named_parameters()]
    everybody: list[dict[str, int]] = world.gather(dict(zip(names, tensor_digests(model), strict=True)))
    is_cut: set[str] = set().union(*world.gather(sorted(cut)))
    for name in dict.fromkeys(name for digests in everybody for name in digests):
        for group in mesh.groups("data") if name in is_cut else mesh.groups("data", "tensor"):
            found = {rank: everybody[rank][name] for rank in group if name in everybody[rank]}
            if told := _stray_in(found, mesh):
                return f"{told} in {name}"
    return "the ranks differed, and no longer do"


def _stray_in(found: Mapping[int, int], mesh: Mesh) -> str:
    """Who has another digest than most, by rank; nothing where all have one."""
    if len(set(found.values())) <= 1:
        return ""
    common, votes = Counter(found.values()).most_common(1)[0]
    strays = [rank for rank, digest in found.items() if digest != common]
    if 2 * votes <= len(found):  # no majority: nobody can say who is right
        *others, last = [mesh.name_of(rank) for rank in found]
        return f"ranks {', '.join(others)} and {last} differ"
    return f"rank {', '.join(map(mesh.name_of, strays))} differs from the others"
