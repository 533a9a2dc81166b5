"""Asynchronous SGD in one process; tests/parallel/test_async_sgd_ranks.py has it on real ranks."""

import random
import threading

import pytest
import torch
from torch import nn

from hvdlm.errors import UserError
from hvdlm.sync import async_sgd
from hvdlm.sync.async_sgd import AsyncConfig, AsyncSync, TaskOrder
from hvdlm.world.serial import LocalCounters, SerialWorld
from hvdlm.world.threads import thread_worlds

OPTIMIZERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.1),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.1),
}


class Interleaved:
    """Counters of threads of which one may act at a time, the first in an order that chance changes now and then.

    So some stand still for long, anywhere: also within a `read`, which is no more of a snapshot than the network's.
    """

    def __init__(self, ranks, length, seed):
        self.values = [0] * length
        self.random, self._order = random.Random(seed), list(range(ranks))
        self._arrived, self._chosen = set(), None
        self._changed = threading.Condition()

    def wait_for_turn(self, rank):
        with self._changed:
            self._arrived.add(rank)
            self._chosen = None if self._chosen == rank else self._chosen
            self._choose()
            self._changed.wait_for(lambda: self._chosen == rank)
            self._arrived.discard(rank)

    def leave(self, rank):
        with self._changed:
            self._order.remove(rank)
            self._chosen = None
            self._choose()

    def _choose(self):
        if self._chosen is None and self._order and len(self._arrived) == len(self._order):
            if self.random.random() < 0.1:
                self.random.shuffle(self._order)
            self._chosen = self._order[0]
            self._changed.notify_all()


class OfRank:
    """One rank's hold on them."""

    def __init__(self, shared, rank):
        self.shared, self.rank = shared, rank

    def add(self, index, amount):
        self.shared.wait_for_turn(self.rank)
        self.shared.values[index] += amount
        return self.shared.values[index] - amount

    def read(self):
        places = list(range(len(self.shared.values)))
        self.shared.random.shuffle(places)
        found = {}
        for place in places:
            self.shared.wait_for_turn(self.rank)
            found[place] = self.shared.values[place]
        return [found[place] for place in sorted(found)]


@pytest.mark.parametrize("max_staleness", [0, 1, 2, 5])
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_however_ranks_interleave_no_task_is_too_stale(monkeypatch, ranks, max_staleness):
    monkeypatch.setattr(async_sgd, "NAP_S", (0.0, 0.0))
    for seed in range(20):
        shared = Interleaved(ranks, async_sgd.BEGUN_AT + ranks, seed)
        log = []  # ("begin" or "end", task, staleness), in the order in which it happened

        def run(rank, shared=shared, log=log):
            order = TaskOrder(OfRank(shared, rank), rank, max_staleness)
            while (task := order.draw()) < 20:
                order.start(task)
                log.append(("begin", task, None))
                log.append(("end", task, order.finish()))
            shared.leave(rank)

        threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(ranks)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=60)
            assert not thread.is_alive()
        assert sorted(task for kind, task, _ in log if kind == "begin") == list(range(20))
        assert max(staleness for kind, _, staleness in log if kind == "end") <= max_staleness
        for task in range(20):
            lifetime = log[log.index(("begin", task, None)) :]
            ended = [entry[1] for entry in lifetime if entry[0] == "end"]
            assert ended.index(task) <= max_staleness, log  # counted by the log, not by the order's own version


def test_tasks_begin_in_order_and_wait_for_the_stalest():
    counters = LocalCounters(async_sgd.BEGUN_AT + 3)
    one, two, three = (TaskOrder(counters, rank, max_staleness=2) for rank in range(3))
    assert [order.draw() for order in (one, two, three)] == [0, 1, 2]
    assert not two.try_start(1)  # task 0 is first
    assert one.try_start(0)
    assert two.try_start(1)
    assert three.try_start(2)
    assert two.finish() == 0
    assert two.draw() == 3
    assert not two.try_start(3)  # tasks 0 and 2 began at version 0, and 1, 2, 3 could end before 0 does
    assert one.finish() == 1
    assert not two.try_start(3)  # nor before 2 does
    assert three.finish() == 2
    assert two.try_start(3)
    assert two.finish() == 0


def make(name, world=None, **config):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    return model, AsyncSync(AsyncConfig(**config), model, OPTIMIZERS[name](model.parameters()), world or SerialWorld())


def gradients(model, step):
    model.zero_grad()
    model(torch.full((2, 3), float(step % 3))).square().mean().backward()


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("max_staleness", [0, 16])
def test_one_rank_is_plain_training(name, max_staleness):
    model, sync = make(name, max_staleness=max_staleness)
    for first, end in ((0, 4), (4, 9)):
        for step, part in sync.work(first, end):
            assert part == 0
            sync.begin(step, 1)
            gradients(model, step)
            sync.reduce()
            sync.step()
            sync.zero_grad()
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    optimizer = OPTIMIZERS[name](plain.parameters())
    for step in range(9):
        gradients(plain, step)
        optimizer.step()
    for found, expected in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(found, expected, atol=1e-6)
    assert sync.facts() == {"staleness_mean": 0.0, "staleness_max": 0, "staleness_counts": [9], "tasks": [9]}
    assert sync.facts() == {"staleness_mean": 0.0, "staleness_max": 0, "staleness_counts": [], "tasks": [0]}
    assert sync.bytes_sent == 0
    sync.close()


def test_a_world_without_shared_memory_is_refused():
    with pytest.raises(UserError, match="async needs world: mpi, this is threads; set world=mpi"):
        make("sgd", thread_worlds(1)[0])


def test_a_bound_that_keeps_ranks_waiting_is_told(caplog):
    world = SerialWorld()
    world.size = 8
    make("sgd", world, max_staleness=3)
    assert "sync.max_staleness 3 lets 4 of 8 ranks work at a time; 7 lets all" in caplog.text
    caplog.clear()
    make("sgd", world, max_staleness=7)
    assert caplog.text == ""
