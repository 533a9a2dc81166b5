"""PowerSGD: each gradient matrix is sent as the product of two thin ones (Vogels, Karimireddy and Jaggi 2019)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hvdlm.sync.codecs import Compressor
from hvdlm.sync.flat import FlatLayout
from hvdlm.sync.traffic import Traffic

SEED = 20190531  # of the first Q, the same on all ranks


@dataclass(frozen=True)
class _Matrix:
    """A parameter of two or more dimensions as (m, k), and where it lies in the flat gradient."""

    start: int
    m: int
    k: int

    def of(self, flat: Tensor) -> Tensor:
        return flat[self.start : self.start + self.m * self.k].view(self.m, self.k)


class PowerSgd(Compressor):
    """One step of subspace iteration a step, begun where the last one ended (warm start).

    With M the sum over ranks of each gradient matrix: P = M Q made orthonormal, then Q = M^T P, and the total is
    P Q^T. Both are linear in M, so they are sums over ranks: two for the whole model. Gradients of one dimension,
    and of matrices too small to gain, travel as they are with the first. Every rank makes P orthonormal for
    itself, from the same bits: ranks need the same kind of processor and number of threads to stay equal.
    """

    learnt: Tensor  # Q of all matrices, one after the other

    def __init__(self, layout: FlatLayout, rank: int) -> None:
        self._matrices: list[_Matrix] = []
        self._plain: list[slice] = []
        start = 0
        for parameter in layout.parameters:
            m, k = parameter.flatten(1).shape if parameter.dim() >= 2 else (1, parameter.numel())
            if rank * (m + k) < m * k:
                self._matrices.append(_Matrix(start, m, k))
            else:
                self._plain.append(slice(start, start + parameter.numel()))
            start += parameter.numel()
        device = layout.parameters[0].device
        self._rank, self._num_plain = rank, sum(part.stop - part.start for part in self._plain)
        self._first = torch.zeros(rank * sum(matrix.m for matrix in self._matrices) + self._num_plain, device=device)
        draws = torch.Generator().manual_seed(SEED)
        self.learnt = torch.randn(rank * sum(matrix.k for matrix in self._matrices), generator=draws).to(device)

    def reduce(self, gradient: Tensor, traffic: Traffic) -> tuple[Tensor, Tensor]:
        thin = self._first.numel() - self._num_plain
        ps = self._cut(self._first[:thin], [matrix.m for matrix in self._matrices])
        qs = self._columns(self.learnt)
        for matrix, p, q in zip(self._matrices, ps, qs, strict=True):
            torch.mm(matrix.of(gradient), q, out=p)
        torch.cat([gradient[part] for part in self._plain] or [gradient[:0]], out=self._first[thin:])
        traffic.sum_(self._first)
        new = torch.empty_like(self.learnt)
        for matrix, p, q in zip(self._matrices, ps, self._columns(new), strict=True):
            p.copy_(torch.linalg.qr(p).Q)
            torch.mm(matrix.of(gradient).T, p, out=q)
        traffic.sum_(new)
        return self._restored(gradient, ps, new, traffic.size)

    def _restored(self, gradient: Tensor, ps: list[Tensor], new: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """(total, sent) of the reduced P and Q; the new Q is where the next step begins."""
        total = torch.zeros_like(gradient)
        for matrix, p, q in zip(self._matrices, ps, self._columns(new), strict=True):
            torch.mm(p, q.T, out=matrix.of(total))
        sent = total / size
        plain = self._first[self._first.numel() - self._num_plain :].split([s.stop - s.start for s in self._plain])
        for part, reduced in zip(self._plain, plain, strict=True):
            total[part], sent[part] = reduced, gradient[part]
        self._keep(new)
        return total, sent

    def _keep(self, new: Tensor) -> None:
        """Begin the next step with Q, but not from zeros or NaN: no iteration would ever leave them."""
        if not torch.isfinite(new.sum()):
            return
        for old_q, new_q in zip(self._columns(self.learnt), self._columns(new), strict=True):
            old_q.copy_(torch.where(new_q.abs().amax(0) > 0, new_q, old_q))

    def _columns(self, q: Tensor) -> list[Tensor]:
        return self._cut(q, [matrix.k for matrix in self._matrices])

    def _cut(self, flat: Tensor, heights: list[int]) -> list[Tensor]:
        parts = flat.split([height * self._rank for height in heights])
        return [part.view(height, self._rank) for part, height in zip(parts, heights, strict=True)]
