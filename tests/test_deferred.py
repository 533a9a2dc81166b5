"""A gradient that is put off comes once, with the bits of torch's own, and so do the hooks of its weight."""

import copy

import torch
from torch import nn

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
