"""The mesh of ranks, as integers: pipeline stages of data replicas of tensor groups.

Tensor ranks are neighbours, so that they share a node; then come data ranks, and stages lie farthest apart, for they
send least (Narayanan et al. 2021, "Efficient large-scale language model training on GPU clusters").
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from hvdlm.errors import UserError
from hvdlm.tables import counted

Axis = Literal["pipeline", "data", "tensor"]
AXES: tuple[Axis, ...] = ("pipeline", "data", "tensor")  # the slowest first


class Place(NamedTuple):
    """A rank's coordinates."""

    pipeline: int
    data: int
    tensor: int


@dataclass(frozen=True)
class Mesh:
    """How many ranks each axis has.

    >>> mesh = Mesh(pipeline=2, data=2, tensor=2)
    >>> mesh.place(5), mesh.rank(Place(1, 0, 1))
    (Place(pipeline=1, data=0, tensor=1), 5)
    >>> mesh.groups("tensor"), mesh.groups("pipeline")
    ([[0, 1], [2, 3], [4, 5], [6, 7]], [[0, 4], [1, 5], [2, 6], [3, 7]])
    """

    pipeline: int = 1
    data: int = 1
    tensor: int = 1

    @property
    def size(self) -> int:
        return self.pipeline * self.data * self.tensor

    @property
    def cuts_model(self) -> bool:
        """Whether a rank holds less than the model."""
        return self.pipeline * self.tensor > 1

    @property
    def holders(self) -> str:
        """Who has parts of a batch, and how many they are.

        >>> Mesh(data=2).holders, Mesh(2, 3, 2).holders
        ('2 ranks', '3 replicas (of 4 ranks each)')
        """
        return holders_in_words(self.data, self.pipeline * self.tensor)

    def place(self, rank: int) -> Place:
        rest, tensor = divmod(rank, self.tensor)
        return Place(*divmod(rest, self.data), tensor)

    def rank(self, place: Place) -> int:
        return (place.pipeline * self.data + place.data) * self.tensor + place.tensor

    def groups(self, *axes: Axis) -> list[list[int]]:
        """The ranks that differ along these axes alone, ascending in each group; every rank is in one group."""
        groups: dict[tuple[int, ...], list[int]] = {}
        for rank in range(self.size):
            place = self.place(rank)
            groups.setdefault(tuple(getattr(place, axis) for axis in AXES if axis not in axes), []).append(rank)
        return list(groups.values())

    def where(self, rank: int) -> str:
        """Its place in words; nothing where no ranks share a model."""
        place = self.place(rank)
        return f"stage {place.pipeline}, data {place.data}, tensor {place.tensor}" if self.cuts_model else ""

    def name_of(self, rank: int) -> str:
        """For a message: its number, and where ranks share a model its place.

        >>> Mesh(2, 1, 2).name_of(3)
        '3 (stage 1, data 0, tensor 1)'
        """
        return f"{rank} ({self.where(rank)})" if self.cuts_model else str(rank)

    def __str__(self) -> str:
        return " x ".join(f"{axis} {getattr(self, axis)}" for axis in AXES)


def holders_in_words(replicas: int, shared_by: int) -> str:
    """Who has parts of a batch: ranks, or where several share a model replicas."""
    return f"{replicas} ranks" if shared_by == 1 else f"{replicas} replicas (of {shared_by} ranks each)"


def mesh_of(size: int, *, data: int | None, pipeline: int, tensor: int) -> Mesh:
    """The mesh of `size` ranks; `data` None is what the others leave. UserError where they do not fill it."""
    cut = pipeline * tensor
    if size % cut:
        raise UserError.shared(
            f"parallel: {counted(size, 'rank')}: no multiple of pipeline {pipeline} x tensor {tensor} = {cut};"
            f" start a multiple of {cut} (mpirun -np {cut}), or change them"
        )
    if data is not None and data * cut != size:
        raise UserError.shared(
            f"parallel: data {data} x pipeline {pipeline} x tensor {tensor} = {data * cut}, but there are {size} ranks;"
            " leave parallel.data: auto"
        )
    return Mesh(pipeline, size // cut, tensor)


def meshes_of(size: int) -> list[Mesh]:
    """All that `size` ranks fill.

    >>> len(meshes_of(4)), str(meshes_of(2)[0])
    (6, 'pipeline 1 x data 1 x tensor 2')
    """
    sizes = [n for n in range(1, size + 1) if size % n == 0]
    return [Mesh(p, size // p // t, t) for p in sizes for t in reversed(sizes) if (size // p) % t == 0]


def cut_by_cost(costs: Sequence[float], parts: int) -> list[range]:
    """Contiguous parts, none of them empty, of which the dearest is as cheap as can be; of such the first parts small.

    By dynamic programming over (items, parts).

    >>> cut_by_cost([3, 1, 1, 1, 3], 3)
    [range(0, 1), range(1, 4), range(4, 5)]
    """
    if not 1 <= parts <= len(costs):
        raise ValueError(f"{len(costs)} items cannot be cut into {parts} parts")
    before = [0.0]
    for cost in costs:
        before.append(before[-1] + cost)

    @functools.cache
    def best(end: int, parts: int) -> tuple[float, int]:
        """The least cost of the dearest of so many parts of items [0, end), and where the last begins."""
        if parts == 1:
            return before[end], 0
        return min((max(best(k, parts - 1)[0], before[end] - before[k]), k) for k in range(parts - 1, end))

    ends, end = [], len(costs)
    for number in range(parts, 0, -1):
        first = best(end, number)[1]
        ends.append(range(first, end))
        end = first
    return ends[::-1]
