"""Commands that measure."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hvdlm.cli.extensions import import_all, import_option
from hvdlm.cli.options import (
    MODE,
    PATH,
    REPEATS,
    Command,
    WholeNumber,
    config_arguments,
    config_of_study,
    json_option,
    result,
    work_option,
)
from hvdlm.world.connect import connected

if TYPE_CHECKING:
    from hvdlm.perf.curves.page import RunReport
    from hvdlm.perf.report import Report


@click.command(cls=Command, epilog="hvdlm scale configs/quickstart.yaml --ranks 1,2 --mode both --out runs/scaling")
@config_arguments
@click.option("--ranks", default=None, help="Rank counts, smallest first. Default: those of 1 and 2 replicas (1,2).")
@click.option("--mode", type=MODE, default="both", show_default=True)
@click.option("--steps", type=WholeNumber(3), default=20, show_default=True, help="Timed steps of one measurement.")
@click.option("--warmup", type=WholeNumber(1), default=5, show_default=True, help="Steps before them, discarded.")
@click.option("--repeats", type=REPEATS, default=3, show_default=True, help="Measurements of each point.")
@work_option
@click.option("--out", type=PATH, default=None, help="Default: RUN_DIR/scaling, of --work infer RUN_DIR/scaling-infer.")
@import_option
@json_option
def scale(
    config: Path,
    overrides: tuple[str, ...],
    ranks: str | None,
    mode: str,
    out: Path | None,
    as_json: bool,
    **effort: Any,
) -> None:
    """Measure weak and strong scaling of the real training step; leaves DIR/records and the report.

    A step of --work infer is a pass over train.global_batch prompts in units of train.micro_batch, which ranks draw.
    """
    settings = config_of_study("hvdlm scale", config, overrides)
    from hvdlm.perf.report import write_report
    from hvdlm.perf.sweep import Effort, folder_name, parse_ranks, sweep

    folder = out or settings.run_dir / folder_name(effort["work"])
    modes = ("strong", "weak") if mode == "both" else (mode,)
    shared_by = settings.parallel.shared_by
    counts = parse_ranks(ranks) if ranks else [shared_by, 2 * shared_by]
    sweep(settings, folder, ranks=counts, modes=modes, effort=Effort(**effort))
    tell_report(write_report(folder), as_json, out=str(folder))


@click.command(cls=Command, hidden=True)
@click.argument("spec", type=PATH)
def measure(spec: Path) -> None:
    """What every rank of one measurement of `hvdlm scale` runs."""
    from hvdlm.config import validate
    from hvdlm.perf.measure import measure_and_write, read_spec
    from hvdlm.sync import preferred_world
    from hvdlm.train.config import RunConfig

    task = read_spec(spec)
    import_all(tuple(map(Path, task.extensions)))
    settings = validate(RunConfig, task.config, spec)
    prefer, groups = preferred_world(settings.sync), settings.parallel.data_groups
    environment = settings.sync.environment
    with connected(settings.world, prefer=prefer, environment=environment, data_groups=groups) as world:
        measure_and_write(task, world, job=os.environ.get("SLURM_JOB_ID", ""))


def tell_report(report: Report | RunReport, as_json: bool, **more: str) -> None:
    """Say what was found, and what stands against believing it; the path is the result."""
    log = logging.getLogger("hvdlm")
    for verdict in report.verdicts:
        log.info("%s", verdict)
    for remark in report.remarks:
        log.warning("%s", remark)
    value = {**more, "report": str(report.path), "verdicts": report.verdicts, "remarks": report.remarks}
    result(value, as_json, str(report.path))
