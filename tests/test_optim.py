"""The learning rate is a function of the step alone; optimizers follow their reference."""

import itertools

import pytest
import torch
from torch import nn

from hvdlm.optim import OptimConfig, build_optimizer, lr_at, set_lr


def test_warmup_then_cosine():
    config = OptimConfig(lr=1.0, min_lr=0.1, warmup_steps=10)
    rates = [lr_at(step, 110, config) for step in range(111)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == pytest.approx(1.0)
    assert rates[10] == pytest.approx(1.0)
    assert rates[60] == pytest.approx(0.55)
    assert rates[110] == pytest.approx(0.1)
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))


def test_constant_schedule_and_a_warmup_longer_than_the_run():
    assert lr_at(500, 1000, OptimConfig(lr=0.5, schedule="constant", warmup_steps=0)) == 0.5
    assert lr_at(4, 5, OptimConfig(lr=1.0, warmup_steps=10)) == pytest.approx(0.5)
    assert lr_at(0, 1, OptimConfig(lr=1.0, warmup_steps=0)) == 1.0


def test_only_matrices_decay():
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    decayed, free = build_optimizer(model, OptimConfig(weight_decay=0.3)).param_groups
    assert [p.dim() for p in decayed["params"]] == [2]
    assert [p.dim() for p in free["params"]] == [1, 1, 1]
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.3, 0.0)


@pytest.mark.parametrize(
    ("config", "reference"),
    [
        (
            OptimConfig(name="adamw", weight_decay=0.1),
            lambda p: torch.optim.AdamW(p, 1e-2, (0.9, 0.95), weight_decay=0.1),
        ),
        (OptimConfig(name="sgd", weight_decay=0.1), lambda p: torch.optim.SGD(p, 1e-2, momentum=0.9, weight_decay=0.1)),
    ],
)
def test_optimizers_equal_their_reference(config, reference):
    torch.manual_seed(0)
    ours, theirs = nn.Linear(5, 5, bias=False), nn.Linear(5, 5, bias=False)
    theirs.load_state_dict(ours.state_dict())
    optimizers = build_optimizer(ours, config), reference(theirs.parameters())
    set_lr(optimizers[0], 1e-2)
    for _ in range(5):
        x = torch.randn(4, 5)
        for model, optimizer in zip((ours, theirs), optimizers, strict=True):
            optimizer.zero_grad()
            model(x).pow(2).sum().backward()
            optimizer.step()
    assert torch.allclose(ours.weight, theirs.weight, rtol=1e-6)
