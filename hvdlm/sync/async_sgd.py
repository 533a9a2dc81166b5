"""Asynchronous SGD: no rank waits for another; weights lie in slices in the ranks' own memory.

Sources: Dean et al. 2012 (Downpour SGD, a sharded parameter server), Niu et al. 2011 (Hogwild), Ho et al. 2013
(bounded staleness), Zhang et al. 2016 (Staleness-aware async-SGD: each update divided by what runs at once).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import nn

from hvdlm.errors import UserError
from hvdlm.partition import slice_of
from hvdlm.sync.interface import StrategyConfig, Sync
from hvdlm.sync.local_sgd import average_state, flatten
from hvdlm.world.interface import Counters, Window, World

log = logging.getLogger("hvdlm")

NAP_S = (0.0002, 0.001)  # between two looks of a waiting rank: the first, and the longest
DRAWN, STARTED, FINISHED, BEGUN_AT = range(4)  # counters; the last is one for each rank


class AsyncConfig(StrategyConfig):
    """`sync: {kind: async, …}`."""

    kind: Literal["async"] = "async"
    max_staleness: int | None = Field(
        None,
        ge=0,
        description="most updates by others while one is computed; below ranks - 1 some always wait; null: 8 x ranks",
    )

    keeps_replicas_equal = False
    steps_together = False
    preferred_world = "mpi"  # it alone has one-sided memory

    def build(self, model: nn.Module, optimizer: torch.optim.Optimizer, world: World) -> Sync:
        return AsyncSync(self, model, optimizer, world)


class AsyncSync(Sync):
    """Each global batch is cut into `world.size` tasks, and a rank that is free takes the next one.

    A task pulls the weights, computes a gradient, lets this rank's own optimizer step, and adds the step, divided
    by the number of ranks, to the weights of all. So the tasks of one global batch together move the weights as
    far as one synchronous step with the same learning rate and weight decay, at any number of ranks.

    A pull may mix updates element by element, as in Hogwild: each element is read and added to atomically, the
    whole is not. Which update comes first is chance, so two runs differ. At the end of `work` all ranks hold the
    same weights. `bytes_sent` counts what is added to other ranks' slices; as much and more is read from them.
    """

    def __init__(self, config: AsyncConfig, model: nn.Module, optimizer: torch.optim.Optimizer, world: World) -> None:
        super().__init__(model, optimizer, world)
        if type(world).window is World.window:
            raise UserError(f"sync.kind: async needs world: mpi, this is {world.kind}; set world=mpi")
        most = 8 * world.size if config.max_staleness is None else config.max_staleness
        self._max_staleness, size = most, world.size
        if most < size - 1 and world.rank == 0:
            text = "sync.max_staleness %d lets %d of %d ranks work at a time; %d lets all"
            log.warning(text, most, most + 1, size, size - 1)
        self._weights = flatten(self.parameters)
        self._pulled = torch.empty(len(self._weights))  # in host memory, as windows are
        self._opened: tuple[WeightShards, TaskOrder] | None = None  # opening is collective, so not while building
        self._staleness = np.zeros(0, dtype=np.int64)  # [s]: tasks of all ranks that ended with staleness s
        self._tasks = np.zeros(world.size, dtype=np.int64)  # of each rank

    def work(self, first: int, end: int) -> Iterator[tuple[int, int]]:
        """Collective, and to be read to its end: a rank may be given more tasks than another, or none."""
        size = self.world.size
        shards, order = self._open()
        num_tasks = (end - first) * size
        staleness, tasks = np.zeros(num_tasks, dtype=np.int64), np.zeros(size, dtype=np.int64)
        while (task := order.draw()) < num_tasks:
            order.start(task)
            yield first + task // size, task % size
            staleness[order.finish()] += 1
            tasks[self.world.rank] += 1
        self._meet(shards, staleness, tasks)

    def _open(self) -> tuple[WeightShards, TaskOrder]:
        """The shared memory, holding this rank's weights (which are everybody's) and no task."""
        if self._opened is None:
            length, size = len(self._weights), self.world.size
            window = self.world.window(len(slice_of(self.world.rank, size, length)))
            counters = self.world.counters(BEGUN_AT + size)
            assert window is not None and counters is not None
            self._opened = (
                WeightShards(window, self.world.rank, size, length),
                TaskOrder(counters, self.world.rank, self._max_staleness),
            )
        shards, order = self._opened
        self.world.barrier()  # nobody draws or pulls any more
        if self.world.rank == 0:
            order.reset()
        shards.load(self._weights.cpu().numpy())
        self.world.barrier()
        return shards, order

    def _meet(self, shards: WeightShards, staleness: np.ndarray, tasks: np.ndarray) -> None:
        """Wait for the last update, take the final weights, and count what all ranks did."""
        counts = np.concatenate([tasks, staleness])
        self.world.sum_(counts)  # also the barrier
        self._pull(shards)
        self._tasks += counts[: len(tasks)]
        longer, shorter = sorted((self._staleness, counts[len(tasks) :]), key=len, reverse=True)
        longer[: len(shorter)] += shorter
        self._staleness = longer

    def _pull(self, shards: WeightShards) -> None:
        shards.pull(self._pulled.numpy())
        self._weights.copy_(self._pulled)

    def weight(self, targets: int, all_targets: int) -> float:
        """Each task is a mean over its own targets."""
        return 1 / max(1, targets)

    def begin(self, step: int, passes: int) -> None:
        assert self._opened is not None, "a task comes out of `work`"
        self._pull(self._opened[0])

    def reduce(self) -> None:
        """This rank's own gradient is what its optimizer shall apply."""

    def step(self) -> None:
        super().step()
        assert self._opened is not None
        update = torch.sub(self._weights.cpu(), self._pulled, out=self._pulled).div_(self.world.size)
        self.bytes_sent += self._opened[0].push(update.numpy())

    def settle(self) -> None:
        self.bytes_sent += average_state(self.world, self.optimizer, self.parameters)

    def facts(self) -> dict[str, Any]:
        """Over all ranks since the last call: staleness, its histogram, and each rank's number of tasks."""
        counts = np.trim_zeros(self._staleness, "b")
        facts = {
            "staleness_mean": float(counts @ np.arange(len(counts))) / max(1, int(self._tasks.sum())),
            "staleness_max": max(0, len(counts) - 1),
            "staleness_counts": counts.tolist(),
            "tasks": self._tasks.tolist(),
        }
        self._staleness, self._tasks = np.zeros(0, dtype=np.int64), np.zeros_like(self._tasks)
        return facts

    def close(self) -> None:
        if self._opened is not None:
            for part in self._opened:
                part.close()
            self._opened = None


class WeightShards:
    """Flat weights, float32 (n,), of which each rank's window holds a contiguous slice.

    Every rank begins with its own slice: ranks that start together do not all ask the same one.
    """

    def __init__(self, window: Window, rank: int, size: int, length: int) -> None:
        self._window, self._rank = window, rank
        slices = [(owner, slice_of(owner, size, length)) for owner in range(size)]
        self._slices = [(owner, part.start, part.stop) for owner, part in slices[rank:] + slices[:rank] if part]

    def load(self, weights: np.ndarray) -> None:
        """Fill this rank's slice from weights (n,); others may read it after a barrier."""
        for owner, start, stop in self._slices:
            if owner == self._rank:
                self._window.local[:] = weights[start:stop]

    def pull(self, out: np.ndarray) -> None:
        """Read all slices into `out` (n,)."""
        for owner, start, stop in self._slices:
            self._window.get(owner, out[start:stop])

    def push(self, update: np.ndarray) -> int:
        """Add `update` (n,) to all slices; returns the bytes that went to other ranks."""
        for owner, start, stop in self._slices:
            self._window.add(owner, update[start:stop])
        return update.nbytes - self._window.local.nbytes

    def close(self) -> None:
        self._window.close()


class TaskOrder:
    """Tasks 0, 1, …: each drawn once, begun in this order, and none if it could make another too stale.

    The version is the number of tasks finished. A task may begin while every unfinished one began at version
    `task - max_staleness` or later. So until one that began at version b ends, only tasks up to number
    b + max_staleness begin; without it these are b + max_staleness, b of which had ended before: at most
    `max_staleness` tasks of others end between its begin and its end. With 0, tasks run one after the other.
    """

    def __init__(self, counters: Counters, rank: int, max_staleness: int) -> None:
        self._counters, self._mine, self._max_staleness = counters, BEGUN_AT + rank, max_staleness
        self._version = 0  # when this rank's present task began

    def reset(self) -> None:
        """Back to task 0, by one rank, while no other uses it."""
        for index, count in enumerate(self._counters.read()):
            if count:
                self._counters.add(index, -count)

    def draw(self) -> int:
        """The next task; the rank must begin it, or draw no more."""
        return self._counters.add(DRAWN, 1)

    def start(self, task: int) -> None:
        """Wait until `task` may begin, and begin it."""
        nap_s, longest_s = NAP_S
        while not self.try_start(task):
            time.sleep(nap_s)
            nap_s = min(2 * nap_s, longest_s)

    def try_start(self, task: int) -> bool:
        """Begin `task` if it may begin now."""
        if self._counters.read()[STARTED] < task:
            return False
        counts = self._counters.read()  # anew, since a read is no snapshot: now all that began earlier is in it
        begun_at = [version - 1 for version in counts[BEGUN_AT:] if version]
        if min([counts[FINISHED], *begun_at]) < task - self._max_staleness:
            return False
        self._version = counts[FINISHED]
        self._counters.add(self._mine, self._version + 1)
        self._counters.add(STARTED, 1)
        return True

    def finish(self) -> int:
        """End this rank's task, after its update; returns how many tasks of others ended since it began."""
        staleness = self._counters.add(FINISHED, 1) - self._version
        self._counters.add(self._mine, -self._version - 1)
        return staleness

    def close(self) -> None:
        self._counters.close()
