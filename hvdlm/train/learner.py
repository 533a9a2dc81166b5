"""What the loop drives: something that learns, step after step, and can be evaluated, saved and restored."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from hvdlm import checkpoint
from hvdlm.checkpoint import Cut, Piece, Shares
from hvdlm.data.manifest import Manifest
from hvdlm.data.orders import MixedStreams
from hvdlm.data.records import Records
from hvdlm.data.stream import TokenStream
from hvdlm.models import LanguageModel, num_parameters
from hvdlm.parallel.axes import Axes
from hvdlm.parallel.sharing import Whole
from hvdlm.tables import counted
from hvdlm.tasks import Task
from hvdlm.tasks.readers import Readers
from hvdlm.train.batch_plan import BatchPlan
from hvdlm.train.config import RunConfig
from hvdlm.train.guard import Verdict
from hvdlm.world.interface import World
from hvdlm.world.place import Place

Source = TokenStream | MixedStreams | Records  # what is trained on


@dataclass(frozen=True)
class StepResult:
    """What this rank did in a step. Tensors may still be under way on a GPU."""

    step: int
    sums: Tensor  # the task's, over this rank's targets: float64 (len(task.sums),)
    micro_batches: int
    grad_norm: Tensor  # of the gradient to be applied, before clipping; 0 where nothing descends
    verdict: Verdict
    step_s: float
    data_wait_s: float
    comm_s: float  # in which nothing was computed for waiting on other ranks


class Learner(ABC):
    """A model of one rank and what changes it. What is said to be collective is called by all ranks."""

    # Its steps have a learning rate and a gradient, which are logged.
    descends: ClassVar[bool] = True

    config: RunConfig
    axes: Axes
    world: World
    model: LanguageModel
    whole: Whole  # that the model is, or of which it is this rank's part
    task: Task
    device: torch.device
    plan: BatchPlan
    total_steps: int
    epoch_samples: list[float]  # in how many samples of the order each corpus is seen once
    flops_per_token: int  # of the whole model, forward and backward
    val_losses: list[float]
    left_out = 0  # samples that a rewind has passed over

    @abstractmethod
    def __init__(self, config: RunConfig, source: Source, manifest: Manifest, axes: Axes, place: Place) -> None:
        """Builds this rank's part and talks to no other: a rank may fail here. Then `agree`."""

    @abstractmethod
    def run(self, first: int, end: int) -> list[StepResult]:
        """Steps [first, end), this rank's share of them; collective."""

    @abstractmethod
    def collect(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and plain values of a checkpoint besides weights and optimizer; collective, the same on all ranks."""

    def pieces(self, tensors: Mapping[str, Tensor]) -> tuple[list[Piece], dict[str, Any]]:
        """What this rank holds of a checkpoint's tensors, with those of `collect`; the optimizer's plain values."""
        share = self.world.rank, self.world.size
        return checkpoint.pieces_of(self.model, self.optimizer, tensors, shares=Shares(share, share))

    def load_optimizer(self, path: Path) -> None:
        """Its state of a checkpoint."""
        checkpoint.load_optimizer(path, self.model, self.optimizer)

    @abstractmethod
    def restore(self, path: Path) -> int:
        """Load a checkpoint; every rank reads the same files. Returns the step to go on with."""

    @abstractmethod
    def close(self) -> None:
        """Collective."""

    @property
    def optimizer(self) -> torch.optim.Optimizer | None:
        """Whose state a checkpoint keeps."""
        return None

    @property
    def groups(self) -> list[dict[str, Any]]:
        """The optimizer's groups, of whole parameters."""
        return [] if self.optimizer is None else self.optimizer.param_groups

    def take_reason(self) -> str:
        """Why the last verdict was not to apply a step, once."""
        return ""

    @contextmanager
    def evaluated(self) -> Iterator[None]:
        """The weights that count, in the model; collective."""
        yield

    def agree(self) -> None:
        """Give every replica the first one's weights and buffers; collective."""
        for tensor in (*self.model.parameters(), *self.model.buffers()):
            if tensor.numel():
                self.axes.data.broadcast_(tensor.data)

    @property
    def cuts(self) -> Mapping[str, Cut]:
        """Of parameters: which part of each this rank has, where it may be a part."""
        return {}

    @property
    def names_cut(self) -> Collection[str]:
        """Of parameters of which tensor ranks hold different parts."""
        return [name for name, cut in self.cuts.items() if not cut.is_whole]

    @property
    def readers(self) -> Readers:
        """Who evaluates what."""
        return Readers.each_of(self.world)

    @property
    def num_parameters(self) -> int:
        """Of the whole model."""
        return num_parameters(self.model)

    def lr_of(self, step: int) -> float | None:
        """Learning rate of a step, the same at any number of ranks; None where nothing descends."""
        return None

    @abstractmethod
    def tokens_before(self, step: int) -> int:
        """Tokens trained on before a step, over all ranks; where samples differ, by their mean length."""

    def facts(self) -> dict[str, float]:
        """Numbers of the last interval that are worth a place in the log."""
        return {}

    @staticmethod
    def losses_in(state: dict[str, Any]) -> list[float]:
        """The validation losses of a checkpoint's state."""
        found = state.get("engine", {}).get("val_losses", [])
        return [math.nan if loss is None else loss for loss in found]

    @property
    def size_in_words(self) -> str:
        """How large the model is, as it stands behind the family's name."""
        return f"of {self.num_parameters:,} parameters"

    @property
    def step_in_words(self) -> str:
        """What a step does, in a few words."""
        train = self.config.train
        return (
            f"{train.global_batch // train.micro_batch} x {counted(train.micro_batch, 'sequence')}"
            f" of {self.config.data.seq_len} a step"
        )

    @property
    def sync_kind(self) -> str:
        """How the ranks' work becomes one, in a word."""
        return "sum"

    @property
    def bytes_sent(self) -> int:
        """Payload that this rank has handed to the network since it started."""
        return 0
