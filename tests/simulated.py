"""Ranks as threads of one process: real collectives without MPI, for tests of code that takes a world."""

import threading
from collections.abc import Callable

import torch

from hvdlm.world.interface import World


class SimulatedWorld(World):
    """One of `size` threads; they meet at a barrier and read what the others have laid on the table."""

    kind = "simulated"

    def __init__(self, rank: int, size: int, table: list, barrier: threading.Barrier) -> None:
        self.rank, self.size, self._table, self._barrier = rank, size, table, barrier

    def _meet(self, value):
        self._table[self.rank] = value
        self._barrier.wait()
        everybody = list(self._table)
        self._barrier.wait()
        return everybody

    def sum_(self, buffer):
        tensor = torch.as_tensor(buffer)
        tensor.copy_(torch.stack(self._meet(tensor.clone())).sum(0))

    def broadcast_(self, buffer):
        tensor = torch.as_tensor(buffer)
        tensor.copy_(self._meet(tensor.clone())[0])

    def gather_bytes(self, data):
        return self._meet(data)

    def exchange_rows(self, rows):
        return torch.stack([theirs[self.rank] for theirs in self._meet(rows.clone())])

    def gather_rows(self, row):
        return torch.stack(self._meet(row.clone()))

    def abort(self, code):
        self._barrier.abort()

    def close(self):
        """Nothing is held."""


def on_ranks(size: int, work: Callable) -> list:
    """What `work(world)` returns on each of `size` ranks; an error on one of them ends all."""
    table, barrier = [None] * size, threading.Barrier(size, timeout=60)
    results: list = [None] * size
    errors: list[Exception] = []

    def run(rank):
        world = SimulatedWorld(rank, size, table, barrier)
        try:
            results[rank] = work(world)
        except Exception as error:
            errors.append(error)
            barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise next((e for e in errors if not isinstance(e, threading.BrokenBarrierError)), errors[0])
    return results
