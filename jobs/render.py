"""A job and a site become the text of a script. Pure: nothing is read, asked or written here.

The same job gives the same text, so scripts are compared with golden ones. PBS and LSF scripts come from the
same pieces; they are text that was never run.
"""

from __future__ import annotations

import functools
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jinja2

from hvdlm.launch.launchers import Launch, launch_environment, launch_words

from .site import Site

Stage = Literal["preprocess", "train", "eval", "generate", "measure", "scale", "report"]

RESUMABLE = ("preprocess", "train")  # these save and exit 75 when they are asked to stop
ALONE = ("generate", "report")  # these need no ranks
NO_LAUNCHER = (*ALONE, "scale")  # `hvdlm scale` starts ranks itself

# How far a run is, as one word of any kind; the same word after a job as before it means that it got nowhere.
PROGRESS = {
    "train": 'readlink "$run_dir/checkpoints/latest"',
    "preprocess": "find \"$run_dir\" -type f ! -name '.*' ! -name 'STOP*' 2>/dev/null | wc -l",
}


class Shell(str):
    """A word that the shell of the job shall expand; all others are quoted."""

    __slots__ = ()


@dataclass(frozen=True)
class StageIn:
    """Shards that are copied to a disk of each node before the job's work."""

    source: Path
    to: Shell


@dataclass(frozen=True)
class Job:
    """One script: what runs, on how much of a site, and where its text goes."""

    stage: Stage
    words: tuple[str, ...]  # hvdlm's own, without `hvdlm`
    nodes: int
    ranks_per_node: int
    threads: int  # cores of a rank
    minutes: int
    cwd: Path | None  # None: where the script is submitted
    run_dir: Path | None = None  # of a resumable stage: where STOP is looked for
    folder: Path | None = None  # where logs go; None: where the script is submitted
    activate: str = ""  # a shell line for sites that say nothing of their own
    array: int = 0  # tasks of a job array
    options: tuple[tuple[str, str], ...] = ()  # more directives
    stage_in: StageIn | None = None

    @property
    def name(self) -> str:
        return f"hvdlm-{self.stage}"

    @property
    def ranks(self) -> int:
        return self.nodes * self.ranks_per_node

    @property
    def cores_per_node(self) -> int:
        return self.ranks_per_node * self.threads

    @property
    def is_resumable(self) -> bool:
        return self.stage in RESUMABLE

    @property
    def title(self) -> str:
        if self.stage in ALONE:
            return f"hvdlm {self.stage}, one process"
        where = f"{self.nodes} node{'s' * (self.nodes > 1)} x {self.ranks_per_node}"
        cores = f"{self.threads} core{'s' * (self.threads > 1)} each"
        return f"hvdlm {self.stage} on {where} rank{'s' * (self.ranks_per_node > 1)}, {cores}"


def render(job: Job, site: Site) -> str:
    """The script. Raises nothing: what is wrong with it is for `lint.check` to find in the text."""
    log = _log_of(job)
    values: dict[str, Any] = {
        "job": job,
        "site": site,
        "notes": _notes(job, site),
        "directives": _slurm_directives(job, site) if site.scheduler == "slurm" else site.directives.items(),
        "setup": site.setup or ([job.activate] if job.activate else []),
        "environment": _environment(job, site),
        "history": quote(str(job.folder / "history")) if job.folder else "",
        "launch_line": _launch_line(job, site),
        "redirection": f"> >(trap '' USR1 TERM; exec tee -a {log}) 2>&1" if job.folder else "2>&1",
        "log": log,
        "progress": PROGRESS.get(job.stage, ""),
        "command": _command(site),
        "walltime": f"{job.minutes // 60:02d}:{job.minutes % 60:02d}:00",
        "output": f"{job.folder or Path()}/%J.log",
    }
    text = _templates().get_template(f"{site.scheduler}.sh.j2").render(values)
    return text.rstrip() + "\n"


@functools.cache
def _templates() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"), trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined, autoescape=False, keep_trailing_newline=True,  # noqa: S701 - not HTML
    )  # fmt: skip
    environment.filters["quote"] = lambda value: quote(str(value))
    return environment


def quote(word: str) -> str:
    """A word for the shell, which may expand it only where it is a `Shell`."""
    return word if isinstance(word, Shell) else shlex.quote(word)


def _notes(job: Job, site: Site) -> list[str]:
    if site.scheduler != "slurm":
        return [f"Rendered for {site.scheduler.upper()} from the same site data as SLURM's; never run on one."]
    if job.is_resumable:
        then = "is queued again" if site.requeue else "is gone on with by the next job (hvdlm submit train --chain N)"
        return [f"Asked to stop (USR1, RUN/STOP, the time limit) it saves, exits 75, and {then}."]
    return []


def _slurm_directives(job: Job, site: Site) -> list[tuple[str, str]]:
    """SLURM's options in the order in which a person reads them; the site's and the job's own come last."""
    options = {**site.directives, **dict(job.options)}
    gres = [options.pop("gres")] if "gres" in options else []
    found = [("job-name", job.name), ("nodes", str(job.nodes)), ("ntasks-per-node", str(job.ranks_per_node)),
             ("cpus-per-task", str(job.threads))]  # fmt: skip
    if site.gpus_per_node and site.gpu_request == "gres":
        gres.insert(0, f"gpu:{job.ranks_per_node}")
    elif site.gpus_per_node and site.gpu_request == "gpus-per-node":
        found.append(("gpus-per-node", str(job.ranks_per_node)))
    found += [("gres", ",".join(gres))] if gres else []
    found.append(("time", f"{job.minutes // 60}:{job.minutes % 60:02d}:00"))
    if job.array:
        found.append(("array", f"0-{job.array - 1}"))
    found += [("output", _directive_path(job)), ("open-mode", "append")]
    found.append(("requeue" if site.requeue else "no-requeue", ""))
    if job.is_resumable:
        found.append(("signal", f"B:USR1@{site.signal_lead_s}"))
    return found + sorted(options.items())


def _directive_path(job: Job) -> str:
    """The log of the batch script itself; `%` means something to SLURM, and so do spaces, quotes and #."""
    number = "%A_%a" if job.array else "%j"
    if job.folder is None:
        return f"%x-{number}.log"
    path = str(job.folder).replace("%", "%%") + f"/{number}.log"
    mark = "'" if '"' in path else '"'
    return f"{mark}{path}{mark}" if any(sign in path for sign in " '\"#\\") else path


def _log_of(job: Job) -> str:
    """Where the ranks' own output goes, as a shell word: a file for each start of the job."""
    if job.folder is None:
        return f'"{job.name}-$job.log"'
    return f'{quote(str(job.folder))}/"$job.r$restart.log"'


def _environment(job: Job, site: Site) -> dict[str, str]:
    """What is exported, in double quotes where that is needed: the shell expands $VARIABLES of the site."""
    is_slurm = site.scheduler == "slurm"
    found = {"OMP_NUM_THREADS": "$SLURM_CPUS_PER_TASK" if is_slurm else str(job.threads)}
    if site.launcher == "srun":
        found["SRUN_CPUS_PER_TASK"] = "$SLURM_CPUS_PER_TASK"  # srun no longer takes it from the job by itself
    found |= {"HDF5_USE_FILE_LOCKING": "FALSE", "PYTHONUNBUFFERED": "1"}
    found |= {"TMPDIR": site.node_local} if site.node_local else {}
    found |= launch_environment(site.launcher, _launch(job, site))
    found |= site.environment
    return {name: value if value.replace("$", "").replace("_", "").isalnum() else _double_quoted(value)
            for name, value in found.items()}  # fmt: skip


def _double_quoted(value: str) -> str:
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _launch(job: Job, site: Site) -> Launch:
    """Ranks and hosts are the allocation's; horovodrun alone knows nothing of SLURM and has to be told."""
    is_told = site.launcher == "horovodrun"
    return Launch(
        ranks=Shell('"$SLURM_NTASKS"') if is_told else None, hosts=Shell('"$hosts"') if is_told else (),
        threads=job.threads, interface=site.interface, srun_mpi=site.srun_mpi, cpu_bind=site.cpu_bind,
        label=True, in_container=bool(site.container), gpus=bool(site.gpus_per_node),
    )  # fmt: skip


def _command(site: Site) -> str:
    return f"{site.container} hvdlm" if site.container else "hvdlm"


def _launch_line(job: Job, site: Site) -> str:
    words = " ".join(map(quote, job.words))
    if job.stage in NO_LAUNCHER:
        return f"{_command(site)} {words}"
    launcher = " ".join(map(quote, launch_words(site.launcher, _launch(job, site))))
    return f"{launcher} \\\n    {_command(site)} {words}"
