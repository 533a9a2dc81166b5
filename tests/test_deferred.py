"""A gradient that is put off comes once, with the bits of torch's own, and so do the hooks of its weight."""

import copy

import pytest
import torch
from torch import nn

from hvdlm.compute.device import autocast
from hvdlm.parallel.deferred import defer


def test_hooks_of_a_weight_run_once_and_when_its_gradient_is_there():
    """A sync that sends gradients from hooks would otherwise send one that is not there yet."""
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(5, 4, bias=False), nn.LayerNorm(4), nn.Linear(4, 3))
    later, x = copy.deepcopy(plain), torch.randn(2, 7, 5)
    plain(x).square().sum().backward()
    deferred = defer(later)
    deferred.key, seen = 1, []
    nodes = []  # by which Horovod hears of a gradient; they live as long as somebody holds them
    for name, parameter in later.named_parameters():
        parameter.register_post_accumulate_grad_hook(lambda p, name=name: seen.append((name, p.grad.clone())))
        nodes.append(parameter.expand_as(parameter).grad_fn.next_functions[0][0])
        nodes[-1].register_hook(lambda *_, name=name, p=parameter: seen.append((name, p.grad.clone())))
    later(x).square().sum().backward()
    assert {name for name, _ in seen} == {"1.weight", "1.bias", "2.bias"}
    deferred.flush(1)
    expected = dict(plain.named_parameters())
    assert sorted(name for name, _ in seen) == sorted([*expected, *expected])
    assert all(torch.equal(gradient, expected[name].grad) for name, gradient in seen)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("shape", [(6, 5), (2, 7, 5)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_gradient_that_is_put_off_has_the_bits_of_torchs(shape, bias, precision):
    """Those of two micro-batches are added up in their order, whenever they come."""
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(5, 4, bias=bias), nn.GELU(), nn.Linear(4, 3, bias=bias))
    later, inputs = copy.deepcopy(plain), torch.randn(2, *shape)
    deferred = defer(later)
    for number, x in enumerate(inputs):
        deferred.key, found = number, []
        for model in (plain, later):
            leaf = x.clone().requires_grad_()
            with autocast(leaf.device, precision):
                loss = model(leaf).float().square().sum()
            loss.backward()
            found.append(leaf.grad)
        assert torch.equal(*found)  # at once
    assert later[0].weight.grad is None
    deferred.flush(0)
    deferred.flush(1)
    for expected, parameter in zip(plain.parameters(), later.parameters(), strict=True):
        assert torch.equal(parameter.grad, expected.grad)
