"""What a person asks of a cluster: the options that all submissions share, and what they become."""

from __future__ import annotations

import functools
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hvdlm.cli.options import result
from hvdlm.errors import UserError
from hvdlm.launch.environment import launched_as
from hvdlm.launch.plan import fresh_environment

if TYPE_CHECKING:
    from hvdlm.jobs.budget import Measured
    from hvdlm.jobs.submit import Desk, Order, Size, Submitted
    from hvdlm.train.config import RunConfig

JOBS_DIR = Path("runs/jobs")


def submission_environment() -> dict[str, str]:
    """For sbatch: what SLURM told an enclosing job must not become options of the next."""
    told = fresh_environment()
    return {name: told[name] for name in told if not name.startswith("SLURM_") or name == "SLURM_CONF"}


def job_options(function: Any) -> Any:
    """The options of every `hvdlm submit`; the function gets them as one `Ask`."""

    @functools.wraps(function)
    def collected(*args: Any, **options: Any) -> Any:
        if (launched_as() or (0, 1))[1] > 1:
            raise UserError("`hvdlm submit` queues jobs; call it without a launcher")
        ask = Ask(**{name: options.pop(name) for name in ASKED})
        return function(*args, ask=ask, **options)

    for option in reversed(OPTIONS):
        collected = option(collected)
    return collected


ASKED = ("site", "nodes", "ranks_per_node", "cores_per_rank", "minutes", "account", "partition", "settings", "after",
         "max_node_hours", "jobs_dir", "dry_run", "as_json")  # fmt: skip
OPTIONS = (
    click.option("--site", required=True, help="A name of `hvdlm sites`, or a YAML file of yours."),
    click.option("--nodes", type=click.IntRange(1), default=1, show_default=True),
    click.option("--ranks-per-node", type=click.IntRange(1), default=None, help="Default: the site's."),
    click.option("--cores-per-rank", type=click.IntRange(1), default=None, help="Default: a share of the site's node."),
    click.option("--time", "minutes", type=click.IntRange(1), default=60, show_default=True, help="Minutes of a job."),
    click.option("--account", default=None, help="As sbatch's."),
    click.option("--partition", default=None, help="As sbatch's."),
    click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="A value of the site, for this job."),
    click.option("--after", multiple=True, metavar="JOB", help="Start when that job has ended well."),
    click.option("--max-node-hours", type=click.FloatRange(0), default=None, help="Refuse what would cost more."),
    click.option("--jobs-dir", type=click.Path(path_type=Path), default=JOBS_DIR, show_default=True),
    click.option("--dry-run", is_flag=True, help="Print the script; queue nothing, write nothing."),
    click.option("--json", "as_json", is_flag=True, help="One JSON object as the last line of stdout."),
)


class Ask:
    """What a person asks of a site, from the command line."""

    def __init__(self, *, site: str, settings: tuple[str, ...], **options: Any) -> None:
        from hvdlm.jobs.site import find

        named = [f'directives.{name}="{options[name]}"' for name in ("account", "partition") if options[name]]
        self.site = find(site, (*named, *settings))
        if named and self.site.scheduler != "slurm":
            raise UserError(f"--account and --partition are SLURM's; this site has {self.site.scheduler.upper()}: "
                            "use --set directives.…=…")  # fmt: skip
        self._options = options
        self.after: tuple[str, ...] = options["after"]

    @property
    def size(self) -> Size:
        from hvdlm.jobs.submit import Size

        options = self._options
        per_node = options["ranks_per_node"] or self.site.ranks_per_node
        return Size(options["nodes"], per_node, options["minutes"], options["cores_per_rank"] or 0)

    @property
    def desk(self) -> Desk:
        from hvdlm.jobs.submit import Desk

        programs = shlex.quote(str(Path(sys.executable).parent))  # where this hvdlm was called from
        activate = f'export PATH={programs}:"$PATH"'
        return Desk(
            self.site, self._options["jobs_dir"], Path.cwd(), activate, submission_environment(),
            self._options["dry_run"],
        )  # fmt: skip

    @property
    def dry_run(self) -> bool:
        return self._options["dry_run"]

    def need(self, path: Path, remedy: str) -> None:
        """UserError if the job would find nothing to work on; not for one that waits for another or is only shown."""
        if not self.dry_run and not self.after and not path.exists():
            raise UserError(f"{path} is not there yet; {remedy}, or say --after JOB if a job will make it")

    def need_shards(self, settings: RunConfig) -> None:
        from hvdlm.data.manifest import MANIFEST

        for folder in (settings.data.path, *(corpus.path for corpus in settings.data.mixture)):
            if folder is not None:
                self.need(folder / MANIFEST, "preprocess first")

    def hand_in(self, orders: list[Order], training: RunConfig | None = None) -> None:
        """Submit and print: the job's id, or in a dry run its script. `training` is what the orders train."""
        from hvdlm.jobs.submit import submit

        self._check_budget(orders, training)
        done = submit(self.desk, orders, after=self.after)
        for job in done:
            for finding in job.findings:
                print(f"hvdlm: warning: {job.folder.name}: {finding.message}; {finding.remedy}", file=sys.stderr)
        value = {"jobs": [{"id": job.id, "stage": job.stage, "folder": str(job.folder)} for job in done]}
        result(value, self._options["as_json"], "\n".join(map(_line, done)))

    def warn_of_slow_folder(self, folder: Path) -> None:
        """Runs belong on the site's fast file system; homes are small and slow."""
        scratch = os.path.expandvars(self.site.scratch)
        if scratch and "$" not in scratch and not folder.absolute().is_relative_to(scratch):
            print(f"hvdlm: warning: {folder} is not on this site's scratch ({scratch})", file=sys.stderr)

    def _check_budget(self, orders: list[Order], training: RunConfig | None) -> None:
        """Say what all jobs may cost; UserError above --max-node-hours. A training counts as it was measured."""
        from hvdlm.jobs import budget

        measured = _measured(training, self.size) if training else None
        steps = _steps_left(training) if training else None
        known = None
        if measured and steps is not None:
            known = budget.estimate(steps, measured, ranks=self.size.ranks, nodes=self.size.nodes)
        rest = [order for order in orders if not (known and order.stage == "train")]
        found = budget.total(known, [(order.stage, order.ceiling_hours(self.site)) for order in rest])
        found.check(self._options["max_node_hours"])
        print(f"hvdlm: budget: {found.text}", file=sys.stderr)
        if known and known.minutes > self.size.minutes:
            needed = budget.jobs_needed(known.minutes, self.size.minutes)
            print(f"hvdlm: budget: {known.minutes:.0f} minutes in jobs of {self.size.minutes} are about {needed} "
                  "starts", file=sys.stderr)  # fmt: skip


def _line(job: Submitted) -> str:
    return f"job {job.id} ({job.stage}): {job.folder}" if job.id else job.text.rstrip("\n")


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


def _measured(settings: RunConfig, size: Size) -> Measured | None:
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
    ranks = min({record.ranks for record in records}, key=lambda count: abs(count - size.ranks))
    steps = [second for record in records if record.ranks == ranks for second in record.slowest_s]
    return Measured(statistics.median(steps), ranks, str(study))


def train_order(
    config: Path, overrides: tuple[str, ...], ask: Ask, *, stage_in: bool = False
) -> tuple[Order, RunConfig]:
    from hvdlm.config import load
    from hvdlm.jobs import orders
    from hvdlm.jobs.lint import Facts
    from hvdlm.train.batch_plan import BatchPlan
    from hvdlm.train.config import RunConfig

    settings = load(RunConfig, config, overrides)
    BatchPlan(settings.train.global_batch, settings.train.ramp).check(settings.train.micro_batch, ask.size.ranks)
    ask.warn_of_slow_folder(settings.run_dir)
    measured = _measured(settings, ask.size)
    step_s = measured.step_s * measured.ranks / ask.size.ranks if measured else None
    facts = Facts(threads=settings.train.threads or None, step_s=step_s, checkpoint_every=settings.checkpoint.every)
    copy = None
    if stage_in:
        if settings.data.path is None:
            raise UserError("--stage-in copies one folder of shards; data.mixture has several")
        copy = orders.local_copy(ask.site, settings.data.path)
    return orders.train(config, overrides, ask.size, settings.run_dir, facts=facts, stage_in=copy), settings
