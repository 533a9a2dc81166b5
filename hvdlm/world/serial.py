"""A world of one rank: every collective is the identity."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from hvdlm.world.interface import World


class LocalCounters:
    """Counters of a world of one."""

    def __init__(self, length: int) -> None:
        self._values = [0] * length

    def add(self, index: int, amount: int) -> int:
        self._values[index] += amount
        return self._values[index] - amount

    def read(self) -> list[int]:
        return list(self._values)

    def close(self) -> None:
        """Nothing is held."""


class LocalWindow:
    """Memory of a world of one."""

    def __init__(self, length: int) -> None:
        self.local = np.zeros(length, dtype=np.float32)

    def get(self, rank: int, out: np.ndarray) -> None:
        out[:] = self.local

    def add(self, rank: int, amount: np.ndarray) -> None:
        self.local += amount

    def close(self) -> None:
        """Nothing is held."""


class SerialWorld(World):
    kind = "serial"
    rank = 0
    size = 1

    def sum_(self, buffer: Any) -> None:
        """The sum over one rank is what is there."""

    def broadcast_(self, buffer: Any) -> None:
        """Rank 0 is the only rank."""

    def gather_bytes(self, data: bytes) -> list[bytes]:
        return [data]

    def exchange_rows(self, rows: Any) -> Any:
        return rows.clone()

    def gather_rows(self, row: Any) -> Any:
        return row.clone()[None]

    def split(self, groups: Sequence[Sequence[int]], name: str) -> SerialWorld:
        return SerialWorld()

    def window(self, length: int) -> LocalWindow:
        return LocalWindow(length)

    def counters(self, length: int) -> LocalCounters:
        return LocalCounters(length)

    def abort(self, code: int) -> None:
        sys.stderr.flush()
        os._exit(code)
