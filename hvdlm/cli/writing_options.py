"""Options of commands that write text: how ids are chosen, and where a text ends."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields
from typing import Any, TypeVar

import click

from hvdlm.cli.options import Number, WholeNumber
from hvdlm.errors import UserError

F = TypeVar("F", bound=Callable[..., Any])

OPTIONS = (
    click.option("--max-tokens", type=WholeNumber(1), default=200, show_default=True, help="Of a text at most."),
    click.option("--temperature", type=Number(0), default=0.8, show_default=True, help="0: the likeliest token."),
    click.option("--top-k", type=WholeNumber(0), default=0, show_default=True, help="So many likeliest ones; 0: all."),
    click.option(
        "--top-p", type=Number(0, 1), default=1.0, show_default=True, help="The likeliest that reach so much together."
    ),
    click.option(
        "--min-p", type=Number(0, 1), default=0.0, show_default=True, help="At least this part of the likeliest's."
    ),
    click.option(
        "--repetition-penalty",
        type=Number(0.01),
        default=1.0,
        show_default=True,
        help="Divides logits of tokens of prompt and text.",
    ),
    click.option(
        "--presence-penalty", type=Number(), default=0.0, show_default=True, help="Taken off those of written tokens."
    ),
    click.option("--frequency-penalty", type=Number(), default=0.0, show_default=True, help="The same, for each time."),
    click.option("--logit-bias", multiple=True, metavar="ID=X", help="Added to a token's logit; may be repeated."),
    click.option("--stop", "stops", multiple=True, metavar="TEXT", help="Ends a text before it; may be repeated."),
    click.option("--slide", "slides", is_flag=True, help="Past the model's context forget its older half and go on."),
    click.option("--seed", type=WholeNumber(), default=0, show_default=True),
)


int8_option = click.option(
    "--int8",
    is_flag=True,
    help="Matrices as int8: faster, a quarter of the size; `hvdlm eval --int8` tells the loss.",
)


def writing_options(function: F) -> F:
    """All of them, in this order."""
    for option in reversed(OPTIONS):
        function = option(function)
    return function


def texts_of(options: dict[str, Any]) -> Any:
    """`inference.generate.Texts` of them, which are taken out of `options`."""
    from hvdlm.inference.generate import Texts
    from hvdlm.inference.sampling import Sampling

    bias = dict(map(_bias, options.pop("logit_bias")))
    named = {entry.name: options.pop(entry.name) for entry in fields(Sampling) if entry.name in options}
    how = {entry.name: options.pop(entry.name) for entry in fields(Texts) if entry.name in options}
    if "" in how.get("stops", ()):
        raise UserError("--stop: is empty, which every text begins with; leave it out")
    return Texts(Sampling(**named, logit_bias=bias), **how)


def _bias(text: str) -> tuple[int, float]:
    token, _, value = text.partition("=")
    try:
        found = int(token), float(value)
    except ValueError:
        found = -1, math.nan
    if math.isnan(found[1]) or found[1] == math.inf:
        raise UserError(f"--logit-bias: {text!r} is not ID=NUMBER, as 198=-100")
    return found
