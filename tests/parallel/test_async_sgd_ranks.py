"""Asynchronous SGD, with a rank that is slow."""

import time

import pytest
import torch
from tied_network import (
    adamw,
    backward,
    build,
    close,
    flat,
    loss_of,
    plain,
    same_on_all,
    sgd,
    state_tensors,
    train,
)
from torch import nn

from hvdlm.sync.async_sgd import AsyncConfig, AsyncSync

pytestmark = pytest.mark.on_ranks(2, 3)


def make(world, max_staleness=16, optimizer_of=sgd, model=None):
    model = build() if model is None else model
    return model, AsyncSync(AsyncConfig(max_staleness=max_staleness), model, optimizer_of(model), world)


class Ones(nn.Module):
    """Its gradient is 1 everywhere; more weights than go in one piece, not a multiple of the ranks."""

    def __init__(self, length=1_000_003):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(length))

    def run(self, sync, first, end, *, slow_s=0.0, skips=()):
        """The tasks that this rank did; those in `skips` leave `step` out."""
        done = []
        for task in sync.work(first, end):
            sync.begin(task[0], 1)
            self.weight.grad = torch.ones_like(self.weight)
            time.sleep(slow_s)
            sync.reduce()
            if task not in skips:
                sync.step()
            sync.zero_grad()
            done.append(task)
        return done


def test_no_update_is_lost(world):
    """Weights go down by lr for each global batch, to the last update, whoever computed what."""
    model, sync = make(world, optimizer_of=lambda m: torch.optim.SGD(m.parameters(), lr=0.5), model=Ones())
    mine = []
    for first, end in ((3, 8), (8, 8), (8, 15)):
        mine += model.run(sync, first, end)
        assert same_on_all(world, model.weight)
        assert torch.allclose(model.weight, torch.tensor(-0.5 * (end - 3)), rtol=1e-5), end
    everybody = [task for tasks in world.gather(mine) for task in tasks]
    assert sorted(everybody) == [(step, part) for step in range(3, 15) for part in range(world.size)]
    others = model.weight.numel() * (world.size - 1) / world.size
    assert abs(sync.bytes_sent - len(mine) * 4 * others) <= 4 * len(mine)  # slices differ by less than one number
    facts = sync.facts()
    assert facts["tasks"] == [len(tasks) for tasks in world.gather(mine)]
    assert sum(facts["staleness_counts"]) == len(everybody)
    assert sync.facts()["tasks"] == [0] * world.size
    sync.close()


def test_weights_that_were_set_between_two_works_count(world):
    """As a checkpoint sets them: what counts is what the model holds when `work` begins."""
    model, sync = make(world, optimizer_of=lambda m: torch.optim.SGD(m.parameters(), lr=1.0), model=Ones(10))
    model.run(sync, 0, 2)
    with torch.no_grad():
        model.weight.fill_(100.0)
    model.run(sync, 2, 3)
    assert torch.allclose(model.weight, torch.tensor(99.0), rtol=1e-5)
    sync.close()


def test_a_task_that_is_left_out_is_done(world):
    """A task whose gradient is left out is a task done: nobody waits for it, nothing is added."""
    skips = {(1, 0), (2, world.size - 1), (3, 0)}
    model, sync = make(world, 1, lambda m: torch.optim.SGD(m.parameters(), lr=1.0), Ones(10))
    model.run(sync, 0, 6, skips=skips)
    assert torch.allclose(model.weight, torch.tensor(-6.0 + 3 / world.size), rtol=1e-5)
    assert sum(sync.facts()["tasks"]) == 6 * world.size
    sync.close()


def test_a_straggler_is_helped_as_far_as_the_bound_allows(world):
    """One rank needs 30 ms more for each task. The others do its share, unless the bound says no."""
    steps, slow_s = 40, 0.03 if world.rank == 0 else 0.0
    most = {}
    for max_staleness in (0, 1, 3, 10_000):
        model, sync = make(world, max_staleness, lambda m: torch.optim.SGD(m.parameters(), lr=1.0), Ones(100))
        model.run(sync, 0, steps if max_staleness > 3 else 10, slow_s=slow_s)
        facts = sync.facts()
        most[max_staleness] = facts["staleness_max"]
        assert facts["staleness_max"] <= max_staleness, facts
        if max_staleness == 10_000:
            assert all(3 * facts["tasks"][0] < others for others in facts["tasks"][1:]), facts
        sync.close()
    assert most[10_000] > 3, most  # so the bounds above did bind


def test_weight_decay_acts_as_far_as_in_a_synchronous_step(world):
    """It acts as far in a global batch as in a synchronous step, with no gradient at all."""
    for optimizer_of in (torch.optim.SGD, torch.optim.AdamW):
        model, sync = make(world, 16, lambda m, o=optimizer_of: o(m.parameters(), lr=0.1, weight_decay=0.1), Ones(10))
        with torch.no_grad():
            model.weight.fill_(1.0)
        for step, _ in sync.work(0, 30):
            sync.begin(step, 1)
            model.weight.grad = torch.zeros_like(model.weight)
            sync.step()
            sync.zero_grad()
        assert torch.allclose(model.weight, torch.tensor(0.99**30), rtol=0.02)
        sync.close()


def test_settled_state_is_equal_on_all_ranks_and_a_run_goes_on_from_it(world):
    """Optimizer state is the same on all ranks, also on one that has had no task, and a run goes on from it."""
    model, sync = make(world, 16, adamw)
    train(sync, model, 0, 1)
    sync.settle()
    assert same_on_all(world, flat(model), *state_tensors(sync.optimizer))
    assert len(sync.optimizer.state) == len(list(model.parameters()))
    train(sync, model, 1, 5)
    sync.settle()
    assert same_on_all(world, flat(model), *state_tensors(sync.optimizer))
    sync.close()


def test_it_converges_as_far_as_synchronous_training(world):
    """The same learning rate leads as far as in synchronous training, with SGD and with AdamW."""
    start = loss_of(build())
    for optimizer_of, factor in ((sgd, 1.3), (adamw, 5.0)):
        reference = loss_of(plain(200, optimizer_of))
        assert reference < 0.1 / factor * start
        model, sync = make(world, 16, optimizer_of)
        for first in range(0, 200, 20):
            train(sync, model, first, first + 20)
        assert same_on_all(world, flat(model))
        assert loss_of(model) < factor * reference, (loss_of(model), reference)
        sync.close()


def test_bound_of_zero_is_sequential_training(world):
    """Task after task: the same as one process that computes the parts in order with 1/size of the learning rate."""
    model, sync = make(world, 0)
    train(sync, model, 0, 10)
    expected = build()
    optimizer = torch.optim.SGD(expected.parameters(), lr=0.05 / world.size)
    for step in range(10):
        for part in range(world.size):
            optimizer.zero_grad()
            backward(expected, step, part, world.size)
            optimizer.step()
    assert close(model, expected)
    sync.close()
