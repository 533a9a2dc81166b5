"""What a person asks of a cluster: the options that all submissions share, and what they become."""

from __future__ import annotations

import functools
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hvdlm.cli.options import PATH, RANKS, Number, json_option, result
from hvdlm.errors import UserError
from hvdlm.launch.environment import launched_as
from hvdlm.launch.plan import fresh_environment

if TYPE_CHECKING:
    from hvdlm.jobs.budget import Measured
    from hvdlm.jobs.job import Job
    from hvdlm.jobs.request import Request
    from hvdlm.jobs.submit import Submitted
    from hvdlm.train.config import RunConfig

JOBS_DIR = Path("runs/jobs")
jobs_dir_option = click.option("--jobs-dir", type=PATH, default=JOBS_DIR, show_default=True)


def submission_environment() -> dict[str, str]:
    """For sbatch: what SLURM told an enclosing job must not become options of the next."""
    told = fresh_environment()
    return {name: told[name] for name in told if not name.startswith("SLURM_") or name == "SLURM_CONF"}


OPTIONS = (
    click.option("--site", required=True, help="A name of `hvdlm sites`, or a YAML file of yours."),
    click.option("--nodes", type=RANKS, default=1, show_default=True),
    click.option("--ranks-per-node", type=RANKS, default=None, help="Default: the site's."),
    click.option("--cores-per-rank", type=RANKS, default=None, help="Default: a share of the site's node."),
    click.option("--time", "minutes", type=click.IntRange(1), default=60, show_default=True, help="Minutes of a job."),
    click.option("--account", default=None, help="As sbatch's."),
    click.option("--partition", default=None, help="As sbatch's."),
    click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="A value of the site, for this job."),
    click.option("--after", multiple=True, metavar="JOB", help="Start when that job has ended well."),
    click.option("--max-node-hours", type=Number(0), default=None, help="Refuse what would cost more."),
    jobs_dir_option,
    click.option("--dry-run", is_flag=True, help="Print the script; queue nothing, write nothing."),
    json_option,
)


def submission(plan: Callable[..., list[Job]]) -> Any:
    """A command that queues the jobs that `plan` returns. It has the options of every `hvdlm submit`.

    `plan` gets them as one `request`, beside its own.
    """

    @functools.wraps(plan)
    def command(*args: Any, max_node_hours: float | None, as_json: bool, **options: Any) -> None:
        if (launched_as() or (0, 1))[1] > 1:
            raise UserError("`hvdlm submit` queues jobs; call it without a launcher")
        request = _request(options)
        jobs = plan(*args, request=request, **options)
        _check_budget(request, jobs, max_node_hours)
        _hand_in(request, jobs, as_json)

    for option in reversed(OPTIONS):
        command = option(command)
    return command


def _request(options: dict[str, Any]) -> Request:
    """Takes its own out of the options."""
    from hvdlm.jobs.request import Request
    from hvdlm.jobs.site import find

    named = {name: options.pop(name) for name in ("account", "partition")}
    directives = [f'directives.{name}="{value}"' for name, value in named.items() if value]
    site = find(options.pop("site"), (*directives, *options.pop("settings")))
    if directives and not site.is_slurm:
        raise UserError(
            f"--account and --partition are SLURM's; this site has {site.scheduler.upper()}: use --set directives.…=…"
        )
    programs = shlex.quote(str(Path(sys.executable).parent))  # where this hvdlm was called from
    return Request(
        site,
        options.pop("nodes"),
        options.pop("ranks_per_node") or site.ranks_per_node,
        options.pop("minutes"),
        options.pop("cores_per_rank") or 0,
        cwd=Path.cwd(),
        activate=f'export PATH={programs}:"$PATH"',
        environment=submission_environment(),
        **{name: options.pop(name) for name in ("jobs_dir", "after", "dry_run")},
    )


def _check_budget(request: Request, jobs: list[Job], max_node_hours: float | None) -> None:
    """Say what all jobs may cost; UserError above --max-node-hours. A training counts as it was measured."""
    from hvdlm.jobs import budget

    measured = next((job.cost for job in jobs if job.cost), None)
    ceilings = [(job.stage, job.ceiling_hours(request.site)) for job in jobs if not job.cost]
    found = budget.total(measured, ceilings)
    found.check(max_node_hours)
    print(f"hvdlm: budget: {found.text}", file=sys.stderr)
    if measured and measured.minutes > request.minutes:
        needed = budget.jobs_needed(measured.minutes, request.minutes)
        text = f"{measured.minutes:.0f} minutes in jobs of {request.minutes} are about {needed} starts"
        print(f"hvdlm: budget: {text}", file=sys.stderr)


def _hand_in(request: Request, jobs: list[Job], as_json: bool) -> None:
    """Submit and print: the job's id, or in a dry run its script."""
    from hvdlm.jobs.submit import submit

    done = submit(request, jobs)
    for each in done:
        for finding in each.findings:
            text = f"{each.folder.name}: {finding.message}; {finding.remedy}"
            print(f"hvdlm: warning: {text}", file=sys.stderr)
    value = {"jobs": [{"id": each.id, "stage": each.job.stage, "folder": str(each.folder)} for each in done]}
    result(value, as_json, "\n".join(map(_line, done)))


def _line(done: Submitted) -> str:
    return f"job {done.id} ({done.job.stage}): {done.folder}" if done.id else done.text.rstrip("\n")


def need(request: Request, path: Path, remedy: str) -> None:
    """UserError if a job would find nothing to work on; not for one that waits for another or is only shown."""
    if not request.dry_run and not request.after and not path.exists():
        raise UserError(f"{path} is not there yet; {remedy}, or say --after JOB if a job will make it")


def need_shards(request: Request, settings: RunConfig) -> None:
    from hvdlm.data.manifest import MANIFEST

    for folder in (settings.data.path, *(corpus.path for corpus in settings.data.mixture)):
        if folder is not None:
            need(request, folder / MANIFEST, "preprocess first")


def training_job(request: Request, config: Path, overrides: tuple[str, ...]) -> tuple[Job, RunConfig]:
    """The job that trains as a config says, with what is known of its steps, and the config."""
    from hvdlm.config import load
    from hvdlm.jobs import budget, orders
    from hvdlm.jobs.lint import Facts
    from hvdlm.train.batch_plan import BatchPlan
    from hvdlm.train.config import RunConfig

    settings = load(RunConfig, config, overrides)
    BatchPlan(settings.train.global_batch, settings.train.ramp).check(settings.train.micro_batch, request.ranks)
    _warn_of_slow_folder(request, settings.run_dir)
    measured, steps = _measured(settings, request.ranks), _steps_left(settings)
    step_s = measured.step_s * measured.ranks / request.ranks if measured else None
    facts = Facts(threads=settings.train.threads or None, step_s=step_s, checkpoint_every=settings.checkpoint.every)
    cost = None
    if measured and steps is not None:
        cost = budget.estimate(steps, measured, ranks=request.ranks, nodes=request.nodes)
    return orders.train(request, config, overrides, settings.run_dir, facts=facts, cost=cost), settings


def _warn_of_slow_folder(request: Request, folder: Path) -> None:
    """Runs belong on the site's fast file system; homes are small and slow."""
    scratch = os.path.expandvars(request.site.scratch)
    if scratch and "$" not in scratch and not folder.absolute().is_relative_to(scratch):
        print(f"hvdlm: warning: {folder} is not on this site's scratch ({scratch})", file=sys.stderr)


def _steps_left(settings: RunConfig) -> int | None:
    """Steps that are still to be made, as far as the config tells: epochs are known with the shards only."""
    from hvdlm import checkpoint
    from hvdlm.train.batch_plan import BatchPlan
    from hvdlm.train.config import total_steps

    known = settings.train.model_copy(update={"epochs": None})
    if known.steps is None and known.tokens is None:
        return None
    total = total_steps(known, BatchPlan(known.global_batch, known.ramp), [], settings.data.seq_len)
    done = checkpoint.complete_steps(settings.run_dir)
    return max(0, total - (done[-1] if done else 0))


def _measured(settings: RunConfig, ranks: int) -> Measured | None:
    """The time of a step: of this run so far, else of a scaling study of it, at the nearest number of ranks."""
    import statistics

    from hvdlm import checkpoint
    from hvdlm.jobs.budget import Measured
    from hvdlm.perf.record import read_all

    newest = checkpoint.newest(settings.run_dir) if settings.run_dir.exists() else None
    if newest is not None:
        state = checkpoint.read_state(newest)
        if state.get("seconds"):
            return Measured(state["seconds"] / state["step"], state["ranks"], str(settings.run_dir))
    study = settings.run_dir / "scaling"
    if not (study / "records").is_dir():
        return None
    batch = settings.train.global_batch
    records = [record for record in read_all(study) if record.global_batch == batch]
    if not records:
        return None
    nearest = min({record.ranks for record in records}, key=lambda count: abs(count - ranks))
    steps = [second for record in records if record.ranks == nearest for second in record.slowest_s]
    return Measured(statistics.median(steps), nearest, str(study))
