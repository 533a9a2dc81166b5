"""One measurement, run by every rank of a sweep's mpirun."""

from __future__ import annotations

import math
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from pydantic import TypeAdapter, ValidationError

from hvdlm.data.corpora import Corpora
from hvdlm.errors import UserError
from hvdlm.files import read_json
from hvdlm.host import affinity, physical_cores
from hvdlm.train.config import RunConfig
from hvdlm.train.setup import build_learner
from hvdlm.train.step import GradientLearner
from hvdlm.world.interface import World

from .record import (
    SCHEMA_VERSION,
    Machine,
    RunRecord,
    Start,
    Workload,
    cpu_name,
    environment,
    first_fault,
    write_record,
)

Work = Literal["train", "infer"]  # what a step is: of training, or a pass of inference over its global batch


@dataclass(frozen=True)
class MeasurementSpec:
    """What to measure; `config` is a RunConfig as plain values."""

    config: dict
    folder: str
    repeat: int
    steps: int
    warmup: int
    is_strong: bool
    is_weak: bool
    extensions: Sequence[str] = ()  # files of --import, which the config needs
    work: Work = "train"


def read_spec(path: Path) -> MeasurementSpec:
    """What `hvdlm scale` or `submit scale` wrote for its ranks; UserError if it is not that."""
    remedy = "plan the study again by `hvdlm scale` or `hvdlm submit scale`"
    try:
        return TypeAdapter(MeasurementSpec).validate_python(read_json(path))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; {remedy}") from None
    except ValidationError as error:
        raise UserError(f"{path}: no measurement to make: {first_fault(error)}; {remedy}") from None
    except ValueError as error:
        raise UserError(f"{path}: no measurement to make: {error}; {remedy}") from None


def machine_of(world: World, device: torch.device) -> Machine:
    """Where the ranks of a job run, gathered from all of them; the same on every rank."""
    hosts, cpus, masks = zip(*world.gather((socket.gethostname(), cpu_name(), affinity())), strict=True)
    of_host = [mask for host, mask in zip(hosts, masks, strict=True) if host == hosts[world.rank]]
    cores = min(world.gather(physical_cores(frozenset().union(*of_host))))
    gpus = world.gather(torch.cuda.get_device_name(device) if device.type == "cuda" else "")
    return Machine(hosts, cores, cpu=_distinct(cpus), gpu=_distinct(gpus), mpi=world.mpi_library())


def _distinct(names: Sequence[str]) -> str:
    return " and ".join(sorted(set(names)))


class Timed(NamedTuple):
    """Of this rank, step by step; `first_loss` says of the first step, on all ranks, that it was the same work."""

    step_s: list[float]
    data_wait_s: list[float]
    first_loss: float


def _trained(learner: GradientLearner, corpora: Corpora, num: int) -> Timed:
    learner.is_timed = True
    results = learner.run(0, num)
    sums = results[0].sums.cpu().numpy()
    learner.world.sum_(sums)
    first_loss = learner.task.figures(learner.task.named(sums))["loss"]
    return Timed([result.step_s for result in results], [result.data_wait_s for result in results], first_loss)


def _inferred(learner: GradientLearner, corpora: Corpora, num: int) -> Timed:
    from .inference_passes import Passes

    passes = Passes(learner, corpora)
    times = passes.run(num)
    nats = sum(learner.world.gather(passes.nats))
    return Timed(times, [0.0] * num, nats / passes.num_written)


WORKS: dict[Work, Callable[[GradientLearner, Corpora, int], Timed]] = {"train": _trained, "infer": _inferred}


def measure(spec: MeasurementSpec, world: World, job: str) -> RunRecord:
    """Run warm-up and timed steps of the real work; the same record on every rank.

    UserError, on all ranks, if what was measured cannot be a record.
    """
    config = RunConfig.model_validate(spec.config)
    if not config.sync.steps_together:
        raise UserError.shared(f"sync: {config.sync.label} has no steps that all ranks share, so there is none to time")
    start = Start.now()
    learner, corpora = build_learner(config, world)
    if not isinstance(learner, GradientLearner):
        raise UserError.shared(f"model.family: {config.model.family} is counted and has no steps whose scaling matters")
    timed = WORKS[spec.work](learner, corpora, spec.warmup + spec.steps)
    times, waits = world.gather(timed.step_s), world.gather(timed.data_wait_s)
    if not math.isfinite(timed.first_loss):
        raise UserError.shared(
            f"the loss of the first step is {timed.first_loss}: see optim and precision of the config"
        )
    try:
        return RunRecord(
            schema_version=SCHEMA_VERSION,
            ranks=world.size,
            repeat=spec.repeat,
            global_batch=config.train.global_batch,
            is_strong=spec.is_strong,
            is_weak=spec.is_weak,
            warmup_s=tuple(tuple(rank[: spec.warmup]) for rank in times),
            step_s=tuple(tuple(rank[spec.warmup :]) for rank in times),
            data_wait_s=tuple(tuple(rank[spec.warmup :]) for rank in waits),
            first_loss=timed.first_loss,
            workload=_workload(learner, world, spec.work),
            environment=environment(start, machine_of(world, learner.device), job),
        )
    except ValidationError as error:
        raise UserError.shared(f"the clock cannot be believed: {first_fault(error)}; measure again") from None


def _workload(learner: GradientLearner, world: World, work: str) -> Workload:
    config = learner.config
    return Workload(
        family=config.model.family,
        num_parameters=learner.num_parameters,
        seq_len=config.data.seq_len,
        micro_batch=config.train.micro_batch,
        precision=config.train.precision,
        sync=learner.sync.kind,
        world=world.kind,
        device=learner.device.type,
        threads=torch.get_num_threads(),
        work=work,
        pipeline=learner.axes.mesh.pipeline,
        tensor=learner.axes.mesh.tensor,
        zero=config.parallel.zero,
        schedule=config.parallel.schedule,
        chunks=config.parallel.chunks,
        sequence=config.parallel.sequence,
    )


def measure_and_write(spec: MeasurementSpec, world: World, job: str) -> None:
    """Measure with all ranks of a SLURM job (or none: ""); rank 0 writes the record into `spec.folder`."""
    record = measure(spec, world, job)
    world.on_root(lambda: write_record(Path(spec.folder), record))
