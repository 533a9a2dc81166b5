"""What a person asks of a site, for all jobs of one submission."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .job import Job
from .site import Site

TAKES_EXTENSIONS = ("train", "eval", "infer", "generate")


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
    notes: tuple[str, ...] = ()  # what is said of it, once it is accepted
    extensions: tuple[Path, ...] = ()  # files of --import, for the stages that take it
    ranks_from: str = ""  # whose word ranks_per_node is, if not the user's own

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
        if stage in TAKES_EXTENSIONS:
            more["extensions"] = self.extensions
        size = (self.nodes, self.ranks_per_node, self.threads, self.minutes)
        return Job(stage, words, *size, self.cwd, self.activate, run_dir, **more)
