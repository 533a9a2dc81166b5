"""What the batch shell of a script runs by itself, without a launcher. Pure."""

from __future__ import annotations

import re

from .launch_lines import LAUNCHERS, RANKED, every_launch, started
from .sbatch import Script
from .shell import ShellCommand

# Builtins, and programs that are over soon.
QUIET = """
    : [ [[ . activate alias cat cd chmod conda cp date declare df dirname do done du echo env eval exit export false fi
    for function getopts grep head hostname if kill let ln local ls lscpu mamba mkdir ml modinfo module mv nvidia-smi
    printenv printf ps pwd read readarray readonly return rm rocm-smi rsync sed select set shift shopt sleep source
    spack squeue sbatch scontrol sstat tail tar tee test then touch tr trap true typeset ulimit umask uname unset
    unzip wait which while
"""
# Files that set up a shell and trap nothing.
_SETUP_FILES = re.compile(r"activate|profile|bashrc|conda|modul|lmod|setvars|init|env", re.IGNORECASE)


def is_setup(command: ShellCommand) -> bool:
    """Whether a file that is sourced only sets up the shell."""
    return _SETUP_FILES.search(" ".join(command.words[1:])) is not None


def own_commands(script: Script) -> list[tuple[ShellCommand, tuple[str, ...]]]:
    """The commands of hvdlm that the batch shell starts by itself, with their words from hvdlm on."""
    every = [each for command in script.body.commands for each in (command, *command.substitutions)]
    commands = [command for command in every if command.name not in LAUNCHERS]
    found = [(command, words) for command in commands for words in started(command.arguments)]
    return [(command, words) for command, words in found if words[0] == "hvdlm"]


def programs(script: Script) -> list[tuple[str, ...]]:
    """The words of whatever may run for long there; `hvdlm launch` is none, it starts steps of its own."""
    found = [words for command in script.body.commands if command.name for words in started(command.arguments)]
    passed = {command.function for command in script.body.commands} | {*QUIET.split(), *LAUNCHERS}
    return [words for words in found if words[0] not in passed and words[:2] != ("hvdlm", "launch")]


def runs_other_scripts(script: Script) -> bool:
    """Which may start steps, or trap, unseen from here."""
    if any(not is_setup(command) for command in script.body.named("source", ".")):
        return True
    launches = any(words[1:2] == ("launch",) for _, words in own_commands(script))
    return launches or any(re.search(r"\.(ba)?sh$|^(ba)?sh$|\$", words[0]) for words in programs(script))


def ranks_in_background(script: Script) -> list[ShellCommand]:
    """Commands in the background that start ranks, by whatever launcher, or train; steps of one task are none."""
    launches = [line.command for line in every_launch(script) if line.program and (line.is_hvdlm or line.tasks != 1)]
    own = [command for command, words in own_commands(script) if words[1:2] and words[1] in (*RANKED, "launch")]
    return [command for command in script.body.commands if command in [*launches, *own] and command.in_background]
