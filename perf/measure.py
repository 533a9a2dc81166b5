"""One measurement, run by every rank of a sweep's mpirun."""

from __future__ import annotations

import math
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import TypeAdapter, ValidationError

from hvdlm.errors import UserError
from hvdlm.files import read_json
from hvdlm.host import affinity, physical_cores
from hvdlm.models import num_parameters
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


def measure(spec: MeasurementSpec, world: World, job: str) -> RunRecord:
    """Run warm-up and timed steps of the real training step; the same record on every rank.

    UserError, on all ranks, if what was measured cannot be a record.
    """
    config = RunConfig.model_validate(spec.config)
    if not config.sync.steps_together:
        raise UserError.shared(f"sync: {config.sync.label} has no steps that all ranks share, so there is none to time")
    start = Start.now()
    learner, _ = build_learner(config, world)
    if not isinstance(learner, GradientLearner):
        raise UserError.shared(f"model.family: {config.model.family} is counted and has no steps whose scaling matters")
    learner.is_timed = True
    results = learner.run(0, spec.warmup + spec.steps)
    sums = results[0].sums.cpu().numpy()
    world.sum_(sums)
    times = world.gather([result.step_s for result in results])
    waits = world.gather([result.data_wait_s for result in results])
    first_loss = learner.task.figures(learner.task.named(sums))["loss"]
    if not math.isfinite(first_loss):
        raise UserError.shared(f"the loss of the first step is {first_loss}: see optim and precision of the config")
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
            first_loss=first_loss,
            workload=_workload(learner, world),
            environment=environment(start, machine_of(world, learner.device), job),
        )
    except ValidationError as error:
        raise UserError.shared(f"the clock cannot be believed: {first_fault(error)}; measure again") from None


def _workload(learner: GradientLearner, world: World) -> Workload:
    config = learner.config
    return Workload(
        family=config.model.family,
        num_parameters=num_parameters(learner.model),
        seq_len=config.data.seq_len,
        micro_batch=config.train.micro_batch,
        precision=config.train.precision,
        sync=learner.sync.kind,
        world=world.kind,
        device=learner.device.type,
        threads=torch.get_num_threads(),
    )


def measure_and_write(spec: MeasurementSpec, world: World, job: str) -> None:
    """Measure with all ranks of a SLURM job (or none: ""); rank 0 writes the record into `spec.folder`."""
    record = measure(spec, world, job)
    world.on_root(lambda: write_record(Path(spec.folder), record))
