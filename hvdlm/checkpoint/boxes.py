"""Where a piece of a tensor lies in the whole one, in the model's own names and shapes whatever ranks hold.

A box is a block of neighbouring elements of a whole tensor, as in Megatron's and PyTorch's distributed checkpoints:
what one mesh wrote as boxes another reads by intersecting them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor


class Box(NamedTuple):
    """Elements [offset, offset + shape) of a tensor, along each dimension."""

    offset: tuple[int, ...]
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    def meeting(self, other: Box) -> Box | None:
        """What lies in both, or None.

        >>> Box((0, 2), (4, 4)).meeting(Box((3, 0), (9, 5)))
        Box(offset=(3, 2), shape=(1, 3))
        """
        first = tuple(map(max, self.offset, other.offset))
        ends = (min(a + n, b + m) for a, n, b, m in zip(*self, *other, strict=True))
        shape = tuple(end - begin for begin, end in zip(first, ends, strict=True))
        return None if any(size <= 0 for size in shape) else Box(first, shape)

    def within(self, outer: Box) -> tuple[slice, ...]:
        """The place of this box in a tensor that holds `outer`."""
        return tuple(slice(a - b, a - b + n) for a, b, n in zip(self.offset, outer.offset, self.shape, strict=True))


def whole(shape: tuple[int, ...]) -> Box:
    return Box((0,) * len(shape), tuple(shape))


def boxes_of_range(shape: tuple[int, ...], elements: range) -> Iterator[Box]:
    """The fewest boxes that hold a range of a tensor's elements in row-major order, in that order.

    >>> list(boxes_of_range((4, 3), range(2, 10)))  # the end of a row, two rows, the beginning of one
    [Box(offset=(0, 2), shape=(1, 1)), Box(offset=(1, 0), shape=(2, 3)), Box(offset=(3, 0), shape=(1, 1))]
    """
    if not elements:
        return
    if not shape:
        yield Box((), ())
        return
    row = math.prod(shape[1:])
    first, end = -(-elements.start // row), elements.stop // row  # whole rows [first, end)
    if first > end:  # within one row
        yield from _in_row(shape, end, range(elements.start - end * row, elements.stop - end * row))
        return
    if elements.start < first * row:
        yield from _in_row(shape, first - 1, range(elements.start - (first - 1) * row, row))
    if first < end:
        yield Box((first, *(0,) * (len(shape) - 1)), (end - first, *shape[1:]))
    if end * row < elements.stop:
        yield from _in_row(shape, end, range(elements.stop - end * row))


def _in_row(shape: tuple[int, ...], row: int, elements: range) -> Iterator[Box]:
    for offset, rest in boxes_of_range(shape[1:], elements):
        yield Box((row, *offset), (1, *rest))


@dataclass(frozen=True)
class Cut:
    """Which part of a whole tensor a rank holds: ranges along one dimension, one behind the other in what it holds.

    Several where a layer is fused of parts that are each cut alike, as queries, keys and values are.

    >>> cut = Cut((6, 2), 0, (range(1, 2), range(4, 5)))
    >>> cut.shape_held, cut.boxes()
    ((2, 2), [Box(offset=(1, 0), shape=(1, 2)), Box(offset=(4, 0), shape=(1, 2))])
    """

    shape: tuple[int, ...]  # of the whole tensor
    dim: int = 0
    ranges: tuple[range, ...] = field(default=())  # none: the rank holds it whole

    @property
    def is_whole(self) -> bool:
        return not self.ranges

    @property
    def shape_held(self) -> tuple[int, ...]:
        if self.is_whole:
            return self.shape
        return (*self.shape[: self.dim], sum(map(len, self.ranges)), *self.shape[self.dim + 1 :])

    def boxes(self) -> list[Box]:
        """Of the whole tensor, in the order in which they are held along `dim`."""
        if self.is_whole:
            return [whole(self.shape)]
        before, after = self.shape[: self.dim], self.shape[self.dim + 1 :]
        zeros = (0,) * len(before), (0,) * len(after)
        return [Box((*zeros[0], r.start, *zeros[1]), (*before, len(r), *after)) for r in self.ranges]

    def of(self, tensor: Tensor) -> Tensor:
        """What the rank holds of the whole tensor: a new tensor, or the tensor itself where that is all."""
        if self.is_whole:
            return tensor
        import torch

        return torch.cat([tensor.narrow(self.dim, r.start, len(r)) for r in self.ranges], dim=self.dim)

    def parts_of_range(self, flat: Tensor, elements: range) -> Iterator[tuple[Tensor, Box]]:
        """Views of some elements, in row-major order of what the rank holds, and where each lies in the whole tensor.

        `flat` has as many elements as the range.
        """
        place, dim = 0, self.dim
        for box in boxes_of_range(self.shape_held, elements):
            tensor = flat[place : place + box.numel].view(box.shape)
            place += box.numel
            if self.is_whole:
                yield tensor, box
                continue
            begin, first, end = 0, box.offset[dim], box.offset[dim] + box.shape[dim]  # places in what is held
            for r in self.ranges:
                low, high = max(first, begin), min(end, begin + len(r))
                if low < high:
                    offset = (*box.offset[:dim], r.start + low - begin, *box.offset[dim + 1 :])
                    shape = (*box.shape[:dim], high - low, *box.shape[dim + 1 :])
                    yield tensor.narrow(dim, low - first, high - low), Box(offset, shape)
                begin += len(r)

    def parts(self, held: Tensor) -> list[tuple[Tensor, Box]]:
        """Views of what the rank holds, and where each lies in the whole tensor."""
        if self.is_whole:
            return [(held, whole(self.shape))]
        sizes = [len(r) for r in self.ranges]
        return list(zip(held.split(sizes, dim=self.dim), self.boxes(), strict=True))


class Piece(NamedTuple):
    """A piece of state as a rank holds it: what a checkpoint keeps under `key`, and where it lies in it."""

    key: str  # `model/NAME`, `optimizer/NAME/exp_avg`, `engine/ema/NAME`
    tensor: Tensor  # of the box's shape; not copied
    shape: tuple[int, ...]  # of the whole
    box: Box
    share: tuple[int, int] = (0, 1)  # this rank is the first number of so many that hold the same, and write a share
