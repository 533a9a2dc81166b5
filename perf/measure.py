"""One measurement, run by every rank of a sweep's mpirun."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hvdlm.models import num_parameters
from hvdlm.train.config import RunConfig
from hvdlm.train.setup import build_engine
from hvdlm.world.interface import World
from hvdlm.world.mpi import library_version

from .record import RunRecord, Start, Workload, environment, write_record


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


def measure(spec: MeasurementSpec, world: World, job: str) -> RunRecord:
    """Run warm-up and timed steps of the real training step; the same record on every rank."""
    config = RunConfig.model_validate(spec.config)
    start = Start.now()
    engine, _ = build_engine(config, world)
    results = engine.run(0, spec.warmup + spec.steps)
    first_loss = np.array([float(results[0].loss_sum), results[0].micro_batches])
    world.sum_(first_loss)
    times = world.gather([result.step_s for result in results])
    waits = world.gather([result.data_wait_s for result in results])
    hosts = world.gather(socket.gethostname())
    return RunRecord(
        schema_version=1,
        ranks=world.size,
        repeat=spec.repeat,
        global_batch=config.train.global_batch,
        is_strong=spec.is_strong,
        is_weak=spec.is_weak,
        warmup_s=tuple(tuple(rank[: spec.warmup]) for rank in times),
        step_s=tuple(tuple(rank[spec.warmup :]) for rank in times),
        data_wait_s=tuple(tuple(rank[spec.warmup :]) for rank in waits),
        first_loss=float(first_loss[0] / first_loss[1]),
        workload=Workload(
            family=config.model.family,
            num_parameters=num_parameters(engine.model),
            seq_len=config.data.seq_len,
            micro_batch=config.train.micro_batch,
            precision=config.train.precision,
            sync=engine.sync.kind,
            world=world.kind,
            device=engine.device.type,
            threads=config.train.threads,
        ),
        environment=environment(start, hosts=hosts, mpi=library_version(), job=job),
    )


def measure_and_write(spec: MeasurementSpec, world: World, job: str) -> None:
    """Measure with all ranks of a SLURM job (or none: ""); rank 0 writes the record into `spec.folder`."""
    record = measure(spec, world, job)
    world.on_root(lambda: write_record(Path(spec.folder), record))
