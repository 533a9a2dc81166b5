"""Which blocks of a layer a tensor rank has: one, or with `parallel.tensor_blocks` some of a fixed number."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from hvdlm.checkpoint.boxes import Cut
from hvdlm.partition import slice_of
from hvdlm.world.interface import World


class Blocks(NamedTuple):
    """How many blocks there are on all ranks: as many on each."""

    num: int
    world: World

    @property
    def mine(self) -> range:
        return slice_of(self.world.rank, self.world.size, self.num)

    def parts(self, held: Tensor, cut: Cut) -> list[Tensor]:
        """Of what this rank holds of a parameter, or of its gradient, what each of its blocks has."""
        mine = self.mine
        if len(mine) == 1:
            return [held]
        if len(cut.ranges) == 1:
            return list(held.split([len(part) for part in self.within(cut)], cut.dim))
        pieces = [piece for r in cut.ranges for piece in [len(r) // len(mine)] * len(mine)]
        split = held.split(pieces, cut.dim)
        return [torch.cat(split[number :: len(mine)], cut.dim) for number in range(len(mine))]

    def within(self, cut: Cut) -> list[range]:
        """Along the dimension of a cut of one range, the places of each of this rank's blocks."""
        return [slice_of(number, self.num, cut.shape[cut.dim]) for number in self.mine]
