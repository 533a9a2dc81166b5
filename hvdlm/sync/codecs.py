"""Gradient compressors that send every element in fewer bits: bfloat16, and int8 with a scale for each block."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from hvdlm.sync.flat import ROW_MULTIPLE
from hvdlm.sync.traffic import Traffic

INT8_BLOCK = ROW_MULTIPLE  # elements that share a scale: 4 bytes for 256, so 1.6 % more than int8 alone


class Compressor(ABC):
    """One way to send less than the ranks' gradients and still have all ranks hold one sum, bit for bit."""

    learnt: Tensor | None = None  # what it keeps from step to step, equal on all ranks, for checkpoints

    @abstractmethod
    def reduce(self, gradient: Tensor, traffic: Traffic) -> tuple[Tensor, Tensor]:
        """(total, sent) of this rank's `gradient`, each a new float32 tensor of its shape (padded,).

        `total` is equal on all ranks, and it is the sum over ranks of `sent`: what this rank's share of it is.
        So the errors `gradient - sent` hold exactly what `total` lacks. Where any rank's gradient is infinite
        or NaN, so is something in everybody's total.
        """


class Uncompressed(Compressor):
    """For a world of one: nothing travels, so nothing need be lost."""

    def reduce(self, gradient: Tensor, traffic: Traffic) -> tuple[Tensor, Tensor]:
        return gradient.clone(), gradient.clone()


class SlicedCodec(Compressor):
    """Each rank adds up its slice in float32 from everybody's codes, and everybody decodes the sums' codes.

    Both roundings are answered for: the second by the slice's owner, who takes its error as part of its own
    (Tang et al. 2019, "DoubleSqueeze", keep two).
    """

    @abstractmethod
    def encode(self, rows: Tensor) -> Tensor:
        """Codes (R, m) of float32 (R, w)."""

    @abstractmethod
    def decode(self, codes: Tensor) -> Tensor:
        """float32 (R, w) of codes (R, m)."""

    def reduce(self, gradient: Tensor, traffic: Traffic) -> tuple[Tensor, Tensor]:
        codes = self.encode(gradient.view(traffic.size, -1))
        sent = self.decode(codes)  # (P, w)
        own = self.decode(traffic.exchange_rows(codes)).sum(0)  # (w,)
        total = self.decode(traffic.gather_rows(self.encode(own[None])[0]))
        sent[traffic.rank] -= own.sub_(total[traffic.rank])
        return total.view(-1), sent.view(-1)


class Bf16(SlicedCodec):
    """Half the bytes; 8 bits of significand, the exponents of float32."""

    def encode(self, rows: Tensor) -> Tensor:
        return rows.bfloat16()

    def decode(self, codes: Tensor) -> Tensor:
        return codes.float()


class Int8(SlicedCodec):
    """A quarter of the bytes: the largest of each block becomes 127 (block-wise scales: Dettmers et al. 2022).

    A block with an infinite or NaN element has such a scale, and so is wholly infinite or NaN after decoding.
    """

    def encode(self, rows: Tensor) -> Tensor:
        blocks = rows.view(len(rows), -1, INT8_BLOCK)
        # amax and amin, for aminmax takes ten times as long on CPU
        scales = torch.maximum(blocks.amax(-1, keepdim=True), -blocks.amin(-1, keepdim=True)).div_(127)
        steps = (blocks / scales.clamp_min(torch.finfo(torch.float32).tiny)).round_().to(torch.int8)
        return torch.cat([steps.flatten(1).view(torch.uint8), scales.flatten(1).view(torch.uint8)], dim=1)

    def decode(self, codes: Tensor) -> Tensor:
        width = codes.shape[1] * INT8_BLOCK // (INT8_BLOCK + 4)
        steps = codes[:, :width].view(torch.int8).unflatten(1, (-1, INT8_BLOCK))
        scales = codes[:, width:].contiguous().view(torch.float32)
        return steps.float().mul_(scales[:, :, None]).flatten(1)
