"""Commands that queue jobs on a cluster."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hvdlm.cli.options import Group, config_argument, overrides_argument
from hvdlm.cli.submit_options import Ask, job_options, train_order
from hvdlm.errors import UserError

if TYPE_CHECKING:
    from hvdlm.jobs.submit import Order
    from hvdlm.perf.sweep import Effort
    from hvdlm.train.config import RunConfig

PREPROCESS = "preprocess."  # before an override: it goes to the data config of a pipeline


@click.group(cls=Group)
def submit() -> None:
    """Queue jobs on a cluster: the script is rendered, checked and shown, then handed to sbatch."""


@submit.command(
    "preprocess", epilog="hvdlm submit preprocess configs/quickstart-data.yaml --site generic-cpu --time 30"
)
@config_argument
@overrides_argument
@job_options
def submit_preprocess(config: Path, overrides: tuple[str, ...], ask: Ask) -> None:
    """Raw text to shards."""
    from hvdlm.config import load
    from hvdlm.jobs import orders
    from hvdlm.preprocessing.plan import PreprocessConfig

    settings = load(PreprocessConfig, config, overrides)
    ask.hand_in([orders.preprocess(config, overrides, ask.size, settings.output)])


@submit.command(
    "train",
    epilog="hvdlm submit train configs/quickstart.yaml train.steps=50 --site generic-cpu --ranks-per-node 2 --time 30",
)
@config_argument
@overrides_argument
@click.option("--chain", type=click.IntRange(1), default=1, show_default=True,
              help="Queue so many jobs, each after the one before: for sites that do not requeue.")  # fmt: skip
@click.option("--stage-in", is_flag=True, help="Copy the shards to each node's own disk first.")
@job_options
def submit_train(config: Path, overrides: tuple[str, ...], chain: int, stage_in: bool, ask: Ask) -> None:
    """Train, or go on with the run; stopped by its time limit or for another job, it is queued again."""
    from hvdlm.jobs import orders

    order, settings = train_order(config, overrides, ask, stage_in=stage_in)
    ask.need_shards(settings)
    ask.hand_in(orders.chain(order, chain), training=settings)


@submit.command("eval", epilog="hvdlm submit eval runs/quickstart/train --site generic-cpu --time 10")
@click.argument("run", type=click.Path(path_type=Path))
@overrides_argument
@click.option("--split", type=click.Choice(["train", "val", "test"]), default="val", show_default=True)
@job_options
def submit_eval(run: Path, overrides: tuple[str, ...], split: str, ask: Ask) -> None:
    """Perplexity of a run's newest checkpoint, into RUN/eval-SPLIT.json."""
    from hvdlm.jobs import orders

    ask.need(run, "train first")
    ask.hand_in([orders.evaluate(run, overrides, ask.size, split)])


@submit.command(
    "generate", epilog="hvdlm submit generate runs/quickstart/train --site generic-cpu --time 5 -- --prompt 'def '"
)
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("words", nargs=-1, metavar="[-- OPTIONS OF GENERATE]")
@job_options
def submit_generate(run: Path, words: tuple[str, ...], ask: Ask) -> None:
    """Text of a trained model, into the job's log."""
    from hvdlm.jobs import orders

    ask.need(run, "train first")
    ask.hand_in([orders.generate(run, words, ask.size)])


@submit.command(
    "scale",
    epilog="hvdlm submit scale configs/quickstart.yaml --ranks 1,2 --site generic-cpu --ranks-per-node 2 --time 10",
)
@config_argument
@overrides_argument
@click.option("--ranks", default=None, help="Rank counts. Default: 1, 2, 4 … up to nodes x ranks a node.")
@click.option("--mode", type=click.Choice(["strong", "weak", "both"]), default="both", show_default=True)
@click.option("--steps", type=click.IntRange(3), default=20, show_default=True)
@click.option("--warmup", type=click.IntRange(1), default=5, show_default=True)
@click.option("--repeats", type=click.IntRange(1), default=3, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=None, help="Default: RUN_DIR/scaling.")
@job_options
def submit_scale(
    config: Path, overrides: tuple[str, ...], ranks: str | None, mode: str, out: Path | None, ask: Ask, **counts: int
) -> None:
    """A scaling study: a job array for each point, on just the nodes it needs, then the report."""
    from hvdlm.config import load
    from hvdlm.perf.sweep import Effort
    from hvdlm.train.config import RunConfig

    settings = load(RunConfig, config, overrides)
    ask.need_shards(settings)
    ask.hand_in(_scaling_orders(settings, ask, ranks, mode, out, Effort(**counts)))


def _scaling_orders(
    settings: RunConfig, ask: Ask, ranks: str | None, mode: str, out: Path | None, effort: Effort
) -> list[Order]:
    """A measurement for each point, and the report of them all."""
    from hvdlm.jobs import orders
    from hvdlm.perf.sweep import parse_ranks, plan_study

    size = ask.size
    counts = parse_ranks(ranks) if ranks else [1 << power for power in range(size.ranks.bit_length())]
    folder = out or settings.run_dir / "scaling"
    modes = ("strong", "weak") if mode == "both" else (mode,)
    if (folder / "records").exists():
        raise UserError(f"{folder}: holds a study already; set --out, or remove {folder}/records")
    planned = plan_study(
        settings, folder, ranks=counts, modes=modes, effort=effort, threads=size.threads(ask.site),
        records=folder / "records",
    )  # fmt: skip
    found = [
        orders.measurement(orders.size_of_point(each.point.ranks, size, ask.site), list(each.specs), folder, each.write)
        for each in planned
    ]
    return [*found, replace(orders.report(folder, size), after=tuple(range(len(found))))]


@submit.command(
    "pipeline",
    epilog="hvdlm submit pipeline configs/quickstart-data.yaml configs/quickstart.yaml --site generic-cpu --time 30",
)
@click.argument("data_config", type=click.Path(path_type=Path))
@config_argument
@overrides_argument
@click.option("--chain", type=click.IntRange(1), default=1, show_default=True, help="Training jobs in a row.")
@click.option("--ranks", default=None, help="Rank counts of the report. Default: 1, 2, 4 … up to the job's own.")
@job_options
def submit_pipeline(
    data_config: Path, config: Path, overrides: tuple[str, ...], chain: int, ranks: str | None, ask: Ask
) -> None:
    """Preprocess, then train, then evaluate, then measure and write the scaling report; one command.

    An override `preprocess.KEY=VALUE` goes to the data config, all others to the training config.
    """
    from hvdlm.config import load
    from hvdlm.jobs import orders
    from hvdlm.perf.sweep import Effort
    from hvdlm.preprocessing.plan import PreprocessConfig

    to_data = tuple(word.removeprefix(PREPROCESS) for word in overrides if word.startswith(PREPROCESS))
    to_training = tuple(word for word in overrides if not word.startswith(PREPROCESS))
    data = load(PreprocessConfig, data_config, to_data)
    training, settings = train_order(config, to_training, ask)
    if settings.data.path != data.output:
        raise UserError(
            f"{config}: trains on {settings.data.path}, but {data_config} writes {data.output}; set data.path or "
            "preprocess.output"
        )
    ask.hand_in(
        orders.follow(
            [orders.preprocess(data_config, to_data, ask.size, data.output)],
            orders.chain(training, chain),
            [orders.evaluate(settings.run_dir, (), ask.size, "val")],
            _scaling_orders(settings, ask, ranks, "both", None, Effort(steps=20, warmup=5, repeats=3)),
        ),
        training=settings,
    )
