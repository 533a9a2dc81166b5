"""Commands that queue jobs on a cluster."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hvdlm.cli.extensions import passed_import_option
from hvdlm.cli.options import (
    MODE,
    PATH,
    REPEATS,
    SPLIT,
    Group,
    WholeNumber,
    config_arguments,
    overrides_argument,
    preprocess_config,
    run_config,
    work_option,
)
from hvdlm.cli.submit_options import (
    need,
    need_checkpoint,
    need_shards,
    saying_whose_ranks,
    submission,
    training_job,
    words_of,
)
from hvdlm.errors import UserError

if TYPE_CHECKING:
    from hvdlm.jobs.job import Job
    from hvdlm.jobs.request import Request
    from hvdlm.perf.sweep import Effort
    from hvdlm.train.config import RunConfig

PREPROCESS = "preprocess."  # before an override: it goes to the data config of a pipeline


def chain_option(text: str) -> Any:
    return click.option("--chain", type=REPEATS, default=1, show_default=True, help=text)


@click.group(cls=Group)
def submit() -> None:
    """Queue jobs on a cluster: the script is rendered, checked and shown, then handed to sbatch."""


@submit.command(
    "preprocess", epilog="hvdlm submit preprocess configs/quickstart-data.yaml --site generic-cpu --time 30"
)
@config_arguments
@submission
def submit_preprocess(config: Path, overrides: tuple[str, ...], request: Request) -> list[Job]:
    """Raw text to shards."""
    settings = preprocess_config(config, overrides)
    from hvdlm.jobs import orders

    return [orders.preprocess(request, config, overrides, settings.output)]


@submit.command(
    "train",
    epilog="hvdlm submit train configs/quickstart.yaml train.steps=50 --site generic-cpu --ranks-per-node 2 --time 30",
)
@config_arguments
@chain_option("Queue so many jobs, each after the one before: for sites that do not requeue.")
@click.option("--stage-in", is_flag=True, help="Copy the shards to each node's own disk first.")
@passed_import_option
@submission
def submit_train(config: Path, overrides: tuple[str, ...], chain: int, stage_in: bool, request: Request) -> list[Job]:
    """Train, or go on with the run; stopped by its time limit or for another job, it is queued again."""
    from hvdlm.jobs import orders

    job, settings = training_job(request, config, overrides)
    if stage_in:
        if settings.data.path is None:
            raise UserError("--stage-in copies one folder of shards; data.mixture has several")
        job = orders.with_local_copy(job, request, settings.data.path)
    need_shards(request, settings)
    return orders.chain(job, chain)


@submit.command("eval", epilog="hvdlm submit eval runs/quickstart/train --site generic-cpu --time 10")
@click.argument("run", type=PATH)
@overrides_argument
@click.option("--split", type=SPLIT, default="val", show_default=True)
@passed_import_option
@submission
def submit_eval(run: Path, overrides: tuple[str, ...], split: str, request: Request) -> list[Job]:
    """Perplexity of a run's newest checkpoint, into RUN/eval-SPLIT.json; with data.path, of eval-SPLIT-FOLDER.json."""
    from hvdlm.jobs import orders

    need_checkpoint(request, run, overrides)
    return [orders.evaluate(request, run, overrides, split)]


@submit.command(
    "infer",
    epilog="hvdlm submit infer runs/quickstart/train prompts.jsonl --out texts.jsonl --site generic-cpu --time 60"
    " -- --max-tokens 50",
)
@click.argument("run", type=PATH)
@click.argument("source", type=PATH, metavar="INPUT")
@click.argument("words", nargs=-1, metavar="[-- OPTIONS OF INFER]")
@click.option("--out", type=PATH, required=True, help="The file that the job writes.")
@passed_import_option
@submission
def submit_infer(run: Path, source: Path, words: tuple[str, ...], out: Path, request: Request) -> list[Job]:
    """What a model makes of each record of a file; stopped by its time limit it is queued again, and goes on."""
    from hvdlm.cli.inferring import infer, refuse_streams
    from hvdlm.inference.infer.lines import is_json
    from hvdlm.inference.infer.parts import work_of
    from hvdlm.jobs import orders

    refuse_streams(source, out)
    need_checkpoint(request, run, words_of(infer, [str(run), str(source), "--out", str(out), *words]))
    need(request, source, "name a file of prompts or records")
    is_json(source)
    return [orders.infer(request, run, source, out, work_of(out), words)]


@submit.command(
    "generate", epilog="hvdlm submit generate runs/quickstart/train --site generic-cpu --time 5 -- --prompt 'def '"
)
@click.argument("run", type=PATH)
@click.argument("words", nargs=-1, metavar="[-- OPTIONS OF GENERATE]")
@passed_import_option
@submission
def submit_generate(run: Path, words: tuple[str, ...], request: Request) -> list[Job]:
    """Text of a trained model, into the job's log."""
    from hvdlm.cli.training import generate
    from hvdlm.jobs import orders

    need_checkpoint(request, run, words_of(generate, [str(run), *words]))
    return [orders.generate(request, run, words)]


@submit.command(
    "scale",
    epilog="hvdlm submit scale configs/quickstart.yaml --ranks 1,2 --site generic-cpu --ranks-per-node 2 --time 10",
)
@config_arguments
@click.option("--ranks", default=None, help="Rank counts. Default: of 1, 2, 4 … replicas, up to nodes x ranks a node.")
@click.option("--mode", type=MODE, default="both", show_default=True)
@click.option("--steps", type=WholeNumber(3), default=20, show_default=True)
@click.option("--warmup", type=WholeNumber(1), default=5, show_default=True)
@click.option("--repeats", type=REPEATS, default=3, show_default=True)
@work_option
@click.option("--out", type=PATH, default=None, help="Default: RUN_DIR/scaling, of --work infer RUN_DIR/scaling-infer.")
@passed_import_option
@submission
def submit_scale(
    config: Path, overrides: tuple[str, ...], ranks: str | None, out: Path | None, request: Request, **effort: Any
) -> list[Job]:
    """A scaling study: a job array for each point, on just the nodes it needs, then the report."""
    settings = run_config(config, overrides)
    from hvdlm.perf.sweep import Effort

    need_shards(request, settings)
    mode = effort.pop("mode")
    return _study(request, settings, ranks, out, mode=mode, effort=Effort(**effort))


def _study(
    request: Request, settings: RunConfig, ranks: str | None, out: Path | None, *, mode: str, effort: Effort
) -> list[Job]:
    """A measurement for each point, and the report of them all."""
    from hvdlm.jobs import orders
    from hvdlm.perf.sweep import folder_name, parse_ranks, plan_study

    counts = parse_ranks(ranks) if ranks else _doubled(request, settings)
    folder = out or settings.run_dir / folder_name(effort.work)
    modes = ("strong", "weak") if mode == "both" else (mode,)
    records = folder / "records"
    if records.exists():
        raise UserError(f"{folder}: holds a study already; set --out, or remove {records}")
    with nullcontext() if ranks else saying_whose_ranks(request):
        planned = plan_study(
            settings, folder, ranks=counts, modes=modes, effort=effort, threads=request.threads, records=records
        )
    with saying_whose_ranks(request):
        points = [orders.request_of_point(request, each.point.ranks) for each in planned]
    found = []
    for point, each in zip(points, planned, strict=True):
        found.append(orders.measurement(point, list(each.specs), folder, each.write))
    return [*found, replace(orders.report(request, folder), after=tuple(range(len(found))))]


def _doubled(request: Request, settings: RunConfig) -> list[int]:
    """The ranks of 1, 2, 4 … replicas, as far as the job has them; UserError if it has none of one."""
    with saying_whose_ranks(request):
        settings.parallel.mesh(request.ranks)
    shared_by = settings.parallel.shared_by
    return [shared_by << power for power in range((request.ranks // shared_by).bit_length())]


@submit.command(
    "pipeline",
    epilog="hvdlm submit pipeline configs/quickstart-data.yaml configs/quickstart.yaml --site generic-cpu --time 30",
)
@click.argument("data_config", type=PATH)
@config_arguments
@chain_option("Training jobs in a row.")
@click.option(
    "--ranks", default=None, help="Rank counts of the report. Default: of 1, 2, 4 … replicas, up to the job's."
)
@passed_import_option
@submission
def submit_pipeline(
    data_config: Path, config: Path, overrides: tuple[str, ...], chain: int, ranks: str | None, request: Request
) -> list[Job]:
    """Preprocess, then train, then evaluate, then measure and write the scaling report; one command.

    An override `preprocess.KEY=VALUE` goes to the data config, all others to the training config.
    """
    to_data = tuple(word.removeprefix(PREPROCESS) for word in overrides if word.startswith(PREPROCESS))
    to_training = tuple(word for word in overrides if not word.startswith(PREPROCESS))
    data = preprocess_config(data_config, to_data)
    from hvdlm.jobs import orders
    from hvdlm.perf.sweep import Effort

    training, settings = training_job(request, config, to_training)
    if "train" not in data.splits.made:
        raise UserError(f"{data_config}: makes no train split, which the pipeline trains on; name input.train")
    if settings.data.path != data.output:
        raise UserError(
            f"{config}: trains on {settings.data.path}, but {data_config} writes {data.output}; set data.path or "
            "preprocess.output"
        )
    held_out = [split for split in ("val", "test") if split in data.splits.made][:1]
    if not held_out:
        remark = f"warning: {data_config} makes no val or test split, so nothing is evaluated"
        training = replace(training, remarks=(*training.remarks, remark))
    return orders.follow(
        [orders.preprocess(request, data_config, to_data, data.output)],
        orders.chain(training, chain),
        [orders.evaluate(request, settings.run_dir, (), split) for split in held_out],
        _study(request, settings, ranks, None, mode="both", effort=Effort(steps=20, warmup=5, repeats=3)),
    )
