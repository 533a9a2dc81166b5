"""What a person asks of a site, for all jobs of one submission."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hvdlm.errors import UserError

from .job import Job
from .site import Site


@dataclass(frozen=True)
class Request:
    """How much of a site each job takes, and where the jobs are handed in."""

    site: Site
    nodes: int
    ranks_per_node: int
    minutes: int  # of a job
    cores_per_rank: int = 0  # 0: an equal share of the node, if the site says how large
    cwd: Path = Path()
    activate: str = ""  # a shell line for sites that say nothing of their own
    jobs_dir: Path = Path("runs/jobs")
    environment: Mapping[str, str] = field(default_factory=dict)  # of sbatch
    after: tuple[str, ...] = ()  # ids of jobs that must have ended well
    dry_run: bool = False

    @property
    def ranks(self) -> int:
        return self.nodes * self.ranks_per_node

    @property
    def threads(self) -> int:
        """Cores of a rank: as many as its mask has, or its share of the node."""
        share = self.site.cores_per_mask or self.site.cores_per_node // self.ranks_per_node
        return self.cores_per_rank or max(1, share)

    def job(self, stage: str, words: tuple[str, ...], run_dir: Path, **more: Any) -> Job:
        """A job of this size; `more` are fields of `Job`."""
        plain = Job(stage, words, self.nodes, self.ranks_per_node, self.threads, self.minutes)
        return replace(plain, cwd=self.cwd, activate=self.activate, run_dir=run_dir, **more)


def check_demand(job: Job, site: Site) -> None:
    """UserError for what the site cannot give."""
    threads, per_node = job.threads, job.ranks_per_node
    if site.max_minutes and job.minutes > site.max_minutes:
        raise UserError(
            f"--time {job.minutes}: this site's limit is {site.max_minutes} minutes; a shorter job is queued "
            "again, or continued by --chain"
        )
    if site.cores_per_node and per_node * threads > site.cores_per_node:
        raise UserError(
            f"{per_node} ranks a node x {threads} cores are {per_node * threads}, a node of this site has "
            f"{site.cores_per_node}; lower --ranks-per-node or --cores-per-rank"
        )
    if site.cores_per_mask and threads > site.cores_per_mask:
        raise UserError(f"--cores-per-rank {threads}: the masks of cpu_bind have {site.cores_per_mask} cores each")
    if isinstance(site.cpu_bind, list) and per_node > len(site.cpu_bind):
        raise UserError(f"--ranks-per-node {per_node}: cpu_bind has {len(site.cpu_bind)} masks")
    if site.gpus_per_node and per_node > site.gpus_per_node:
        raise UserError(
            f"--ranks-per-node {per_node}: a node of this site has {site.gpus_per_node} GPUs, a rank takes one"
        )
