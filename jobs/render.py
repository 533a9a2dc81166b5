"""A job and a site become the text of a script. Pure: nothing is read, asked or written here.

The same job gives the same text, so scripts are compared with golden ones. PBS and LSF scripts come from the
same pieces; they are text that was never run.
"""

from __future__ import annotations

import functools
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import jinja2

from hvdlm.launch.launchers import LAUNCHERS, Launch, launch_environment, launch_words

from .job import Job, ShellText
from .site import Site


def render(job: Job, site: Site) -> str:
    """The script. Raises nothing: what is wrong with it is for `lint.check` to find in the text."""
    if job.kind.is_alone:
        job = replace(job, nodes=1, ranks_per_node=1)
    log = _log_of(job)
    values: dict[str, Any] = {
        "job": job,
        "site": site,
        "notes": _notes(job, site),
        "directives": _slurm_directives(job, site) if site.is_slurm else site.directives.items(),
        "setup": site.setup or ([job.activate] if job.activate else []),
        "environment": _environment(job, site),
        "history": quote(str(job.folder / "history")) if job.folder else "",
        "launch_line": _launch_line(job, site),
        "redirection": f"> >(trap '' USR1 TERM; exec tee -a {log}) 2>&1" if job.folder else "2>&1",
        "log": log,
        "is_told_hosts": not LAUNCHERS[site.launcher].knows_allocation,
        "local_data": _local_data(site),
        "command": _command(site),
        "walltime": f"{job.minutes // 60:02d}:{job.minutes % 60:02d}:00",
        "output": f"{job.folder or Path()}/%J.log",
    }
    text = _templates().get_template(f"{site.scheduler}.sh.j2").render(values)
    return text.rstrip() + "\n"


@functools.cache
def _templates() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701 - not HTML
    )
    environment.filters["quote"] = lambda value: quote(str(value))
    return environment


def quote(word: str) -> str:
    """A word for the shell, which may expand it only where it is a `ShellText`."""
    return word if isinstance(word, ShellText) else shlex.quote(word)


def _notes(job: Job, site: Site) -> list[str]:
    if not site.is_slurm:
        return [f"Rendered for {site.scheduler.upper()} from the same site data as SLURM's; never run on one."]
    if job.is_resumable:
        then = "is queued again" if site.requeue else "is gone on with by the next job (hvdlm submit train --chain N)"
        return [f"Asked to stop (USR1, RUN/STOP, the time limit) it saves, exits 75, and {then}."]
    return []


def _slurm_directives(job: Job, site: Site) -> list[tuple[str, str]]:
    """SLURM's options in the order in which a person reads them; the site's and the job's own come last."""
    found = {"job-name": job.name, "nodes": str(job.nodes)}
    found |= {"ntasks-per-node": str(job.ranks_per_node), "cpus-per-task": str(job.threads)}
    options = {**site.directives, **dict(job.options)}
    gres = [options.pop("gres")] if "gres" in options else []
    if site.gpus_per_node and site.gpu_request == "gres":
        gres.insert(0, f"gpu:{job.ranks_per_node}")
    elif site.gpus_per_node and site.gpu_request == "gpus-per-node":
        found["gpus-per-node"] = str(job.ranks_per_node)
    found |= {"gres": ",".join(gres)} if gres else {}
    found["time"] = f"{job.minutes // 60}:{job.minutes % 60:02d}:00"
    found |= {"array": f"0-{job.array - 1}"} if job.array else {}
    found |= {"output": _output(job), "open-mode": "append", "requeue" if site.requeue else "no-requeue": ""}
    found |= {"signal": f"B:USR1@{site.signal_lead_s}"} if job.is_resumable else {}
    options.pop("time", None)  # the default of job.minutes
    found |= {key: options.pop(key) for key in list(found) if key in options}  # the site's word, at the same place
    return [(key, directive_word(value)) for key, value in {**found, **dict(sorted(options.items()))}.items()]


def directive_word(value: str) -> str:
    """A value as sbatch reads it back from a #SBATCH line; one that somebody has quoted already stays as it is.

    >>> directive_word("two words"), directive_word('"two words"'), directive_word("a[1-3]")
    ('"two words"', '"two words"', 'a[1-3]')
    """
    is_quoted = re.fullmatch(r'"[^"\\]*"|\'[^\'\\]*\'', value) is not None
    if is_quoted or not re.search(r"""[\s'"#\\]""", value):
        return value
    return '"' + re.sub(r'(["\\])', r"\\\1", value) + '"'


def _output(job: Job) -> str:
    """The log of the batch script itself. A % means something to SLURM, in a path but not in the folder of a job."""
    number = "%A_%a" if job.array else "%j"
    if job.folder is None:
        return f"%x-{number}.log"
    return str((job.cwd or Path()) / job.folder).replace("%", "%%") + f"/{number}.log"


def _log_of(job: Job) -> str:
    """Where the ranks' own output goes, as a shell word: a file for each start of the job."""
    if job.folder is None:
        return f'"{job.name}-$job.log"'
    return f'{quote(str(job.folder))}/"$job.r$restart.log"'


def _environment(job: Job, site: Site) -> dict[str, str]:
    """What is exported, in double quotes where that is needed: the shell expands $VARIABLES of the site."""
    found = {"OMP_NUM_THREADS": "$SLURM_CPUS_PER_TASK" if site.is_slurm else str(job.threads)}
    found |= LAUNCHERS[site.launcher].in_slurm_job
    found |= {"HDF5_USE_FILE_LOCKING": "FALSE", "PYTHONUNBUFFERED": "1"}
    found |= {"TMPDIR": site.node_local} if site.node_local else {}
    found |= launch_environment(site.launcher, _launch(job, site))
    found |= site.environment
    return {name: _double_quoted(value) for name, value in found.items()}


def _double_quoted(value: str) -> str:
    if value.replace("$", "").replace("_", "").isalnum():
        return value
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _local_data(site: Site) -> ShellText:
    """Where --stage-in copies the shards to."""
    return ShellText(f'"{site.node_local}/hvdlm-data"')


def _launch(job: Job, site: Site) -> Launch:
    """Ranks and hosts are the allocation's, which a launcher knows or has to be told."""
    asked = Launch(None, (), job.threads, site.interface, site.srun_mpi, site.cpu_bind, label=True)
    asked = replace(asked, in_container=bool(site.container), gpus=bool(site.gpus_per_node))
    if LAUNCHERS[site.launcher].knows_allocation:
        return asked
    return replace(asked, ranks=ShellText('"$SLURM_NTASKS"'), hosts=ShellText('"$hosts"'))


def _command(site: Site) -> str:
    return f"{site.container} hvdlm" if site.container else "hvdlm"


def _launch_line(job: Job, site: Site) -> str:
    moved = [ShellText(f"data.path={_local_data(site)}")] if job.stage_in else []
    words = " ".join(map(quote, (*job.words, *moved)))
    if job.kind.is_alone or job.kind.starts_ranks_itself:
        return f"{_command(site)} {words}"
    launcher = " ".join(map(quote, launch_words(site.launcher, _launch(job, site))))
    return f"{launcher} \\\n    {_command(site)} {words}"
