"""What tensor ranks exchange inside a model, as functions that autograd can follow.

Source: Shoeybi et al. 2019, "Megatron-LM", section 3, whose f and g are `enter` and `leave`; Korthikanti et al. 2022,
"Reducing activation recomputation in large transformer models", section 4.2.2, for parts along the sequence. Sums are
added up in rank order, so that all ranks have the same bits, and never in place: others may hold the same gradient.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hvdlm.partition import slice_of
from hvdlm.world.interface import World


def summed(x: Tensor, world: World) -> Tensor:
    """The sum over the ranks, a new tensor; of less than float32 it is added up in that."""
    size = world.size
    if size == 1:
        return x
    rows = x.new_zeros(-(-x.numel() // size) * size)
    rows[: x.numel()] = x.detach().reshape(-1)
    mine = added(world.exchange_rows(rows.view(size, -1)))
    return world.gather_rows(mine).view(-1)[: x.numel()].view(x.shape)


def added(rows: Tensor) -> Tensor:
    """The sum of (size, n) in rank order, (n,)."""
    total = rows[0].to(torch.promote_types(rows.dtype, torch.float32), copy=True)
    for row in rows[1:]:
        total += row
    return total.to(rows.dtype)


def places(rank: int, world: World, time: int) -> range:
    """The tokens of a sequence that a rank has where tensor ranks share it."""
    return slice_of(rank, world.size, time)


def gathered(x: Tensor, world: World, time: int) -> Tensor:
    """Everybody's tokens (B, its part of T, C) as (B, T, C)."""
    widest = -(-time // world.size)
    padded = x.new_zeros(x.shape[0], widest, *x.shape[2:])
    padded[:, : x.shape[1]] = x.detach()
    rows = world.gather_rows(padded.view(-1)).view(world.size, *padded.shape)
    return torch.cat([row[:, : len(places(rank, world, time))] for rank, row in enumerate(rows)], dim=1)


def scattered(x: Tensor, world: World) -> Tensor:
    """The sum over the ranks of (B, T, C), of which each has its part of T."""
    time = x.shape[1]
    widest = -(-time // world.size)
    rows = x.new_zeros(world.size, x.shape[0], widest, *x.shape[2:])
    for rank, row in enumerate(rows):
        mine = places(rank, world, time)
        row[:, : len(mine)] = x.detach()[:, mine.start : mine.stop]
    total = added(world.exchange_rows(rows.view(world.size, -1))).view(rows.shape[1:])
    return total[:, : len(places(world.rank, world, time))].contiguous()


def part_of(x: Tensor, world: World) -> Tensor:
    """This rank's part of (B, T, …), a view."""
    mine = places(world.rank, world, x.shape[1])
    return x[:, mine.start : mine.stop]


class _Enter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, world: World) -> Tensor:
        ctx.world = world
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return summed(gradient, ctx.world), None


class _Leave(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, world: World) -> Tensor:
        return summed(x, world)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


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
    return _Enter.apply(x, world)


def leave(x: Tensor, world: World) -> Tensor:
    """The sum of what such layers have made of it, which all ranks have alike again."""
    return _Leave.apply(x, world)


def leave_in_parts(x: Tensor, world: World) -> Tensor:
    """The same of (B, T, C), of which each rank keeps its part of T."""
    return _Scatter.apply(x, world)


def together(x: Tensor, world: World, time: int) -> Tensor:
    """Parts of T become what all ranks have alike, and whose gradient they have alike too: each takes its part back."""
    return _Gather.apply(x, world, time)
