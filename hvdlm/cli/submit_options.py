"""What a person asks of a cluster: the options that all submissions share, and what they become."""

from __future__ import annotations

import functools
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hvdlm.cli.options import PATH, RANKS, Number, check_run, json_option, result, run_config
from hvdlm.errors import UserError
from hvdlm.launch.environment import launched_as
from hvdlm.launch.plan import fresh_environment
from hvdlm.tables import counted

if TYPE_CHECKING:
    from hvdlm.jobs.budget import Measured
    from hvdlm.jobs.job import Job
    from hvdlm.jobs.request import Request
    from hvdlm.jobs.site import Site
    from hvdlm.jobs.submit import Submitted
    from hvdlm.train.config import RunConfig

JOBS_DIR = Path("runs/jobs")
DEFAULT_TIME = "60"  # minutes
jobs_dir_option = click.option("--jobs-dir", type=PATH, default=JOBS_DIR, show_default=True)


def submission_environment() -> dict[str, str]:
    """For sbatch and for questions to SLURM: nothing in it becomes an option of theirs."""
    from hvdlm.jobs.environment import for_slurm

    kept = for_slurm(os.environ)
    return {name: value for name, value in fresh_environment().items() if name in kept}


OPTIONS = (
    click.option("--site", required=True, help="A name of `hvdlm sites`, or a YAML file of yours."),
    click.option("--nodes", type=RANKS, default=1, show_default=True),
    click.option("--ranks-per-node", type=RANKS, default=None, help="Default: the site's."),
    click.option("--cores-per-rank", type=RANKS, default=None, help="Default: a share of the site's node."),
    click.option("--time", default=None, help="Of a job: minutes, H:M:S or D-H:M:S. Default: the site's, or 60."),
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
        from hvdlm.jobs.submit import submit

        if (launched_as() or (0, 1))[1] > 1:
            raise UserError("`hvdlm submit` queues jobs; call it without a launcher")
        request = _request(options)
        jobs = plan(*args, request=request, **options)
        costs = _costs(request, jobs, max_node_hours)
        done = submit(request, jobs)
        remarks = [
            *request.notes,
            *costs,
            *_not_again(request.site, jobs),
            *dict.fromkeys(text for job in jobs for text in job.remarks),
        ]
        for text in (*remarks, *(f"warning: {warning}" for each in done for warning in each.warnings)):
            print(f"hvdlm: {text}", file=sys.stderr)
        result({"jobs": list(map(_facts, done))}, as_json, "\n".join(map(_line, done)))

    for option in reversed(OPTIONS):
        command = option(command)
    return command


def _request(options: dict[str, Any]) -> Request:
    """Takes its own out of the options."""
    from hvdlm.jobs.request import Request
    from hvdlm.jobs.site import find

    name = options.pop("site")
    site = find(name, options.pop("settings"))
    given = {name: options.pop(name) for name in ("account", "partition", "time")}
    empty = next((name for name, value in given.items() if value == ""), None)
    if empty:
        raise UserError(f"--{empty} is empty; give it a value, or leave it out")
    named = {name: value for name, value in given.items() if value and name != "time"}
    if named and not site.is_slurm:
        raise UserError(
            f"--account and --partition are SLURM's; this site has {site.scheduler.upper()}: use --set directives.…=…"
        )
    site = site.with_options(named)
    site, minutes, notes = _with_wishes(site, given["time"])
    cores, is_shown = options.pop("cores_per_rank") or 0, options["dry_run"]
    if cores and is_shown and not site.cores_per_node:
        notes.append("this site does not say how many cores a node has (cores_per_node): that they fit is not checked")
    ranks_per_node = options.pop("ranks_per_node")
    programs = shlex.quote(str(Path(sys.executable).parent))  # where this hvdlm was called from
    return Request(
        site,
        options.pop("nodes"),
        ranks_per_node or site.ranks_per_node,
        minutes,
        cores,
        cwd=Path.cwd(),
        activate=f'export PATH={programs}:"$PATH"',
        environment=submission_environment(),
        notes=(*notes, *_clean_start(site)),
        extensions=tuple(file.absolute() for file in options.pop("extensions", ())),
        ranks_from="" if ranks_per_node else f"ranks_per_node of --site {name}",
        **{name: options.pop(name) for name in ("jobs_dir", "after", "dry_run")},
    )


def _with_wishes(site: Site, time: str | None) -> tuple[Site, int, list[str]]:
    """The site with what the environment asks of sbatch beside it, the minutes of a job, and what became of that."""
    from hvdlm.jobs.environment import wishes

    origin, time = ("--time", time) if time else ("directives.time", site.directives.get("time"))
    if not site.is_slurm:
        return site, *_minutes("--time", time or DEFAULT_TIME, site)
    found = wishes(os.environ, {**site.said, **({"time": time} if time else {})})
    if not time:
        origin, time = "SBATCH_TIMELIMIT", found.taken.get("time")
    lines = found.lines() if time else [*found.lines(), f"no --time is given: {DEFAULT_TIME} minutes a job"]
    minutes, remarks = _minutes(origin, time or DEFAULT_TIME, site)
    return site.with_options(found.taken), minutes, [*lines, *remarks]


def _minutes(origin: str, time: str, site: Site) -> tuple[int, list[str]]:
    """Of a time limit, and what there is to say of it."""
    from hvdlm.jobs.times import minutes_of, remark_on

    try:
        minutes = minutes_of(time, site.scheduler)
    except ValueError as problem:
        raise UserError(f"{origin}: {problem}") from None
    remark = remark_on(time, minutes)
    return minutes, [f"{origin}: {remark}"] if remark else []


def _clean_start(site: Site) -> list[str]:
    """A word where jobs begin without the modules that are loaded here, and the site names none."""
    exported = site.directives.get("export", "ALL").split(",")
    loaded = os.environ.get("LOADEDMODULES", "")
    if "ALL" in exported or not loaded or site.modules or site.setup:
        return []
    return [
        f"warning: jobs begin without your environment (--export={','.join(exported)}), and this site names no "
        f"modules; you have loaded {loaded}: put those that hvdlm was installed with into modules: of the site"
    ]


def _not_again(site: Site, jobs: list[Job]) -> list[str]:
    """A word where nothing starts a job again that was stopped: where a site requeues, its script sees to that."""
    if site.max_requeues:
        return []
    reason = "max_restarts: 0" if site.is_slurm and site.requeue else "requeue: false"
    stages = [job.stage for job in jobs if job.is_resumable]
    chain = {"train": " (or by --chain N, as the next job)"}
    return [
        f"this site has {reason}: a {stage} job that its time limit stops is saved, and goes on when it is submitted "
        f"again{chain.get(stage, '')}"
        for stage in dict.fromkeys(stages)
        if stages.count(stage) == 1
    ]


def _costs(request: Request, jobs: list[Job], max_node_hours: float | None) -> list[str]:
    """What all jobs may cost; UserError above --max-node-hours. A training counts as it was measured."""
    from hvdlm.jobs import budget

    measured = next((job.cost for job in jobs if job.cost), None)
    ceilings = [(job.stage, job.ceiling_hours(request.site)) for job in jobs if not job.cost]
    found = budget.total(measured, ceilings)
    found.check(max_node_hours)
    lines = [f"budget: {found.text}"]
    if measured and measured.minutes > request.minutes:
        needed = counted(budget.jobs_needed(measured.minutes, request.minutes), "start")
        lines.append(f"budget: {measured.minutes:.0f} min in jobs of {request.minutes} are about {needed}")
    return lines


def _facts(done: Submitted) -> dict[str, str]:
    """Of a job, for programs; of one that is only shown its script too."""
    facts = {"id": done.id, "stage": done.job.stage, "folder": str(done.folder)}
    return facts if done.id else {**facts, "script": done.text}


def _line(done: Submitted) -> str:
    return f"job {done.id} ({done.job.stage}): {done.folder}" if done.id else done.text.rstrip("\n")


def need(request: Request, path: Path, remedy: str) -> None:
    """UserError if a job would find nothing to work on; not for one that waits for another or is only shown."""
    if not request.dry_run and not request.after and not path.exists():
        raise UserError(f"{path} is not there yet; {remedy}, or say --after JOB if a job will make it")


def words_of(command: click.Command, words: Sequence[str]) -> tuple[str, ...]:
    """Overrides among the words of a job's command; a fault of click's for words that it would not take."""
    with command.make_context(f"hvdlm {command.name}", list(words)) as context:
        return context.params["overrides"]


def need_checkpoint(request: Request, run: Path, overrides: Sequence[str]) -> None:
    """UserError if a job would find no checkpoint in a run, or overrides do not suit the one that is there."""
    need(request, run, "train first")
    if request.after or not run.exists():
        return
    check_run(run)
    from hvdlm import checkpoint
    from hvdlm.config import validate
    from hvdlm.train.config import RunConfig

    newest = checkpoint.resolve(run)
    validate(RunConfig, checkpoint.read_state(newest)["config"], newest / checkpoint.STATE, tuple(overrides))


def need_shards(request: Request, settings: RunConfig) -> None:
    from hvdlm.data.manifest import MANIFEST, need_split, read_manifest

    for folder in (corpus.path for corpus in settings.data.corpora):
        need(request, folder / MANIFEST, "preprocess first")
        if (folder / MANIFEST).exists():
            need_split(folder, read_manifest(folder), "train")


@contextmanager
def saying_whose_ranks(request: Request) -> Iterator[None]:
    """What does not fit a number of ranks says where that comes from, if the user has not given it."""
    try:
        yield
    except UserError as error:
        if not request.ranks_from:
            raise
        origin = f"--nodes {request.nodes} x {request.ranks_per_node} ({request.ranks_from})"
        raise UserError(f"{error}; the ranks come from {origin}: --ranks-per-node sets another number") from None


def training_job(request: Request, config: Path, overrides: tuple[str, ...]) -> tuple[Job, RunConfig]:
    """The job that trains as a config says, with what is known of its steps, and the config."""
    settings = run_config(config, overrides)
    from hvdlm.jobs import budget, orders
    from hvdlm.jobs.lint import Facts
    from hvdlm.train.config import check_batch

    with saying_whose_ranks(request):
        check_batch(settings.train, settings.parallel.mesh(request.ranks))
    measured, steps = _measured(settings, request.ranks), _steps_left(settings)
    remarks = _slow_folder(request, settings.run_dir)
    if steps == 0:
        remarks.append(f"warning: {settings.run_dir} has made all its steps already: the job will end at once")
    step_s = measured.step_s * measured.ranks / request.ranks if measured else None
    facts = Facts(threads=settings.train.threads or None, step_s=step_s, checkpoint_every=settings.checkpoint.every)
    cost = None
    if measured and steps is not None:
        cost = budget.estimate(steps, measured, ranks=request.ranks, nodes=request.nodes)
    job = orders.train(request, config, overrides, settings.run_dir, facts=facts, cost=cost)
    return replace(job, remarks=tuple(remarks)), settings


def _slow_folder(request: Request, folder: Path) -> list[str]:
    """Runs belong on the site's fast file system; homes are small and slow."""
    scratch = os.path.expandvars(request.site.scratch)
    if scratch and "$" not in scratch and not folder.absolute().is_relative_to(scratch):
        return [f"warning: {folder} is not on this site's scratch ({scratch})"]
    return []


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
    batch, parallel = settings.train.global_batch, settings.parallel
    mesh = parallel.pipeline, parallel.tensor
    found = [record for record in read_all(study) if record.global_batch == batch]
    records = [record for record in found if (record.workload.pipeline, record.workload.tensor) == mesh]
    if not records:
        return None
    nearest = min({record.ranks for record in records}, key=lambda count: abs(count - ranks))
    steps = [second for record in records if record.ranks == nearest for second in record.slowest_s]
    return Measured(statistics.median(steps), nearest, str(study))
