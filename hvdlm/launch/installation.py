"""How this hvdlm came here, which decides what mends it: a checkout with its `make setup`, or pip."""

from __future__ import annotations

import sys
from pathlib import Path


def setup_remedy(by_pip: str) -> str:
    """`make setup` where this Python is the one that it builds, else what a person who used pip can do."""
    checkout = Path(__file__).resolve().parent.parent.parent
    is_ours = (checkout / "Makefile").exists() and Path(sys.prefix).resolve() == checkout / ".venv"
    return "make setup" if is_ours else by_pip


def horovod_remedy(*, for_gpus: bool = False) -> str:
    """Where Horovod is built as it has to be: by `make setup` alone."""
    command = "make setup TORCH=cuda" if for_gpus else "make setup"
    return command if setup_remedy("") else f"use a checkout of hvdlm, whose `{command}` builds Horovod"
