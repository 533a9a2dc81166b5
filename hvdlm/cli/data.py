"""Commands from raw text to shards, and those that look at shards and vocabularies."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from hvdlm.cli.beginning import ends_with
from hvdlm.cli.options import (
    PATH,
    PICTURE,
    REPEATS,
    Command,
    Group,
    Names,
    Number,
    batch_job,
    by_rank_0,
    config_arguments,
    json_option,
    preprocess_config,
    result,
)
from hvdlm.errors import UserError
from hvdlm.tables import counted
from hvdlm.world.connect import connected


@click.command(
    cls=Command,
    epilog="mpirun -np 4 hvdlm preprocess configs/quickstart-data.yaml output=data/mine input='texts/*.jsonl.gz'",
)
@config_arguments
@json_option
def preprocess(config: Path, overrides: tuple[str, ...], as_json: bool) -> None:
    """Turn raw text into tokenized HDF5 shards; the same bytes at any number of ranks."""
    with ends_with("before it began: nothing was read or written yet") as has_begun:
        settings = preprocess_config(config, overrides)
        from hvdlm.host import keep_freed_memory
        from hvdlm.preprocessing.build import build
        from hvdlm.session.logs import setup_logging
        from hvdlm.world.place import find_place

        with connected() as world:
            setup_logging(world.rank)
            keep_freed_memory()
            os.environ.setdefault("RAYON_NUM_THREADS", str(find_place(world).threads))  # the tokenizers library's
            has_begun()
            manifest = build(settings, world, batch_job())
            facts = ("num_tokens", "num_documents", "vocab_size", "tokenizer_digest")
            value = {"output": str(settings.output), **{name: getattr(manifest, name) for name in facts}}
            text = f"{settings.output}: {manifest.num_tokens:,} tokens of {counted(manifest.num_documents, 'document')}"
            result(value, as_json, text, world.rank)


@click.group(cls=Group)
def data() -> None:
    """Look into a data folder."""


@data.command("inspect", epilog="hvdlm data inspect runs/quickstart/data --samples 3 --picture lengths.png")
@click.argument("folder", type=PATH)
@click.option("--samples", type=REPEATS, default=1, show_default=True, help="Documents of a split to decode.")
@click.option("--picture", type=PICTURE, default=None, help="Draw the lengths (.png, .svg, .pdf).")
@json_option
@by_rank_0
def data_inspect(folder: Path, samples: int, picture: Path | None, as_json: bool) -> None:
    """Counts, token statistics, document lengths, and the beginnings of documents decoded."""
    from hvdlm.data.inspection import draw, inspect, to_text

    facts = inspect(folder, samples)
    if picture:
        draw(facts, picture)
    result(facts, as_json, to_text(facts))


@data.command("verify", epilog="hvdlm data verify runs/quickstart/data")
@click.argument("folder", type=PATH)
@json_option
@by_rank_0
def data_verify(folder: Path, as_json: bool) -> None:
    """Find any flipped byte: each shard against its checksums; a fault names shard and block."""
    from hvdlm.data.manifest import read_manifest
    from hvdlm.data.verify import verify

    faults = verify(folder)
    if faults:
        raise UserError("; ".join(faults) + "; copy these files again or rerun `hvdlm preprocess` into a new folder")
    num_shards = sum(len(split.shards) for split in read_manifest(folder).splits.values())
    result({"ok": True, "num_shards": num_shards}, as_json, f"{folder}: {counted(num_shards, 'shard')}, all as written")


def _bridges() -> Iterable[str]:
    from hvdlm.data.bridges import FORMATS

    return FORMATS


@data.command("convert", epilog="hvdlm data convert runs/quickstart/data runs/megatron --to megatron")
@click.argument("source", type=PATH)
@click.argument("destination", type=PATH)
@click.option("--to", type=Names(_bridges), required=True, metavar="FORMAT")
@click.option("--tokenizer", type=PATH, default=None, help="tokenizer.json, if none is beside.")
@click.option("--lossy", is_flag=True, help="Write even what would not come back exactly.")
@json_option
@by_rank_0
def data_convert(source: Path, destination: Path, to: Any, tokenizer: Path | None, lossy: bool, as_json: bool) -> None:
    """To and from Megatron's .bin/.idx, nanoGPT's .bin and jsonl; the source's format is recognized."""
    from hvdlm.data.bridges import ConvertOptions, convert, to_text
    from hvdlm.session.logs import setup_logging

    setup_logging(0)
    found = convert(source, destination, to=to, tokenizer=tokenizer, options=ConvertOptions(is_lossy=lossy))
    result(found, as_json, to_text(found))


@click.group(cls=Group)
def tokenizer() -> None:
    """Make vocabularies, look into them, compare them."""


@tokenizer.command(
    "train",
    epilog="mpirun -np 2 hvdlm tokenizer train configs/quickstart-data.yaml tokenizer.vocab_size=8192 --out bpe.json",
)
@config_arguments
@click.option("--out", type=PATH, required=True, help="The tokenizer.json to write.")
@json_option
def tokenizer_train(config: Path, overrides: tuple[str, ...], out: Path, as_json: bool) -> None:
    """Learn the vocabulary of a preprocess config from a sample of its input, without the shards."""
    settings = preprocess_config(config, overrides)
    from hvdlm.files import make_ready, write_text_durably
    from hvdlm.preprocessing.plan import units_of
    from hvdlm.preprocessing.vocabulary import make_vocabulary
    from hvdlm.session.logs import setup_logging
    from hvdlm.tokenizer import digest, from_json

    with connected() as world:
        setup_logging(world.rank)
        world.on_root(lambda: make_ready("--out", out))
        units = world.on_root(lambda: units_of(settings.splits.find(), settings.read_options))
        text = make_vocabulary(settings, units, world)
        world.on_root(lambda: write_text_durably(out, text))
        made = from_json(text)
        value = {"out": str(out), "kind": made.kind, "vocab_size": made.vocab_size, "digest": digest(made)}
        result(value, as_json, f"{out}: {made.kind}, {made.vocab_size:,} ids, digest {value['digest']}", world.rank)


pattern_option = click.option(
    "--pattern", default=None, help="How a rank file of tiktoken cuts text, where its name and size do not tell."
)


@tokenizer.command("show", epilog="hvdlm tokenizer show runs/quickstart/data/tokenizer.json --text 'def main():'")
@click.argument("path", type=PATH)
@click.option("--text", default="", help="A text to cut into tokens.")
@pattern_option
@json_option
@by_rank_0
def tokenizer_show(path: Path, text: str, pattern: str | None, as_json: bool) -> None:
    """What a vocabulary holds, and how it cuts a text."""
    from hvdlm.tokenizer import read_any
    from hvdlm.tokenizer.study import show

    facts = show(read_any(path, pattern), text)
    result(facts, as_json, "\n".join(f"{name}: {value}" for name, value in facts.items()))


@tokenizer.command("compare", epilog="hvdlm tokenizer compare a.json b.json --input texts.jsonl --input chinese.txt")
@click.argument("paths", type=PATH, nargs=-1, required=True)
@click.option("--input", "sources", multiple=True, required=True, help="Files, folders or globs of text.")
@click.option(
    "--megabytes",
    type=Number(0, min_open=True),
    default=4.0,
    show_default=True,
    help="Of text, drawn from everywhere in the input.",
)
@click.option("--text-key", default="text", show_default=True, help="Key or column of the text in jsonl and tables.")
@click.option("--encoding", default="utf-8", show_default=True, help="Of text files.")
@json_option
@by_rank_0
def tokenizer_compare(
    paths: tuple[Path, ...], sources: tuple[str, ...], megabytes: float, text_key: str, encoding: str, as_json: bool
) -> None:
    """Bytes a token, tokens a word and unknown tokens, in all and by script."""
    from hvdlm.preprocessing.vocabulary import sample_of
    from hvdlm.tokenizer import read_any
    from hvdlm.tokenizer.study import compare, to_text

    try:
        "a".encode(encoding)
    except (LookupError, ValueError):
        raise UserError(f"--encoding {encoding!r}: no text encoding that Python knows") from None
    texts = sample_of(list(sources), megabytes, text_key, encoding)
    rows = compare({str(path): read_any(path) for path in paths}, texts)
    result({"rows": rows}, as_json, to_text(rows))
