"""The command that asks a trained model about each record of a file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from hvdlm.cli.beginning import ends_with
from hvdlm.cli.extensions import import_option
from hvdlm.cli.options import Command, WholeNumber, batch_job, check_run, json_option, overrides_argument, result
from hvdlm.cli.training import MAY_WAIT
from hvdlm.cli.writing_options import int8_option, texts_of, writing_options
from hvdlm.errors import UserError
from hvdlm.world.connect import connected


@click.command(
    cls=Command, epilog="mpirun -np 2 hvdlm infer runs/quickstart/train prompts.jsonl --out texts.jsonl --max-tokens 50"
)
@click.argument("checkpoint", type=click.Path(path_type=Path), metavar="RUN|CHECKPOINT")
@click.argument("source", type=click.Path(path_type=Path), metavar="INPUT")
@overrides_argument
@click.option("--out", type=click.Path(path_type=Path), required=True, help="A line of JSON a record, in input order.")
@click.option("--score", "scores", is_flag=True, help="Write nothing: how likely the texts are, or their completions.")
@writing_options
@click.option("--n", "choices", type=WholeNumber(1), default=1, show_default=True, help="Texts a record.")
@click.option(
    "--beams", type=WholeNumber(1, 100), default=None, help="Search the likeliest text so wide; nothing is drawn."
)
@click.option(
    "--logprobs", type=WholeNumber(0, 100), default=None, help="Tell each token's, and so many of the likeliest's."
)
@click.option("--echo", is_flag=True, help="Tell the prompt too.")
@click.option(
    "--batch",
    type=WholeNumber(1, 4096),
    default=None,
    help="Records computed together; default 16 prompts, 32 scores, 256 labelled records.",
)
@int8_option
@import_option
@json_option
@click.pass_context
def infer(
    context: click.Context,
    checkpoint: Path,
    source: Path,
    overrides: tuple[str, ...],
    out: Path,
    as_json: bool,
    **options: Any,
) -> None:
    """What a model makes of each record of a file: texts, scores, classes, tags, answers.

    INPUT has a record a line: JSON with `prompt`, or with the fields of a model of labelled records, and maybe `id`;
    or a text a line (.txt). OUT is the same bytes at any number of ranks. The same command goes on after a kill.
    """
    refuse_streams(source, out)
    check_run(checkpoint)
    given = {
        parameter.name: parameter.opts[0]
        for parameter in context.command.params
        if parameter.name in options and context.get_parameter_source(parameter.name) == ParameterSource.COMMANDLINE
    }
    with ends_with("before it began: nothing is written yet") as has_begun:
        os.environ.setdefault("RAYON_NUM_THREADS", "1")  # the tokenizers library's: a rank computes with one thread
        texts = texts_of(options)
        from hvdlm.inference.infer.run import opened, run
        from hvdlm.inference.infer.summary import in_words
        from hvdlm.inference.infer.wanted import Wanted
        from hvdlm.session.logs import setup_logging

        wanted = Wanted(texts, **options, given=given)
        with connected(environment=MAY_WAIT) as world:
            setup_logging(world.rank)
            job = opened(checkpoint, overrides, source, out, wanted, world)
            has_begun()
            summary = run(job, world, batch_job())
            result(summary, as_json, in_words(summary), world.rank)


def refuse_streams(source: Path, out: Path) -> None:
    """UserError for `-`: a file is read twice, and an output is put together from parts."""
    if str(source) == "-":
        raise UserError("INPUT -: is read twice, which a pipe cannot be; write it to a file and name that")
    if str(out) == "-":
        raise UserError("--out -: is put together from parts in a folder beside it; name a file, then `cat` it")
