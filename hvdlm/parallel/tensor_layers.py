"""Linear layers of which each tensor rank has some outputs or some inputs, and tables of which it has some rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hvdlm.checkpoint.boxes import Cut
from hvdlm.models.interface import HeadTerms
from hvdlm.models.transformer.blocks import Head
from hvdlm.models.transformer.layers import softcapped
from hvdlm.parallel.blocks import Blocks
from hvdlm.parallel.exchange import enter, enter_each, gather_rows, gathered, leave, leave_in_parts, scattered
from hvdlm.partition import slice_of
from hvdlm.world.interface import World

Product = Callable[[Tensor, Tensor, Tensor | None], Tensor]  # as F.linear


def kept(parameter: Tensor, cut: Cut) -> nn.Parameter:
    """What this rank holds of a parameter."""
    return nn.Parameter(cut.of(parameter.detach()).clone(), requires_grad=parameter.requires_grad)


class _GatheredLinear(torch.autograd.Function):
    """A layer on tokens that ranks share: they are gathered, and gathered again on the way back instead of kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, world: World, time: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.world, ctx.time, ctx.has_bias = world, time, bias is not None
        return F.linear(gathered(x, world, time), weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        full = gathered(x, ctx.world, ctx.time).to(gradient.dtype)
        of_x = scattered(gradient @ weight.to(gradient.dtype), ctx.world).to(x.dtype)
        flat = gradient.flatten(0, 1)
        of_weight = (flat.t() @ full.flatten(0, 1)).to(weight.dtype)
        return of_x, of_weight, flat.sum(0).to(weight.dtype) if ctx.has_bias else None, None, None


class ColumnLinear(nn.Module):
    """Some outputs of a linear layer; what comes in is alike on all ranks, or parts of T where they share these."""

    product: Product = staticmethod(F.linear)

    def __init__(self, layer: nn.Linear, cut: Cut, world: World, *, shares_time: bool) -> None:
        super().__init__()
        self.weight, self._world, self._shares_time = kept(layer.weight, cut), world, shares_time
        self.bias = None if layer.bias is None else kept(layer.bias, Cut(cut.shape[:1], 0, cut.ranges))
        self.time = 0  # of whole sequences, where ranks share them; the model tells it

    def forward(self, x: Tensor) -> Tensor:
        if self._shares_time:
            return _GatheredLinear.apply(x, self.weight, self.bias, self._world, self.time)
        return self.product(enter(x, self._world), self.weight, self.bias)


class RowLinear(nn.Module):
    """Some inputs of a linear layer; what it gives is the sum over ranks, with the bias added once behind it."""

    product: Product = staticmethod(F.linear)

    def __init__(self, layer: nn.Linear, cut: Cut, world: World, *, shares_time: bool) -> None:
        super().__init__()
        self.weight, self.bias, self._world = kept(layer.weight, cut), layer.bias, world
        self._leave = leave_in_parts if shares_time else leave

    def forward(self, x: Tensor) -> Tensor:
        found = self._leave(self.product(x, self.weight, None), self._world)
        return found if self.bias is None else found + self.bias


class VocabEmbedding(nn.Module):
    """Some rows of an embedding: what other ranks have is 0 before the sum."""

    def __init__(self, layer: nn.Embedding, cut: Cut, world: World, *, shares_time: bool) -> None:
        super().__init__()
        self.weight, self._world = kept(layer.weight, cut), world
        self._mine = cut.ranges[0]
        self._leave = leave_in_parts if shares_time else leave

    def forward(self, ids: Tensor) -> Tensor:
        is_mine = (ids >= self._mine.start) & (ids < self._mine.stop)
        rows = F.embedding((ids - self._mine.start).where(is_mine, 0), self.weight)
        return self._leave(rows.where(is_mine.unsqueeze(-1), 0.0), self._world)


class VocabHead(nn.Module):
    """Some of a head's outputs. Nobody holds all logits: `terms` says of them what losses need."""

    def __init__(self, head: Head, cut: Cut, blocks: Blocks, weight: nn.Parameter | None) -> None:
        super().__init__()
        self.weight = kept(head.weight, cut) if weight is None else weight
        self.bias = None if head.bias is None else kept(head.bias, Cut(cut.shape[:1], 0, cut.ranges))
        self.transform, self.softcap = head.transform, head.softcap
        self._cut, self._blocks = cut, blocks

    def _logits(self, hidden: Tensor) -> list[Tensor]:
        """Of each of this rank's blocks."""
        if self.transform is not None:
            hidden = self.transform(hidden)
        weights = self._blocks.parts(self.weight, self._cut)
        biases = [None] * len(weights) if self.bias is None else self._blocks.parts(self.bias, self._cut)
        inputs = enter_each(hidden, self._blocks.world, len(weights))
        return [softcapped(F.linear(*of_block), self.softcap) for of_block in zip(inputs, weights, biases, strict=True)]

    def terms(self, hidden: Tensor, targets: Tensor) -> HeadTerms:
        """Of hidden (…, C) at targets (…), of the logits: log-sum-exp, that of the target, mean, the likeliest id."""
        logits = [_wide(part).flatten(0, -2) for part in self._logits(hidden)]
        found = _Terms.apply(self._blocks, self._cut, targets.flatten(), *logits)
        return HeadTerms(*(part.view(targets.shape) for part in found))

    def forward(self, hidden: Tensor) -> Tensor:
        """All logits, gathered, on all ranks: for whoever asks for more than `terms` says. Collective."""
        return _Logits.apply(torch.cat(self._logits(hidden), dim=-1), self._blocks.world, self._cut.shape[0])


class _Logits(torch.autograd.Function):
    """Everybody's part of the vocabulary becomes what all ranks have alike, and whose gradient they have alike too."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, world: World, size: int) -> Tensor:
        ctx.mine = slice_of(world.rank, world.size, size)
        padded = logits.new_zeros(*logits.shape[:-1], -(-size // world.size))
        padded[..., : logits.shape[-1]] = logits
        rows = gather_rows(padded.view(-1), world).view(world.size, *padded.shape)
        sizes = [len(slice_of(rank, world.size, size)) for rank in range(world.size)]
        return torch.cat([row[..., :size] for row, size in zip(rows, sizes, strict=True)], dim=-1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return gradient[..., ctx.mine.start : ctx.mine.stop].contiguous(), None, None


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _place(targets: Tensor, mine: range) -> tuple[Tensor, Tensor]:
    """Where targets lie among some ids, and whether they do."""
    is_mine = (targets >= mine.start) & (targets < mine.stop)
    return (targets - mine.start).where(is_mine, 0), is_mine


class _Terms(torch.autograd.Function):
    """One exchange: of each token the highest logit and its id, the sum of exp above it, the target's, their plain sum.

    Log-sum-exp can be put together of parts, so that all ranks come to the same bits in the order of blocks.
    """

    @staticmethod
    def forward(ctx: Any, blocks: Blocks, cut: Cut, targets: Tensor, *logits: Tensor) -> Any:
        ctx.within, ctx.size = blocks.within(cut), cut.shape[0]
        parts = []
        for part, mine in zip(logits, ctx.within, strict=True):
            first = part.argmax(-1)  # of equal ones
            highest = part.gather(-1, first.unsqueeze(-1)).squeeze(-1)
            sums = (part - highest.unsqueeze(-1)).exp().sum(-1)
            place, is_mine = _place(targets, mine)
            chosen = part.gather(-1, place.unsqueeze(-1)).squeeze(-1).where(is_mine, 0.0)
            ids = (first + mine.start).to(part.dtype)  # exact: there are less than 2^24
            parts.append(torch.stack((highest, sums, chosen, part.sum(-1), ids)))  # (5, N)
        rows = gather_rows(torch.stack(parts).view(-1), blocks.world).view(blocks.num, *parts[0].shape)
        top = rows[:, 0].amax(0)
        total, target, plain = (torch.zeros_like(top) for _ in range(3))
        likeliest = torch.where(rows[:, 0] == top, rows[:, 4], torch.inf).amin(0).long()
        for row in rows:
            total += row[1] * (row[0] - top).exp()
            target += row[2]
            plain += row[3]
        log_z = top + total.log()
        ctx.save_for_backward(targets, log_z, *logits)
        ctx.mark_non_differentiable(likeliest)
        return log_z, target, plain / ctx.size, likeliest

    @staticmethod
    def backward(ctx: Any, of_log_z: Tensor, of_chosen: Tensor, of_mean: Tensor, _: Tensor) -> Any:
        targets, log_z, *logits = ctx.saved_tensors
        gradients = []
        for part, mine in zip(logits, ctx.within, strict=True):
            place, is_mine = _place(targets, mine)
            gradient = (part - log_z.unsqueeze(-1)).exp_().mul_(of_log_z.unsqueeze(-1))
            gradient += (of_mean / ctx.size).unsqueeze(-1)
            gradient.scatter_add_(-1, place.unsqueeze(-1), of_chosen.where(is_mine, 0.0).unsqueeze(-1))
            gradients.append(gradient)
        return None, None, None, *gradients
