"""Checks of traps: that they are set in time, run in time, and reach the ranks. Pure."""

from __future__ import annotations

import re

from hvdlm.launch.launchers import MPIRUN_PROGRAMS

from .findings import Findings, error, warning
from .launch_lines import RANKED, every_launch, launch_lines
from .programs import QUIET, own_commands, runs_other_scripts
from .sbatch import Script
from .shell import expanded_names, unquote
from .sizes import signal_of
from .traps import handler_commands, handler_text, traps_of, traps_of_batch_shell
from .values import SIGNALS


def trap_is_set_in_time(script: Script) -> Findings:
    """A trap behind the last `wait` is set when all is over; `trap ''` hears nothing, and nor do the ranks then."""
    traps, waits = traps_of_batch_shell(script), script.body.named("wait")
    if not traps:
        return
    if waits and all(trap.line > waits[-1].line and not trap.function for trap in traps):
        yield error(traps[0].line, "this trap is set when the last wait is over", "set it before the launcher starts")
    if all(unquote(trap.words[1]) in ("", "-") for trap in traps if len(trap.words) > 2):
        yield error(traps[0].line, "this trap does nothing at the signal", "let it tell the ranks to stop")


def _assigned_at(script: Script, name: str) -> list[int]:
    """Lines where a variable gets its value."""
    pattern = re.compile(rf"\b{name}\+?=")
    found = [command.line for command in script.body.commands if any(map(pattern.match, command.words))]
    readers = ("for", "read", "mapfile", "readarray", "local", "declare")
    return found + [each.line for each in script.body.named(*readers) if name in each.words[1:]]


def trap_expanded_early(script: Script) -> Findings:
    """In double quotes the variables of a trap are expanded when it is set, not when the signal comes."""
    signal = signal_of(script)
    ours = traps_of(script, signal.name) if signal else []
    backgrounds = [command.line for command in script.body.commands if command.in_background]
    for trap in script.body.named("trap"):
        text = trap.words[1] if len(trap.words) > 2 else ""
        unset = [
            name for name in expanded_names(text) if (lines := _assigned_at(script, name)) and min(lines) > trap.line
        ]
        if "$!" in text and text.startswith('"') and not any(line < trap.line for line in backgrounds):
            unset.append("!")
        if unset:
            message = f"${min(unset)} is expanded here, where it is not set yet; at the signal nothing is left of it"
            yield (error if trap in ours else warning)(trap.line, message, "put the trap's command in single quotes")


def trap_reaches_somebody(script: Script) -> Findings:
    """A handler that is not there, or whose kill has no number or the batch shell's own."""
    traps = traps_of_batch_shell(script)
    functions = {command.function for command in script.body.commands}
    if not traps or runs_other_scripts(script):
        return
    for trap in traps:
        text = unquote(trap.words[1])
        if re.fullmatch(r"[A-Za-z_]\w*", text) and text not in functions | set(QUIET.split()):
            yield error(trap.line, f"there is no function {text} in this script", f"define {text}() before it")
    handler = handler_text(script, traps)
    if re.search("STOP|scancel", handler):
        return
    for target in re.findall(r"\bkill\b((?:\s+-\w+)*)\s+(?:--\s+)?\"?(\$\{?\w+|\$\$)", handler):
        name = target[1].strip("${")
        lines = _assigned_at(script, name) if name.isidentifier() else []
        values = [command.assignments.get(name, "") for command in script.body.commands]
        is_own = target[1] == "$$" or name == "BASHPID" or (lines and all(v in ("", "$$") for v in values))
        if is_own:
            yield error(traps[0].line, "kill sends the signal to this shell itself, and to no rank", 'kill "$launcher"')
        elif name.isidentifier() and not lines and name not in ("PPID",):
            yield error(traps[0].line, f"nothing in this script sets {name}, which kill needs", f"write {name}=$!")


# Signals that end mpirun itself, and its ranks with it; others it passes on. kill sends TERM unless told otherwise.
_ENDS_MPIRUN = {"TERM", "INT", "QUIT", "HUP", "KILL"}
_MPIRUN_NAME = re.compile(rf"\b({'|'.join(MPIRUN_PROGRAMS)})\b")


def _signal_of_kill(words: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
    """What a kill, pkill or killall sends, and to whom."""
    name, rest = "TERM", list(words[1:])
    while rest and rest[0].startswith("-") and rest[0] != "--" and len(rest) > 1:
        option = rest.pop(0)
        named = option.removeprefix("--signal").lstrip("=")
        if option in ("-s", "-n", "--signal"):
            name = rest.pop(0)
        elif re.fullmatch(r"-(SIG)?[A-Za-z]{3,}\d?|-\d+|=.+", named):
            name = named.lstrip("-=")
    numbers = {str(number): each for each, number in SIGNALS.items()}
    return numbers.get(name, unquote(name).upper().removeprefix("SIG")), tuple(rest)


def _pids_of_mpirun(script: Script) -> set[str]:
    """The words that stand for an mpirun in the background: `$pid` behind `mpirun … & pid=$!`, `$!` and `%1`."""
    ids = {id(line.command) for line in every_launch(script) if line.is_mpirun}
    names, last = set(), False
    for command in script.body.commands:
        if command.in_background:
            last = id(command) in ids
        names |= {name for name, value in command.assignments.items() if last and unquote(value) == "$!"}
    found = {text for name in names for text in (f"${name}", f"${{{name}}}")}
    return found | ({"$!"} if last else set()) | ({"%1", "%%", "%+"} if len(ids) == 1 and names | found else set())


def trap_lets_ranks_save(script: Script) -> Findings:
    """TERM ends mpirun: Open MPI's daemons end the ranks before they have saved."""
    signal = signal_of(script)
    traps = traps_of(script, signal.name) if signal else []
    targets = _pids_of_mpirun(script)
    for command in handler_commands(script, traps):
        if command.name in ("sleep", "wait", "timeout", "while", "until"):  # there was time to save
            return
        if command.name not in ("kill", "pkill", "killall"):
            continue
        name, rest = _signal_of_kill(tuple(map(unquote, command.arguments)))
        is_mpirun = any(word in targets or _MPIRUN_NAME.search(word) for word in rest)
        if name in _ENDS_MPIRUN and is_mpirun:
            message = f"{name} ends mpirun, whose daemons end the ranks before they have saved"
            yield warning(traps[0].line, message, "let it touch RUN/STOP instead: ranks of every launcher see a file")
            return


def trap_can_run(script: Script) -> Findings:
    """S3: bash runs a trap only when the command in the foreground has ended."""
    traps = traps_of_batch_shell(script)
    if not traps:
        return
    launches = launch_lines(script)
    commands = script.body.commands
    if (
        not launches
        and not own_commands(script)
        and not any(command.in_background or command.in_loop for command in commands)
    ):
        message = "nothing runs in the background, so this trap waits until the running command has ended"
        yield warning(traps[0].line, message, 'end the long command with &, then: wait "$!"')
    for launch in launches:
        if not launch.command.in_background:
            message = f"{launch.launcher} runs in the foreground, so the trap waits until it has ended"
            yield error(launch.line, message, 'end the line with &, then: launcher=$!; wait "$launcher"')
    for command, words in own_commands(script):
        if not command.in_background and words[1:2] and words[1] in (*RANKED, "launch"):
            message = f"hvdlm {words[1]} runs in the foreground, so the trap waits until it has ended"
            yield error(command.line, message, 'end the line with &, then: launcher=$!; wait "$launcher"')
