"""Local SGD and DiLoCo in one process; tests/parallel/test_local_sgd_ranks.py has them on real ranks."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from hvdlm.errors import UserError
from hvdlm.sync.diloco import DilocoConfig, DilocoSync, Outer
from hvdlm.sync.local_sgd import LocalSgdConfig, LocalSgdSync, flatten
from hvdlm.world.serial import SerialWorld


def make(config, optimizer_of=lambda parameters: torch.optim.SGD(parameters, lr=0.1)):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    kind = {"local_sgd": LocalSgdSync, "diloco": DilocoSync}[config.kind]
    return model, kind(config, model, optimizer_of(model.parameters()), SerialWorld())


def train(sync, model, steps):
    for step, _ in sync.work(0, steps):
        sync.begin(step, 1)
        model(torch.full((2, 3), float(step))).square().mean().backward()
        sync.reduce()
        sync.step()
        sync.zero_grad()
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


@pytest.mark.parametrize("warmup_steps", [0, 3])
def test_local_sgd_of_one_rank_is_plain_training(warmup_steps):
    model, sync = make(LocalSgdConfig(every=2, warmup_steps=warmup_steps))
    found = train(sync, model, 5)
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1)
    for step in range(5):
        optimizer.zero_grad()
        plain(torch.full((2, 3), float(step))).square().mean().backward()
        optimizer.step()
    assert torch.equal(found, torch.cat([p.detach().reshape(-1) for p in plain.parameters()]))
    assert sync.bytes_sent == 0


def test_flat_weights_are_the_models_own():
    """Both ways: the optimizer writes the flat tensor, an averaging writes the model; a tied weight is there once."""
    one, two = nn.Linear(3, 2), nn.Linear(3, 2, bias=False)
    two.weight = one.weight
    model = nn.Sequential(one, two)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    before = [p.detach().clone() for p in model.parameters()]
    flat = flatten(list(model.parameters()))
    assert len(flat) == 8
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))
    model[0](torch.ones(1, 3)).sum().backward()
    optimizer.step()
    assert torch.equal(flat, torch.cat([(old - 1).reshape(-1) for old in before]))
    flat.fill_(7.0)
    assert torch.all(model[1].weight == 7)


def test_flat_weights_can_be_saved(tmp_path):
    """safetensors refuses tensors that share memory; views side by side do not."""
    model, _ = make(LocalSgdConfig())
    save_file({name: p.detach() for name, p in model.named_parameters()}, tmp_path / "model.safetensors")
    saved = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(p, saved[name]) for name, p in model.named_parameters())


def test_outer_step_is_torchs_nesterov():
    weights = nn.Parameter(torch.randn(5))
    reference = torch.optim.SGD([weights], lr=0.7, momentum=0.9, nesterov=True)
    outer = Outer(weights.detach().clone(), torch.zeros(5))
    for _ in range(4):
        mean = weights.detach() + torch.randn(5)
        weights.grad = weights.detach() - mean
        reference.step()
        outer.step_towards(mean, 0.7, 0.9)
        assert torch.allclose(outer.weights, weights, atol=1e-6)


def test_diloco_begins_from_weights_that_were_set_after_it_was_built():
    """Ranks agree on weights, and checkpoints are loaded, when the sync is there already."""
    model, sync = make(DilocoConfig(every=1))
    assert sync.state() == {}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.5)
    sync.begin(0, 1)
    assert torch.all(sync.state()["weights"] == 0.5)


def test_diloco_state_is_resumed_and_checked():
    model, sync = make(DilocoConfig(every=3))
    train(sync, model, 3)
    state = {name: tensor.clone() for name, tensor in sync.state().items()}
    assert torch.any(state["momentum"] != 0)
    _, again = make(DilocoConfig(every=3))
    again.begin(0, 1)
    again.load_state({})
    assert again.state() == {}
    again.load_state(state)
    assert all(torch.equal(again.state()[name], state[name]) for name in state)
    again.begin(3, 1)
    assert torch.equal(again.state()["weights"], state["weights"])
    with pytest.raises(UserError, match="outer weights are 5 numbers, this model has 21"):
        again.load_state({"weights": torch.zeros(5), "momentum": torch.zeros(5)})
