"""Local SGD: each rank steps by itself, and every few steps the ranks' weights are averaged.

Sources: Stich 2019 (Local SGD converges fast and communicates little), Lin et al. 2020 (Don't use large
mini-batches, use local SGD: post-local SGD, here `warmup_steps`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.optim import Optimizer

from hvdlm.sync.interface import StrategyConfig, Sync, gradients, ring_bytes
from hvdlm.world.interface import World

PIECE = 16 << 20  # elements that are copied together for one sum: 64 MiB


class LocalSgdConfig(StrategyConfig):
    """`sync: {kind: local_sgd, …}`."""

    kind: Literal["local_sgd"] = "local_sgd"
    every: int = Field(8, ge=1, description="steps between averagings of the weights, H")
    warmup_steps: int = Field(0, ge=0, description="first steps, in which gradients are averaged at every step")

    keeps_replicas_equal = False

    def build(self, model: nn.Module, optimizer: Optimizer, world: World) -> Sync:
        return LocalSgdSync(self, model, optimizer, world)


class LocalSgdSync(Sync):
    """A rank's step applies its own mean gradient; after step s the weights are averaged if `every` divides s + 1.

    What is due depends on the step's number alone, so all ranks agree and a resumed run goes on alike. The
    averaging sits in `zero_grad`, which ends every step on every rank: `step` is left out by a rank whose
    gradient is not finite. The optimizer's state stays each rank's own until `settle`.
    """

    def __init__(self, config: LocalSgdConfig, model: nn.Module, optimizer: Optimizer, world: World) -> None:
        super().__init__(model, optimizer, world)
        self._config = config
        self._weights = flatten(self.parameters)
        self._step = 0

    def weight(self, targets: int, all_targets: int) -> float:
        """A mean over this rank's own targets, or what averages to the mean over all of them."""
        if self._step < self._config.warmup_steps:
            return self.world.size / max(1, all_targets)
        return 1 / max(1, targets)

    def begin(self, step: int, passes: int) -> None:
        self._step = step

    def reduce(self) -> None:
        if self._step < self._config.warmup_steps:
            self.bytes_sent += average(self.world, gradients(self.parameters))

    def zero_grad(self) -> None:
        super().zero_grad()
        if self._step >= self._config.warmup_steps and (self._step + 1) % self._config.every == 0:
            self.meet()

    def meet(self) -> None:
        """Collective: what is due every `every` steps."""
        self.average_weights()

    def average_weights(self) -> None:
        self.bytes_sent += average(self.world, [self._weights])

    def settle(self) -> None:
        self.average_weights()
        self.bytes_sent += average_state(self.world, self.optimizer, self.parameters)


def flatten(parameters: Sequence[nn.Parameter]) -> Tensor:
    """Make the parameters views, in order, of one new tensor (n,), and return it; optimizers notice nothing."""
    flat = torch.cat([parameter.detach().reshape(-1) for parameter in parameters])
    for parameter, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        parameter.data = part.view(parameter.shape)
    return flat


def average(world: World, tensors: Sequence[Tensor]) -> int:
    """Replace floating-point tensors by their means over the ranks, bit-equal on all; returns bytes sent.

    Collective; all ranks give the same shapes. Small tensors are summed together, in float32.
    """
    sent = 0
    for group in _groups(tensors):
        if len(group) == 1 and group[0].dtype == torch.float32 and group[0].is_contiguous():
            flat = group[0].detach().view(-1)
        else:
            flat = torch.cat([tensor.detach().reshape(-1).float() for tensor in group])
        world.sum_(flat)
        flat.div_(world.size)
        sent += ring_bytes([flat], world.size)
        for tensor, part in zip(group, flat.split([tensor.numel() for tensor in group]), strict=True):
            if tensor.data_ptr() != part.data_ptr():
                tensor.detach().copy_(part.view(tensor.shape))
    return sent


def _groups(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """The tensors in order, together while they stay below PIECE; a larger one is alone."""
    group: list[Tensor] = []
    elements = 0
    for tensor in tensors:
        if group and elements + tensor.numel() > PIECE:
            yield group
            group, elements = [], 0
        group.append(tensor)
        elements += tensor.numel()
    if group:
        yield group


@dataclass(frozen=True)
class _Entry:
    """What the ranks tell each other about one entry of an optimizer's state."""

    dtype: torch.dtype | None  # None: a plain number
    shape: tuple[int, ...]
    value: float  # of a scalar, such as the number of steps taken

    @classmethod
    def of(cls, value: Tensor | float) -> _Entry:
        if isinstance(value, Tensor):
            return cls(value.dtype, tuple(value.shape), float(value) if value.dim() == 0 else 0.0)
        return cls(None, (), value)


def average_state(world: World, optimizer: Optimizer, parameters: Sequence[nn.Parameter]) -> int:
    """Make the optimizer's state the mean of the ranks' states, bit-equal on all; returns bytes sent. Collective.

    A scalar that is whole on all ranks (a number of steps) stays whole. A rank that has no state yet, since it
    has not stepped, gets the mean of those that have. State tensors are taken for floating-point ones.
    """
    everybody: list[dict[tuple[int, str], _Entry]] = world.gather(
        {
            (number, name): _Entry.of(value)
            for number, parameter in enumerate(parameters)
            for name, value in optimizer.state.get(parameter, {}).items()
            if isinstance(value, (Tensor, int, float))
        }
    )
    known = {key: entry for theirs in everybody for key, entry in theirs.items()}
    tensors, shares = [], []
    for (number, name), entry in sorted(known.items(), key=lambda item: item[0]):
        state = optimizer.state[parameters[number]]
        having = [theirs[number, name] for theirs in everybody if (number, name) in theirs]
        if entry.shape:
            if name not in state:
                state[name] = torch.zeros(entry.shape, dtype=entry.dtype, device=parameters[number].device)
            tensors.append(state[name])
            shares.append(len(having) / world.size)
        else:
            _set_scalar(state, name, entry, [theirs.value for theirs in having], parameters[number].device)
    sent = average(world, tensors)
    for tensor, share in zip(tensors, shares, strict=True):
        if share < 1:
            tensor.div_(share)
    return sent


def _set_scalar(state: dict, name: str, entry: _Entry, values: list[float], device: torch.device) -> None:
    mean = sum(values) / len(values)
    if all(float(value).is_integer() for value in values):
        mean = round(mean)
    if entry.dtype is None:
        state[name] = mean
    elif name in state:
        state[name].fill_(mean)
    else:
        state[name] = torch.tensor(mean, dtype=entry.dtype, device=device)
