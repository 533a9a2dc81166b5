"""A measurement is an immutable record of raw values and their circumstances; statistics come on reading."""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from hvdlm.errors import UserError
from hvdlm.files import write_text_durably
from hvdlm.host import physical_cores

from .scaling import StepTimes


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Workload(_Frozen):
    """What every measurement of one study has in common."""

    family: str
    num_parameters: int
    seq_len: int
    micro_batch: int
    precision: str
    sync: str
    world: str
    device: str
    threads: int  # torch threads a rank


class Environment(_Frozen):
    """Where and with what it was measured."""

    hosts: tuple[str, ...]  # one a rank
    cores: int  # physical ones that a rank may use, on rank 0's host
    cpu: str
    system: str
    versions: dict[str, str]
    mpi: str
    job: str  # SLURM job id, or empty
    started: str  # UTC, ISO 8601
    load_before: float  # 1-minute load average of rank 0's host
    load_after: float


class RunRecord(_Frozen):
    """One run of the real training step at one number of ranks.

    `step_s[rank][i]` is the wall time of timed step i on a rank's monotonic clock, data wait included.
    """

    schema_version: Literal[1]
    ranks: int
    repeat: int
    global_batch: int
    is_strong: bool  # belongs to the strong-scaling series (fixed global batch)
    is_weak: bool  # belongs to the weak-scaling series (fixed batch a rank)
    warmup_s: tuple[tuple[float, ...], ...]
    step_s: tuple[tuple[float, ...], ...]
    data_wait_s: tuple[tuple[float, ...], ...]
    first_loss: float
    workload: Workload
    environment: Environment

    @property
    def tokens_per_step(self) -> int:
        return self.global_batch * self.workload.seq_len

    @property
    def slowest_s(self) -> list[float]:
        """Per timed step the time of the slowest rank: what the job waited for."""
        return [max(times) for times in zip(*self.step_s, strict=True)]

    @property
    def is_oversubscribed(self) -> bool:
        """More threads than cores on some host: such a point is no evidence of scaling."""
        per_host = max(self.environment.hosts.count(host) for host in self.environment.hosts)
        return per_host * self.workload.threads > self.environment.cores


@dataclass(frozen=True)
class Start:
    """The moment before a measurement."""

    time: datetime.datetime
    load: float

    @classmethod
    def now(cls) -> Start:
        return cls(datetime.datetime.now(datetime.timezone.utc), os.getloadavg()[0])


def environment(start: Start, *, hosts: Sequence[str], mpi: str, job: str = "") -> Environment:
    """The facts of this process's machine; call it after the measurement, `hosts` name the host of each rank."""
    names = ("hvdlm", "torch", "horovod", "mpi4py", "numpy")
    return Environment(
        hosts=tuple(hosts),
        cores=physical_cores(),
        cpu=_cpu_name(),
        system=f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        versions={name: _version(name) for name in names},
        mpi=mpi,
        job=job,
        started=start.time.isoformat(timespec="seconds"),
        load_before=start.load,
        load_after=os.getloadavg()[0],
    )


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def step_times(records: Sequence[RunRecord]) -> StepTimes:
    """What the statistics of a point need of its repeats."""
    runs = tuple(tuple(record.slowest_s) for record in records)
    is_oversubscribed = any(record.is_oversubscribed for record in records)
    return StepTimes(records[0].ranks, records[0].tokens_per_step, runs, is_oversubscribed)


def write_record(folder: Path, record: RunRecord) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"r{record.ranks:05d}-b{record.global_batch}-{record.repeat}.json"
    write_text_durably(path, record.model_dump_json(indent=1) + "\n")
    return path


def read_all(folder: Path) -> list[RunRecord]:
    """Every record below FOLDER/records, by ranks, batch and repeat; UserError names a file that is not one."""
    records = []
    for path in sorted((folder / "records").glob("*.json")):
        try:
            records.append(RunRecord.model_validate_json(path.read_text(encoding="utf-8")))
        except ValidationError as error:
            first = error.errors()[0]
            raise UserError(
                f"{path}: no record of `hvdlm scale`: {'.'.join(map(str, first['loc']))}: {first['msg']}"
            ) from None
    if not records:
        raise UserError(f"{folder}/records: holds no records; run `hvdlm scale CONFIG --out {folder}`")
    return sorted(records, key=lambda record: (record.ranks, record.global_batch, record.repeat))
