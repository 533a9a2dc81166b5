"""The tree: its arithmetic for any number of micro-batches and ranks, and the same bits from simulated ranks."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hvdlm.sync import tree
from hvdlm.sync.interface import ring_bytes
from hvdlm.sync.tree import Node, TreeConfig, TreeSync, add_slices, fold, nodes_of, push
from hvdlm.world.serial import SerialWorld
from hvdlm.world.threads import run_on_threads


def reference(leaves):
    """Split at the largest power of two below the number of leaves, and again in each part."""
    if len(leaves) == 1:
        return leaves[0]
    half = 1 << (len(leaves) - 1).bit_length() - 1
    return reference(leaves[:half]) + reference(leaves[half:])


def pushed(first, leaves):
    stack = []
    for number, leaf in enumerate(leaves, first):
        push(stack, Node(0, number), leaf, lambda x, y: x + y)
    return stack


@given(st.integers(0, 10_000), st.integers(1, 300))
def test_nodes_cover_a_range_once_and_in_order(first, count):
    nodes = nodes_of(first, first + count)
    covered = [leaf for n in nodes for leaf in range(n.number << n.level, n.number + 1 << n.level)]
    assert covered == list(range(first, first + count))


@given(st.integers(0, 10_000), st.integers(1, 300))
def test_adding_up_siblings_leaves_the_nodes_that_are_expected(first, count):
    assert [node for node, _ in pushed(first, [0] * count)] == nodes_of(first, first + count)


@given(st.integers(0, 1000), st.integers(0, 10))
def test_an_aligned_block_is_one_node(number, level):
    assert nodes_of(number << level, number + 1 << level) == [Node(level, number)]


@given(st.integers(1, 40), st.integers(1, 9), st.integers(0, 2**32))
def test_every_number_of_ranks_gives_the_bits_of_the_recursive_tree(passes, size, seed):
    total = passes * size
    leaves = torch.randn(total, 3, generator=torch.Generator().manual_seed(seed)) * 10.0 ** torch.arange(-3, 4, 3)
    expected = reference(list(leaves))
    assert torch.equal(fold(pushed(0, list(leaves)), lambda x, y: x + y), expected)
    stacks = [pushed(rank * passes, list(leaves[rank * passes : (rank + 1) * passes])) for rank in range(size)]
    rounds = max(map(len, stacks))
    received = [torch.stack([stack[min(k, len(stack) - 1)][1] for stack in stacks]).clone() for k in range(rounds)]
    nodes = [nodes_of(rank * passes, (rank + 1) * passes) for rank in range(size)]
    assert torch.equal(add_slices(received, nodes), expected)


def test_a_tree_is_not_just_any_order():
    """The property above could hold for a sum whose rounding never shows."""
    leaves = torch.randn(64, 100, generator=torch.Generator().manual_seed(0))
    running = leaves[0].clone()
    for leaf in leaves[1:]:
        running += leaf
    assert not torch.equal(running, reference(list(leaves)))


class Tiny(nn.Module):
    """One weight that is used twice, one that only even micro-batches use."""

    def __init__(self):
        super().__init__()
        draws = torch.Generator().manual_seed(1)
        self.twice = nn.Parameter(torch.randn(7, 7, generator=draws))
        self.bias = nn.Parameter(torch.randn(7, generator=draws))
        self.sometimes = nn.Parameter(torch.randn(3, 7, generator=draws))

    def forward(self, x, number):
        hidden = torch.tanh(x @ self.twice + self.bias) @ self.twice
        return hidden.square().mean() if number % 2 else (hidden @ self.sometimes.T).square().mean()


def train(world, micro_batches, steps=3):
    """Weights after some steps; micro-batch m of each step is the same whoever computes it."""
    model = Tiny()
    sync = TreeSync(TreeConfig(), model, torch.optim.AdamW(model.parameters(), lr=0.02), world)
    passes = micro_batches // world.size
    for step in range(steps):
        sync.begin(step, passes)
        for number in range(world.rank * passes, (world.rank + 1) * passes):
            x = torch.randn(4, 7, generator=torch.Generator().manual_seed(1000 * step + number))
            (model(x, number) / micro_batches).backward()
            sync.accumulated()
        sync.reduce()
        sync.step()
        sync.zero_grad()
    return torch.cat([p.detach().flatten() for p in model.parameters()]), sync.bytes_sent


@pytest.mark.parametrize(("micro_batches", "sizes"), [(8, (1, 2, 4, 8)), (12, (1, 2, 3, 4, 6)), (7, (1, 7))])
def test_weights_are_the_same_bits_for_every_number_of_ranks(micro_batches, sizes, monkeypatch):
    monkeypatch.setattr(tree, "PIECE_FLOATS", 1)  # several pieces, each the least
    expected, sent = train(SerialWorld(), micro_batches)
    assert sent == 0
    for size in sizes:
        for weights, _ in run_on_threads(size, lambda world: train(world, micro_batches)):
            assert torch.equal(weights, expected), size


def test_the_gradient_is_the_mean_over_micro_batches():
    model = nn.Linear(3, 1, bias=False)
    sync = TreeSync(TreeConfig(), model, torch.optim.SGD(model.parameters(), lr=1.0), SerialWorld())
    for _ in range(2):  # of the last step alone
        sync.begin(0, 3)
        for number in range(3):
            (model(torch.full((1, 3), float(number))).sum() / 3).backward()
            sync.accumulated()
        sync.reduce()
    assert torch.allclose(model.weight.grad, torch.ones(1, 3))


def test_aligned_blocks_send_what_a_ring_sends():
    numel = -(-(7 * 7 + 7 + 3 * 7) // 1024) * 1024  # padded to 256 floats for each of 4 ranks
    for _, sent in run_on_threads(4, lambda world: train(world, 16, steps=5)):
        assert sent == 5 * ring_bytes([torch.empty(numel)], 4)


def test_buffers_grow_with_the_logarithm_of_the_passes():
    model = Tiny()
    sync = TreeSync(TreeConfig(), model, torch.optim.SGD(model.parameters(), lr=0.1), SerialWorld())
    sync.begin(0, 64)
    for number in range(64):
        model(torch.ones(1, 7), number).backward()
        sync.accumulated()
    sync.reduce()
    sync.begin(1, 64)
    assert len(sync.block.spare) == 7 - 1  # levels 0..5 and none for the right leaves


@settings(max_examples=10)
@given(st.integers(1, 12), st.integers(1, 4))
def test_simulated_ranks_agree_for_any_number_of_passes(passes, size):
    weights = run_on_threads(size, lambda world: train(world, passes * size, steps=1)[0])
    expected, _ = train(SerialWorld(), passes * size, steps=1)
    assert all(torch.equal(theirs, expected) for theirs in weights)
