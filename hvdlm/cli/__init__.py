"""The one command `hvdlm`."""

from hvdlm.cli.loading import cli, main

__all__ = ["cli", "main"]
