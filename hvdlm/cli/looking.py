"""Commands that show what a run has done, and what it does."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hvdlm.cli.extensions import import_option
from hvdlm.cli.options import PATH, Command, Number, WholeNumber, by_rank_0, json_option
from hvdlm.cli.scaling import tell_report
from hvdlm.errors import UserError

if TYPE_CHECKING:
    from hvdlm.perf.curves.page import RunReport


@click.command(
    cls=Command,
    epilog="hvdlm report runs/quickstart/train\n"
    "hvdlm report runs/a runs/b --out runs/a-and-b --prompt 'def '\n"
    "hvdlm report runs/quickstart/scaling",
)
@click.argument("folders", type=PATH, nargs=-1, required=True, metavar="RUN... | STUDY")
@click.option("--out", type=PATH, default=None, help="Folder for the report of runs. Default: RUN/report of one run.")
@click.option(
    "--samples", type=WholeNumber(0), default=1, show_default=True, help="Texts that each run's model writes."
)
@click.option("--prompt", default="", help="What they continue.")
@import_option
@json_option
@by_rank_0
def report(folders: tuple[Path, ...], out: Path | None, samples: int, prompt: str, as_json: bool) -> None:
    """Write a page on training runs, or on the study of `hvdlm scale`: report.html, report.md, pictures.

    Of training runs: curves, validations, settings that differ, events, samples; the same for one run and for several.
    """
    from hvdlm.session.logs import setup_logging

    setup_logging(0)
    folders = _each_once(folders)
    if len(folders) == 1 and _is_study(folders[0]):
        if out is not None:
            raise UserError(f"--out: the report of a scaling study stands in its folder, {folders[0]}; leave it out")
        from hvdlm.perf.report import write_report

        tell_report(write_report(folders[0]), as_json)
        return
    if out is None and len(folders) > 1:
        raise UserError("--out is missing: say in which folder the report of several runs shall be written")
    tell_report(_report_on_runs(folders, out or folders[0] / "report", samples, prompt), as_json)


def _each_once(folders: tuple[Path, ...]) -> tuple[Path, ...]:
    """Folders in their order; one that was named again, by whatever path, is told and left out."""
    found: dict[Path, Path] = {}
    for folder in folders:
        if (first := found.setdefault(folder.resolve(), folder)) is not folder:
            logging.getLogger("hvdlm").warning("%s: was named before, as %s; it is shown once", folder, first)
    return tuple(found.values())


def _is_study(folder: Path) -> bool:
    """Whether it is one, or nothing at all: what a study lacks is told with the way to it."""
    from hvdlm.perf.curves.reading import is_run

    return (folder / "records").is_dir() or not is_run(folder)


def _report_on_runs(folders: tuple[Path, ...], out: Path, samples: int, prompt: str) -> RunReport:
    from hvdlm.perf.curves.page import write_run_report
    from hvdlm.perf.curves.reading import read_runs
    from hvdlm.perf.curves.samples import Asking, samples_of

    runs = read_runs(folders)
    return write_run_report(runs, samples_of(runs, Asking(samples, prompt)), out)


@click.command(cls=Command, epilog="hvdlm watch runs/quickstart/train")
@click.argument("run", type=PATH)
@click.option("--every", type=Number(1), default=30, show_default=True, help="Seconds between lines, off a terminal.")
@click.option("--wait", is_flag=True, help="Go on where the run stops or fails, until a start of it ends.")
@click.option("--once", is_flag=True, help="Show how it stands, and end.")
@by_rank_0
def watch(run: Path, every: float, wait: bool, once: bool) -> int:
    """Show a training while it goes on, on any node: curve, newest numbers, time left; it may begin later.

    Reads RUN/metrics.jsonl alone. Ends with the run: 0, 75 where it was stopped, 1 where it failed.
    """
    from hvdlm.perf.curves.live import watch as show

    try:
        return show(run, every_s=every, waits=wait, once=once)
    except KeyboardInterrupt:  # who looked on has seen enough
        return 0
