"""What a run says at its start of how its ranks share the model."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from hvdlm.parallel.mesh import AXES, Axis, Mesh
from hvdlm.parallel.pipeline import Layout


def leaving(mesh: Mesh, axis: Axis, hosts: Sequence[str]) -> tuple[int, int]:
    """Of the pairs of neighbours along an axis those on two hosts, and all; `hosts` is that of each rank.

    >>> leaving(Mesh(data=2, tensor=2), "data", ["a", "a", "b", "b"])
    (2, 2)
    """
    pairs = [pair for group in mesh.groups(axis) for pair in itertools.pairwise(group)]
    return sum(hosts[one] != hosts[other] for one, other in pairs), len(pairs)


def mesh_lines(mesh: Mesh, layout: Layout, schedule: str, hosts: Sequence[str]) -> list[str]:
    """The mesh, how many neighbours of each axis are on two hosts, and which stage has which layers."""
    apart = {axis: leaving(mesh, axis, hosts) for axis in AXES}
    told = [f"{axis} {count} of {total}" for axis, (count, total) in apart.items() if total]
    lines = [f"mesh {mesh}: neighbours on two hosts: {', '.join(told)}"]
    if mesh.pipeline > 1:
        stages = [
            f"{rank}: {', '.join(f'{part.start}-{part[-1]}' for part in layout.of_rank(rank))}"
            for rank in range(mesh.pipeline)
        ]
        lines.append(f"schedule {schedule}, layers by stage {'; '.join(stages)}")
    return lines


def mesh_warning(mesh: Mesh, hosts: Sequence[str]) -> str:
    """Where tensor ranks, which meet in every layer, are on two hosts; or nothing."""
    count, total = leaving(mesh, "tensor", hosts)
    if not count:
        return ""
    return (
        f"parallel.tensor: {mesh.tensor}: {count} of {total} neighbours are on two hosts, and they meet in every layer;"
        " take as many as share a host, or start ranks host by host (mpirun --map-by core, srun -m block)"
    )
