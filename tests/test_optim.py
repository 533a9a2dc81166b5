"""Optimizers follow their papers, keep all options in their groups, and go on from a checkpoint with the same bits."""

import copy
import math
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from harness import STATE
from torch import nn

from hvdlm import checkpoint
from hvdlm.errors import UserError
from hvdlm.optim import OPTIMIZERS, OptimConfig, build_optimizer, set_lr
from hvdlm.optim.torch_classes import eager

LR, DECAY, BETAS, EPS, STEPS = 0.02, 0.1, (0.8, 0.9), 1e-6, 4


@pytest.fixture(params=sorted(OPTIMIZERS))
def name(request):
    return request.param


class Tiny(nn.Module):
    """One of each kind of parameter: embedding, matrix, bias, gain, head."""

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.embed = nn.Embedding(11, 6)
        self.hidden = nn.Linear(6, 8)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 11, bias=False)

    def forward(self, ids):
        return self.head(self.norm(torch.tanh(self.hidden(self.embed(ids)))))


def config_of(name, **options):
    return OptimConfig(name=name, lr=LR, weight_decay=DECAY, betas=BETAS, eps=EPS, **options)


def give_gradients(model, step):
    generator = torch.Generator().manual_seed(step)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def weights_after(model, optimizer, steps):
    """All weights after some steps on gradients that depend on the step alone; the learning rate varies."""
    for step in steps:
        give_gradients(model, step)
        set_lr(optimizer, LR / (1 + step))
        optimizer.step()
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def assert_same_bits(ours, theirs):
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


# The papers' updates in numpy: (w, g, state, t from 1, lr, decay) -> new w. float64.


def sgd(w, g, state, t, lr, decay, *, nesterov=False):
    """As torch writes Nesterov's: the gradient is added to the momentum that will be, not taken at the point ahead."""
    g = g + decay * w
    state["m"] = 0.9 * state.get("m", 0) + g
    return w - lr * (g + 0.9 * state["m"] if nesterov else state["m"])


def adagrad(w, g, state, t, lr, decay):
    g = g + decay * w
    state["sum"] = state.get("sum", 0) + g**2
    return w - lr * g / (np.sqrt(state["sum"]) + EPS)


def adam_direction(g, state, t):
    state["m"] = BETAS[0] * state.get("m", 0) + (1 - BETAS[0]) * g
    state["v"] = BETAS[1] * state.get("v", 0) + (1 - BETAS[1]) * g**2
    return state["m"] / (1 - BETAS[0] ** t) / (np.sqrt(state["v"] / (1 - BETAS[1] ** t)) + EPS)


def adam(w, g, state, t, lr, decay):
    return w - lr * adam_direction(g + decay * w, state, t)


def adamw(w, g, state, t, lr, decay):
    return w - lr * decay * w - lr * adam_direction(g, state, t)


def lamb(w, g, state, t, lr, decay):
    u = adam_direction(g, state, t) + decay * w
    return w - lr * (np.linalg.norm(w) / np.linalg.norm(u) if w.ndim > 1 else 1.0) * u


def lars(w, g, state, t, lr, decay):
    norm = np.linalg.norm
    local = 0.001 * norm(w) / (norm(g) + decay * norm(w)) if w.ndim > 1 else 1.0
    state["u"] = 0.9 * state.get("u", 0) + lr * local * (g + decay * w)
    return w - state["u"]


def lion(w, g, state, t, lr, decay):
    m = state.get("m", 0)
    state["m"] = BETAS[1] * m + (1 - BETAS[1]) * g
    return w - lr * (np.sign(BETAS[0] * m + (1 - BETAS[0]) * g) + decay * w)


def adafactor(w, g, state, t, lr, decay):
    """Shazeer and Stern 2018, algorithms 4 and 5, with a relative step of min(lr, 1 / sqrt(t)) and decoupled decay."""
    beta2 = 1 - t**-0.8
    square = g**2 + 1e-30
    if w.ndim > 1:
        state["r"] = beta2 * state.get("r", 0) + (1 - beta2) * square.sum(axis=1)
        state["c"] = beta2 * state.get("c", 0) + (1 - beta2) * square.sum(axis=0)
        v = np.outer(state["r"], state["c"]) / state["r"].sum()
    else:
        state["v"] = v = beta2 * state.get("v", 0) + (1 - beta2) * square
    u = g / np.sqrt(v)
    u /= max(1.0, np.sqrt((u**2).mean()))
    size = max(1e-3, np.sqrt((w**2).mean()))
    return w - lr * decay * w - min(lr, t**-0.5) * size * u


def muon(w, g, state, t, lr, decay):
    """Nesterov momentum, orthogonal by the quintic iteration, as large as AdamW's update."""
    state["m"] = 0.95 * state.get("m", 0) + 0.05 * g
    x = 0.05 * g + 0.95 * state["m"]
    x = x / np.linalg.norm(x)
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return w - lr * decay * w - lr * 0.2 * math.sqrt(max(w.shape)) * x


def muon_or_adamw(w, g, state, t, lr, decay):
    is_hidden = w.shape == (8, 6)
    return (muon if is_hidden else adamw)(w, g, state, t, lr, decay)


REFERENCES = {
    **{formula.__name__: formula for formula in (adafactor, adagrad, adam, adamw, lamb, lars, lion, sgd)},
    "muon": muon_or_adamw,
    "nesterov": partial(sgd, nesterov=True),
}


@pytest.mark.parametrize("case", sorted(REFERENCES))
def test_optimizers_equal_the_formula_of_their_paper(case):
    model = Tiny()
    weights = {name: parameter.detach().double().numpy() for name, parameter in model.named_parameters()}
    states = {name: {} for name in weights}
    for step in range(STEPS):
        give_gradients(model, step)
        for name, parameter in model.named_parameters():
            values = weights[name], parameter.grad.double().numpy(), states[name]
            decay = DECAY if parameter.dim() > 1 else 0.0
            weights[name] = REFERENCES[case](*values, step + 1, LR / (1 + step), decay)
    config = config_of("sgd", nesterov=True) if case == "nesterov" else config_of(case)
    optimizer = build_optimizer(model, config)
    for name, ours in weights_after(model, optimizer, range(STEPS)).items():
        # torch's Muon computes in bfloat16: its update is exact to a few per cent
        tolerance = 1e-3 if case == "muon" and name == "hidden.weight" else 2e-6
        assert np.abs(ours.numpy() - weights[name]).max() < tolerance, name


def test_fused_kernels_are_used_where_this_torch_has_them(monkeypatch):
    def are_fused(name):
        return {group["fused"] for group in build_optimizer(Tiny(), config_of(name)).param_groups}

    assert [are_fused(name) for name in ("adagrad", "adam", "adamw", "sgd")] == [{True}] * 4
    monkeypatch.delattr(torch, "_fused_sgd_")
    assert not any(are_fused("sgd"))


def test_muon_equals_torchs_two_optimizers():
    ours, theirs = Tiny(), Tiny()
    options = {"momentum": 0.8, "nesterov": False, "newton_schulz_steps": 3, "scale": "original", "adamw_lr_scale": 0.5}
    weights = weights_after(ours, build_optimizer(ours, config_of("muon", muon=options)), range(STEPS))
    rest = [(p, DECAY * (p.dim() > 1)) for name, p in theirs.named_parameters() if name != "hidden.weight"]
    groups = [{"params": [p], "weight_decay": decay} for p, decay in rest]
    adamw = torch.optim.AdamW(groups, betas=BETAS, eps=EPS, fused=True)
    options = {"momentum": 0.8, "nesterov": False, "ns_steps": 3, "adjust_lr_fn": "original"}
    muon = torch.optim.Muon([theirs.hidden.weight], weight_decay=DECAY, **options)
    for step in range(STEPS):
        give_gradients(theirs, step)
        set_lr(muon, LR / (1 + step))
        set_lr(adamw, 0.5 * LR / (1 + step))
        muon.step()
        adamw.step()
    assert_same_bits(weights, dict(theirs.named_parameters()))


def test_an_optimizer_is_made_anew_from_its_class_and_groups_alone(name):
    """So does Horovod, in a class of its own below it."""
    ours, theirs = Tiny(), Tiny()
    config = config_of(name, groups=({"match": "head", "lr_scale": 0.5, "weight_decay": 0.3},))
    optimizer, first = build_optimizer(ours, config), build_optimizer(theirs, config)
    wrapped = type(type(first).__name__, (type(first),), {})(first.param_groups)
    assert_same_bits(weights_after(ours, optimizer, range(STEPS)), weights_after(theirs, wrapped, range(STEPS)))


def test_steps_after_a_restored_checkpoint_have_the_same_bits(name, tmp_path):
    config = config_of(name, groups=({"match": "embed", "lr_scale": 0.1},))
    ours, theirs = Tiny(), Tiny(seed=1)
    optimizer = build_optimizer(ours, config)
    weights_after(ours, optimizer, range(2))
    path = checkpoint.save(tmp_path, 2, ours, optimizer, STATE)
    expected = weights_after(ours, optimizer, range(2, 5))
    first = build_optimizer(theirs, config)
    restored = type(first)(first.param_groups)
    checkpoint.load_model(path, theirs)
    checkpoint.load_optimizer(path, theirs, restored)
    assert_same_bits(weights_after(theirs, restored, range(2, 5)), expected)


def test_state_dict_round_trip(name):
    ours, theirs = Tiny(), Tiny()
    optimizer, restored = (build_optimizer(model, config_of(name)) for model in (ours, theirs))
    theirs.load_state_dict(weights_after(ours, optimizer, range(2)))
    restored.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert_same_bits(weights_after(theirs, restored, range(2, 4)), weights_after(ours, optimizer, range(2, 4)))


def test_each_optimizer_learns(name):
    """Which token follows which of eleven; chance is log 11 = 2.4."""
    model, ids = Tiny(), torch.arange(11)
    lr = {"adafactor": 0.05, "adagrad": 0.1, "lamb": 0.05, "lars": 0.5, "lion": 0.01, "sgd": 0.1}.get(name, 0.02)
    optimizer = build_optimizer(model, OptimConfig(name=name, lr=lr, weight_decay=0.0, trust_coefficient=0.05))
    losses = []
    for _ in range(80):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(ids), (3 * ids + 1) % 11)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 2
    assert losses[-1] < 0.5


def test_parameters_without_a_gradient_stay(name):
    model = Tiny()
    optimizer = build_optimizer(model, config_of(name))
    before = model.embed.weight.detach().clone()
    give_gradients(model, 0)
    model.embed.weight.grad = model.norm.bias.grad = None
    optimizer.step()
    assert torch.equal(model.embed.weight, before)
    assert not any(optimizer.state[model.embed.weight].get(entry) for entry in ("mean", "momentum", "update"))
    assert torch.equal(model.norm.bias, torch.zeros(8))
    for group in optimizer.param_groups:  # so Horovod's Adasum steps, one parameter at a time
        group["params"] = []
    optimizer.step()


@pytest.mark.parametrize("decay", [0.0, DECAY])
def test_weights_begin_at_zero_and_gradients_may_be_zero(name, decay):
    model = Tiny()
    optimizer = build_optimizer(model, OptimConfig(name=name, weight_decay=decay))
    nn.init.zeros_(model.hidden.weight)
    for step in range(3):
        give_gradients(model, step)
        model.embed.weight.grad[3] = 0  # a token that is not in the batch
        model.head.weight.grad.zero_()
        optimizer.step()
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())
    assert model.hidden.weight.any()


def test_tiny_gradients_keep_their_shape_in_adafactor():
    """Its update does not depend on the gradient's scale, which torch's default eps would not keep."""
    models = Tiny(), Tiny()
    for model, scale in zip(models, (1.0, 1e-5), strict=True):
        optimizer = build_optimizer(model, config_of("adafactor"))
        for step in range(3):
            give_gradients(model, step)
            for parameter in model.parameters():
                parameter.grad *= scale
            optimizer.step()
    for ours, theirs in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_step_returns_the_loss_of_its_closure():
    for name in ("lamb", "lars", "lion", "muon"):
        model = Tiny()
        loss = build_optimizer(model, config_of(name)).step(lambda m=model: m(torch.tensor([1])).sum())
        assert loss.requires_grad


@pytest.mark.parametrize(("name", "attribute"), [("muon", "Muon"), ("adafactor", "Adafactor")])
def test_an_optimizer_newer_than_this_torch_is_refused_by_name(name, attribute, monkeypatch):
    monkeypatch.delattr(torch.optim, attribute)
    with pytest.raises(UserError, match=rf"optim.name: {name} is part of torch from 2\.\d on, this is torch 2"):
        build_optimizer(Tiny(), config_of(name))


@pytest.mark.parametrize(
    "changes", [{"lr": 1e38, "weight_decay": 1e38}, {"lr": 3e38, "groups": [{"match": ".", "lr_scale": 1e38}]}]
)
def test_a_step_beyond_float32_is_refused(changes):
    with pytest.raises(UserError, match="more than a float32 holds"):
        build_optimizer(torch.nn.Linear(2, 2), OptimConfig(**changes))


def test_torchs_own_optimizers_step_as_before():
    """`eager` replaces the wrapper around `step`, not what it does."""
    for name in ("Adam", "AdamW", "SGD", "Adagrad"):
        weights = []
        for made in (getattr(torch.optim, name), eager(getattr(torch.optim, name))):
            torch.manual_seed(0)
            layer = torch.nn.Linear(3, 3)
            optimizer = made(layer.parameters(), lr=0.1)
            for _ in range(3):
                optimizer.zero_grad()
                layer(torch.ones(3)).square().sum().backward()
                optimizer.step()
            weights.append(layer.weight.detach())
        assert torch.equal(*weights), name
