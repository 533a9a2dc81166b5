"""Commands that train a model and use it."""

from __future__ import annotations

import functools
import itertools
from pathlib import Path
from typing import Any

import click

from hvdlm.cli.beginning import ends_with
from hvdlm.cli.extensions import import_option
from hvdlm.cli.options import (
    PICTURE,
    SPLIT,
    Command,
    WholeNumber,
    batch_job,
    check_run,
    config_arguments,
    json_option,
    overrides_argument,
    result,
    run_config,
)
from hvdlm.cli.writing_options import int8_option, texts_of, writing_options
from hvdlm.errors import UserError
from hvdlm.files import naming
from hvdlm.tables import figure
from hvdlm.world.connect import connected

BETWEEN = "\n----\n"  # several texts
MAY_WAIT = {"HOROVOD_STALL_SHUTDOWN_TIME_SECONDS": "0"}


@click.command(cls=Command, epilog="mpirun -np 2 hvdlm train configs/quickstart.yaml train.steps=50 run_dir=runs/short")
@config_arguments
@import_option
@json_option
def train(config: Path, overrides: tuple[str, ...], as_json: bool) -> None:
    """Train, or resume the run in run_dir from its newest complete checkpoint."""
    with ends_with("before the first step: this start has trained and saved nothing yet") as has_begun:
        settings = run_config(config, overrides)
        from hvdlm.data.manifest import need_split, read_manifest
        from hvdlm.session.logs import setup_logging
        from hvdlm.sync import preferred_world
        from hvdlm.train import setup as stage

        for corpus in settings.data.corpora:  # before MPI starts
            need_split(corpus.path, read_manifest(corpus.path), "train")
        prefer = preferred_world(settings.sync)
        # At its end texts are written for minutes: a rank may wait for another. In training guard.stall_s looks on.
        may_wait = MAY_WAIT if settings.task.reads_records else {}
        environment = {**settings.sync.environment, **may_wait}
        groups = settings.parallel.data_groups
        with connected(settings.world, prefer=prefer, environment=environment, data_groups=groups) as world:
            setup_logging(world.rank)
            has_begun()
            summary = stage.train(settings, world, batch_job())
            text = _end_of(summary)
            if settings.task.reads_records and summary["val_loss"] is not None:
                from hvdlm.inference.evaluate import evaluate_checkpoint
                from hvdlm.inference.record_report import as_text

                found = evaluate_checkpoint(settings.run_dir, (), "val", world)
                summary["val"], text = found, f"{as_text(found)}\n{text}"
            result(summary, as_json, text, world.rank)


def _end_of(summary: dict[str, Any]) -> str:
    """Where a run has ended, and which of its checkpoints is used from then on, if that is another one."""
    loss = f", validation loss {summary['val_loss']:.4f}" if summary["val_loss"] is not None else ""
    best, used = summary.get("best_step", summary["step"]), ""
    if best != summary["step"]:
        used = f"; used from now on is step {best}, the best by {summary['best_figure'].replace('_', ' ')}"
    return f"{summary['run_dir']}: ended at step {summary['step']}{loss}{used}"


@click.command("eval", cls=Command, epilog="mpirun -np 2 hvdlm eval runs/quickstart/train --split val --json")
@click.argument("checkpoint", type=click.Path(path_type=Path), metavar="RUN|CHECKPOINT")
@overrides_argument
@import_option
@click.option("--split", type=SPLIT, default="val", show_default=True)
@click.option(
    "--carry/--no-carry",
    default=None,
    help="Carry a recurrent model's state from window to window, as the literature does; the default for a run that "
    "was trained so (data.order: contiguous).",
)
@click.option(
    "--streams",
    type=WholeNumber(1),
    help="With --carry: parts of the split, each read through (1).",
)
@click.option(
    "--stride",
    type=WholeNumber(1),
    help="Windows that overlap: each begins so many tokens after the last, and what both have is predicted in the "
    "first, so that tokens have a past.",
)
@click.option("--words", is_flag=True, help="Perplexity by the word too (white space parts them): tokenizers compared.")
@click.option(
    "--predictions",
    type=click.Path(path_type=Path),
    default=None,
    help="Of labelled records: write a line of JSON each there, in input order.",
)
@click.option("--picture", type=PICTURE, default=None, help="Draw the confusion matrix there (.png, .svg, .pdf).")
@int8_option
@click.option("--out", type=click.Path(path_type=Path), default=None, help="Also write the result as JSON there.")
@json_option
def evaluate(
    checkpoint: Path,
    overrides: tuple[str, ...],
    split: str,
    out: Path | None,
    picture: Path | None,
    as_json: bool,
    **protocol: Any,
) -> None:
    """What a model is worth on a whole split: perplexity and bits per byte of text, the task's metrics of records.

    Each token, and each record, counts exactly once over all ranks.
    """
    check_run(checkpoint)
    from hvdlm.files import make_ready, to_json, write_text_durably
    from hvdlm.inference.evaluate import evaluate_checkpoint
    from hvdlm.inference.record_report import as_text, draw_confusion
    from hvdlm.session.logs import setup_logging

    with connected(environment=MAY_WAIT) as world:  # for the rank that reads the only stream
        setup_logging(world.rank)
        for option, path in (("--out", out), ("--predictions", protocol["predictions"]), ("--picture", picture)):
            if path is not None:
                world.on_root(functools.partial(make_ready, option, path))
        found = evaluate_checkpoint(checkpoint, overrides, split, world, draws=picture is not None, **protocol)
        text = as_text(found) if "num_records" in found else _in_words(found)
        if out is not None:
            world.on_root(lambda: write_text_durably(out, to_json(found, indent=1) + "\n"))
        if picture is not None:
            world.on_root(lambda: draw_confusion(found, picture))
        result(found, as_json, text, world.rank)


def _in_words(found: dict[str, Any]) -> str:
    """The figures of text on one line."""
    hidden = {"streams", "stride", "seq_len", "split_tokens"}  # the protocol says them in words; all tokens count
    numbers = {name: value for name, value in found.items() if name not in hidden and isinstance(value, int | float)}
    shown = {name: figure(value, 5) if isinstance(value, float) else f"{value:,}" for name, value in numbers.items()}
    from hvdlm.inference.record_report import settings_in_words

    how = f"({found['protocol']}{settings_in_words(found)})"
    return "  ".join([*(f"{name} {value}" for name, value in shown.items()), how])


@click.command(
    cls=Command,
    epilog="hvdlm generate runs/quickstart/train --prompt 'def __init__(self' --max-tokens 100 --temperature 0.7",
)
@click.argument("checkpoint", type=click.Path(path_type=Path), metavar="RUN|CHECKPOINT")
@overrides_argument
@import_option
@click.option("--prompt", default="", help="Text to continue; of a model of pairs, the source.")
@click.option("--n", "choices", type=WholeNumber(1, 256), default=1, show_default=True, help="Texts.")
@click.option("--beams", type=WholeNumber(1, 100), help="Search the likeliest texts with so many beams, draw nothing.")
@writing_options
@int8_option
@json_option
def generate(  # noqa: PLR0913 - an option each
    checkpoint: Path,
    overrides: tuple[str, ...],
    prompt: str,
    choices: int,
    beams: int | None,
    int8: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Write text with a trained model, shown as it is written. Under a launcher rank 0 does it alone."""
    check_run(checkpoint)
    if beams is not None and choices > beams:
        raise UserError(f"--n: {choices} texts are more than --beams {beams} find; raise --beams")
    from hvdlm.inference.generate import open_writer
    from hvdlm.session.logs import setup_logging

    how = texts_of(options)
    with connected(needs_ranks=False) as world:
        setup_logging(world.rank)

        def write() -> None:
            writer = open_writer(checkpoint, overrides, prompt, how, int8=int8)
            if choices == 1 and beams is None and not as_json:
                with naming(Path("stdout")):
                    for piece in itertools.chain([writer.shown(prompt)], writer.pieces(), ["\n"]):
                        print(piece, end="", flush=True)
                return
            texts = writer.several(choices) if beams is None else writer.searched(beams, choices)
            told = texts[0]._asdict() if choices == 1 else {"choices": [text._asdict() for text in texts]}
            shown = BETWEEN.join(writer.shown(prompt) + text.text for text in texts)
            result({"prompt": prompt, **told, "seed": how.sampling.seed}, as_json, shown)

        world.on_root(write)
