"""Sending only the largest elements of the gradient, the others later (Stich et al. 2018, Lin et al. 2018)."""

from __future__ import annotations

import torch
from torch import Tensor

from hvdlm.errors import UserError
from hvdlm.sync.codecs import Compressor
from hvdlm.sync.traffic import Traffic

SAMPLE_STRIDE = 97  # a prime: no period of a model's shapes is met again and again


class TopK(Compressor):
    """8 bytes for each of the `density * numel` elements that are largest on this rank: an int32 place and a value."""

    def __init__(self, numel: int, density: float) -> None:
        if numel >= 2**31:
            raise UserError(f"sync.compress: topk has 32-bit places and the model {numel} weights; use powersgd")
        self.count = max(1, round(density * numel))

    def reduce(self, gradient: Tensor, traffic: Traffic) -> tuple[Tensor, Tensor]:
        places = largest(gradient, self.count)
        values = gradient[places]
        rows = traffic.gather_rows(torch.cat([places.to(torch.int32), values.view(torch.int32)]))  # (P, 2 k)
        total, sent = torch.zeros_like(gradient), torch.zeros_like(gradient)
        sent[places] = values
        for theirs in rows:  # in rank order, and no rank names a place twice: the same bits everywhere
            total.index_add_(0, theirs[: self.count].long(), theirs[self.count :].view(torch.float32))
        return total, sent


def largest(values: Tensor, count: int) -> Tensor:
    """Places (int64, in no order) of the `count` elements of (n,) with the largest magnitudes; NaN is the largest.

    A sample gives a bound that is likely to leave few more than `count`; only these are then searched.
    """
    magnitudes = values.abs()
    sample = magnitudes[::SAMPLE_STRIDE]
    kept = int(1.3 * count / SAMPLE_STRIDE) + 20
    if kept < len(sample) // 2:
        bound = torch.topk(sample, kept).values[-1]
        candidates = torch.nonzero(~(magnitudes < bound)).view(-1)
        if len(candidates) >= count:
            return candidates[torch.topk(magnitudes[candidates], count, sorted=False).indices]
    return torch.topk(magnitudes, count, sorted=False).indices
