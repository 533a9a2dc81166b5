"""Compressed gradients: what each compressor promises, that error feedback makes it converge, and resuming."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parameters_to_vector

from hvdlm.sync import topk
from hvdlm.sync.allreduce import AllreduceConfig, AllreduceSync
from hvdlm.sync.codecs import Bf16, Int8
from hvdlm.sync.compress import CompressConfig, CompressedSync, build_compressor
from hvdlm.sync.flat import FlatLayout
from hvdlm.sync.interface import ring_bytes
from hvdlm.sync.topk import largest
from hvdlm.sync.traffic import Traffic
from hvdlm.world.serial import SerialWorld
from hvdlm.world.threads import run_on_threads

SIZE = 3
CONFIGS = [
    CompressConfig(name="bf16"),
    CompressConfig(name="int8"),
    CompressConfig(name="topk", density=0.02),
    CompressConfig(name="powersgd", rank=2),
]


@pytest.fixture(params=CONFIGS, ids=lambda config: config.name)
def config(request):
    return request.param


def draw(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make_model(seed=0):
    """Two matrices and two vectors, 1010 weights: no multiple of anything."""
    model = nn.Sequential(nn.Linear(20, 30), nn.Tanh(), nn.Linear(30, 10))
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            parameter.copy_(0.3 * draw(*parameter.shape, seed=seed + number))
    return model


def make_sync(config, world, model=None, lr=0.1):
    model = model or make_model()
    return CompressedSync(config, model, torch.optim.SGD(model.parameters(), lr=lr), world)


def set_gradients(sync, seed):
    for number, parameter in enumerate(sync.parameters):
        parameter.grad = draw(*parameter.shape, seed=1000 * seed + number)


def flat_gradient(sync):
    return torch.cat([p.grad.flatten() for p in sync.parameters])


def reduce_steps(sync, steps):
    """Reduce gradients that depend on the step and the rank alone."""
    for step in steps:
        set_gradients(sync, seed=10 * step + sync.world.rank)
        sync.reduce()
    return flat_gradient(sync)


def copied_state(sync):
    return {name: tensor.clone() for name, tensor in sync.state().items()}


# What every compressor promises


def test_all_ranks_hold_one_total_and_it_is_the_sum_of_what_each_has_sent(config):
    def work(world):
        layout = FlatLayout(list(make_model().parameters()), world.size)
        compressor = build_compressor(config, layout)
        gradient = layout.zeros()
        gradient[: layout.numel] = draw(layout.numel, seed=world.rank)
        return [compressor.reduce(gradient, Traffic(world)) for _ in range(3)]

    for of_step in zip(*run_on_threads(SIZE, work), strict=True):
        totals, sent = zip(*of_step, strict=True)
        assert all(torch.equal(total, totals[0]) for total in totals)
        assert torch.allclose(sum(sent), totals[0], atol=1e-5)
        assert totals[0].abs().sum() > 0


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("place", [(0, 7), (1, 3)], ids=["matrix", "vector"])
def test_what_is_not_finite_reaches_all_ranks_and_is_forgotten_after(config, value, place):
    """The loss scaler must see it everywhere; the step that it leaves out must not spoil the next ones."""

    def work(world, spoil):
        sync = make_sync(config, world)
        reduce_steps(sync, [0])
        if spoil:
            set_gradients(sync, seed=10 + world.rank)
            if world.rank == 1:
                parameter, element = place
                sync.parameters[parameter].grad.view(-1)[element] = value
            sync.reduce()
            assert not torch.isfinite(flat_gradient(sync)).all()
        return reduce_steps(sync, [2])

    spoilt = run_on_threads(SIZE, lambda world: work(world, True))
    assert all(torch.isfinite(gradient).all() for gradient in spoilt)
    if config.name != "powersgd" or place[0] == 0:  # its matrices have learnt from a step with a spoilt vector
        assert torch.equal(spoilt[0], run_on_threads(SIZE, lambda world: work(world, False))[0])


def test_one_rank_keeps_exact_gradients_and_sends_nothing(config):
    sync = make_sync(config, SerialWorld())
    for step in range(2):
        set_gradients(sync, seed=step)
        expected = flat_gradient(sync)
        sync.reduce()
        assert torch.equal(flat_gradient(sync), expected)
    assert sync.bytes_sent == 0


def test_more_ranks_than_blocks_and_parameters_without_gradient(config):
    def work(world):
        model = nn.Linear(5, 3)
        sync = make_sync(config, world, model)
        model.weight.grad = torch.ones(3, 5)
        sync.reduce()
        return flat_gradient(sync)

    for gradient in run_on_threads(8, work):
        assert (gradient[15:] == 0).all()
        assert gradient[:15].sum() > 0


def test_what_is_sent_is_counted():
    numel, padded = 20 * 30 + 30 + 30 * 10 + 10, 1536  # 3 ranks x 256

    def sent(config):
        def work(world):
            sync = make_sync(config, world)
            reduce_steps(sync, [0])
            return sync.bytes_sent

        return run_on_threads(SIZE, work)[0]

    bf16, int8, top, power = (sent(config) for config in CONFIGS)
    assert bf16 == ring_bytes([torch.empty(padded)], SIZE) // 2
    assert int8 == 2 * (SIZE - 1) * (padded + 4 * padded // 256) // SIZE
    assert top == (SIZE - 1) * 8 * round(0.02 * numel)
    thin = 2 * (30 + 20 + 10 + 30) + 30 + 10  # P and Q of both matrices, and the vectors as they are
    assert abs(power - 4 * 2 * (SIZE - 1) * thin // SIZE) <= 1


# What is particular to each


def test_bf16_and_int8_round_to_the_nearest():
    rows = draw(2, 512, seed=0) * torch.tensor([[1e-3], [1e3]])
    assert ((Bf16().decode(Bf16().encode(rows)) - rows).abs() <= rows.abs() / 256).all()
    steps = rows.view(2, 2, 256).abs().amax(-1) / 127
    errors = (Int8().decode(Int8().encode(rows)) - rows).view(2, 2, 256).abs().amax(-1)
    assert (errors <= steps * 0.5001).all()
    assert errors.max() > 0


@pytest.mark.parametrize("scale", [0.0, 1e-44, 1e-38, 1e38])
def test_int8_at_the_ends_of_the_range(scale):
    rows = scale * torch.linspace(-1, 1, 256)[None]
    decoded = Int8().decode(Int8().encode(rows))
    assert torch.isfinite(decoded).all()
    assert (decoded - rows).abs().max() <= max(scale / 127, 1.5e-36)  # below that a block may become zeros


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 40_000), st.floats(0.0001, 1), st.sampled_from([0.0, 1.0, 4.0]), st.integers(0, 2**32))
def test_topk_finds_the_largest(numel, density, tail, seed):
    """Also where a sample misleads: heavy tails, many zeros, all the large ones in one place."""
    values = draw(numel, seed=seed)
    values *= (tail * draw(numel, seed=seed + 1)).exp()
    if seed % 2:
        values = values.sort().values.round()
    count = max(1, round(density * numel))
    places = largest(values, count)
    assert len(places) == len(set(places.tolist())) == count
    expected = torch.topk(values.abs(), count).values
    assert torch.equal(values[places].abs().sort(descending=True).values, expected)


def test_topk_searches_only_what_a_sample_leaves(monkeypatch):
    searched = []
    find = torch.topk
    monkeypatch.setattr(topk.torch, "topk", lambda x, *a, **k: searched.append(len(x)) or find(x, *a, **k))
    largest(draw(100_000, seed=0), 1000)
    assert max(searched) < 3000


def test_topk_is_right_where_the_sample_holds_all_the_large_ones():
    values = draw(100_000, seed=0)
    values[:: topk.SAMPLE_STRIDE] *= 1e6  # a bound from them leaves fewer than are wanted
    places = largest(values, 20_000)
    assert len(places) == 20_000
    assert values[places].abs().min() == torch.topk(values.abs(), 20_000).values[-1]


def test_topk_takes_nan_for_the_largest():
    values = draw(50_000, seed=0)
    values[[3, 40_000]] = float("nan")
    assert {3, 40_000} <= set(largest(values, 10).tolist())


def test_powersgd_is_exact_for_a_sum_of_its_rank():
    def work(world):
        model = nn.Linear(40, 30, bias=False)
        sync = make_sync(CompressConfig(name="powersgd", rank=2), world, model)
        left, right = draw(30, 2, seed=0), draw(2, 40, seed=1)
        model.weight.grad = left @ right * (world.rank + 1)
        sync.reduce()
        return torch.allclose(model.weight.grad, left @ right * 6, atol=1e-3)

    assert all(run_on_threads(SIZE, work))


def test_powersgd_learns_the_subspace_and_survives_zeros():
    """Warm start: of a matrix that stays, the best approximation comes with the steps."""
    gradient = draw(40, 30, seed=0) @ torch.diag(0.7 ** torch.arange(30)) @ draw(30, 30, seed=1)
    best = torch.linalg.svdvals(gradient)[4:].square().sum().sqrt()

    def work(world):
        model = nn.Linear(30, 40, bias=False)
        config = CompressConfig(name="powersgd", rank=4, error_feedback=False)
        sync = make_sync(config, world, model)
        errors = []
        for step in range(20):
            model.weight.grad = torch.zeros(40, 30) if step == 10 else gradient / world.size
            sync.reduce()
            errors.append((model.weight.grad - gradient).norm())
        return errors

    errors = run_on_threads(2, work)[0]
    assert errors[0] > 1.05 * best
    assert errors[9] < 1.01 * best
    assert errors[11] < 1.01 * best


# Error feedback


def distance_left(config):
    """SGD towards a target on ranks that pull apart with a strength that cancels in their mean, as differing data do.

    The common pull is small beside it, and a compressor that forgets what it took off never sends it.
    """
    target = [draw(32, 32, seed=1), draw(32, seed=2)]
    apart = [10 * draw(32, 32, seed=3).abs().pow(3), 10 * draw(32, seed=4).abs().pow(3)]

    def work(world):
        model = nn.Linear(32, 32)
        nn.init.zeros_(model.weight), nn.init.zeros_(model.bias)
        sync = make_sync(config, world, model, lr=0.01)
        sign = 1.0 if world.rank % 2 else -1.0
        for _ in range(1000):
            for parameter, goal, pull in zip(sync.parameters, target, apart, strict=True):
                parameter.grad = (parameter.detach() - goal + sign * pull) / world.size
            sync.reduce()
            sync.step()
        left = sum((p.detach() - goal).square().sum() for p, goal in zip(sync.parameters, target, strict=True))
        return float(left / sum(goal.square().sum() for goal in target))

    return run_on_threads(2, work)[0]


@pytest.mark.parametrize("name", ["bf16", "int8", "topk", "powersgd"])
def test_error_feedback_reaches_what_the_compressor_alone_does_not(name):
    options = {"name": name, "density": 0.1}
    with_feedback = distance_left(CompressConfig(**options))
    without = distance_left(CompressConfig(**options, error_feedback=False))
    assert with_feedback < 0.1, (with_feedback, without)
    assert without > 5 * with_feedback, (with_feedback, without)


def classify(world, sync_of, steps=150):
    """Loss of a small network on all data of three ranks after training on each rank's own."""
    teacher = draw(20, 10, seed=5)
    inputs = draw(SIZE, 64, 20, seed=6) + torch.arange(SIZE).view(-1, 1, 1) * 0.5  # (P, B, 20)
    labels = (inputs @ teacher).argmax(-1)
    model = make_model()
    sync = sync_of(world, model)
    for step in range(steps):
        sync.begin(step, 1)
        loss = nn.functional.cross_entropy(model(inputs[world.rank]), labels[world.rank])
        (loss / world.size).backward()
        sync.accumulated()
        sync.reduce()
        sync.step()
        sync.zero_grad()
    loss = nn.functional.cross_entropy(model(inputs.flatten(0, 1)), labels.flatten())
    return float(loss.detach()), parameters_to_vector(model.parameters()).detach()


def test_training_comes_close_to_uncompressed(config):
    def plain(world, model):
        return AllreduceSync(AllreduceConfig(), model, torch.optim.SGD(model.parameters(), lr=0.5), world)

    exact, _ = run_on_threads(SIZE, lambda world: classify(world, plain))[0]
    results = run_on_threads(SIZE, lambda world: classify(world, lambda w, m: make_sync(config, w, m, lr=0.5)))
    assert all(torch.equal(weights, results[0][1]) for _, weights in results)
    assert exact < 0.6
    assert results[0][0] < 1.15 * exact + 0.02, (results[0][0], exact)


# Checkpoints


def test_settle_makes_states_equal_and_keeps_the_sum_of_errors(config):
    def work(world):
        sync = make_sync(config, world)
        reduce_steps(sync, range(3))
        before = sync.state()["error"].clone()
        sync.settle()
        return before, sync.state()

    befores, states = zip(*run_on_threads(SIZE, work), strict=True)
    assert not torch.equal(befores[0], befores[1])
    for state in states:
        assert all(torch.equal(state[name], states[0][name]) for name in state)
    assert torch.allclose(SIZE * states[0]["error"], sum(befores), atol=1e-5)
    assert befores[0].abs().sum() > 0


def test_resuming_changes_no_bit(config):
    def work(world):
        sync, resumed = make_sync(config, world), make_sync(config, world)
        reduce_steps(sync, range(3))
        sync.settle()
        resumed.load_state(copied_state(sync))
        for step in range(3, 5):
            assert torch.equal(reduce_steps(sync, [step]), reduce_steps(resumed, [step]))

    run_on_threads(SIZE, work)


def test_another_number_of_ranks_takes_over_the_sum_of_errors(config):
    def leave(world):
        sync = make_sync(config, world)
        reduce_steps(sync, [0])
        sync.settle()
        return copied_state(sync)

    state = run_on_threads(SIZE, leave)[0]
    alone = make_sync(config, SerialWorld())
    alone.load_state(state)
    alone.reduce()  # a rank alone sends all at once, and keeps nothing
    assert torch.allclose(flat_gradient(alone), SIZE * state["error"], atol=1e-6)
    assert (alone.state()["error"] == 0).all()


def test_a_checkpoint_without_compression_is_a_fresh_beginning():
    sync = make_sync(CONFIGS[3], SerialWorld())
    sync.load_state({})
    assert (sync.state()["error"] == 0).all()


def test_errors_follow_the_loss_scale():
    """Twice the scale from the second step on: twice the gradient, if the errors are told."""

    def work(world, factor):
        sync = make_sync(CONFIGS[2], world)
        reduce_steps(sync, [0])
        sync.rescale(factor)
        set_gradients(sync, seed=10 + world.rank)
        for parameter in sync.parameters:
            parameter.grad *= factor
        sync.reduce()
        return flat_gradient(sync)

    assert torch.equal(run_on_threads(2, lambda w: work(w, 2.0))[0], 2 * run_on_threads(2, lambda w: work(w, 1.0))[0])
