"""The traps of a script: which there are, and what they run. Pure."""

from __future__ import annotations

import re

from .sbatch import Script
from .shell import ShellCommand, read_body, unquote
from .sizes import signal_of
from .values import SIGNALS


def traps_of(script: Script, name: str) -> list[ShellCommand]:
    """The `trap` commands that catch this signal."""
    wanted = {name, f"SIG{name}", str(SIGNALS.get(name, name))}
    found = script.body.named("trap")
    return [trap for trap in found if wanted & {unquote(word).upper() for word in trap.words[2:]}]


def traps_of_batch_shell(script: Script) -> list[ShellCommand]:
    """Those of the signal that B: sends to the batch shell alone."""
    signal = signal_of(script)
    return traps_of(script, signal.name) if signal and signal.to_batch_shell else []


def handler_text(script: Script, traps: list[ShellCommand]) -> str:
    """What the traps run: their own text and the functions they name."""
    texts = [unquote(trap.words[1]) for trap in traps]
    called = set(re.findall(r"[\w-]+", " ".join(texts)))
    texts += [" ".join(command.words) for command in script.body.commands if command.function in called]
    return "\n".join(texts)


def handler_commands(script: Script, traps: list[ShellCommand]) -> list[ShellCommand]:
    """The commands that the traps run, those of the functions they name in the place of their call."""
    found = []
    for trap in traps:
        for command in read_body(unquote(trap.words[1]), trap.line).commands:
            inside = [each for each in script.body.commands if each.function and each.function == command.name]
            found += inside or [command]
    return found
