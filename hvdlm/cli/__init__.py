"""The one command `hvdlm`."""

from hvdlm.cli.command import cli, main

__all__ = ["cli", "main"]
