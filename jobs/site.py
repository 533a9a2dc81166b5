"""A site: what a cluster asks of every job, as data. A new site is a YAML file and no code."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from hvdlm.config import Section, choice_of, load
from hvdlm.errors import UserError
from hvdlm.launch.launchers import LAUNCHERS

from .directives import OWN, as_flag, as_text, long_name, unquoted, without_requeue
from .times import SCHEDULERS, minutes_of

FOLDER = Path(__file__).parent / "sites"


def _limit(value: Any) -> Any:
    """A limit in minutes or as a time of SLURM's; 0 for none."""
    if not isinstance(value, str) or value.isdecimal():
        return value
    return 0 if value.lower() in ("unlimited", "infinite") else minutes_of(value)


class Site(Section):
    """One cluster, or one partition of it."""

    description: str = ""
    scheduler: Annotated[str, choice_of(SCHEDULERS)] = "slurm"
    launcher: Annotated[str, choice_of(LAUNCHERS)] = Field(
        "srun", description="srun; or mpirun of openmpi4, openmpi5, hydra (MPICH, Intel MPI); or horovodrun"
    )
    srun_mpi: str = Field("pmix", min_length=1, description="srun --mpi=…; `srun --mpi=list` names what there is")
    directives: dict[str, str] = Field(
        default_factory=dict, description="options of every job, as sbatch names them: account, partition, constraint …"
    )
    ranks_per_node: int = Field(1, ge=1, description="unless --ranks-per-node says otherwise")
    cores_per_node: int = Field(0, ge=0, description="physical cores that jobs may use; 0: not known")
    gpus_per_node: int = Field(0, ge=0, description="0: a CPU site; else as many ranks use a GPU each")
    cpu_bind: Literal["none", "cores"] | list[str] = Field(
        "none", description="none, cores, or one hexadecimal mask a rank of a node (srun --cpu-bind=mask_cpu:…)"
    )
    gpu_request: Literal["gpus-per-node", "gres", "none"] = Field(
        "gpus-per-node", description="how GPUs are asked for; none: whole nodes are given"
    )
    interface: str = Field("", description="network interface for MPI, NCCL and Gloo where the automatic choice fails")
    modules: list[str] = Field(default_factory=list, description="module load …, in this order")
    setup: list[str] = Field(
        default_factory=list, description="shell lines that put hvdlm on PATH; none: the one that submits"
    )
    environment: dict[str, str] = Field(default_factory=dict, description="exported; the shell expands $VARIABLES")
    container: str = Field("", description="put before hvdlm on the launch line, for example `singularity exec …`")
    scratch: str = Field("", description="the fast shared file system; run folders elsewhere get a warning")
    node_local: str = Field("", description="a disk of the node: TMPDIR, and where --stage-in copies the shards to")
    requeue: bool = Field(True, description="jobs may be requeued; else use `hvdlm submit train --chain N`")
    max_restarts: int = Field(10, ge=0, description="requeues of a job by itself, then it stays ended")
    signal_lead_s: int = Field(120, ge=1, description="how long before its end a job is told; SLURM: up to 60 s sooner")
    max_minutes: Annotated[int, BeforeValidator(_limit)] = Field(
        0, ge=0, description="the longest time limit, in minutes or as 1-12:30:00; 0: not known"
    )

    @property
    def is_slurm(self) -> bool:
        return self.scheduler == "slurm"

    @property
    def max_requeues(self) -> int:
        """How often the scripts of this site put their job back into the queue."""
        return self.max_restarts if self.is_slurm and self.requeue else 0

    @property
    def said(self) -> dict[str, str]:
        """Options of sbatch that this site sets by whatever key."""
        gpus = {"gpus-per-node": ""} if self.gpus_per_node else {}
        return {**gpus, **self.directives}

    def with_options(self, options: Mapping[str, str]) -> Site:
        """The same site, these of its options set so."""
        return self.model_copy(update={"directives": {**self.directives, **options}})

    @property
    def cores_per_mask(self) -> int:
        """Cores of the smallest mask; 0 where ranks are not bound by masks."""
        return min(int(mask, 16).bit_count() for mask in self.cpu_bind) if isinstance(self.cpu_bind, list) else 0

    @model_validator(mode="before")
    @classmethod
    def _keys(cls, values: Any) -> Any:
        """A key without a value is as if it were not there; requeue has one place, whatever it was written as."""
        if not isinstance(values, dict):
            return values
        found = {key: value for key, value in values.items() if value is not None}
        if isinstance(found.get("directives"), dict) and found.get("scheduler", "slurm") == "slurm":
            found["directives"], wanted = without_requeue(found["directives"])
            if wanted is not None and as_flag(found.setdefault("requeue", wanted)) != wanted:
                raise ValueError(f"requeue: {found['requeue']} and the option of directives contradict each other")
        return found

    @field_validator("directives", mode="before")
    @classmethod
    def _options(cls, values: Any, info: ValidationInfo) -> Any:
        """Text for the scheduler, whatever YAML made of it; an option without a value is a flag."""
        if not isinstance(values, dict):
            return values
        if info.data.get("scheduler") != "slurm":
            return {str(key): as_text(str(key), value, is_slurm=False) for key, value in values.items()}
        found: dict[str, str] = {}
        for key, value in values.items():
            name = long_name(str(key))
            if name in OWN:
                raise ValueError(f"{name} is no option of a site: {OWN[name]}")
            if name in found:
                raise ValueError(f"{name} is given twice, by its long name and its letter")
            text = as_text(name, value, is_slurm=True)
            if text is not None:
                found[name] = text
        return found

    @field_validator("modules")
    @classmethod
    def _module_names(cls, modules: list[str]) -> list[str]:
        """A failed load ends the job; behind another command of the same line it would not."""
        strange = next((name for name in modules if not name.strip() or re.search(r"[;&|<>()`#\n\r]", name)), None)
        if strange is not None:
            raise ValueError(f"{strange!r} is no name of a module; other shell lines belong into setup")
        return modules

    @field_validator("environment", mode="before")
    @classmethod
    def _variables(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        strange = next((name for name in values if not re.fullmatch(r"[A-Za-z_]\w*", str(name), re.ASCII)), None)
        if strange is not None:
            raise ValueError(f"{strange!r} is no name of a variable")
        return {key: unquoted(value) if isinstance(value, str) else value or "" for key, value in values.items()}

    @model_validator(mode="after")
    def _check(self) -> Site:
        launcher = LAUNCHERS[self.launcher]
        if launcher.only_in_slurm and not self.is_slurm:
            raise ValueError(f"launcher: {self.launcher} {launcher.only_in_slurm}, this site has {self.scheduler}")
        if isinstance(self.cpu_bind, list):
            if not launcher.takes_masks:
                raise ValueError(f"cpu_bind: masks are srun's, this site has launcher: {self.launcher}")
            bad = next((mask for mask in self.cpu_bind if not re.fullmatch(r"0x[0-9a-fA-F]+", mask)), None)
            if bad is not None:
                raise ValueError(f"cpu_bind: {bad!r} is no hexadecimal mask such as 0xfe")
            if len(self.cpu_bind) < self.ranks_per_node:
                raise ValueError(f"cpu_bind has {len(self.cpu_bind)} masks for ranks_per_node: {self.ranks_per_node}")
        if self.gpus_per_node and self.ranks_per_node > self.gpus_per_node:
            raise ValueError(f"ranks_per_node {self.ranks_per_node} is more than gpus_per_node {self.gpus_per_node}")
        return self


def names() -> list[str]:
    """The sites that come with hvdlm."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def find(name: str, overrides: tuple[str, ...] = ()) -> Site:
    """A site by its name, or by the path of a YAML file of yours, with values of the user's."""
    path = Path(name) if name.endswith((".yaml", ".yml")) else FOLDER / f"{name}.yaml"
    if not path.exists() and path.parent == FOLDER:
        near = difflib.get_close_matches(name, names(), n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(names())};"
        raise UserError(f"--site {name!r}: no such site; {hint} or give the path of a .yaml file of yours")
    return load(Site, path, overrides)
