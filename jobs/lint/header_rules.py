"""Checks of the form of a script and of its #SBATCH lines, as sbatch itself reads them. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable

from .findings import Findings, error, warning
from .sbatch import Script, parse_megabytes, parse_minutes, parse_signal


def first_line(script: Script) -> Findings:
    """sbatch: "This does not look like a batch script"."""
    if not script.shebang:
        yield error(1, "the first line names no interpreter, so sbatch refuses the script", "begin with #!/bin/bash")


def line_breaks(script: Script) -> Findings:
    """sbatch: "Batch script contains DOS line breaks"."""
    before, found, _ = script.text.partition("\r\n")
    if found:
        message = "the script has DOS line breaks (\\r\\n), so sbatch refuses it"
        yield error(before.count("\n") + 1, message, "run: sed -i 's/\\r$//' FILE")


def options(script: Script) -> Findings:
    """Unknown and misspelt options, missing values and stray words."""
    yield from script.faults


def unread_directives(script: Script) -> Findings:
    """sbatch passes over #SBATCH after the first command, and over everything that only looks like #SBATCH."""
    for line, text in script.unread:
        if text.startswith("#SBATCH"):
            is_late = any(command.line < line for command in script.body.commands)
            reason = "stands behind the script's first command" if is_late else "does not begin its line"
            yield error(line, f"{text!r} {reason}, so sbatch never reads it", "move it up, to the other #SBATCH lines")
        else:
            remedy = "write #SBATCH, or reword it if it is to be a comment"
            yield warning(line, f"{text!r} is a mere comment to sbatch", remedy)


def repeated(script: Script) -> Findings:
    """The last of several wins, silently."""
    seen: dict[str, tuple[int, str | None]] = {}
    for found in script.directives if script.num_components == 1 else ():
        line, value = seen.get(found.key, (0, found.value))
        if value != found.value:
            message = f"--{found.key}={found.value} overrides {value} of line {line}"
            yield warning(found.line, message, "keep one of them")
        seen[found.key] = found.line, found.value


# sbatch refuses an option together with each of the others (slurm_opt.c, 22.05).
_EXCLUSIVE_OPTIONS = {
    "mem": "mem-per-cpu mem-per-gpu",
    "mem-per-cpu": "mem-per-gpu",
    "core-spec": "thread-spec",
    "ntasks-per-gpu": "gpus-per-task gpus-per-socket ntasks-per-node",
}


def exclusive_options(script: Script) -> Findings:
    """sbatch: "… are mutually exclusive"."""
    for one, others in _EXCLUSIVE_OPTIONS.items():
        for other in others.split():
            if script.has(one) and script.has(other):
                yield error(script.line_of(other), f"sbatch refuses --{one} and --{other} together", "keep one of them")


_NEVER_EXPANDED = ("output", "error", "input", "chdir", "partition", "account", "job-name", "nodes", "ntasks")


def shell_variables(script: Script) -> Findings:
    """sbatch expands %j and its like, but neither $VARIABLES nor ~; the job then dies without any log."""
    for directive in script.directives:
        if directive.key in _NEVER_EXPANDED and re.search(r"\$[\w{(]|^~", directive.value or ""):
            remedy = f"write it out, use %j, %x or %u, or give --{directive.key} on sbatch's command line"
            yield error(directive.line, f"--{directive.key}={directive.value}: sbatch expands no variables", remedy)


def _count(text: str) -> None:
    if not text.isdecimal() or int(text) == 0:
        raise ValueError(f"{text!r} is no number above 0")


def _nodes(text: str) -> None:
    found = re.fullmatch(r"(\d+)[kKmM]?(?:-(\d+)[kKmM]?)?", text)
    if found is None and not re.fullmatch(r"[\d,:-]*\d", text):  # lists of sizes came with 23.11
        raise ValueError(f"{text!r} is no number of nodes")
    if found and found[2] and text[-1].isdecimal() and int(found[2]) < int(found[1]):
        raise ValueError(f"{text!r} ends before it begins")


def _open_mode(text: str) -> None:
    if text[:1] not in ("a", "t"):
        raise ValueError(f"{text!r} is neither append nor truncate")


# options, what reads their values or raises ValueError, and how they are written
_FORMS: tuple[tuple[str, Callable[[str], object], str], ...] = (
    ("time time-min", parse_minutes, "write minutes, hours:minutes:seconds or days-hours:minutes:seconds"),
    ("signal", parse_signal, "write for example B:USR1@120"),
    ("mem mem-per-cpu mem-per-gpu tmp", parse_megabytes, "write a whole number, perhaps with K, M, G or T"),
    ("nodes", _nodes, "write a number, or from-to"),
    ("ntasks ntasks-per-node cpus-per-task", _count, "write a whole number"),
    ("open-mode", _open_mode, "write append or truncate"),
)


def values(script: Script) -> Findings:
    """Values that sbatch refuses."""
    forms = {key: (form, remedy) for keys, form, remedy in _FORMS for key in keys.split()}
    for directive in script.directives:
        if directive.key in forms and "$" not in (directive.value or ""):
            form, remedy = forms[directive.key]
            try:
                form(directive.value or "")
            except ValueError as problem:
                yield error(directive.line, f"--{directive.key}: {problem}", remedy)
