"""The worlds of a rank: all ranks, and those that differ from it along one axis of the mesh."""

from __future__ import annotations

from dataclasses import dataclass

from hvdlm.parallel.config import ParallelConfig
from hvdlm.parallel.mesh import Mesh, Place
from hvdlm.world.interface import World
from hvdlm.world.serial import SerialWorld


@dataclass(frozen=True)
class Axes:
    """`model` are the ranks that hold one replica together, stage after stage."""

    mesh: Mesh
    world: World
    data: World
    tensor: World
    pipeline: World
    model: World

    @property
    def place(self) -> Place:
        return self.mesh.place(self.world.rank)

    @property
    def speaks(self) -> bool:
        """Whether what this rank adds up of a loss counts: of a replica's ranks one does."""
        return self.place.tensor == 0 and self.place.pipeline == self.mesh.pipeline - 1

    def close(self) -> None:
        """Collective."""
        for part in (self.model, self.pipeline, self.tensor, self.data):
            if part is not self.world:
                part.close()


def axes_of(world: World, parallel: ParallelConfig) -> Axes:
    """Collective where ranks share a model; UserError on all ranks where they cannot be laid out so."""
    mesh = parallel.mesh(world.size)
    world.mesh_place = mesh.where(world.rank)
    if not mesh.cuts_model:
        alone = SerialWorld()
        return Axes(mesh, world, world, alone, alone, alone)
    return Axes(
        mesh,
        world,
        data=world.split(mesh.groups("data"), "data"),
        tensor=world.split(mesh.groups("tensor"), "tensor"),
        pipeline=world.split(mesh.groups("pipeline"), "pipeline"),
        model=world.split(mesh.groups("pipeline", "tensor"), "model"),
    )
