"""The sum over a global batch in one fixed tree: the same bits for every number of ranks.

Floating-point addition is not associative, so a ring's sum depends on how many ranks share the work. Here the
order is part of the definition: the gradients of micro-batches 0..M-1 are the leaves of a binary tree over their
numbers, whoever computed them (the reproducible reductions of Demmel and Nguyen 2015 have the same aim;
pairwise summation, Higham 1993, also rounds less than a running sum).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from hvdlm.sync.flat import ROW_MULTIPLE, FlatLayout
from hvdlm.sync.interface import StrategyConfig, Sync
from hvdlm.sync.traffic import Traffic
from hvdlm.sync.zero import ZeroSync
from hvdlm.world.interface import World

# What travels at a time. Pieces that stay near the cache took 0.7 of the time of 40 MB at once (2 ranks);
# much smaller ones would pay Horovod's millisecond for each.
PIECE_FLOATS = 2 << 20

T = TypeVar("T")


class TreeConfig(StrategyConfig):
    """`sync: tree`."""

    kind: Literal["tree"] = "tree"

    @property
    def sharing(self) -> StrategyConfig:
        return self

    def build(self, model: nn.Module, optimizer: torch.optim.Optimizer, world: World) -> Sync:
        return TreeSync(self, model, optimizer, world)

    def build_sharing(self, model: nn.Module, optimizer: torch.optim.Optimizer, world: World) -> Sync:
        return ZeroTreeSync(model, optimizer, world)


class Node(NamedTuple):
    """The sum of leaves [number * 2^level, (number + 1) * 2^level)."""

    level: int
    number: int


def nodes_of(first: int, end: int) -> list[Node]:
    """The fewest nodes that hold leaves [first, end), in order: what adding up siblings leaves of them.

    >>> nodes_of(4, 8)
    [Node(level=2, number=1)]
    >>> nodes_of(3, 8)
    [Node(level=0, number=3), Node(level=2, number=1)]
    """
    nodes = []
    while first < end:
        level = (end - first).bit_length() - 1
        if first:
            level = min(level, (first & -first).bit_length() - 1)  # trailing zeros: where a node may begin
        nodes.append(Node(level, first >> level))
        first += 1 << level
    return nodes


def are_siblings(left: Node, right: Node) -> bool:
    """Whether the two, in this order, are the halves of one node.

    >>> are_siblings(Node(0, 2), Node(0, 3)), are_siblings(Node(0, 1), Node(0, 2))
    (True, False)
    """
    return left.level == right.level and left.number % 2 == 0 and right.number == left.number + 1


def push(stack: list[tuple[Node, T]], node: Node, value: T, add: Callable[[T, T], T]) -> None:
    """Append the node that comes next and add up siblings as long as there are any: a carry of a binary counter."""
    while stack and are_siblings(stack[-1][0], node):
        left, left_value = stack.pop()
        node, value = Node(left.level + 1, left.number // 2), add(left_value, value)
    stack.append((node, value))


def fold(stack: list[tuple[Node, T]], add: Callable[[T, T], T]) -> T:
    """The sum of the nodes of leaves 0..M-1, from the right, where the small ones are.

    So the whole is the tree that splits M leaves at the largest power of two below M, and again in each part.

    >>> fold([(Node(2, 0), "a"), (Node(1, 2), "b"), (Node(0, 6), "c")], lambda x, y: f"({x}{y})")
    '(a(bc))'
    """
    total = stack[-1][1]
    for _, value in reversed(stack[:-1]):
        total = add(value, total)
    return total


def add_slices(received: list[Tensor], nodes_by_rank: list[list[Node]]) -> Tensor:
    """Sum of one slice over all micro-batches, (w,).

    `received[k][r]` is the slice of rank r's k-th node, (K, P, w) in all; they are overwritten.
    """
    stack: list[tuple[Node, Tensor]] = []
    for rank, nodes in enumerate(nodes_by_rank):
        for k, node in enumerate(nodes):
            push(stack, node, received[k][rank], Tensor.add_)
    return fold(stack, Tensor.add_)


class Block:
    """A rank's block of micro-batches: their gradients as leaves, added up to as few nodes as there can be."""

    def __init__(self, layout: FlatLayout, rank: int) -> None:
        self._layout, self._rank = layout, rank
        self.spare: list[Tensor] = []  # buffers that no node is in
        self._stack: list[tuple[Node, Tensor]] = []
        self._passes = self._done = 0

    def begin(self, passes: int) -> None:
        self.spare += [buffer for _, buffer in self._stack]
        self._stack = []
        self._passes, self._done = passes, 0
        self._layout.clear()

    def take(self) -> None:
        """The gradient of one micro-batch is a leaf; a right one is added where its sibling lies."""
        leaf = Node(0, self._rank * self._passes + self._done)
        self._done += 1
        if self._stack and are_siblings(self._stack[-1][0], leaf):
            _, buffer = self._stack.pop()
            self._layout.add(buffer)
            push(self._stack, Node(1, leaf.number // 2), buffer, self._add)
        else:
            buffer = self.spare.pop() if self.spare else self._layout.zeros()
            self._layout.collect(buffer)
            push(self._stack, leaf, buffer, self._add)
        self._layout.clear()

    def _add(self, left: Tensor, right: Tensor) -> Tensor:
        self.spare.append(right)
        return left.add_(right)

    def to_send(self) -> tuple[list[Tensor], list[list[Node]]]:
        """The buffers that this rank sends of, and which nodes each rank has in its own."""
        size, passes = self._layout.size, self._passes
        assert self._done == passes, f"{self._done} of {passes} micro-batches"
        nodes_by_rank = [nodes_of(rank * passes, (rank + 1) * passes) for rank in range(size)]
        rounds = max(len(nodes) for nodes in nodes_by_rank)
        # A rank with fewer nodes sends its last again, which nobody reads.
        return [self._stack[min(k, len(self._stack) - 1)][1] for k in range(rounds)], nodes_by_rank


class TreeSync(Sync):
    """Each rank adds up the nodes within its block of micro-batches; slices of these travel as in a ring.

    A block whose length is a power of two is one node, as the engine's blocks mostly are: then each rank sends
    what a ring allreduce sends. Otherwise it sends each of its up to 2 log2(passes) nodes.
    """

    orders_micro_batches = True

    def __init__(self, config: TreeConfig, model: nn.Module, optimizer: torch.optim.Optimizer, world: World) -> None:
        super().__init__(model, optimizer, world)
        self._layout = FlatLayout(self.parameters, world.size)
        self._traffic = Traffic(world)
        self.block = Block(self._layout, world.rank)

    def begin(self, step: int, passes: int) -> None:
        self.block.begin(passes)

    def accumulated(self) -> None:
        self.block.take()

    def reduce(self) -> None:
        size, (buffers, nodes_by_rank) = self.world.size, self.block.to_send()
        unit = size * ROW_MULTIPLE
        piece = max(1, PIECE_FLOATS // unit) * unit
        for start in range(0, self._layout.padded, piece):
            parts = [buffer[start : start + piece].view(size, -1) for buffer in buffers]
            mine = add_slices([self._traffic.exchange_rows(part) for part in parts], nodes_by_rank)
            parts[0].copy_(self._traffic.gather_rows(mine))  # it was sent: there is the room
        self._layout.spread(buffers[0])
        self.bytes_sent = self._traffic.bytes_sent


class ZeroTreeSync(ZeroSync):
    """The same sums, of which each rank keeps those of its slice."""

    orders_micro_batches = True

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, world: World) -> None:
        super().__init__(model, optimizer, world)
        self.block = Block(self._layout, world.rank)

    def begin(self, step: int, passes: int) -> None:
        self.block.begin(passes)

    def accumulated(self) -> None:
        self.block.take()

    def _reduced(self) -> list[Tensor]:
        buffers, nodes_by_rank = self.block.to_send()
        rows = [buffer.view(self.world.size, -1) for buffer in buffers]
        mine = rows[0][self.world.rank]
        for columns in self._columns():
            received = [self._traffic.exchange_rows(row[:, columns].contiguous()) for row in rows]
            mine[columns] = add_slices(received, nodes_by_rank)  # it was sent: there is the room
        return [mine[part.place :][: len(part.elements)] for part in self.slices]
