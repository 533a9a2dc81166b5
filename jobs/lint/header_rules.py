"""Checks of the form of a script and of its #SBATCH lines, as sbatch itself reads them. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from .findings import Facts, Finding, error, warning
from .sbatch import Script, parse_megabytes, parse_minutes, parse_signal

# sbatch refuses these together (slurm_opt.c, 22.05).
_EXCLUSIVE_OPTIONS = (
    ("mem", "mem-per-cpu"), ("mem", "mem-per-gpu"), ("mem-per-cpu", "mem-per-gpu"), ("core-spec", "thread-spec"),
    ("ntasks-per-gpu", "gpus-per-task"), ("ntasks-per-gpu", "gpus-per-socket"), ("ntasks-per-gpu", "ntasks-per-node"),
)  # fmt: skip

_NEVER_EXPANDED = ("output", "error", "input", "chdir", "partition", "account", "job-name", "nodes", "ntasks")


def first_line(script: Script, facts: Facts) -> Iterator[Finding]:
    """sbatch: "This does not look like a batch script"."""
    if not script.shebang:
        yield error(1, "the first line names no interpreter, so sbatch refuses the script", "begin with #!/bin/bash")


def line_breaks(script: Script, facts: Facts) -> Iterator[Finding]:
    """sbatch: "Batch script contains DOS line breaks"."""
    if "\r\n" in script.text:
        line = script.text[: script.text.index("\r\n")].count("\n") + 1
        yield error(
            line, "the script has DOS line breaks (\\r\\n), so sbatch refuses it", "run: sed -i 's/\\r$//' FILE"
        )


def options(script: Script, facts: Facts) -> Iterator[Finding]:
    """Unknown and misspelt options, missing values and stray words."""
    for fault in script.faults:
        yield error(fault.line, fault.message, fault.remedy)


def unread_directives(script: Script, facts: Facts) -> Iterator[Finding]:
    """sbatch passes over #SBATCH after the first command, and over everything that only looks like #SBATCH."""
    for line, text in script.unread:
        if text.startswith("#SBATCH"):
            is_late = any(command.line < line for command in script.body.commands)
            reason = "stands behind the script's first command" if is_late else "does not begin its line"
            yield error(line, f"{text!r} {reason}, so sbatch never reads it", "move it up, to the other #SBATCH lines")
        else:
            yield warning(
                line, f"{text!r} is a mere comment to sbatch", "write #SBATCH, or reword it if it is to be a comment"
            )


def repeated(script: Script, facts: Facts) -> Iterator[Finding]:
    """The last of several wins, silently."""
    seen: dict[str, tuple[int, str | None]] = {}
    for directive in script.directives if script.num_components == 1 else ():
        line, value = seen.get(directive.key, (0, directive.value))
        if value != directive.value:
            yield warning(
                directive.line,
                f"--{directive.key}={directive.value} overrides {value} of line {line}",
                "keep one of them",
            )
        seen[directive.key] = directive.line, directive.value


def exclusive_options(script: Script, facts: Facts) -> Iterator[Finding]:
    """sbatch: "… are mutually exclusive"."""
    for one, other in _EXCLUSIVE_OPTIONS:
        if script.has(one) and script.has(other):
            yield error(script.line_of(other), f"sbatch refuses --{one} and --{other} together", "keep one of them")


def shell_variables(script: Script, facts: Facts) -> Iterator[Finding]:
    """sbatch expands %j and its like, but neither $VARIABLES nor ~; the job then dies without any log."""
    for directive in script.directives:
        if directive.key in _NEVER_EXPANDED and re.search(r"\$[\w{(]|^~", directive.value or ""):
            remedy = f"write it out, use %j, %x or %u, or give --{directive.key} on sbatch's command line"
            yield error(directive.line, f"--{directive.key}={directive.value}: sbatch expands no variables", remedy)


def values(script: Script, facts: Facts) -> Iterator[Finding]:
    """Values that sbatch refuses."""
    forms: dict[str, Callable[[str], object]] = {
        "time": parse_minutes, "time-min": parse_minutes, "signal": parse_signal, "mem": parse_megabytes,
        "mem-per-cpu": parse_megabytes, "mem-per-gpu": parse_megabytes, "tmp": parse_megabytes, "nodes": _nodes,
        "ntasks": _count, "ntasks-per-node": _count, "cpus-per-task": _count, "open-mode": _open_mode,
    }  # fmt: skip
    remedies = {
        "time": "write minutes, hours:minutes:seconds or days-hours:minutes:seconds",
        "signal": "write for example B:USR1@120",
        "open-mode": "write append or truncate",
        "nodes": "write a number, or from-to",
    }
    for directive in script.directives:
        form = forms.get(directive.key)
        if form is None or "$" in (directive.value or ""):
            continue
        try:
            form(directive.value or "")
        except ValueError as problem:
            remedy = remedies.get(
                directive.key, "write a whole number" + ", perhaps with K, M, G or T" * (form is parse_megabytes)
            )
            yield error(directive.line, f"--{directive.key}: {problem}", remedy)


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


HEADER_RULES = (
    first_line, line_breaks, options, unread_directives, repeated, exclusive_options, shell_variables, values,
)  # fmt: skip
