"""A measurement is an immutable record of raw values and their circumstances; statistics come on reading."""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from hvdlm.errors import UserError
from hvdlm.files import write_text_durably
from hvdlm.parallel.config import in_words
from hvdlm.parallel.mesh import Mesh, holders_in_words
from hvdlm.tables import counted

from .scaling import StepTimes

SHORTEST_S, LONGEST_S = 1e-6, 86_400.0  # of a step: what lies outside came from no clock
SCHEMA_VERSION = 1
MAX_BYTES = 1 << 30  # of a record; 4,096 ranks x 1,000 steps are 0.2 GB


def _is_a_moment(text: str) -> str:
    if datetime.datetime.fromisoformat(text).tzinfo is None:
        raise ValueError("has no time zone")
    return text


Count = Annotated[int, Field(ge=1, le=2**62)]
Seconds = Annotated[float, Field(ge=SHORTEST_S, le=LONGEST_S)]
Wait = Annotated[float, Field(ge=0, le=LONGEST_S)]
Load = Annotated[float, Field(ge=0)]
Name = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]*$")]  # one line, and nothing that a terminal obeys


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Workload(_Frozen):
    """What every measurement of one study has in common."""

    family: Name
    num_parameters: Count
    seq_len: Count
    micro_batch: Count
    precision: Name
    sync: Name
    world: Name
    device: Name
    threads: Annotated[int, Field(ge=0)]  # torch threads a rank
    work: Name = "train"  # what a step is: of training, or a pass of inference
    pipeline: Count = 1  # ranks that share a model: stages, and those of each layer
    tensor: Count = 1
    zero: Annotated[int, Field(ge=0, le=1)] = 0
    schedule: Name = "1f1b"
    chunks: Count = 1
    sequence: bool = False

    @property
    def shared_by(self) -> int:
        """Ranks of one replica."""
        return self.pipeline * self.tensor

    @property
    def holder(self) -> str:
        """Who has a part of a batch."""
        return "rank" if self.shared_by == 1 else "replica"

    @property
    def mesh(self) -> str:
        """How ranks share a model, in words; empty where each has a whole one."""
        parts = [f"{name} {number}" for name, number in (("pipeline", self.pipeline), ("tensor", self.tensor))]
        told = [part for part in parts if not part.endswith(" 1")]
        told += [f"schedule {self.schedule}"] if self.pipeline > 1 else []
        told += [f"{self.chunks} chunks"] * (self.chunks > 1) + ["sequence"] * self.sequence
        return ", ".join(told + ["zero 1"] * self.zero)

    def mesh_of(self, ranks: int) -> Mesh:
        return Mesh(self.pipeline, ranks // self.shared_by, self.tensor)

    def mesh_in_words(self, ranks: int) -> str:
        """Of so many ranks; empty where each has a whole model and optimizer of its own."""
        mesh = self.mesh_of(ranks)
        return in_words(mesh, sequence=self.sequence, zero=self.zero, schedule=self.schedule, chunks=self.chunks)


class Environment(_Frozen):
    """Where and with what it was measured."""

    hosts: tuple[Name, ...]  # one a rank
    cores: Count  # physical ones that the ranks of a host may use together, on the host with the fewest
    cpu: Name  # joined by "and" where ranks have different ones; so is `gpu`
    gpu: Name = ""  # empty where the ranks computed on CPUs
    system: Name
    versions: dict[Name, Name]
    mpi: Name
    job: Name  # SLURM job id, or empty
    started: Annotated[str, AfterValidator(_is_a_moment)]  # UTC, ISO 8601
    load_before: Load  # 1-minute load average of rank 0's host
    load_after: Load


class RunRecord(_Frozen):
    """One run of the real training step at one number of ranks.

    `step_s[rank][i]` is the wall time of timed step i on a rank's monotonic clock, data wait included.
    """

    schema_version: Annotated[int, Field(ge=SCHEMA_VERSION, le=SCHEMA_VERSION)]
    ranks: Count
    repeat: Annotated[int, Field(ge=0, le=2**62)]
    global_batch: Count
    is_strong: bool  # belongs to the strong-scaling series (fixed global batch)
    is_weak: bool  # belongs to the weak-scaling series (fixed batch a rank)
    warmup_s: tuple[tuple[Seconds, ...], ...]
    step_s: tuple[tuple[Seconds, ...], ...]
    data_wait_s: tuple[tuple[Wait, ...], ...]
    first_loss: float
    workload: Workload
    environment: Environment

    @model_validator(mode="after")
    def _fits_together(self) -> RunRecord:
        for fault in _faults(self):
            raise ValueError(fault)
        return self

    @property
    def name(self) -> str:
        """Of its file."""
        return f"r{self.ranks:05d}-b{self.global_batch}-{self.repeat}.json"

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


def _faults(record: RunRecord) -> Iterator[str]:
    """What cannot be of one run, though each value alone could."""
    for field in ("warmup_s", "step_s", "data_wait_s"):
        series = getattr(record, field)
        if len(series) != record.ranks:
            yield f"{field}: {len(series)} series of {counted(record.ranks, 'rank')}"
        lengths = {len(times) for times in series}
        if len(lengths) > 1:
            yield f"{field}: the ranks have unlike numbers of steps ({min(lengths)} to {max(lengths)})"
    steps, waits = len(record.step_s[0]), len(record.data_wait_s[0])
    if not steps or steps != waits:
        yield f"step_s: {counted(steps, 'timed step')}, data_wait_s: {waits}"
    for rank, pairs in enumerate(zip(record.step_s, record.data_wait_s, strict=True)):
        for number, (step_s, wait_s) in enumerate(zip(*pairs, strict=True)):
            if wait_s > step_s:
                yield f"data_wait_s: rank {rank} waited {wait_s:g} s in timed step {number}, which took {step_s:g} s"
    yield from _faults_of_mesh(record)
    if len(record.environment.hosts) != record.ranks:
        yield f"environment.hosts: {len(record.environment.hosts)} of {counted(record.ranks, 'rank')}"


def _faults_of_mesh(record: RunRecord) -> Iterator[str]:
    shared_by = record.workload.shared_by
    replicas, left = divmod(record.ranks, shared_by)
    if left:
        yield f"ranks: {record.ranks} are no multiple of the {shared_by} that share a model"
    elif record.global_batch % replicas:
        yield f"global_batch: {record.global_batch} is not a multiple of {holders_in_words(replicas, shared_by)}"


@dataclass(frozen=True)
class Start:
    """The moment before a measurement."""

    time: datetime.datetime
    load: float

    @classmethod
    def now(cls) -> Start:
        return cls(datetime.datetime.now(datetime.timezone.utc), os.getloadavg()[0])


@dataclass(frozen=True)
class Machine:
    """What a record keeps of where its ranks ran; see Environment."""

    hosts: tuple[str, ...]
    cores: int
    cpu: str
    mpi: str
    gpu: str = ""


def environment(start: Start, machine: Machine, job: str = "") -> Environment:
    """The facts of a measurement; call it after it."""
    names = ("hvdlm", "torch", "horovod", "mpi4py", "numpy")
    return Environment(
        **asdict(machine),
        system=f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        versions={name: _version(name) for name in names},
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


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def step_times(records: Sequence[RunRecord], *, is_comparable: bool = True) -> StepTimes:
    """What the statistics of a point need of its repeats."""
    runs = tuple(tuple(record.slowest_s) for record in records)
    is_oversubscribed = any(record.is_oversubscribed for record in records)
    return StepTimes(records[0].ranks, records[0].tokens_per_step, runs, is_oversubscribed, is_comparable)


def write_record(folder: Path, record: RunRecord) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / record.name
    write_text_durably(path, record.model_dump_json(indent=1) + "\n")
    return path


def first_fault(error: ValidationError) -> str:
    """The first thing that is wrong with a record, in one line: its place in the record, and what it is."""
    first = error.errors()[0]
    place, found = ".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, ")
    found = found.replace("Input should", "should")
    if first["type"] not in ("value_error", "missing", "extra_forbidden", "json_invalid"):
        found = f"{found}, it is {str(first['input'])[:40]!r}"
    if place == "schema_version":
        found += f" (of this hvdlm: {SCHEMA_VERSION}; another's record needs that one's `hvdlm report`)"
    return f"{place}: {found}" if place else found


def read_record(path: Path) -> RunRecord:
    """One file; UserError says in a line why it is no record of one run, and what to do."""
    remedy = "measure this point again, or remove the file"
    try:
        if not path.is_file():
            raise UserError(f"{path}: is no regular file, so it is no record; remove it")
        if path.stat().st_size > MAX_BYTES:
            raise UserError(f"{path}: {path.stat().st_size:,} bytes are more than a record has; {remedy}")
        record = RunRecord.model_validate_json(path.read_bytes(), strict=True)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; make it readable, or remove it") from None
    except ValidationError as error:
        raise UserError(f"{path}: no record of `hvdlm scale`: {first_fault(error)}; {remedy}") from None
    if path.name != record.name:
        raise UserError(f"{path}: holds what belongs in {record.name}; rename it, or remove it if it is a copy")
    return record


def read_all(folder: Path) -> list[RunRecord]:
    """Every record below FOLDER/records, by ranks, batch and repeat; UserError names a file that is not one."""
    paths = sorted(path for path in (folder / "records").glob("*.json") if not path.name.startswith("."))
    if not paths:
        raise UserError(_no_records(folder))
    return sorted(map(read_record, paths), key=lambda record: (record.ranks, record.global_batch, record.repeat))


def _no_records(folder: Path) -> str:
    """Why a folder holds none, and where they are if that can be seen."""
    if not folder.is_dir():
        made = f"`hvdlm scale CONFIG --out {folder}` makes a study there, `hvdlm train` a run"
        return f"{folder}: there is no such folder; {made}"
    for study in (folder / "scaling", *([folder.parent] if folder.name in ("records", "points") else [])):
        if any((study / "records").glob("r*.json")):
            return f"{folder}/records: there is none; the records are in {study}, run `hvdlm report {study}`"
    for study in (folder, folder / "scaling"):
        if (study / ".records").is_dir():
            return f"{study}: a study that has not ended; wait for it, or run its `hvdlm scale` again"
    if (folder / "metrics.jsonl").exists() or (folder / "checkpoints").exists():
        into = folder / "scaling"
        return f"{folder}: a training run, no scaling study; `hvdlm scale CONFIG --out {into}` makes one of its config"
    return (
        f"{folder}/records: holds no records; run `hvdlm scale CONFIG --out {folder}`, or name the folder of a training"
        " run, which has a metrics.jsonl"
    )
