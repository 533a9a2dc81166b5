"""Commands that choose: the fastest settings for a machine, and what each way of combining gradients costs."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from hvdlm.cli.extensions import import_option
from hvdlm.cli.options import (
    PATH,
    RANKS,
    REPEATS,
    Command,
    NameList,
    Names,
    Number,
    WholeNumber,
    config_arguments,
    config_of_study,
    json_option,
    overrides_argument,
    result,
)

KINDS = "Give it for each sync to try. Default: horovod and allreduce, or the config's own where they differ from it."


def _tunable() -> list[str]:
    """Syncs that change no number of the training but the speed."""
    from hvdlm.sync import SYNCS

    return [kind for kind, sync in SYNCS.items() if sync.keeps_replicas_equal]


def _ways() -> Iterable[str]:
    from hvdlm.perf.bench_sync import WAYS

    return WAYS


@click.command(
    cls=Command,
    epilog="hvdlm tune configs/quickstart.yaml --ranks 2 --minutes 10 --out configs/mine.yaml\n"
    "hvdlm tune configs/gpt-mesh.yaml --ranks 4 --meshes",
)
@config_arguments
@click.option("--ranks", type=RANKS, default=2, show_default=True)
@click.option("--minutes", type=Number(0, min_open=True), default=15, show_default=True, help="At most.")
@click.option("--steps", type=WholeNumber(3), default=15, show_default=True, help="Timed steps of one run.")
@click.option("--warmup", type=WholeNumber(1), default=3, show_default=True, help="Steps before them, discarded.")
@click.option("--repeats", type=WholeNumber(2), default=4, show_default=True, help="Rounds of a stage, at most.")
@click.option("--kinds", type=Names(_tunable), multiple=True, metavar="SYNC", help=KINDS)
@click.option("--meshes", is_flag=True, help="Search all meshes of the ranks, too: stages, replicas, tensor ranks.")
@click.option("--out", type=PATH, default=None, help="Default: RUN_DIR/tuned.yaml.")
@import_option
@json_option
def tune(config: Path, overrides: tuple[str, ...], out: Path | None, as_json: bool, **choices: Any) -> None:
    """Find the fastest micro-batch, threads and sync for this machine; global batch, precision and model stay.

    With --meshes also how the ranks share the model: `hvdlm plan` names candidates, runs choose among them. Weights
    stay those of the config but for rounding.

    Leaves a config that `hvdlm train` takes, with the measurements in its header and all runs as JSON beside it.
    """
    settings = config_of_study("hvdlm tune", config, overrides)
    from hvdlm.perf.tune import TuneOptions, tune
    from hvdlm.perf.tune_result import to_text

    command = shlex.join(["hvdlm", *sys.argv[1:]])
    found = tune(settings, TuneOptions(out=out or settings.run_dir / "tuned.yaml", command=command, **choices))
    result(found, as_json, to_text(found))


@click.command("sync", cls=Command, epilog="hvdlm bench sync configs/quickstart.yaml --steps 200 --out runs/bench-sync")
@click.argument("config", type=PATH, default=Path("configs/quickstart.yaml"))
@overrides_argument
@click.option("--ranks", type=RANKS, default=2, show_default=True)
@click.option("--steps", type=WholeNumber(1), default=200, show_default=True)
@click.option("--repeats", type=REPEATS, default=3, show_default=True, help="Rounds, each from another seed.")
@click.option("--kinds", type=NameList(_ways), metavar="SYNCS", default=None, help="Names with commas; default: all.")
@click.option("--out", type=PATH, default=Path("runs/bench-sync"), show_default=True)
@import_option
@json_option
def bench_sync(
    config: Path, overrides: tuple[str, ...], kinds: tuple[str, ...] | None, as_json: bool, **choices: Any
) -> None:
    """Train one model on the same tokens by every way of combining gradients: loss, speed, bytes sent."""
    settings = config_of_study("hvdlm bench", config, overrides)
    from hvdlm.perf.bench_sync import SyncBenchOptions, bench, kinds_with_reference, to_text

    found = bench(settings, SyncBenchOptions(kinds=kinds_with_reference(kinds), **choices))
    result(found, as_json, to_text(found))
