"""Random draws of training, keyed by (seed, step, sample): the same on any rank, in any micro-batch, when recomputed.

Those of a step are keyed by (seed, step) alone: what all samples of a global batch share.

Counter-based (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"): a draw is a hash of its key and
its place, so there is no generator state to keep, to send or to restore.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hvdlm.partition import mix

_MASK64 = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15  # 2^64 / golden ratio, odd: the increment of SplitMix64


@dataclass(frozen=True)
class Draws:
    """The keys of a micro-batch's draws; a `site` says which draw is meant.

    The sites of a model count up from 0, those of noise on its inputs down from -1.
    """

    keys: Tensor  # int64 (B,), one a sample
    step_key: Tensor  # int64 (1,), no sample's

    def to(self, device: torch.device | str) -> Draws:
        return Draws(self.keys.to(device), self.step_key.to(device))

    @property
    def of_step(self) -> Draws:
        """Draws as if for one sample, (1, …): the same in each micro-batch of the step, on every rank."""
        return Draws(self.step_key, self.step_key)

    def uniform_bits(self, site: int, shape_per_sample: tuple[int, ...], start: int = 0) -> Tensor:
        """Uniform int32 (B, *shape_per_sample), a new tensor; the high bits are the best mixed.

        They are those of the places from `start` on of a larger shape, of which a rank has a part.

        Sample and site choose an odd multiplier and an offset for the positions 0, 1, …; then come two rounds of an
        integer hash (xor-shift and multiply modulo 2^32, constants of Wellons' hash-prospector search).
        """
        # The product is one of tensors, which wraps: torch.compile may take the site for a variable.
        begin = self.keys + torch.full_like(self.keys, site) * signed64(_GOLDEN)
        keys = mix64(begin).view(-1, *[1] * len(shape_per_sample))
        places = torch.arange(start, start + math.prod(shape_per_sample), dtype=torch.int32, device=keys.device)
        bits = places.view(1, *shape_per_sample) * (keys.to(torch.int32) | 1)
        bits += (keys >> 32).to(torch.int32)
        for shift, factor in ((16, 0x21F0AAAD), (15, 0x735A2D97)):
            bits ^= _shifted(bits, shift, 32)
            bits *= factor
        return bits

    def normal(self, site: int, shape_per_sample: tuple[int, ...]) -> Tensor:
        """Standard normal float32 (B, *shape_per_sample), by the method of Box and Muller 1958.

        A shape with a longer first dimension begins with the draws of a shorter one.
        """
        bits = self.uniform_bits(site, (*shape_per_sample, 2)).double()  # in float64, for the tails
        radius, angle = ((bits + (2**31 + 0.5)) / 2**32).unbind(-1)  # in (0, 1)
        return ((-2 * radius.log()).sqrt() * (2 * math.pi * angle).cos()).float()


def draws_for(seed: int, step: int, samples: np.ndarray) -> Draws:
    """The draws of `samples`, places (int64, (B,)) in the global batch of `step` or in the whole order. On the CPU."""
    start = mix(mix(np.array([seed & _MASK64], dtype=np.uint64)) + np.uint64(step))
    keys = mix(start + (samples.astype(np.uint64) + np.uint64(1)) * np.uint64(_GOLDEN))  # a stream of SplitMix64
    return Draws(*(torch.from_numpy(part.view(np.int64)) for part in (keys, mix(start))))


def dropout(
    x: Tensor, p: float, draws: Draws | None, site: int, *, shared_dims: tuple[int, ...] = (), start: int = 0
) -> Tensor:
    """`x` (B, …) with each value 0 with probability p and else scaled by 1 / (1 - p), so that E[x] stays.

    One draw serves all of a dimension in `shared_dims` (Gal and Ghahramani 2016 share it over time). Without draws,
    as in evaluation, and for p = 0 it is the identity. Where `x` is a part of a sample's values, its first has the
    place `start` among them.
    """
    if draws is None or p == 0:
        return x
    shape = tuple(1 if dim in shared_dims else size for dim, size in enumerate(x.shape))
    bits = draws.uniform_bits(site, shape[1:], start)
    # ge_ stays in int32, where a bool tensor would cost more than the whole hash (CPU).
    mask = bits.ge_(threshold(p)).to(torch.float32).mul_(1 / (1 - p))
    return (x * mask).to(x.dtype)  # bfloat16 rounds the product, not the scale, which would shift E[x]


def threshold(p: float) -> int:
    """Uniform int32 bits are less than this with probability p in [0, 1), to within 2^-32."""
    return min(round(p * 2**32), 2**32 - 1) - 2**31


def mix64(value: Tensor) -> Tensor:
    """`partition.mix` of int64 tensors, for torch has no unsigned arithmetic."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        value = (value ^ _shifted(value, shift, 64)) * signed64(factor)
    return value ^ _shifted(value, 31, 64)


def _shifted(value: Tensor, shift: int, width: int) -> Tensor:
    """Logical shift right: torch's copies the sign, with which `value ^ shifted` would lose a bit."""
    return (value >> shift).bitwise_and_((1 << width - shift) - 1)


def signed64(number: int) -> int:
    """`number` modulo 2^64 as an int64."""
    return (number + 2**63 & _MASK64) - 2**63
