"""`hvdlm serve`: a run's model behind HTTP."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

import click

from hvdlm.cli.beginning import ends_with
from hvdlm.cli.extensions import import_option
from hvdlm.cli.options import PATH, Command, Number, WholeNumber, batch_job, check_run, overrides_argument
from hvdlm.errors import UserError
from hvdlm.launch.environment import launched_as


@click.command(
    cls=Command,
    epilog="hvdlm serve runs/quickstart/train\n"
    "hvdlm serve runs/quickstart/train --host 0.0.0.0 --port 9000 --api-key-file ~/.hvdlm-key",
)
@click.argument("checkpoint", type=PATH, metavar="RUN|CHECKPOINT")
@overrides_argument
@import_option
@click.option("--host", default="127.0.0.1", show_default=True, help="Others than this one reach it by 0.0.0.0.")
@click.option("--port", type=WholeNumber(0, 65535), default=8000, show_default=True, help="0: any free one.")
@click.option("--name", default="", help="What requests call the model. Default: from the run's folder.")
@click.option("--api-key-file", "key_file", type=PATH, default=None, help="Requests must bring the key in this file.")
@click.option("--allow-origin", "origins", multiple=True, help="A page from there may ask, as https://a.org.")
@click.option("--chat-template", "template", type=PATH, default=None, help="Jinja. Default: beside the tokenizer.")
@click.option("--int8", is_flag=True, help="Matrices as int8: faster on CPUs, and a little off.")
@click.option("--rows", type=WholeNumber(1, 1024), default=16, show_default=True, help="Texts written side by side.")
@click.option("--queue", type=WholeNumber(0, 100_000), default=64, show_default=True, help="Texts that may wait.")
@click.option("--max-tokens", type=WholeNumber(1, 4096), default=256, show_default=True, help="If a request says none.")
@click.option("--grace-s", type=Number(0), default=30.0, show_default=True, help="For what runs after a signal.")
def serve(checkpoint: Path, overrides: tuple[str, ...], **options: Any) -> None:
    """Serve a model as OpenAI's API does, with a page to try it; until Ctrl-C, or a signal (exit 75).

    Endpoints: /v1/completions, /v1/chat/completions, /v1/models, /tokenize, /detokenize, /health, /metrics, and the
    page at /. Under a launcher rank 0 serves alone.
    """
    check_run(checkpoint)
    rank, size = launched_as() or (0, 1)
    if rank:
        return
    for library in ("starlette", "uvicorn"):
        if importlib.util.find_spec(library) is None:
            raise UserError(f"`hvdlm serve` needs {library}; pip install 'hvdlm[serve]'")
    with ends_with("before it served anything") as has_begun:
        from hvdlm.serve.serving import Address, Ending, Limits, Offer, log, serve
        from hvdlm.session.logs import setup_logging

        setup_logging(0)
        if size > 1:
            log.info("rank 0 of %d serves; the others have nothing to do and end", size)
        limits = Limits(*(options.pop(name) for name in ("rows", "queue", "max_tokens")))
        offer = Offer(checkpoint, overrides, options.pop("name"), options.pop("template"), options.pop("int8"), limits)
        ending = Ending(options.pop("grace_s"), batch_job(), os.environ.get("SLURM_SUBMIT_HOST", ""))
        serve(offer, Address(**options), ending, has_begun)
