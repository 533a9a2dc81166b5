"""Local SGD and DiLoCo against one process that plays all ranks."""

import copy

import numpy as np
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

from hvdlm.sync.diloco import DilocoConfig, DilocoSync
from hvdlm.sync.interface import ring_bytes
from hvdlm.sync.local_sgd import LocalSgdConfig, LocalSgdSync, average, average_state

pytestmark = pytest.mark.on_ranks(2, 3)


def play(steps, size, optimizer_of, every, outer_of=None):
    """All ranks in one process; the outer optimizer, where there is one, is torch's."""
    ranks = [build() for _ in range(size)]
    optimizers = [optimizer_of(model) for model in ranks]
    outer_model = build()
    outer = outer_of(outer_model) if outer_of else None
    for step in range(steps):
        for rank, (model, optimizer) in enumerate(zip(ranks, optimizers, strict=True)):
            optimizer.zero_grad()
            backward(model, step, rank, size)
            optimizer.step()
        if (step + 1) % every == 0:
            with torch.no_grad():
                for target, *replicas in zip(outer_model.parameters(), *(m.parameters() for m in ranks), strict=True):
                    mean = torch.stack(replicas).mean(0)
                    if outer is None:
                        target.copy_(mean)
                    else:
                        target.grad = target - mean
            if outer is not None:
                outer.step()
            for model in ranks:
                model.load_state_dict(outer_model.state_dict())
    return ranks


def make(world, config, optimizer_of):
    model = build()
    kind = {"local_sgd": LocalSgdSync, "diloco": DilocoSync}[config.kind]
    return model, kind(config, model, optimizer_of(model), world)


def test_averaging_at_every_step_is_synchronous_training(world):
    model, sync = make(world, LocalSgdConfig(every=1), sgd)
    train(sync, model, 0, 30)
    assert close(model, plain(30, sgd))
    assert sync.bytes_sent == 30 * ring_bytes([flat(model)], world.size)
    outer, sync = make(world, DilocoConfig(every=1, outer_lr=1.0, outer_momentum=0.0), sgd)
    train(sync, outer, 0, 30)
    assert close(outer, model, 1e-6)


def test_ranks_are_where_their_own_steps_led_them_and_equal_after_an_averaging(world):
    """At an averaging all ranks are equal; between two, each is where its own steps led it."""
    nesterov = lambda model: torch.optim.SGD(model.parameters(), lr=0.7, momentum=0.9, nesterov=True)  # noqa: E731
    cases = [(LocalSgdConfig(every=4), None), (DilocoConfig(every=4), nesterov)]
    for config, outer_of in cases:
        for optimizer_of in (sgd, adamw):
            for steps in (3, 12, 14):
                model, sync = make(world, config, optimizer_of)
                train(sync, model, 0, steps)
                expected = play(steps, world.size, optimizer_of, 4, outer_of)
                assert close(model, expected[world.rank]), (config, steps)
                assert same_on_all(world, flat(model)) == (steps % 4 == 0)
                own = flat(model)
                sync.average_weights()
                assert same_on_all(world, flat(model))
                mean = torch.stack([flat(replica) for replica in expected]).mean(0)
                assert torch.allclose(flat(model), mean, atol=1e-5)
                assert steps % 4 == 0 or not torch.equal(own, flat(model))


def test_the_warmup_is_synchronous(world):
    """Synchronous, AdamW's state included, up to the last warm-up step; local from then on."""
    model, sync = make(world, LocalSgdConfig(every=4, warmup_steps=6), adamw)
    train(sync, model, 0, 6)
    assert same_on_all(world, flat(model), *state_tensors(sync.optimizer))
    assert close(model, plain(6, adamw))
    train(sync, model, 6, 7)
    assert not same_on_all(world, flat(model))
    train(sync, model, 7, 8)
    assert same_on_all(world, flat(model))


def test_a_rank_whose_batch_did_not_reach_a_parameter_takes_part(world):
    """In the warm-up a rank whose batch did not reach a parameter takes part in the sum of its gradients."""
    model, sync = make(world, LocalSgdConfig(warmup_steps=1), sgd)
    before = model.out.bias.item()
    sync.begin(0, 1)
    (model.out.bias if world.rank == 0 else model.out.weight).sum().backward()
    sync.reduce()
    sync.step()
    sync.zero_grad()
    assert same_on_all(world, flat(model))
    assert abs(model.out.bias.item() - (before - 0.05 / world.size)) < 1e-6


def test_a_rank_that_leaves_a_step_out_takes_part_in_the_averaging(world):
    """A rank that leaves out the very step before an averaging takes part in the averaging."""
    for config in (LocalSgdConfig(every=2), DilocoConfig(every=2)):
        model, sync = make(world, config, sgd)
        train(sync, model, 0, 4, skips={(1, 0), (2, world.size - 1)})
        assert same_on_all(world, flat(model))


def test_a_run_settled_between_averagings_goes_on_as_the_whole_run(world):
    """Settled in the middle of an interval, all is equal on all ranks, and a resumed run is the whole run."""
    for config in (LocalSgdConfig(every=4), DilocoConfig(every=4)):
        whole, sync = make(world, config, adamw)
        train(sync, whole, 0, 6)
        own = [value.clone() for value in state_tensors(sync.optimizer)]
        sync.settle()
        found = state_tensors(sync.optimizer)
        assert same_on_all(world, flat(whole), *found, *sync.state().values())
        everybody = [list(values) for values in zip(*world.gather([value.numpy() for value in own]), strict=True)]
        for value, values in zip(found, everybody, strict=True):
            assert np.allclose(value.numpy(), np.mean(values, axis=0), rtol=1e-5, atol=1e-8)
        again, resumed = make(world, config, adamw)
        again.load_state_dict(whole.state_dict())
        resumed.optimizer.load_state_dict(copy.deepcopy(sync.optimizer.state_dict()))
        resumed.load_state({name: tensor.clone() for name, tensor in sync.state().items()})
        train(sync, whole, 6, 11)
        train(resumed, again, 6, 11)
        assert torch.equal(flat(whole), flat(again))
        sync.settle()
        assert all(float(value) == 11 for value in state_tensors(sync.optimizer) if value.dim() == 0)


def test_a_rank_that_never_stepped_gets_the_others_state(world):
    model = build()
    for optimizer_of in (adamw, lambda model: torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9)):
        optimizer = optimizer_of(model)
        for _ in range(world.rank):
            backward(model, world.rank)
            optimizer.step()
        own = [value.numpy().copy() for value in state_tensors(optimizer)]
        average_state(world, optimizer, list(model.parameters()))
        found = state_tensors(optimizer)
        assert same_on_all(world, *found)
        having = [values for values in world.gather(own) if values]
        assert len(having) == world.size - 1
        for value, values in zip(found, zip(*having, strict=True), strict=True):
            mean = np.mean(values, axis=0)
            assert np.allclose(value.numpy(), mean if value.dim() else np.round(mean), rtol=1e-5, atol=1e-8)


def test_an_average_takes_tensors_of_any_size_dtype_and_layout(world):
    """Larger than a piece, of another dtype, not contiguous, empty: all become the mean."""
    shapes = [(17 << 20,), (3, 5), (0,), ()]
    tensors = [torch.full(shape, float(world.rank)) for shape in shapes]
    tensors += [torch.full((7,), float(2 * world.rank), dtype=torch.bfloat16), torch.full((4, 6), 1.0 + world.rank).t()]
    mean = (world.size - 1) / 2
    sent = average(world, tensors)
    expected = ring_bytes([torch.empty(sum(tensor.numel() for tensor in tensors))], world.size)
    assert expected - 4 < sent <= expected  # whole bytes a group
    assert all(torch.all(tensor == mean) for tensor in tensors[:4])
    assert torch.all(tensors[4] == 2 * mean)
    assert torch.all(tensors[5] == 1 + mean)


def test_it_converges(world):
    start, reference = loss_of(build()), loss_of(plain(200, sgd))
    assert reference < 0.5 * start
    for config in (LocalSgdConfig(every=8), DilocoConfig(every=8)):
        model, sync = make(world, config, sgd)
        train(sync, model, 0, 200)
        assert loss_of(model) < 1.15 * reference, (config, loss_of(model), reference)
