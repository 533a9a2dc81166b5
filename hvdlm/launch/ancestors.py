"""Who started this process: a launcher, a person at a terminal, or a batch script. Variables alone cannot tell.

A shell inside a SLURM step (`srun --pty bash`) hands the variables of its task to all that is typed in it, and
`sbatch` called there hands them to the next job. What stands nearest among a process's ancestors is right.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hvdlm.launch.launchers import MPIRUN_PROGRAMS

Starter = Literal["launcher", "terminal", "batch script", "unknown"]

STEP_DAEMON = "slurmstepd"  # the parent of each task and of each batch script
DAEMONS = ("orted", "prted", "hydra_pmi_proxy", "hydra_bstrap_proxy", STEP_DAEMON)
SHELLS = ("bash", "sh", "zsh", "fish", "tcsh", "csh", "ksh", "dash")
VALUE_FOLLOWS = ("--rcfile", "--init-file", "-o", "-O", "+o", "+O", "--init-command")
NAME_LENGTH = 15  # the kernel keeps so much of a process's name


@dataclass(frozen=True)
class Process:
    """One ancestor, as /proc shows it."""

    name: str
    words: tuple[str, ...]  # its command line
    has_terminal: bool  # its standard input is one

    def is_one_of(self, names: Sequence[str]) -> bool:
        return self.name in {name[:NAME_LENGTH] for name in names}

    @property
    def is_batch_script(self) -> bool:
        return any(word.endswith("/slurm_script") for word in self.words[:3])

    @property
    def is_terminal_shell(self) -> bool:
        """A shell without a script, before which somebody sits."""
        program = Path(self.words[0]).name.lstrip("-") if self.words else ""
        return program in SHELLS and self.has_terminal and not _has_script(self.words[1:])


def _has_script(words: Sequence[str]) -> bool:
    """Whether a shell is given commands on its command line: a file, or a string after -c."""
    is_value = False
    for word in words:
        if is_value:
            is_value = False
        elif word in VALUE_FOLLOWS:
            is_value = True
        elif not word.startswith(("-", "+")) or word == "--command" or (word[1:2] != "-" and "c" in word):
            return True
    return False


def nearest_starter(chain: Sequence[Process]) -> Starter:
    """What started the process whose ancestors these are, its parent first."""
    for process in chain:
        if process.is_one_of((*MPIRUN_PROGRAMS, *DAEMONS)):
            return "launcher"
        if process.is_batch_script:
            return "batch script"
        if process.is_terminal_shell:
            return "terminal"
    return "unknown"


def has_mpirun_as_task(chain: Sequence[Process]) -> bool:
    """Whether an mpirun above is itself a task of srun, so that each task has one of its own."""
    has_mpirun = False
    for process in chain:
        if process.is_batch_script or process.is_terminal_shell:
            return False
        if process.name == STEP_DAEMON:
            return has_mpirun
        has_mpirun = has_mpirun or process.is_one_of(MPIRUN_PROGRAMS)
    return False


@functools.cache
def ancestors() -> tuple[Process, ...]:
    """This process's ancestors, its parent first, as far as they may be seen; none where there is no /proc."""
    found: list[Process] = []
    pid = os.getppid()
    while pid > 1:
        folder = Path("/proc") / str(pid)
        try:
            name, rest = (folder / "stat").read_text(errors="replace").split("(", 1)[1].rsplit(")", 1)
            words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
        except OSError:  # it has ended, or is not ours to see
            break
        found.append(Process(name, tuple(words), _has_terminal(folder)))
        pid = int(rest.split()[1])
    return tuple(found)


def _has_terminal(folder: Path) -> bool:
    try:
        return str((folder / "fd" / "0").readlink()).startswith(("/dev/pts/", "/dev/tty"))
    except OSError:
        return False


def started_by() -> Starter:
    return nearest_starter(ancestors())
