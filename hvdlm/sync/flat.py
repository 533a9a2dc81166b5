"""All gradients of a model as one float32 vector, padded so that it cuts into one row for each rank."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

ROW_MULTIPLE = 256  # floats: rows start on cache lines, and whole blocks of the int8 codec fit in


class Section(NamedTuple):
    """What lies of one parameter within a range of the vector."""

    number: int  # of the parameter
    elements: range  # of it, in row-major order
    place: int  # from the range's beginning


class FlatLayout:
    """Where each gradient lies: in the model's order, each at a multiple of `align`, then zeros up to `padded` floats.

    Without `align` there are no gaps. A stage that has nothing to train has rows of zeros alone.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], size: int, align: int = 1) -> None:
        self.parameters = parameters
        self.size = size
        self.starts: list[int] = []
        self.numel = 0
        for parameter in parameters:
            self.starts.append(self.numel)
            self.numel += -(-parameter.numel() // align) * align
        self.padded = max(1, -(-self.numel // (size * ROW_MULTIPLE))) * size * ROW_MULTIPLE

    def zeros(self) -> Tensor:
        """A buffer of this layout, float32 (padded,), where the parameters are."""
        return torch.zeros(self.padded, device=self.parameters[0].device if self.parameters else None)

    def views(self, flat: Tensor) -> list[Tensor]:
        """The buffer's part of each parameter, in its shape."""
        places = zip(self.starts, self.parameters, strict=True)
        return [flat[start : start + p.numel()].view(p.shape) for start, p in places]

    def sections(self, place: range) -> Iterator[Section]:
        """What lies in a range of the vector, in order."""
        first = max(0, bisect_right(self.starts, place.start) - 1)
        for number in range(first, len(self.starts)):
            start = self.starts[number]
            if start >= place.stop:
                return
            begin, end = max(start, place.start), min(start + self.parameters[number].numel(), place.stop)
            if begin < end:
                yield Section(number, range(begin - start, end - start), begin - place.start)

    def gradients(self) -> list[Tensor]:
        """Every `p.grad`; a parameter that took no part in the backward has zeros."""
        return [p.grad if p.grad is not None else torch.zeros_like(p) for p in self.parameters]

    def collect(self, flat: Tensor) -> None:
        """Copy every gradient into the buffer."""
        if self.parameters:
            torch._foreach_copy_(self.views(flat), self.gradients())

    def add(self, flat: Tensor) -> None:
        """Add every gradient to the buffer."""
        if self.parameters:
            torch._foreach_add_(self.views(flat), self.gradients())

    def spread(self, flat: Tensor) -> None:
        """Make every `p.grad` a view of the buffer: nothing is copied."""
        for parameter, view in zip(self.parameters, self.views(flat), strict=True):
            parameter.grad = view

    def clear(self) -> None:
        """Drop the gradients, so that the next backward writes new ones instead of adding."""
        for parameter in self.parameters:
            parameter.grad = None
