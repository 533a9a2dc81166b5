"""Ranks as threads of one process, so that code that takes a world can be tried without MPI.

>>> run_on_threads(3, lambda world: world.gather(10 * world.rank))
[[0, 10, 20], [0, 10, 20], [0, 10, 20]]
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch

from hvdlm.world.interface import Pending, World, group_of

T = TypeVar("T")
LIMIT_S = 60.0  # for the slowest rank to come to a collective


class _Shared:
    """What the ranks of one world meet at."""

    def __init__(self, size: int) -> None:
        self.table: list = [None] * size
        self.barrier = threading.Barrier(size, timeout=LIMIT_S)
        self._boxes: dict[tuple[int, int, int], queue.Queue] = {}
        self._lock = threading.Lock()

    def box(self, source: int, to: int, tag: int) -> queue.Queue:
        """Messages from one rank to another under one tag, in order."""
        with self._lock:
            return self._boxes.setdefault((source, to, tag), queue.Queue())


class ThreadWorld(World):
    """One of several threads, which meet at a barrier and read what the others have laid on the table."""

    kind = "threads"

    def __init__(self, rank: int, shared: _Shared) -> None:
        self.rank, self.size = rank, len(shared.table)
        self._shared, self._table, self._barrier = shared, shared.table, shared.barrier
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

    def split(self, groups: Sequence[Sequence[int]], name: str) -> ThreadWorld:
        group = group_of(self.rank, groups)
        shared = self._meet(_Shared(len(group)) if group[0] == self.rank else None)[group[0]]
        return ThreadWorld(group.index(self.rank), shared)

    def post_send(self, tensor: Any, to: int, tag: int) -> Pending:
        self._shared.box(self.rank, to, tag).put(tensor.detach().clone())
        return Pending(lambda: None, lambda: True)

    def post_receive(self, like: Any, source: int, tag: int) -> Pending:
        box = self._shared.box(source, self.rank, tag)

        def wait() -> Any:
            try:
                found = box.get(timeout=LIMIT_S)
            except queue.Empty:
                raise threading.BrokenBarrierError(f"nothing came from rank {source} under tag {tag}") from None
            assert (found.shape, found.dtype) == (like.shape, like.dtype), (
                f"{found.shape} {found.dtype} under tag {tag}"
            )
            return found

        return Pending(wait, lambda: not box.empty())

    def abort(self, code: int) -> None:
        """Every rank's next collective, or the one in which it waits, raises BrokenBarrierError."""
        self.exit_code = code
        self._barrier.abort()


def thread_worlds(size: int) -> list[ThreadWorld]:
    """The ranks of one job, each for a thread of its own."""
    shared = _Shared(size)
    return [ThreadWorld(rank, shared) for rank in range(size)]


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
