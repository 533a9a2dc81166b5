"""A world's collectives on tensors, with a count of what this rank hands to the network."""

from __future__ import annotations

from torch import Tensor

from hvdlm.sync.interface import ring_bytes
from hvdlm.world.interface import World


class Traffic:
    """`bytes_sent` is the payload of this rank so far, by the algorithm that sends least: what stays here is not in."""

    def __init__(self, world: World) -> None:
        self.rank, self.size = world.rank, world.size
        self.bytes_sent = 0
        self._world = world

    def sum_(self, tensor: Tensor) -> None:
        self.bytes_sent += ring_bytes([tensor], self.size)
        self._world.sum_(tensor)

    def exchange_rows(self, rows: Tensor) -> Tensor:
        self.bytes_sent += rows.nbytes * (self.size - 1) // self.size
        return self._world.exchange_rows(rows)

    def gather_rows(self, row: Tensor) -> Tensor:
        self.bytes_sent += row.nbytes * (self.size - 1)
        return self._world.gather_rows(row)
