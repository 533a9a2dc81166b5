"""What the training step asks of a way to combine gradients: a config that says what it can, and the sync it builds."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from hvdlm import checkpoint
from hvdlm.checkpoint import Checkpoint, Cut, Piece
from hvdlm.config import Section
from hvdlm.world.interface import World


class StrategyConfig(Section, ABC):
    """`sync: {kind: …, …}`; each kind is a subclass in a file of its own, beside the sync that it builds."""

    kind: str

    # After every step all ranks hold the same weights, bit for bit.
    keeps_replicas_equal: ClassVar[bool] = True
    # All ranks are in the same step, each with its own part of every batch. Otherwise a rank that is free takes the
    # next part, and the ranks wait for each other at the end of an interval alone.
    steps_together: ClassVar[bool] = True
    # What `world: auto` shall be; None: Horovod's where it sums over NCCL, for GPUs, else MPI's.
    preferred_world: ClassVar[Literal["mpi", "horovod"] | None] = None
    # The same mean of the same gradients as of every kind of which this is true, unless settings say otherwise.
    gives_plain_mean: ClassVar[bool] = False
    # Values of settings that change the speed and no result, the default first; `hvdlm tune` tries them.
    knobs: ClassVar[dict[str, tuple[float | bool | None, ...]]] = {}

    @property
    def reduces_to_mean(self) -> bool:
        """`reduce` leaves the mean gradient, so that its norm says what the step is like."""
        return True

    @property
    def reduces_before_step(self) -> bool:
        """`step` is for this rank alone, so that gradients may be clipped before, and it may be left out."""
        return True

    @property
    def label(self) -> str:
        """As the user has written it, for messages."""
        return f"sync: {self.kind}"

    @property
    def environment(self) -> dict[str, str]:
        """Variables that the world reads when it starts; the user's own win."""
        return {}

    @property
    def sharing(self) -> StrategyConfig | None:
        """This config, or the one that it stands for, where ranks share the optimizer's state; None: it cannot."""
        return None

    def build_sharing(self, model: nn.Module, optimizer: torch.optim.Optimizer, world: World) -> Sync:
        """`build` of a `sharing` one, whose ranks share the optimizer's state (parallel.zero: 1)."""
        raise NotImplementedError

    def resolved(self, world_kind: str) -> StrategyConfig:
        """This config, or the one that it stands for in such a world."""
        return self

    @abstractmethod
    def build(self, model: nn.Module, optimizer: torch.optim.Optimizer, world: World) -> Sync:
        """Wrap an optimizer that has no state yet; UserError if this world or number of ranks does not do."""


Square = Callable[[str, Tensor], Tensor]


class Sync(ABC):
    """Between a micro-batch's backward and the optimizer.

    One step is: `begin`, then for each micro-batch backward and `accumulated`, then `reduce`; now every `p.grad`
    is what the optimizer shall apply, and may be clipped; `step` applies it (it may be left out, to skip a
    step), `zero_grad` makes ready for the next. Every rank calls all of them in the same order.
    """

    kind = ""  # that of the config; `build_sync` sets it
    orders_micro_batches = False  # the sum depends on nothing but the gradients of single micro-batches

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, world: World) -> None:
        self.optimizer: Any = optimizer  # its state is saved, its learning rate set; a wrapper replaces it
        self.world = world
        self.named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        self.parameters = [p for _, p in self.named]
        self.bytes_sent = 0  # payload that this rank has handed to the network since it started

    def work(self, first: int, end: int) -> Iterator[tuple[int, int]]:
        """(step, part) of the global batches of steps [first, end) that this rank computes; part < world.size."""
        for step in range(first, end):
            yield step, self.world.rank

    def weight(self, targets: int, all_targets: int) -> float:
        """What this rank's sum of losses is multiplied with, before its gradient is taken.

        It has `targets` of the global batch's `all_targets`. Where `reduce` adds up the ranks' gradients, this makes
        their sum the gradient of the global mean.
        """
        return 1 / max(1, all_targets)

    def begin(self, step: int, passes: int) -> None:
        """Before a step of `passes` micro-batches on this rank."""

    def accumulated(self) -> None:
        """After the backward of each micro-batch."""

    @abstractmethod
    def reduce(self) -> None:
        """After it every `p.grad` is what the optimizer shall apply: where replicas are equal, the mean over ranks."""

    def to_apply(self) -> list[Tensor]:
        """Of `reduce`'s gradients those that this rank's `step` applies; they may be scaled in place."""
        return [p.grad for p in self.parameters if p.grad is not None]

    def squares(self, square: Square) -> dict[str, Tensor]:
        """After `reduce`: of each parameter's gradient the sum of squares, float64; collective.

        `square` gives that of a parameter by its name, where this rank has the whole gradient.
        """
        return {name: square(name, p.grad) for name, p in self.named if p.grad is not None}

    def complete(self, names: Collection[str], total: Callable[[Tensor], Tensor]) -> None:
        """After `reduce`: the gradients of some parameters, (n,) in all, become what `total` makes of them; collective.

        It is called where ranks outside of this world have other parts of these sums.
        """
        parts = [p for name, p in self.named if name in names]
        found = total(torch.cat([gradient.reshape(-1) for gradient in gradients(parts)]))
        for parameter, part in zip(parts, found.split([p.numel() for p in parts]), strict=True):
            parameter.grad = part.view_as(parameter)

    @property
    def groups(self) -> list[dict[str, Any]]:
        """The optimizer's groups, of whole parameters."""
        return self.optimizer.param_groups

    def step(self) -> None:
        self.optimizer.step()

    def zero_grad(self) -> None:
        self.optimizer.zero_grad()

    def rescale(self, factor: float) -> None:
        """The loss, and with it every coming gradient, is from now on `factor` times as large (fp16)."""

    def average_weights(self) -> None:
        """Collective: make the weights those that are evaluated. Nothing to do where replicas are equal."""

    def settle(self) -> None:
        """Collective, before a checkpoint: make all that `state` and the optimizer hold equal on all ranks.

        Training goes on from there, so an interrupted run and one that was not stay the same, and a run may
        be resumed by another number of ranks.
        """

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint must keep besides weights and optimizer state, equal on all ranks after `settle`."""
        return {}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Restore what `state` returned, at any number of ranks; the weights have been restored already."""

    @property
    def kept_whole(self) -> torch.optim.Optimizer | None:
        """The optimizer, where it has the state of whole parameters; None where ranks own slices of them."""
        return self.optimizer

    def pieces(self, cuts: Mapping[str, Cut], *, tells_whole: bool) -> list[Piece]:
        """The optimizer's state of the slices that this rank owns, where they are kept by slice.

        `cuts`, by name, say which part of a parameter the data ranks hold, where they do not hold it whole; of tensor
        ranks, which hold the other parameters alike, one `tells_whole`.
        """
        return []

    def load_optimizer(self, found: Checkpoint, model: nn.Module, cuts: Mapping[str, Cut]) -> None:
        """A checkpoint's state of the optimizer, whatever ranks wrote it; UserError for another model's."""
        checkpoint.load_optimizer(found, model, self.optimizer, cuts)

    def facts(self) -> dict[str, Any]:
        """What is worth a line in the log about the last interval, such as staleness."""
        return {}

    def close(self) -> None:
        """Collective; gives back what the world lent."""


def gradients(parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    """Every `p.grad`; a parameter that took no part in the backward gets zeros."""
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


def ring_bytes(tensors: Sequence[Tensor], size: int) -> int:
    """Bytes that a rank sends in a ring allreduce of these tensors (Patarasuk and Yuan 2009)."""
    return 2 * (size - 1) * sum(tensor.numel() * tensor.element_size() for tensor in tensors) // size
