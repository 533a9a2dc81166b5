"""The command that looks into a trained model with a text."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import click

from hvdlm.cli.extensions import import_option
from hvdlm.cli.options import PATH, PICTURE, Command, WholeNumber, check_run, json_option, result
from hvdlm.errors import UserError
from hvdlm.world.connect import connected

OVERRIDE = re.compile(r"[^\s=]+=")  # how a KEY.SUB=VALUE begins
MOST_BYTES = 1 << 24  # of a text; pages of far fewer are too long for a browser


@click.command(
    "inspect",
    cls=Command,
    epilog="hvdlm inspect runs/quickstart/train 'def __init__(self, name):' --out inspect.html\n"
    "hvdlm inspect runs/quickstart/train 'def __init__(self):' --layer 0 --head 1 --neighbours self",
)
@click.argument("checkpoint", type=PATH, metavar="RUN|CHECKPOINT")
@click.argument("words", nargs=-1, metavar="[TEXT] [KEY.SUB=VALUE]...")
@import_option
@click.option(
    "--file", type=PATH, default=None, help="Read the text there, in place of TEXT; TEXT - is standard input."
)
@click.option(
    "--pair", help="The second input: of a pair the other text, of an answer the question, of seq2seq a target."
)
@click.option("--likeliest", type=WholeNumber(1, 100), default=5, show_default=True, help="Alternatives of each token.")
@click.option("--stride", type=WholeNumber(1), help="Windows that overlap, as of `hvdlm eval`.")
@click.option("--label", help="Of a classifier: the label that tokens speak for or against; the likeliest one.")
@click.option("--layer", type=WholeNumber(0), help="Attention of this layer, from 0; the last.")
@click.option("--head", type=WholeNumber(0), help="Attention of this head alone, from 0; all.")
@click.option("--neighbours", multiple=True, metavar="WORD", help="Tokens near it in the embedding; may be repeated.")
@click.option("--num-neighbours", type=WholeNumber(1, 1000), default=10, show_default=True)
@click.option("--out", type=PATH, default=None, help="Write all of it there as a page, FILE.html.")
@click.option("--picture", type=PICTURE, default=None, help="Draw the attention there (.png, .svg, .pdf).")
@json_option
def inspect(
    checkpoint: Path,
    words: tuple[str, ...],
    file: Path | None,
    out: Path | None,
    picture: Path | None,
    as_json: bool,
    **asked: Any,
) -> None:
    """What a model makes of a text: how surprising each token is, what it attends to, what a prediction rests on."""
    check_run(checkpoint)
    if out is not None and out.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--out: {out} is no name of a page; end it in .html")
    if file is not None and not all(map(OVERRIDE.match, words)):
        raise UserError("TEXT and --file: give one of them")
    text, overrides = (_text_of(file), words) if file is not None or not words else (words[0], words[1:])
    text = _standard_input() if text == "-" else text
    if text is None and not asked["neighbours"]:
        raise UserError("TEXT: there is none; give one, - for standard input, --file FILE, or --neighbours WORD")
    _look(checkpoint, overrides, {**asked, "text": text}, out=out, picture=picture, as_json=as_json)


def _look(
    checkpoint: Path,
    overrides: tuple[str, ...],
    asked: dict[str, Any],
    *,
    out: Path | None,
    picture: Path | None,
    as_json: bool,
) -> None:
    from rich.console import Console

    from hvdlm.files import make_ready, write_text_durably
    from hvdlm.inference.inspect import Asked, inspect_text
    from hvdlm.inference.inspect.page import page_of
    from hvdlm.inference.inspect.pictures import check_maps, draw_maps
    from hvdlm.inference.inspect.terminal import show
    from hvdlm.session.logs import setup_logging

    with connected(needs_ranks=False) as world:
        setup_logging(world.rank)
        if world.rank:
            return
        for option, path in (("--out", out), ("--picture", picture)):
            if path is not None:
                make_ready(option, path)
        if picture is not None:
            check_maps()
        found = inspect_text(checkpoint, overrides, Asked(**asked, attends=out is not None or picture is not None))
        if out is not None:
            write_text_durably(out, page_of(found))
        if picture is not None:
            draw_maps(found.attention, picture)
        if not as_json:
            show(found, Console(highlight=False))
        told = [f"{name}: {path}" for name, path in (("page", out), ("picture", picture)) if path is not None]
        if as_json or told:
            is_named = asked["layer"] is not None or asked["head"] is not None
            result(found.numbers(attention=is_named), as_json, "\n".join(told))


def _text_of(file: Path | None) -> str | None:
    if file is None:
        return None
    if file.stat().st_size > MOST_BYTES:
        raise UserError(f"{file}: has more than {MOST_BYTES >> 20} MB; give a part of it")
    return _decoded(file.read_bytes(), str(file))


def _standard_input() -> str:
    return _decoded(sys.stdin.buffer.read(MOST_BYTES), "stdin")


def _decoded(content: bytes, where: str) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: byte {error.start} is not UTF-8; convert it") from None
