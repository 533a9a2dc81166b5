"""The running mean follows its formula, and swapping it in and out changes no bit."""

import pytest
import torch
from torch import nn

from hvdlm.errors import UserError
from hvdlm.optim.ema import Ema, EmaConfig


def make_model(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))


def move(model, amount):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(amount)


def bits(model):
    return [parameter.detach().clone() for parameter in model.parameters()]


def same(ours, theirs):
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_the_mean_has_its_closed_form():
    """After n updates: d^n w_0 + (1 - d) sum of d^(n - i) w_i."""
    model, decay = make_model(), 0.8
    ema = Ema(model, EmaConfig(decay=decay, warmup=False))
    seen = []
    for step in range(6):
        move(model, 0.1 * step)
        seen.append(model[0].weight.detach().double().clone())
        ema.update(step)
    expected = decay**5 * seen[0] + (1 - decay) * sum(decay ** (5 - i) * seen[i] for i in range(1, 6))
    torch.testing.assert_close(ema.state()["0.weight"].double(), expected, rtol=1e-6, atol=1e-6)


def test_warmup_lowers_the_decay_of_early_steps():
    model = make_model()
    ema = Ema(model, EmaConfig(decay=0.9))
    assert [ema.decay_at(step) for step in (0, 8, 10**6)] == [0.1, 0.5, 0.9]
    ema.update(0)
    before = model[0].weight.detach().clone()
    move(model, 1.0)
    ema.update(8)
    torch.testing.assert_close(ema.state()["0.weight"], before + 0.5)


def test_swapping_gives_the_mean_and_then_the_same_bits_back():
    model = make_model()
    ema = Ema(model, EmaConfig(decay=0.5, warmup=False))
    ema.update(0)
    move(model, 1.0)
    ema.update(1)
    weights, mean = bits(model), [tensor.clone() for tensor in ema.state().values()]
    identities = [id(parameter) for parameter in model.parameters()]
    assert not same(weights, mean)
    with pytest.raises(RuntimeError, match="inside"), ema.swapped():
        assert same(bits(model), mean)
        raise RuntimeError("inside")
    assert same(bits(model), weights)
    assert same(list(ema.state().values()), mean)
    assert [id(parameter) for parameter in model.parameters()] == identities


def test_before_the_first_update_the_model_is_its_own_mean():
    model = make_model()
    ema = Ema(model, EmaConfig(decay=0.5))
    move(model, 1.0)  # weights that were given after the mean was made
    weights = bits(model)
    assert ema.state() == {}
    with ema.swapped():
        assert same(bits(model), weights)
    ema.update(0)
    assert same(list(ema.state().values()), weights)


def test_a_restored_mean_goes_on_with_the_same_bits():
    models = make_model(), make_model()
    config = EmaConfig(decay=0.9)
    whole, first = Ema(models[0], config), Ema(models[1], config)
    for step in range(3):
        for model, ema in zip(models, (whole, first), strict=True):
            move(model, 0.3)
            ema.update(step)
    second = Ema(models[1], config)
    second.load_state(first.state())
    first.update(10)  # what was loaded is the second's own
    for model, ema in zip(models, (whole, second), strict=True):
        move(model, 0.3)
        ema.update(3)
    assert same(list(whole.state().values()), list(second.state().values()))
    second.load_state({})
    assert second.state() == {}


def test_frozen_parameters_have_no_mean():
    model = make_model()
    model[0].bias.requires_grad_(False)
    ema = Ema(model, EmaConfig(decay=0.9))
    ema.update(0)
    assert list(ema.state()) == ["0.weight", "1.weight", "1.bias"]


@pytest.mark.parametrize("change", [lambda s: s.pop("1.bias"), lambda s: s.update({"0.weight": torch.zeros(2, 2)})])
def test_a_mean_of_another_model_is_refused(change):
    ema = Ema(make_model(), EmaConfig(decay=0.9))
    ema.update(0)
    state = ema.state()
    change(state)
    with pytest.raises(UserError, match=r"of another model \((1.bias|0.weight) differ\); resume"):
        ema.load_state(state)
