"""Ranks as threads of one process, so that code that takes a world can be tried without MPI.

>>> run_on_threads(3, lambda world: world.gather(10 * world.rank))
[[0, 10, 20], [0, 10, 20], [0, 10, 20]]
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from hvdlm.world.interface import World

T = TypeVar("T")
LIMIT_S = 60.0  # for the slowest rank to come to a collective


class ThreadWorld(World):
    """One of several threads, which meet at a barrier and read what the others have laid on the table."""

    kind = "threads"

    def __init__(self, rank: int, table: list, barrier: threading.Barrier) -> None:
        self.rank, self.size = rank, len(table)
        self._table, self._barrier = table, barrier
        self.exit_code: int | None = None  # of `abort`

    def _meet(self, value: Any) -> list:
        """Everybody's value, in rank order."""
        self._table[self.rank] = value
        self._barrier.wait()
        everybody = list(self._table)
        self._barrier.wait()
        return everybody

    def sum_(self, buffer: Any) -> None:
        tensor = torch.as_tensor(buffer)
        tensor.copy_(torch.stack(self._meet(tensor.clone())).sum(0))

    def broadcast_(self, buffer: Any) -> None:
        tensor = torch.as_tensor(buffer)
        tensor.copy_(self._meet(tensor.clone())[0])

    def gather_bytes(self, data: bytes) -> list[bytes]:
        return self._meet(data)

    def exchange_rows(self, rows: Any) -> Any:
        return torch.stack([theirs[self.rank] for theirs in self._meet(rows.clone())])

    def gather_rows(self, row: Any) -> Any:
        return torch.stack(self._meet(row.clone()))

    def abort(self, code: int) -> None:
        """Every rank's next collective, or the one in which it waits, raises BrokenBarrierError."""
        self.exit_code = code
        self._barrier.abort()


def thread_worlds(size: int) -> list[ThreadWorld]:
    """The ranks of one job, each for a thread of its own."""
    table: list = [None] * size
    barrier = threading.Barrier(size, timeout=LIMIT_S)
    return [ThreadWorld(rank, table, barrier) for rank in range(size)]


def run_on_threads(size: int, work: Callable[[World], T]) -> list[T]:
    """What `work(world)` returns on each of `size` ranks.

    An error on one rank ends all, and is raised here; threading.BrokenBarrierError if a rank called `abort`, or did not
    come to a collective within LIMIT_S.
    """
    results: dict[int, T] = {}
    errors: list[Exception] = []

    def run(world: ThreadWorld) -> None:
        try:
            results[world.rank] = work(world)
        except Exception as error:
            errors.append(error)
            world.abort(1)

    threads = [threading.Thread(target=run, args=(world,)) for world in thread_worlds(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise next((error for error in errors if not isinstance(error, threading.BrokenBarrierError)), errors[0])
    return [results[rank] for rank in range(size)]
