"""Checks of variables: misspelt, not set for such a job, expanded too early, kept from the ranks. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator

from .findings import Findings, error, warning
from .known_variables import MEANT, READ, SET, SET_WITH
from .launch_lines import LaunchLine, every_launch, launch_lines
from .names import nearest
from .sbatch import Script
from .shell import expanded_names, unquote
from .sizes import num_nodes, tasks_asked

# $NAME and ${NAME}, also ${NAME%…} and its like; those with a default (${NAME:-1}) may be empty on purpose.
_USED = re.compile(r"(?<!\\)\$(?:\{[#!]?)?([A-Za-z_]\w*)(?!\w*:?[-+=?])")
_HET = re.compile(r"_(HET|PACK)_GROUP_\d+$")
_FAMILY = re.compile(  # the letters of a name in any order
    r"(S[LURM]{3,5}D?|SRUN|S?BATCH|OMP|H[OROVD]{5,7}|N[CL]{2,4}|H[VDLM]{3,5}|C[UDA]{3}|NVIDIA|ROCR|HIP|HDF5|MKL|OPENBLAS"
    r"|KMP)_?[A-Z]",
    re.IGNORECASE,
)


def _texts(script: Script) -> Iterator[tuple[int, str]]:
    """What may hold variables: words, targets of redirections and here-documents; no comments."""
    for command in script.body.commands:
        yield from ((command.line, word) for word in (*command.words, *command.targets))
    yield from script.body.documents


def _own_names(script: Script) -> set[str]:
    """What the script sets by itself: assignments, `for`, `read`, `local` and arithmetic."""
    names = set(re.findall(r"\b([A-Za-z_]\w*)\+?=", script.body.text))
    for command in script.body.commands:
        if command.name in ("for", "read", "local", "declare", "mapfile", "readarray", "getopts", "select", "printf"):
            names |= {unquote(word) for word in command.words[1:]}
    return names


def misspelt_variables(script: Script) -> Findings:
    """A misspelt variable is empty: `srun -n $SLRUM_NTASKS hvdlm` takes `hvdlm` for the number."""
    own, told = _own_names(script), set[str]()
    for line, text in _texts(script):
        for name in _USED.findall(text):
            if not _FAMILY.match(name) or name in own | SET | READ | told or _HET.search(name):
                continue
            told.add(name)
            known, upper = SET | READ, name.upper()
            meant = upper if upper in known else MEANT.get(upper) or nearest(upper, known, long=12)
            if meant:
                yield warning(line, f"nothing sets {name}, so it is empty", f"did you mean {meant}?")


def misspelt_settings(script: Script) -> Findings:
    """A misspelt setting is read by nobody: srun knows SRUN_CPUS_PER_TASK, and no SRUN_CPU_PER_TASK."""
    used = {name for _, text in _texts(script) for name in _USED.findall(text)}
    for command in script.body.commands:
        settings = command.assignments if command.words[:1] == ("export",) or command.arguments else {}
        for name in settings:
            if _FAMILY.match(name) and name not in READ | SET | used and (meant := nearest(name, READ, long=12)):
                yield warning(command.line, f"nothing reads {name}", f"did you mean {meant}?")


def variables_of_header(script: Script) -> Findings:
    """SLURM sets SLURM_CPUS_PER_TASK only where --cpus-per-task is given, SLURM_NTASKS only where tasks are, …"""
    own, told = _own_names(script), set[str]()
    for line, text in _texts(script) if script.directives else ():
        for name in _USED.findall(text):
            keys = SET_WITH.get(name)
            if keys is None or name in own | told or any(map(script.has, keys)):
                continue
            told.add(name)
            remedy = f"add #SBATCH --{keys[0]}=…, or write ${{{name}:-1}}"
            yield warning(line, f"SLURM sets {name} only with --{keys[0]}", remedy)


_OF_A_TASK = {"SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID"}
# A name there is a node's own: that it is the same for all harms nobody.
_LOCAL_FOLDER = re.compile(r"[\"']?(/tmp|/dev/shm|/var/tmp|/local|/scratch/local|\$\{?(TMPDIR|TMP|SLURM_TMPDIR)\b)")


def early_expansion(script: Script) -> Findings:
    """S11: the batch shell expands a rank's variable, so that all ranks get the batch shell's own."""
    starts = {id(line.command): line for line in every_launch(script) if line.program and line.tasks != 1}
    last = max((line.line for line in starts.values()), default=0)
    for command in script.body.commands:
        is_launch = id(command) in starts
        words = [*command.words, *command.targets] if is_launch else _exported(command.words)
        for word in words if command.line <= last else ():
            value = word.partition("=")[2] or word
            found = {name for name in expanded_names(word) & _OF_A_TASK if not _is_right(script, name)}
            if not found or _LOCAL_FOLDER.match(value):
                continue
            name = min(found)
            # with a rendezvous torchrun does not look at it
            is_unread = name == "SLURM_NODEID" and re.search(r"rdzv[_-]backend", " ".join(words))
            is_whole = re.fullmatch(r"[\"']?\$(\{\w+\}|\w+|\(\(.*\)\))[\"']?", value)
            matters = (is_launch or is_whole) and not is_unread
            remedy = f"let each task do it: srun … bash -c '… ${name} …', in single quotes"
            report = error if matters else warning
            yield report(command.line, f"${name} is expanded once, by the batch shell, where it is 0", remedy)


def _is_right(script: Script, name: str) -> bool:
    """0 is the number of the only node, and of the only task."""
    return tasks_asked(script) == 1 or (name == "SLURM_NODEID" and num_nodes(script) == 1)


def _exported(words: tuple[str, ...]) -> list[str]:
    return [word for word in words if "=" in word] if words[:1] == ("export",) else []


def environment_of_ranks(script: Script) -> Findings:
    """--export=NONE or NAME=… goes on to srun by SLURM_EXPORT_ENV: the ranks then see nothing that the script set."""
    ranks = launch_lines(script)
    for line in every_launch(script):
        if line.launcher != "srun" or not (line.is_hvdlm or line in ranks):
            continue
        source, value = _export_of(script, line)
        names = [part.partition("=")[0] for part in value.split(",")]
        if "ALL" in names or not value:
            continue
        where = {"": "", "env -i": " (env -i)", "header": " (of the header)"}.get(source, f" ({source})")
        message = f"--export={value}{where}: srun hands the ranks nothing else that this script has set"
        more = f",{value}" if "=" in value else ""
        remedies = {"": f"write --export=ALL{more}", "env -i": "leave env -i out"}
        variable = "SRUN_EXPORT_ENV" if source == "SRUN_EXPORT_ENV" else "SLURM_EXPORT_ENV"
        remedy = remedies.get(source, f"export {variable}=ALL before srun")
        is_lost = line.is_hvdlm and line.program[0] == "hvdlm" and "PATH" not in names
        yield (error if is_lost else warning)(line.line, message, remedy)


def _export_of(script: Script, line: LaunchLine) -> tuple[str, str]:
    """Where it is said, and what; "" for all. The step's own word counts first, then the variables, then the header."""
    words = [unquote(word) for word in line.command.words]
    if "export" in line.options:
        return "", line.options["export"]
    if words[:2] == ["env", "-i"]:
        return "env -i", "NONE"
    if any(re.fullmatch(r"(-u|--unset=?)?SLURM_EXPORT_ENV", word) for word in words):
        return "", ""
    here = {name: value for word in words if (name := word.partition("=")[0]) and (value := word.partition("=")[2])}
    for name in ("SRUN_EXPORT_ENV", "SLURM_EXPORT_ENV"):
        for settings in (here, _settings_before(script, line.line)):
            if name in settings:
                return name, unquote(settings[name])
    header = script.get("export") or ""
    return ("header", header) if header.upper() not in ("", "ALL") else ("", "")


def _settings_before(script: Script, line: int) -> dict[str, str]:
    """What is exported there; "" for what was unset."""
    found: dict[str, str] = {}
    for command in script.body.commands:
        if command.line <= line and command.name in ("", "export", "declare", "typeset"):
            found |= command.assignments
        if command.line <= line and command.name == "unset":
            found |= dict.fromkeys(map(unquote, command.words[1:]), "")
    return found
