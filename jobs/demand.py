"""What a job asks for, held against what its site gives and its stage needs; before any text, in the asker's words.

The checks of `lint` on the rendered script come after these, and should then find nothing (docs/decisions/0017).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from hvdlm.errors import UserError
from hvdlm.tables import counted

from .directives import directive_word
from .job import Job
from .lint import check
from .site import Site


def check_demand(job: Job, site: Site) -> None:
    """UserError for the first thing that cannot be."""
    for faults in (_size_faults, _time_faults, _directive_faults):
        for fault in faults(job, site):
            raise UserError(fault)


def _size_faults(job: Job, site: Site) -> Iterator[str]:
    threads, per_node, wanted = job.threads, job.ranks_per_node, job.facts.threads or 0
    if site.cores_per_node and per_node * threads > site.cores_per_node:
        yield (
            f"{counted(per_node, 'rank')} a node x {counted(threads, 'core')} are {per_node * threads}, a node of this "
            f"site has {site.cores_per_node}; lower --ranks-per-node or --cores-per-rank"
        )
    if site.cores_per_mask and threads > site.cores_per_mask:
        yield f"--cores-per-rank {threads}: the masks of cpu_bind have {counted(site.cores_per_mask, 'core')} each"
    if isinstance(site.cpu_bind, list) and per_node > len(site.cpu_bind):
        yield f"--ranks-per-node {per_node}: cpu_bind has {counted(len(site.cpu_bind), 'mask')}"
    if site.gpus_per_node and per_node > site.gpus_per_node:
        gpus = counted(site.gpus_per_node, "GPU")
        yield f"--ranks-per-node {per_node}: a node of this site has {gpus}, a rank takes one"
    if wanted > threads:
        cores = counted(threads, "core")
        yield f"train.threads={wanted}: a rank has {cores}; use --cores-per-rank {wanted}, or lower train.threads"


def _time_faults(job: Job, site: Site) -> Iterator[str]:
    limit_s, lead_s, need_s = 60 * job.minutes, site.signal_lead_s, 2 * (job.facts.step_s or 0.0)
    if site.max_minutes and job.minutes > site.max_minutes:
        yield (
            f"--time {job.minutes}: this site's limit is {counted(site.max_minutes, 'minute')}; a shorter job is "
            "queued again, or continued by --chain"
        )
    if not job.is_resumable or not site.is_slurm:  # nobody sends it a signal
        return
    if limit_s <= lead_s:
        yield (
            f"--time {job.minutes}: the job is asked to stop {lead_s} s before its end, which is at once; use more "
            "--time, or --set signal_lead_s=SECONDS"
        )
    if lead_s < need_s:
        yield (
            f"signal_lead_s {lead_s} of this site is too short to stop and save, a step takes {need_s / 2:.1f} s; use "
            f"--set signal_lead_s={math.ceil(need_s)} or more"
        )


def _directive_faults(job: Job, site: Site) -> Iterator[str]:
    """The site's own options, each as the line that it becomes."""
    for key, value in site.directives.items() if site.is_slurm else ():
        if not key.isprintable() or not value.isprintable():
            yield f"directives.{key}: {value!r} has a line break in it, or another sign that is none of a text"
        line = f"#SBATCH --{key}={directive_word(value)}" if value else f"#SBATCH --{key}"
        for finding in check(f"#!/bin/bash\n{line}\n"):
            if finding.level == "error":
                yield f"directives.{key}: {finding.message}; {finding.remedy}"
