"""Commands from raw text to shards, and those that look at shards and vocabularies."""

from __future__ import annotations

import os
from pathlib import Path

import click

from hvdlm.cli.parts import Command, Group, by_rank_0, config_argument, json_option, overrides_argument, result
from hvdlm.errors import UserError
from hvdlm.world import connected


@click.command(
    cls=Command,
    epilog="mpirun -np 4 hvdlm preprocess configs/quickstart-data.yaml output=data/mine input='texts/*.jsonl.gz'",
)
@config_argument
@overrides_argument
@json_option
def preprocess(config: Path, overrides: tuple[str, ...], as_json: bool) -> None:
    """Turn raw text into tokenized HDF5 shards; the same bytes at any number of ranks."""
    from hvdlm.config import load
    from hvdlm.host import find_place
    from hvdlm.preprocessing.build import build
    from hvdlm.preprocessing.plan import PreprocessConfig
    from hvdlm.runlog import setup_logging

    settings = load(PreprocessConfig, config, overrides)
    with connected() as world:
        setup_logging(world.rank)
        os.environ.setdefault("RAYON_NUM_THREADS", str(find_place(world).threads))  # the tokenizers library's threads
        manifest = build(settings, world)
        value = {
            "output": str(settings.output), "num_tokens": manifest.num_tokens, "num_documents": manifest.num_documents,
            "vocab_size": manifest.vocab_size, "tokenizer_digest": manifest.tokenizer_digest,
        }  # fmt: skip
        text = f"{settings.output}: {manifest.num_tokens:,} tokens of {manifest.num_documents:,} documents"
        result(value, as_json, text, world.rank)


@click.group(cls=Group)
def data() -> None:
    """Look into a data folder."""


@data.command("inspect", epilog="hvdlm data inspect runs/quickstart/data")
@click.argument("folder", type=click.Path(path_type=Path))
@json_option
@by_rank_0
def data_inspect(folder: Path, as_json: bool) -> None:
    """Counts, document lengths, and the beginning of a document decoded."""
    from hvdlm.inspection import inspect, to_text

    facts = inspect(folder)
    result(facts, as_json, to_text(facts))


@data.command("verify", epilog="hvdlm data verify runs/quickstart/data")
@click.argument("folder", type=click.Path(path_type=Path))
@json_option
@by_rank_0
def data_verify(folder: Path, as_json: bool) -> None:
    """Compare every shard with the manifest's checksum."""
    from hvdlm.shards import read_manifest, verify

    faults = verify(folder)
    if faults:
        raise UserError("; ".join(faults) + "; copy these files again or rerun `hvdlm preprocess` into a new folder")
    num_shards = sum(len(split.shards) for split in read_manifest(folder).splits.values())
    result({"ok": True, "num_shards": num_shards}, as_json, f"{folder}: {num_shards} shards, all as written")
