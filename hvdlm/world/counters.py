"""Counters that a thread of rank 0 hands out by messages: for networks over which no memory can be reached.

Open MPI 4 has no one-sided memory over TCP once it runs with threads, so on two hosts without InfiniBand the
window of `MpiCounters` cannot be made.
"""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np

POLL_S = 0.001  # the thread sleeps between looks: a blocking receive would take a core from the computation
TAG = 1
READ, CLOSE = -1, -2  # in place of an index


class ServedCounters:
    """As `World.counters`. A draw by another rank takes about POLL_S; only rank 0's own are free."""

    def __init__(self, mpi: Any, comm: Any, length: int) -> None:
        self._mpi, self._comm = mpi, comm.Dup()
        self._values = np.zeros(length, dtype=np.int64)
        self._lock = threading.Lock()
        self._server = threading.Thread(target=self._serve, name="hvdlm-counters", daemon=True)
        if comm.rank == 0:
            self._server.start()

    def add(self, index: int, amount: int) -> int:
        if self._comm.rank == 0:
            return self._add(index, amount)
        return int(self._ask(index, amount, 1)[0])

    def read(self) -> list[int]:
        if self._comm.rank == 0:
            with self._lock:
                return self._values.tolist()
        return self._ask(READ, 0, self._values.size).tolist()

    def close(self) -> None:
        if self._comm.rank == 0:
            self._server.join()
        else:
            self._comm.Send(np.array([CLOSE, 0], dtype=np.int64), dest=0, tag=TAG)
        self._comm.Free()

    def _add(self, index: int, amount: int) -> int:
        with self._lock:
            before = int(self._values[index])
            self._values[index] += amount
        return before

    def _ask(self, index: int, amount: int, num_values: int) -> np.ndarray:
        answer = np.empty(num_values, dtype=np.int64)
        self._comm.Send(np.array([index, amount], dtype=np.int64), dest=0, tag=TAG)
        self._comm.Recv(answer, source=0, tag=TAG)
        return answer

    def _serve(self) -> None:
        """Until all other ranks have closed."""
        question, status = np.empty(2, dtype=np.int64), self._mpi.Status()
        open_ranks = self._comm.size - 1
        while open_ranks:
            if not self._comm.Iprobe(source=self._mpi.ANY_SOURCE, tag=TAG, status=status):
                time.sleep(POLL_S)
                continue
            self._comm.Recv(question, source=status.Get_source(), tag=TAG)
            index, amount = question.tolist()
            if index == CLOSE:
                open_ranks -= 1
                continue
            answer = self.read() if index == READ else [self._add(index, amount)]
            self._comm.Send(np.array(answer, dtype=np.int64), dest=status.Get_source(), tag=TAG)
