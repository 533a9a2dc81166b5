"""The memory that one rank of a mesh will need: it carries out its step alone, on tensors with shapes and no values.

What is counted is what the code does, so there is no formula that a new option could make wrong.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from hvdlm.compute.draws import draws_for
from hvdlm.compute.held import Held
from hvdlm.data.manifest import Manifest
from hvdlm.errors import UserError
from hvdlm.host import affinity
from hvdlm.optim import OPTIMIZERS
from hvdlm.parallel.imagined import imagined_axes
from hvdlm.parallel.mesh import Mesh
from hvdlm.parallel.schedule import build
from hvdlm.parallel.simulator import Costs, simulate
from hvdlm.sync.allreduce import AllreduceConfig
from hvdlm.train.config import RunConfig
from hvdlm.train.learner import Source
from hvdlm.train.micro_batches import MicroBatch, StepWork
from hvdlm.train.step import GradientLearner
from hvdlm.world.place import Place


class Memory(NamedTuple):
    """Bytes of one rank, of tensors alone."""

    rank: int
    parameters: int  # how many it holds
    weights: int
    gradients: int
    optimizer: int
    buffers: int  # what else is kept from step to step: those of a sync, running means
    passes: int  # the most that is there besides, at some moment: activations, gradients, messages

    @property
    def total(self) -> int:
        return self.weights + self.optimizer + self.buffers + self.passes


class _Targets(TorchDispatchMode):
    """What is picked by values that nobody knows is taken for as much as a micro-batch has targets."""

    num = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        if func is torch.ops.aten.nonzero.default:
            return args[0].new_empty((self.num, args[0].dim()), dtype=torch.int64)
        if func is torch.ops.aten.index.Tensor and args[1][0] is not None and args[1][0].dtype == torch.bool:
            return args[0].new_empty((self.num, *args[0].shape[args[1][0].dim() :]))
        return func(*args, **(kwargs or {}))


class _Rehearsal(GradientLearner):
    """A learner whose steps have no values."""

    has_values = False

    def step(self, mode: FakeTensorMode, targets: _Targets, num: int, heavy: int) -> None:
        """A step of `num` micro-batches, of which the last `heavy` pass through the model, the others give zeros."""
        train = self.config.train
        self.sync.begin(0, num)
        for _ in range(num - heavy):
            for parameter in self.sync.parameters:
                parameter.grad = torch.zeros_like(parameter)
            self.sync.accumulated()
        self.model.train()
        at = np.arange(train.micro_batch, dtype=np.int64)
        windows = self.examples.batches.windows(at, 0)
        with _disable_current_modes():  # their number is that of real examples
            targets.num = self.task.count(windows)
        ids = mode.from_tensor(torch.from_numpy(windows)).to(self.device)
        parts = []
        for _ in range(heavy):
            draws = draws_for(self.config.seed, 0, at).to(self.device) if self._takes_draws else None
            parts.append(MicroBatch(slice(0, len(at)), self.task.batch(ids, None, draws, training=True), draws))
        work = StepWork(
            parts,
            self.model,
            lambda model, one: self._sums_of(model, 0, one),
            weight=1.0,
            totals=torch.zeros(len(self.task.sums), dtype=torch.float64, device=self.device),
            room=self._room,
            sync=self.sync,
            noise_scale=self.noise_scale,
        )
        self.pipeline.run(work, heavy)
        self.sync.reduce()
        self._complete()
        self._norm()
        self._update()
        if self.ema is not None:
            self.ema.update(0)
        self.sync.zero_grad()

    def _update(self) -> None:
        """Where that looks at values, what it keeps of the parameters is told by their shapes."""
        size_of = OPTIMIZERS[self.config.optim.name].state_size
        if size_of is None:
            self.sync.step()
        elif not self.optimizer.state:
            for parameter in self.sync.parameters:
                self.optimizer.state[parameter] = {"all": torch.zeros(size_of(parameter), device=self.device)}

    def filling(self, num: int) -> int:
        """Of so many micro-batches as many as must pass through the model for all to be there that ever is at once."""
        parallel, stages = self.config.parallel, self.axes.mesh.pipeline
        schedule = build(parallel.schedule, stages, num, parallel.chunks)
        most = simulate(schedule, Costs(), self.pipeline.layout.chunks).most_open(self.axes.place.pipeline)
        return min(num, most + 1)


def rehearse(config: RunConfig, source: Source, manifest: Manifest, mesh: Mesh, rank: int) -> Memory:
    """Of the rank of that number; UserError for what a run would refuse.

    It is that of a CPU, and of a model that is not compiled; a compiled one takes less.
    """
    sync = config.sync.resolved("mpi")
    if sync.preferred_world == "horovod":  # it sums in place, too
        sync = AllreduceConfig()
    if not sync.steps_together:
        raise UserError(
            f"{sync.label}: its ranks meet at no fixed time, so none can be gone through alone; take another"
        )
    train = config.train.model_copy(update={"device": "cpu", "compile": False})
    config = config.model_copy(update={"sync": sync, "train": train})
    place = Place(0, 1, max(1, len(affinity())))
    try:
        with FakeTensorMode(allow_non_fake_inputs=True) as mode, Held() as held, _Targets() as targets:
            learner = _Rehearsal(config, source, manifest, imagined_axes(mesh, rank), place)
            num = config.train.global_batch // (config.train.micro_batch * mesh.data)
            learner.step(mode, targets, num, heavy=1)  # makes what is made once
            held.most = held.now
            learner.step(mode, targets, num, learner.filling(num))
            return _counted(learner, rank, held)
    except (DataDependentOutputException, DynamicOutputShapeException) as error:
        raise UserError(
            f"model.family: {config.model.family} with task: {config.task.kind} decides by values ({error}), which a"
            " plan does not know; measure its memory in a run of a few steps"
        ) from error


def _counted(learner: GradientLearner, rank: int, held: Held) -> Memory:
    parameters = list(learner.model.parameters())
    weights = sum(parameter.nbytes for parameter in parameters)
    tied = learner.model.tied_weight
    if tied is not None and not isinstance(tied, torch.nn.Parameter):
        weights += tied.nbytes
    states: Any = learner.optimizer.state.values()
    optimizer = sum(value.nbytes for state in states for value in state.values() if isinstance(value, torch.Tensor))
    return Memory(
        rank,
        parameters=sum(parameter.numel() for parameter in parameters),
        weights=weights,
        gradients=sum(parameter.nbytes for parameter in parameters if parameter.requires_grad),
        optimizer=optimizer,
        buffers=held.now - weights - optimizer,
        passes=held.most - held.now,
    )
