"""What a check of a job script reports, and what it may know besides the script."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

# a program's commands, ("data", "inspect") for one of a group -> their options -> whether a word follows these
Commands = Mapping[tuple[str, ...], Mapping[str, bool]]


@dataclass(frozen=True)
class Facts:
    """What the one who submits knows beyond the script's text; None: not known."""

    threads: int | None = None  # of a rank
    step_s: float | None = None
    checkpoint_every: int | None = None  # steps
    has_folder: Callable[[str], bool] | None = None  # whether it is there, as seen from where the job is submitted
    commands: Commands | None = None  # hvdlm's


UNKNOWN = Facts()


@dataclass(frozen=True)
class Finding:
    """One fault of a script. An error fails or wastes the job; a warning does so on some sites or on some days."""

    line: int  # from 1; 1 also for what is missing
    level: Literal["error", "warning"]
    message: str
    remedy: str


Findings = Iterator[Finding]


def error(line: int, message: str, remedy: str) -> Finding:
    return Finding(line, "error", message, remedy)


def warning(line: int, message: str, remedy: str) -> Finding:
    return Finding(line, "warning", message, remedy)
