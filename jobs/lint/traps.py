"""The traps of a script: which there are, and what they run. Pure."""

from __future__ import annotations

import re

from .sbatch import Script
from .shell import ShellCommand, unquote
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
