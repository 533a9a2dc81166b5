"""All commands are loaded, which takes some tenths of a second, in which a Ctrl-C is no traceback either."""

from hvdlm.cli.beginning import ends_with

with ends_with("before it began"):
    from hvdlm.cli.command import cli, main

__all__ = ["cli", "main"]
