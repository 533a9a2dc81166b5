"""A command line that cannot be read is one line: the command, what is wrong, the nearest name or where to look."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import click


def usage_line(error: click.UsageError) -> str:
    """What click has against a command line; an option is called by the first of its names, as help calls it."""
    command = error.ctx.command_path if error.ctx else "hvdlm"
    if isinstance(error, click.BadParameter) and isinstance(error.param, click.Option) and error.param_hint is None:
        error.param_hint = repr(error.param.opts[0])
    text = " ".join(error.format_message().split()).removesuffix(".")
    if isinstance(error, click.NoSuchOption) and error.option_name.startswith("--") and "." in error.option_name:
        return f"{command}: {text}; an override is written without dashes: {error.option_name.lstrip('-')}=…"
    return f"{command}: {text}" if "id you mean" in text else f"{command}: {text}; see `{command} --help`"


@contextmanager
def naming_command(ctx: click.Context) -> Iterator[None]:
    """click does not say of every fault in which command it was."""
    try:
        yield
    except click.UsageError as error:
        error.ctx = error.ctx or ctx
        raise


def is_help(error: click.UsageError) -> bool:
    """Whether it is the help of a group that was called without a command (click 8.2 and later)."""
    return type(error).__name__ == "NoArgsIsHelpError"
