"""What tensor ranks exchange inside a model, as functions that autograd can follow.

Source: Shoeybi et al. 2019, "Megatron-LM", section 3, whose f and g are `enter` and `leave`; Korthikanti et al. 2022,
"Reducing activation recomputation in large transformer models", section 4.2.2, for parts along the sequence. Sums are
added up in one tree over the ranks, so that all have the same bits, and never in place: others may hold the same
gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from hvdlm.partition import slice_of
from hvdlm.world.interface import World


def exchange_rows(rows: Tensor, world: World) -> Tensor:
    """Those of the world; seconds and bytes count in its `exchange_s` and `exchanged_bytes`."""
    world.exchanged_bytes += rows.nbytes * (world.size - 1) // world.size
    return _timed(world.exchange_rows, rows, world)


def gather_rows(row: Tensor, world: World) -> Tensor:
    """The same for its `gather_rows`."""
    world.exchanged_bytes += row.nbytes * (world.size - 1)
    return _timed(world.gather_rows, row, world)


def _timed(meet: Callable[[Tensor], Tensor], x: Tensor, world: World) -> Tensor:
    start = perf_counter()
    met = meet(x)
    world.exchange_s += perf_counter() - start
    return met


def summed(x: Tensor, world: World) -> Tensor:
    """The sum over the ranks, a new tensor; of less than float32 it is added up in that."""
    size = world.size
    if size == 1:
        return x
    rows = x.new_zeros(-(-x.numel() // size) * size)
    rows[: x.numel()] = x.detach().reshape(-1)
    mine = added(exchange_rows(rows.view(size, -1), world)).to(x.dtype)
    return gather_rows(mine, world).view(-1)[: x.numel()].view(x.shape)


def added(parts: Tensor | Sequence[Tensor]) -> Tensor:
    """The sum of equal shapes, neighbours first; of less than float32 it is added up in that, and is that.

    Sums of as many neighbours each, where that is a power of two, add up to the bits of them all.
    """
    wide = [part.to(torch.promote_types(part.dtype, torch.float32)) for part in parts]
    while len(wide) > 1:
        pairs = [left + right for left, right in zip(wide[::2], wide[1::2], strict=False)]
        wide = pairs + wide[2 * len(pairs) :]
    return wide[0]


def places(rank: int, world: World, time: int) -> range:
    """The tokens of a sequence that a rank has where tensor ranks share it."""
    return slice_of(rank, world.size, time)


def gathered(x: Tensor, world: World, time: int) -> Tensor:
    """Everybody's tokens (B, its part of T, C) as (B, T, C)."""
    widest = -(-time // world.size)
    padded = x.new_zeros(x.shape[0], widest, *x.shape[2:])
    padded[:, : x.shape[1]] = x.detach()
    rows = gather_rows(padded.view(-1), world).view(world.size, *padded.shape)
    return torch.cat([row[:, : len(places(rank, world, time))] for rank, row in enumerate(rows)], dim=1)


def scattered(x: Tensor, world: World) -> Tensor:
    """The sum over the ranks of (B, T, C), of which each has its part of T."""
    time = x.shape[1]
    widest = -(-time // world.size)
    rows = x.new_zeros(world.size, x.shape[0], widest, *x.shape[2:])
    for rank, row in enumerate(rows):
        mine = places(rank, world, time)
        row[:, : len(mine)] = x.detach()[:, mine.start : mine.stop]
    total = added(exchange_rows(rows.view(world.size, -1), world)).to(x.dtype).view(rows.shape[1:])
    return total[:, : len(places(world.rank, world, time))].contiguous()


def part_of(x: Tensor, world: World) -> Tensor:
    """This rank's part of (B, T, …), a view."""
    mine = places(world.rank, world, x.shape[1])
    return x[:, mine.start : mine.stop]


class _Enter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, world: World, num: int) -> tuple[Tensor, ...]:
        ctx.world = world
        return tuple(x.view_as(x) for _ in range(num))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return _summed_parts(gradients, ctx.world), None, None


class _Leave(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, world: World, *parts: Tensor) -> Tensor:
        ctx.num = len(parts)
        return _summed_parts(parts, world)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return None, *[gradient] * ctx.num


def _summed_parts(parts: Sequence[Tensor], world: World) -> Tensor:
    """The sum of all that the ranks have, of each as many."""
    if len(parts) == 1:
        return summed(parts[0], world)
    return summed(added(parts), world).to(parts[0].dtype)


class _Scatter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, world: World) -> Tensor:
        ctx.world, ctx.time = world, x.shape[1]
        return scattered(x, world)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gathered(gradient, ctx.world, ctx.time), None


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, world: World, time: int) -> Tensor:
        ctx.world = world
        return gathered(x, world, time)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return part_of(gradient, ctx.world).contiguous(), None, None


def enter(x: Tensor, world: World) -> Tensor:
    """What all ranks have alike comes to layers that each has in part: gradients are added up on the way back."""
    return enter_each(x, world, 1)[0]


def enter_each(x: Tensor, world: World, num: int) -> tuple[Tensor, ...]:
    """The same for `num` parts on each rank."""
    return _Enter.apply(x, world, num)


def leave(x: Tensor, world: World) -> Tensor:
    """The sum of what such layers have made of it, which all ranks have alike again."""
    return _Leave.apply(world, x)


def leave_all(parts: Sequence[Tensor], world: World) -> Tensor:
    """The same of several parts on each rank."""
    return _Leave.apply(world, *parts)


def leave_in_parts(x: Tensor, world: World) -> Tensor:
    """The same of (B, T, C), of which each rank keeps its part of T."""
    return _Scatter.apply(x, world)


def together(x: Tensor, world: World, time: int) -> Tensor:
    """Parts of T become what all ranks have alike, and whose gradient they have alike too: each takes its part back."""
    return _Gather.apply(x, world, time)
