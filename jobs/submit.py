"""From a wish to queued jobs: folder, script, checks, sbatch. With `dry_run` nothing is written and nobody is asked."""

from __future__ import annotations

import datetime
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hvdlm.errors import UserError

from . import ledger, slurm
from .lint import Facts, Finding, check
from .render import ALONE, RESUMABLE, Job, Stage, render
from .site import Site

CHECKERS = (("bash", "-n"), ("shellcheck", "--severity=warning", "--shell=bash"))  # the second where it is installed


@dataclass(frozen=True)
class Size:
    """How much of a site a job takes. `cores_per_rank` 0: an equal share of the node, if the site says how large."""

    nodes: int
    ranks_per_node: int
    minutes: int
    cores_per_rank: int = 0

    @property
    def ranks(self) -> int:
        return self.nodes * self.ranks_per_node

    def threads(self, site: Site) -> int:
        """Cores of a rank: as many as its mask has, or its share of the node."""
        share = site.cores_per_mask or site.cores_per_node // self.ranks_per_node
        return self.cores_per_rank or max(1, share)

    def check(self, site: Site) -> None:
        """UserError for what the site cannot give."""
        if site.max_minutes and self.minutes > site.max_minutes:
            raise UserError(
                f"--time {self.minutes}: this site's limit is {site.max_minutes} minutes; a shorter job is queued "
                "again, or continued by --chain"
            )
        cores = self.ranks_per_node * self.threads(site)
        if site.cores_per_node and cores > site.cores_per_node:
            raise UserError(
                f"{self.ranks_per_node} ranks a node x {self.threads(site)} cores are {cores}, a node of this site "
                f"has {site.cores_per_node}; lower --ranks-per-node or --cores-per-rank"
            )
        if site.cores_per_mask and self.threads(site) > site.cores_per_mask:
            raise UserError(
                f"--cores-per-rank {self.threads(site)}: the masks of cpu_bind have {site.cores_per_mask} cores each"
            )
        if isinstance(site.cpu_bind, list) and self.ranks_per_node > len(site.cpu_bind):
            raise UserError(f"--ranks-per-node {self.ranks_per_node}: cpu_bind has {len(site.cpu_bind)} masks")
        if site.gpus_per_node and self.ranks_per_node > site.gpus_per_node:
            raise UserError(
                f"--ranks-per-node {self.ranks_per_node}: a node of this site has {site.gpus_per_node} GPUs, a rank "
                "takes one"
            )


@dataclass(frozen=True)
class Order:
    """One job that is wanted. `words` gets the job's folder, where its config has been copied to."""

    stage: Stage
    words: Callable[[Path], tuple[str, ...]]
    size: Size
    run_dir: Path
    config: Path | None = None
    facts: Facts | None = None
    template: Callable[[Job], Job] = lambda job: job  # what else the job shall have
    after: tuple[int, ...] = ()  # earlier orders of the same submission that must have ended well, by number
    after_any: tuple[int, ...] = ()  # and those that must have ended, well or not
    tasks: int = 1  # of a job array
    prepare: Callable[[], None] = lambda: None  # what it reads, written once nothing speaks against it any more

    def ceiling_hours(self, site: Site) -> float:
        """Node-hours if all its starts take all their time."""
        starts = 1 + site.max_restarts if self.stage in RESUMABLE and site.requeue else 1
        nodes = 1 if self.stage in ALONE else self.size.nodes
        return nodes * self.size.minutes / 60 * self.tasks * starts


@dataclass(frozen=True)
class Desk:
    """Where jobs are handed in."""

    site: Site
    jobs_dir: Path
    cwd: Path
    activate: str
    environment: Mapping[str, str]
    dry_run: bool = False


@dataclass(frozen=True)
class Submitted:
    """What became of an order; `id` is empty in a dry run."""

    id: str
    folder: Path
    stage: str
    text: str
    findings: tuple[Finding, ...]


def submit(desk: Desk, orders: Sequence[Order], *, after: tuple[str, ...] = ()) -> list[Submitted]:
    """Hand in all orders, or none: the scripts of all are checked before the first is queued.

    Orders that need no other of this submission wait for the jobs `after` to end well.
    """
    if not desk.dry_run:
        _check_desk(desk)
    folders: list[Path] = []
    for order in orders:
        order.size.check(desk.site)
        folders.append(ledger.new_folder(desk.jobs_dir, order.stage, taken=folders, make=not desk.dry_run))
    queued: list[Submitted] = []
    try:
        drafts = [_draft(desk, order, folder) for order, folder in zip(orders, folders, strict=True)]
        if desk.dry_run:
            return drafts
        for draft in drafts:
            _have_it_tested(desk, draft.folder / ledger.SCRIPT)
        for order, draft in zip(orders, drafts, strict=True):
            order.prepare()
            queued.append(_queue(desk, order, draft, queued, after))
    except BaseException:
        if queued:
            slurm.cancel([done.id for done in queued], desk.environment)
        if not desk.dry_run:
            for folder in folders:
                shutil.rmtree(folder, ignore_errors=True)
        raise
    return queued


def _check_desk(desk: Desk) -> None:
    if desk.site.scheduler != "slurm":
        raise UserError(
            f"this site has {desk.site.scheduler.upper()}, for which scripts are only rendered: add --dry-run, look "
            "the script over, and submit it by hand"
        )
    if not slurm.is_here(desk.environment):
        raise UserError("no sbatch on PATH: submit from a login node of a cluster; --dry-run shows the script")


def _draft(desk: Desk, order: Order, folder: Path) -> Submitted:
    """Render and check a job's script; write it into the job's folder."""
    site, size = desk.site, order.size
    alone = order.stage in ALONE
    job = order.template(
        Job(
            order.stage, order.words(folder), nodes=1 if alone else size.nodes,
            ranks_per_node=1 if alone else size.ranks_per_node, threads=size.threads(site), minutes=size.minutes,
            cwd=desk.cwd, run_dir=order.run_dir, folder=folder, activate=desk.activate,
        )
    )  # fmt: skip
    text = render(job, site)
    findings = check(text, order.facts or Facts()) if site.scheduler == "slurm" else []
    errors = [finding for finding in findings if finding.level == "error"]
    if errors:
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        raise UserError(f"{folder.name}: {errors[0].message}; {errors[0].remedy}{more}")
    complaint = static_complaint(text)
    if complaint:
        raise UserError(f"{folder.name}: {complaint}; look at the site's setup and modules (--dry-run)")
    if not desk.dry_run:
        if order.config is not None:
            shutil.copy(order.config, folder / order.config.name)
        (folder / ledger.SCRIPT).write_text(text, encoding="utf-8")
    return Submitted("", folder, order.stage, text, tuple(findings))


def static_complaint(text: str) -> str:
    """What bash, and shellcheck where it is installed, have against a script's syntax; empty if nothing."""
    with tempfile.NamedTemporaryFile("w", suffix=".sbatch", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        for words in CHECKERS:
            if shutil.which(words[0]):
                done = subprocess.run([*words, file.name], capture_output=True, text=True)
                if done.returncode:
                    lines = (done.stderr or done.stdout).replace(file.name, words[0]).strip().splitlines()
                    return " ".join(line.strip() for line in lines[:3])
    return ""


def _have_it_tested(desk: Desk, script: Path) -> None:
    complaint = slurm.test_only(script, desk.environment)
    if complaint:
        raise UserError(f"{script.parent.name}: sbatch --test-only: {complaint}; --dry-run shows the script")


def _queue(
    desk: Desk, order: Order, draft: Submitted, before: Sequence[Submitted], after: tuple[str, ...]
) -> Submitted:
    well = tuple(before[number].id for number in order.after) or after
    ended = tuple(before[number].id for number in order.after_any)
    job = slurm.submit(draft.folder / ledger.SCRIPT, desk.environment, after=well, after_any=ended)
    entry = ledger.Entry(
        id=job, stage=order.stage, run_dir=str(desk.cwd / order.run_dir), nodes=order.size.nodes,
        ranks_per_node=order.size.ranks_per_node, minutes=order.size.minutes,
        submitted=datetime.datetime.now().astimezone().isoformat(timespec="seconds"), after=[*well, *ended],
    )  # fmt: skip
    ledger.write(draft.folder, entry)
    return replace(draft, id=job)
