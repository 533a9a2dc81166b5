"""A world of one rank: every collective is the identity."""

from __future__ import annotations

import os
import sys
from collections import defaultdict, deque
from collections.abc import Sequence
from typing import Any

import numpy as np

from hvdlm.world.interface import Pending, World


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

    def __init__(self) -> None:
        self._messages: dict[int, deque] = defaultdict(deque)  # to itself, by tag

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

    def _part(self, groups: Sequence[Sequence[int]], name: str) -> SerialWorld:
        return SerialWorld()

    def post_send(self, tensor: Any, to: int, tag: int) -> Pending:
        self._messages[tag].append(tensor.detach().clone())
        return Pending(lambda: None, lambda: True)

    def post_receive(self, like: Any, source: int, tag: int) -> Pending:
        return Pending(lambda: self._messages[tag].popleft(), lambda: bool(self._messages[tag]))

    def window(self, length: int) -> LocalWindow:
        return LocalWindow(length)

    def counters(self, length: int) -> LocalCounters:
        return LocalCounters(length)

    def abort(self, code: int) -> None:
        if self._parent is not None:  # this rank is alone in its group alone
            self._parent.abort(code)
        sys.stderr.flush()
        os._exit(code)
