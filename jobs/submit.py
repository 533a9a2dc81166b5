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
from .checks import Facts, Finding, check
from .render import ALONE, Job, Stage, render
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
        return self.cores_per_rank or max(1, site.cores_per_node // self.ranks_per_node)

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
    after: tuple[int, ...] = ()  # numbers of earlier orders of the same submission


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


def submit(
    desk: Desk, orders: Sequence[Order], *, after: tuple[str, ...] = (), after_any: bool = False
) -> list[Submitted]:
    """Hand in all orders, or none: the scripts of all are checked before the first is queued.

    Orders that wait for no other of this submission wait for the jobs `after`.
    """
    if not desk.dry_run:
        _check_desk(desk)
    folders: list[Path] = []
    for order in orders:
        order.size.check(desk.site)
        folders.append(ledger.new_folder(desk.jobs_dir, order.stage, taken=folders, make=not desk.dry_run))
    try:
        drafts = [_draft(desk, order, folder) for order, folder in zip(orders, folders, strict=True)]
        if not desk.dry_run:
            for draft in drafts:
                _have_it_tested(desk, draft.folder / ledger.SCRIPT)
    except UserError:
        if not desk.dry_run:
            for folder in folders:
                shutil.rmtree(folder)
        raise
    return drafts if desk.dry_run else _queue(desk, orders, drafts, after, after_any)


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
    findings = check(text, order.facts) if site.scheduler == "slurm" else []
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
    desk: Desk, orders: Sequence[Order], drafts: list[Submitted], after: tuple[str, ...], after_any: bool
) -> list[Submitted]:
    queued: list[Submitted] = []
    for order, draft in zip(orders, drafts, strict=True):
        waits = tuple(queued[number].id for number in order.after)
        # Links of one chain follow each other however they end: the last is the one that must end well.
        is_link = any(orders[number].stage == order.stage == "train" for number in order.after)
        try:
            job = slurm.submit(
                draft.folder / ledger.SCRIPT, desk.environment, after=waits or after,
                after_any=is_link or (not waits and after_any),
            )  # fmt: skip
        except UserError:
            slurm.cancel([done.id for done in queued], desk.environment) if queued else None
            raise
        entry = ledger.Entry(
            id=job, stage=order.stage, run_dir=str(order.run_dir), nodes=order.size.nodes,
            ranks_per_node=order.size.ranks_per_node, minutes=order.size.minutes,
            submitted=datetime.datetime.now().astimezone().isoformat(timespec="seconds"), after=list(waits or after),
        )  # fmt: skip
        ledger.write(draft.folder, entry)
        queued.append(replace(draft, id=job))
    return queued
