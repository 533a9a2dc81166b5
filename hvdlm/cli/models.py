"""Commands that turn a run's model into a file of another tool, and one into a run."""

from __future__ import annotations

from pathlib import Path

import click

from hvdlm.cli.options import PATH, Choice, Command, Group, by_rank_0, check_run, json_option, result


@click.group("model", cls=Group)
def model_group() -> None:
    """A run's model to and from files of other tools."""


@model_group.command("export", epilog="hvdlm model export runs/ptb-kn5 kn5.arpa.gz")
@click.argument("checkpoint", type=PATH, metavar="RUN|CHECKPOINT")
@click.argument("file", type=PATH)
@json_option
@by_rank_0
def model_export(checkpoint: Path, file: Path, as_json: bool) -> None:
    """An n-gram model as ARPA, which KenLM, SRILM and speech decoders read; .gz is gzipped."""
    check_run(checkpoint)
    from hvdlm.inference.ngram_files import export_arpa
    from hvdlm.session.logs import setup_logging

    setup_logging(0)
    found = export_arpa(checkpoint, file)
    result(found, as_json, f"{file}: {_in_words(found['num_ngrams'])}")


@model_group.command("import", epilog="hvdlm model import kn5.arpa.gz runs/kn5 --data data/ptb")
@click.argument("file", type=PATH)
@click.argument("run", type=PATH)
@click.option(
    "--data", type=PATH, default=None, help="Data folder whose vocabulary it is for; without it the file's words."
)
@json_option
@by_rank_0
def model_import(file: Path, run: Path, data: Path | None, as_json: bool) -> None:
    """Make a run of an n-gram model in ARPA: `hvdlm eval` and `generate` take it as any other."""
    from hvdlm.inference.ngram_files import import_arpa
    from hvdlm.session.logs import setup_logging

    setup_logging(0)
    found = import_arpa(file, run, data)
    result(found, as_json, f"{run}: {_in_words(found['num_ngrams'])}")


@click.command(cls=Command, epilog="hvdlm export runs/quickstart/train --to hf exports/quickstart")
@click.argument("checkpoint", type=PATH, metavar="RUN|CHECKPOINT")
@click.option("--to", "kind", type=Choice(["hf"]), required=True, help="hf: a folder that Hugging Face's tools load.")
@click.argument("folder", type=PATH)
@json_option
@by_rank_0
def export(checkpoint: Path, kind: str, folder: Path, as_json: bool) -> None:
    """A transformer as a folder of config.json, safetensors and tokenizer that `transformers` loads."""
    check_run(checkpoint)
    from hvdlm.inference.hf_files import export_hf
    from hvdlm.session.logs import setup_logging

    setup_logging(0)
    found = export_hf(checkpoint, folder)
    text = f"{folder}: {found['architecture']} of {found['parameters']:,} numbers, {found['vocab_size']:,} ids"
    result(found, as_json, text)


def _in_words(num_ngrams: list[int]) -> str:
    return ", ".join(f"{num:,} {order}-grams" for order, num in enumerate(num_ngrams, 1))
