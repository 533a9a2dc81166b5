"""Ranks as threads of one process, so that code that takes a world can be tried without MPI.

>>> run_on_threads(3, lambda world: world.gather(10 * world.rank))
[[0, 10, 20], [0, 10, 20], [0, 10, 20]]
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch

from hvdlm.world.interface import Pending, World, group_of
from hvdlm.world.sends import sends_for_tests

T = TypeVar("T")
LIMIT_S = 60.0  # for the slowest rank to come to a collective, or to send what another waits for
LOOK_S = 0.05  # how often one that waits for a message looks whether the job is over


class _Shared:
    """What the ranks of one world meet at; `job` are those of all worlds of the job, which end together."""

    def __init__(self, size: int, job: list[_Shared]) -> None:
        self.table: list = [None] * size
        self.barrier = threading.Barrier(size, timeout=LIMIT_S)
        self.job = job
        self._boxes: dict[tuple[int, int, int], queue.Queue] = {}
        self._lock = threading.Lock()
        job.append(self)

    def box(self, source: int, to: int, tag: int) -> queue.Queue:
        """Messages from one rank to another under one tag, in order."""
        with self._lock:
            return self._boxes.setdefault((source, to, tag), queue.Queue())

    def wait_until(self, is_done: Callable[[], bool], what: str) -> None:
        """BrokenBarrierError where the job ends before, or LIMIT_S are over."""
        deadline = time.monotonic() + LIMIT_S
        while not is_done():
            if self.barrier.broken or time.monotonic() > deadline:
                raise threading.BrokenBarrierError(what)


class ThreadWorld(World):
    """One of several threads, which meet at a barrier and read what the others have laid on the table."""

    kind = "threads"

    def __init__(self, rank: int, shared: _Shared) -> None:
        self.rank, self.size = rank, len(shared.table)
        self._shared, self._table, self._barrier = shared, shared.table, shared.barrier
        self._sends = sends_for_tests()
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

    def _part(self, groups: Sequence[Sequence[int]], name: str) -> ThreadWorld:
        group = group_of(self.rank, groups)
        mine = _Shared(len(group), self._shared.job) if group[0] == self.rank else None
        return ThreadWorld(group.index(self.rank), self._meet(mine)[group[0]])

    def post_send(self, tensor: Any, to: int, tag: int) -> Pending:
        taken = threading.Event()
        self._sends.hold_up()
        self._shared.box(self.rank, to, tag).put((tensor.detach().clone(), taken))
        if not self._sends.is_synchronous:
            return Pending(lambda: None, lambda: True)
        what = f"rank {to} has not taken what rank {self.rank} sent under tag {tag}"
        return Pending(lambda: self._shared.wait_until(lambda: taken.wait(LOOK_S), what), taken.is_set)

    def post_receive(self, like: Any, source: int, tag: int) -> Pending:
        box, found = self._shared.box(source, self.rank, tag), []

        def has_come() -> bool:
            try:
                found.append(box.get(timeout=LOOK_S))
            except queue.Empty:
                return False
            return True

        def wait() -> Any:
            self._shared.wait_until(has_come, f"nothing came from rank {source} under tag {tag}")
            tensor, taken = found.pop()
            taken.set()
            what = f"another message from rank {source} under tag {tag}"
            assert (tensor.shape, tensor.dtype) == (like.shape, like.dtype), what
            return tensor

        return Pending(wait, lambda: not box.empty())

    def abort(self, code: int) -> None:
        """What any rank waits for, and whatever it would wait for next, raises BrokenBarrierError."""
        self.exit_code = code
        for shared in list(self._shared.job):
            shared.barrier.abort()


def thread_worlds(size: int) -> list[ThreadWorld]:
    """The ranks of one job, each for a thread of its own."""
    shared = _Shared(size, [])
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
