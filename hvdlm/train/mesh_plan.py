"""What every mesh of some ranks would need of memory and time to train a config, before any rank is started."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from torch._subclasses.fake_tensor import FakeTensorMode

from hvdlm.data.corpora import open_corpora
from hvdlm.data.manifest import Manifest
from hvdlm.errors import UserError
from hvdlm.parallel.config import ParallelConfig
from hvdlm.parallel.mesh import Mesh, Place, cut_by_cost
from hvdlm.parallel.prediction import Machine, Predicted, StepShape, predicted
from hvdlm.train.config import RunConfig, check_batch
from hvdlm.train.learner import Source
from hvdlm.train.parts import build_task, vocabulary_of
from hvdlm.train.rehearsal import Memory, rehearse
from hvdlm.train.trained import model_of

Change = tuple[str, str, Any]  # section, key, value


@dataclass(frozen=True)
class Planned:
    """A mesh; `memories` are those of one rank of each stage that may be the fullest."""

    mesh: Mesh
    parallel: ParallelConfig
    memories: tuple[Memory, ...]
    time: Predicted

    @property
    def fullest(self) -> Memory:
        return max(self.memories, key=lambda memory: memory.total)

    @property
    def in_words(self) -> str:
        """As a run's start tells it."""
        return self.parallel.in_words(self.mesh.size)

    def overrides(self, before: ParallelConfig) -> str:
        """What is to be written behind `hvdlm train CONFIG`: the mesh, and what else is not as the config says."""
        always = {"pipeline", "tensor"}
        said = [(key, value) for key, value in self.parallel if key in always or value != getattr(before, key)]
        return " ".join(f"parallel.{key}={str(value).lower()}" for key, value in said)


class Planner:
    """Of one config over its data."""

    def __init__(self, config: RunConfig, machine: Machine) -> None:
        if config.model.learner != "gradient":
            raise UserError(f"model.family: {config.model.family} is counted, not trained: there is nothing to plan")
        self.config, self._machine = config, machine
        corpora = open_corpora(config.data)
        self._source: Source = corpora.records("train") if config.task.reads_records else corpora.train_source()
        self._manifest: Manifest = corpora.manifest
        self.shape = self._shape()

    def _shape(self) -> StepShape:
        config, train = self.config, self.config.train
        vocabulary, time = vocabulary_of(self._manifest), config.data.seq_len
        task = build_task(config, vocabulary, self._manifest.fields)
        with FakeTensorMode(allow_non_fake_inputs=True):
            model = model_of(config, vocabulary, task)
            costs = model.layer_costs(time) or [float(task.flops_per_token(model, time))]
        tokens, size = train.micro_batch * time, 4 if train.precision == "fp32" else 2
        return StepShape(
            [tokens * cost for cost in costs],
            tokens * getattr(model, "hidden_width", 0) * size,
            train.global_batch // train.micro_batch,
            recomputes=getattr(config.model, "activation_checkpointing", False),
        )

    def plan(self, mesh: Mesh) -> Planned:
        """UserError where that mesh cannot train the config."""
        config = config_on(self.config, mesh)
        check_batch(config.train, mesh)
        memories = tuple(
            rehearse(config, self._source, self._manifest, mesh, mesh.rank(Place(stage, 0, 0)))
            for stage in self._stages(mesh, config.parallel)
        )
        most = max(memory.gradients for memory in memories)
        return Planned(
            mesh, config.parallel, memories, predicted(self.shape, mesh, config.parallel, self._machine, most)
        )

    def _stages(self, mesh: Mesh, parallel: ParallelConfig) -> list[int]:
        """The first, which has most open; the last, which has the head; and the fullest between them."""
        costs, num = self.shape.layer_flops, mesh.pipeline * parallel.chunks
        if mesh.pipeline < 3 or num > len(costs):
            return sorted({0, mesh.pipeline - 1})
        parts = cut_by_cost(costs, num)
        layers = [sum(map(len, parts[stage :: mesh.pipeline])) for stage in range(mesh.pipeline)]
        return [0, max(range(1, mesh.pipeline - 1), key=layers.__getitem__), mesh.pipeline - 1]

    def changed(self, section: str, key: str, value: Any) -> Planner:
        """Of the config with that one change; UserError where it does not go with the rest."""
        settings = self.config.model_dump(mode="json")
        settings[section][key] = value
        return Planner(_checked(settings), self._machine)


def config_on(config: RunConfig, mesh: Mesh) -> RunConfig:
    """A config with that mesh, less what is of stages or tensor ranks where there are none.

    UserError where the mesh does not go with the rest.
    """
    now = config.parallel.model_dump() | {"data": "auto", "pipeline": mesh.pipeline, "tensor": mesh.tensor}
    if mesh.pipeline == 1:
        now |= {"schedule": "1f1b", "chunks": 1}
    if mesh.tensor == 1:
        now["sequence"] = False
    return _checked(config.model_dump(mode="json") | {"parallel": now})


def _checked(settings: dict[str, Any]) -> RunConfig:
    try:
        return RunConfig.model_validate(settings)
    except ValidationError as error:
        raise UserError(error.errors()[0]["msg"].removeprefix("Value error, ")) from None


def plan_all(planner: Planner, meshes: list[Mesh]) -> Iterator[tuple[Mesh, Planned | UserError]]:
    """Each with what it needs, or why it cannot be."""
    for mesh in meshes:
        try:
            yield mesh, planner.plan(mesh)
        except UserError as error:
            yield mesh, error
