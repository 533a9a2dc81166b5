"""Ranks that are not there: one rank's part in a run can be gone through alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hvdlm.parallel.axes import Axes
from hvdlm.parallel.mesh import AXES, Axis, Mesh
from hvdlm.world.interface import Pending, World


class ImaginedWorld(World):
    """Whatever others would send is made up: it has the right shape, and no meaning."""

    kind = "imagined"

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size

    def sum_(self, buffer: Any) -> None:
        """Others have added nothing."""

    def broadcast_(self, buffer: Any) -> None:
        """Rank 0 has the same."""

    def gather_bytes(self, data: bytes) -> list[bytes]:
        return [data] * self.size

    def exchange_rows(self, rows: Any) -> Any:
        return rows.clone()

    def gather_rows(self, row: Any) -> Any:
        return row[None].repeat(self.size, 1)

    def post_send(self, tensor: Any, to: int, tag: int) -> Pending:
        return Pending(lambda: None, lambda: True)

    def post_receive(self, like: Any, source: int, tag: int) -> Pending:
        room = like.detach().clone()
        return Pending(lambda: room, lambda: True)

    def _part(self, groups: Sequence[Sequence[int]], name: str) -> ImaginedWorld:
        mine = next(list(group) for group in groups if self.rank in group)
        return ImaginedWorld(mine.index(self.rank), len(mine))

    def abort(self, code: int) -> None:
        raise AssertionError("nobody else is there")


def imagined_axes(mesh: Mesh, rank: int) -> Axes:
    """Those of one rank of a mesh."""
    world = ImaginedWorld(rank, mesh.size)

    def part(*axes: Axis) -> World:
        return world.split(mesh.groups(*axes), "-".join(axes))

    pipeline, data, tensor = (part(axis) for axis in AXES)
    return Axes(mesh, world, data, tensor, pipeline, part("pipeline", "tensor"))
