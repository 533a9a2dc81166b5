"""From wanted jobs to queued ones: folder, script, checks, sbatch. A dry run writes nothing and asks nobody."""

from __future__ import annotations

import datetime
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hvdlm.errors import UserError

from . import ledger, slurm
from .demand import check_demand
from .job import Job
from .lint import Finding, check, syntax_complaint
from .render import render
from .request import Request


@dataclass(frozen=True)
class Submitted:
    """What became of a job; `id` is empty in a dry run."""

    job: Job
    folder: Path
    text: str
    findings: tuple[Finding, ...]
    id: str = ""

    @property
    def warnings(self) -> list[str]:
        return [f"{self.folder.name}: {finding.message}; {finding.remedy}" for finding in self.findings]


def submit(request: Request, jobs: Sequence[Job]) -> list[Submitted]:
    """Hand in all jobs, or none: the scripts of all are checked before the first is queued.

    Jobs that need no other of this submission wait for the jobs `request.after` to end well.
    """
    _check(request, jobs)
    folders: list[Path] = []
    queued: list[Submitted] = []
    try:
        for job in jobs:
            folders.append(ledger.new_folder(request.jobs_dir, job.stage, taken=folders, make=not request.dry_run))
        drafts = [_draft(request, job, folder) for job, folder in zip(jobs, folders, strict=True)]
        if request.dry_run:
            return drafts
        for draft in drafts:
            _have_it_tested(request, draft.folder / ledger.SCRIPT)
        _make_log_folders(request)
        for draft in drafts:
            draft.job.prepare()
            queued.append(_queue(request, draft, queued))
    except BaseException as error:
        if queued:
            _take_back(queued, request, error)
        if not request.dry_run:
            for folder in folders:
                shutil.rmtree(folder, ignore_errors=True)
        raise
    return queued


def _take_back(queued: Sequence[Submitted], request: Request, error: BaseException) -> None:
    """Cancel what was queued before another job was refused; UserError that names what could not be cancelled."""
    ids = [done.id for done in queued]
    try:
        slurm.cancel(ids, request.environment)
    except UserError as complaint:
        left = f"the jobs before it are still queued: scancel {' '.join(ids)} ({complaint})"
        raise UserError(f"{error}; {left}") from error


def _check(request: Request, jobs: Sequence[Job]) -> None:
    """UserError for what can be known before anything is made."""
    if not request.site.is_slurm and not request.dry_run:
        raise UserError(
            f"this site has {request.site.scheduler.upper()}, for which scripts are only rendered: add --dry-run, look "
            "the script over, and submit it by hand"
        )
    if not request.dry_run and not slurm.is_here(request.environment):
        raise UserError("no sbatch on PATH: submit from a login node of a cluster; --dry-run shows the script")
    place = str(request.cwd / request.jobs_dir)
    if request.site.is_slurm and ("\\" in place or "\n" in place):
        raise UserError(f"{place!r}: SLURM writes no log into a folder of that name; use another --jobs-dir")
    for job in jobs:
        check_demand(job, request.site)


def _draft(request: Request, job: Job, folder: Path) -> Submitted:
    """Render and check a job's script; write it into the job's folder."""
    placed = job.placed(folder)
    text = render(placed, request.site)
    findings = check(text, job.facts) if request.site.is_slurm else []
    errors = [finding for finding in findings if finding.level == "error"]
    if errors:
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        raise UserError(f"{folder.name}: {errors[0].message}; {errors[0].remedy}{more}")
    complaint = syntax_complaint(text)
    if complaint:
        raise UserError(f"{folder.name}: {complaint}; look at the site's setup and modules (--dry-run)")
    if not request.dry_run:
        if job.config is not None:
            shutil.copyfile(job.config, folder / job.config_name)
        for file, copy in zip(job.extensions, job.copies_of_extensions(folder), strict=True):
            copy.parent.mkdir(parents=True)
            shutil.copyfile(file, copy)
        (folder / ledger.SCRIPT).write_text(text, encoding="utf-8")
    return Submitted(placed, folder, text, tuple(findings))


def _make_log_folders(request: Request) -> None:
    """SLURM makes none: without them a job ends at once, and nobody reads why."""
    for option in ("output", "error"):
        folder = Path(request.site.directives.get(option, "")).parent
        if "%" not in str(folder):
            (request.cwd / folder).mkdir(parents=True, exist_ok=True)


def _have_it_tested(request: Request, script: Path) -> None:
    complaint = slurm.test_only(script, request.environment)
    if complaint:
        raise UserError(f"{script.parent.name}: sbatch --test-only: {complaint}; --dry-run shows the script")


def _queue(request: Request, draft: Submitted, before: Sequence[Submitted]) -> Submitted:
    job = draft.job
    well = tuple(before[number].id for number in job.after) or request.after
    ended = tuple(before[number].id for number in job.after_any)
    number = slurm.submit(draft.folder / ledger.SCRIPT, request.environment, after=well, after_any=ended)
    entry = ledger.LedgerEntry(
        id=number,
        stage=job.stage,
        run_dir=str(request.cwd / (job.run_dir or "")),
        nodes=job.nodes,
        ranks_per_node=job.ranks_per_node,
        minutes=job.minutes,
        submitted=datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        after=[*well, *ended],
    )
    ledger.write(draft.folder, entry)
    return replace(draft, id=number)
