"""Checks of the form of a script and of its #SBATCH lines, as sbatch itself reads them. Pure."""

from __future__ import annotations

import re

from .findings import Findings, error, warning
from .sbatch import OPTIONS, PREFIX, Script
from .values import FORMS, is_odd_time, parse_minutes


def first_line(script: Script) -> Findings:
    """sbatch: "This does not look like a batch script"."""
    if script.text.startswith("\ufeff"):
        message = "the file begins with a byte order mark, so sbatch finds no interpreter in its first line"
        yield error(1, message, "run: sed -i '1s/^\\xef\\xbb\\xbf//' FILE")
    elif not script.shebang:
        yield error(1, "the first line names no interpreter, so sbatch refuses the script", "begin with #!/bin/bash")


def unread_body(script: Script) -> Findings:
    """What Python or csh start is not seen here: that nothing is said of it must not look like praise."""
    if script.language:
        message = f"this is run by {script.language}: only its #SBATCH lines are checked, and nothing below them"
        yield warning(1, message, "start the ranks from a script of bash, if they are to be checked too")


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
    "cpus-per-gpu": "cpus-per-task",
}
# What one of these has to stand beside it, in the header or on sbatch's command line.
_NEEDED = {
    "gpus-per-socket": "sockets-per-node extra-node-info",
    "gpus-per-task": "ntasks nodes ntasks-per-node gpus",
}


def exclusive_options(script: Script) -> Findings:
    """sbatch: "… are mutually exclusive"."""
    for one, others in _EXCLUSIVE_OPTIONS.items():
        for other in others.split():
            if script.has(one) and script.has(other):
                yield error(script.line_of(other), f"sbatch refuses --{one} and --{other} together", "keep one of them")


def needed_options(script: Script) -> Findings:
    """sbatch: "--gpus-per-socket option requires --sockets-per-node specification", and its like."""
    for one, others in _NEEDED.items():
        if script.has(one) and not any(map(script.has, others.split())):
            message = f"sbatch refuses --{one} where nothing says --{others.split()[0]}"
            yield warning(script.line_of(one), message, f"add --{others.split()[0]}=…")


# What is written there is a word to sbatch and nobody's loss.
_LITERAL = ("job-name", "mail-user", "wckey", "export", "bb", "extra")
_PATHS = ("output", "error", "input", "chdir")


def shell_variables(script: Script) -> Findings:
    """sbatch expands %j and its like, but neither $VARIABLES nor ~; a log in such a folder ends the job unseen."""
    for directive in script.directives:
        key, value = directive.key, directive.value or ""
        if key not in OPTIONS or not re.search(r"\$[\w{(]|^~", value) or key in ("comment", "wrap"):
            continue
        patterns = ", use %j, %x or %u" if key in _PATHS else ""
        remedy = f"write it out{patterns}, or give --{key} on sbatch's command line"
        is_harmless = key in _LITERAL or (key in _PATHS and "/" not in value and key != "chdir")
        report = warning if is_harmless else error
        yield report(directive.line, f"--{key}={value}: sbatch expands no variables", remedy)


def values(script: Script) -> Findings:
    """Values that sbatch refuses."""
    for directive in script.directives:
        if directive.key in FORMS and "$" not in (directive.value or ""):
            form, remedy = FORMS[directive.key]
            try:
                form(directive.value or "")
            except ValueError as problem:
                yield error(directive.line, f"--{directive.key}: {problem}", remedy)


def values_taken_otherwise(script: Script) -> Findings:
    """sbatch adds up the parts of --time=1-12:99, and of --nice=1e3 it reads the 1."""
    for directive in script.directives:
        key, value = directive.key, directive.value or ""
        if key in ("time", "time-min") and is_odd_time(value):
            hours, minutes = divmod(int(parse_minutes(value)), 60)
            message = f"--{key}={value} is {hours}:{minutes:02d}:00 to sbatch"
            yield warning(directive.line, message, "write it so, if that is meant")
        elif key in ("nice", "priority") and "$" not in value and (read := _number_of(key, value)) is not None:
            yield warning(directive.line, f"--{key}={value} is {read} to sbatch", "write a whole number in digits")


def _number_of(key: str, value: str) -> int | None:
    """What sbatch makes of a value that is no whole number in digits; None where it takes all of it."""
    found = re.match(r"\s*([+-]?\d+)?", value)
    is_whole = not value or (found and found[1] and found.end() == len(value))
    if is_whole or (key == "priority" and value.lower() == "top"):
        return None
    return int(found[1] or 0) if found else 0


def shortened(script: Script) -> Findings:
    """sbatch takes --tasks for --tasks-per-node, --cores for --cores-per-socket, --threads for --threads-per-core."""
    for directive in script.directives:
        for word, name in re.findall(r"--((tasks|cores|threads)[a-z-]*)", directive.raw):
            full = {"tasks": "tasks-per-node", "cores": "cores-per-socket", "threads": "threads-per-core"}[name]
            if word != full and full.startswith(word) and "-per-" not in word:
                yield warning(directive.line, f"--{word} is --{full} to sbatch", "write the name out")


def minimum_time(script: Script) -> Findings:
    """sbatch: "Invalid time-min specification (exceeds job's time or other limits)"."""
    try:
        least, limit = (parse_minutes(script.get(key) or "") for key in ("time-min", "time"))
    except ValueError:
        return
    if least > limit:
        message = f"--time-min={script.get('time-min')} is more than --time={script.get('time')}"
        yield error(script.line_of("time-min"), message, "write the shorter time as --time-min")


# No-break and other wide spaces, zero-width letters: blanks to a reader, letters to sbatch and the shell.
_FALSE_BLANKS = re.compile("[\u00a0\u1680\u2000-\u200d\u202f\u205f\u2060\u3000\ufeff]")


def false_blanks(script: Script) -> Findings:
    """Copied from a web page: `srun --mpi` with a no-break space is a program's name of eleven letters."""
    remedy = "type the blank anew; to find them: grep -nP '[^\\x00-\\x7F]' FILE"
    message = "what looks like a blank here is another character (a no-break space or its like)"
    for number, line in enumerate(script.text.split("\n"), 1):
        if line.startswith(PREFIX) and _FALSE_BLANKS.search(_outside_quotes(line.partition(" #")[0])):
            yield error(number, message, remedy)
    for command in script.body.commands:
        bare = [_outside_quotes(word) for word in command.words]
        if any(map(_FALSE_BLANKS.search, bare)):
            is_launch = re.search(r"\b(srun|mpi\w+|horovodrun|hvdlm)\b", " ".join(bare)) is not None
            report = error if is_launch or _FALSE_BLANKS.search(bare[0]) else warning
            yield report(command.line, message, remedy)
        if any(re.fullmatch(r"\\[ \t]", word) for word in command.words):
            message = "a blank behind the \\ at the line's end: the command ends there, and the next line is another"
            yield error(command.line, message, "delete the blanks behind it")


def _outside_quotes(text: str) -> str:
    return re.sub(r"\"[^\"]*\"|'[^']*'", "", text)
