"""Checks of hvdlm's own commands and options by their names, and of launchers that start ranks by themselves. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from .findings import Commands, Findings, warning
from .launch_lines import LaunchLine, every_launch, started
from .names import nearest
from .programs import own_commands
from .sbatch import Script
from .shell import ShellCommand, base_name, behind_wrappers, inner_text, read_body, unquote
from .sizes import num_nodes, tasks_asked

# What the shell makes another word of, or several: never judged.
_EXPANDED = re.compile(r"[$`*?{\[]")


def misspelt_commands(script: Script) -> Findings:
    """`srun … hvdlm trian` ends at once, after the wait in the queue."""
    if not script.facts.commands:
        return
    for command, words, is_sure in _calls_of_hvdlm(script):
        for path, message, meant in _complaints(words[1:], script.facts.commands):
            if meant or is_sure:
                remedy = f"did you mean {meant}?" if meant else f"see {path} --help"
                yield warning(command.line, f"{path} has no {message}", remedy)


def _calls_of_hvdlm(script: Script) -> Iterator[tuple[ShellCommand, tuple[str, ...], bool]]:
    """The words from hvdlm on, and whether it is surely called: not `conda create -n hvdlm python`, an environment."""
    for command, words in own_commands(script):
        yield command, words, command.name == "hvdlm"
    for line in every_launch(script):
        for words in started(line.program):
            if words[0] == "hvdlm":
                yield line.command, words, base_name(line.program[0]) == "hvdlm"


_Complaint = tuple[str, str, str | None]  # which command; what it has not; the nearest that it has


def _complaints(words: tuple[str, ...], commands: Commands) -> Iterator[_Complaint]:
    """What hvdlm would refuse of the words behind its name."""
    path: tuple[str, ...] = ()
    while names := {key[-1] for key in commands if key[:-1] == path}:
        if not words or not words[0][:1].isalpha() or _EXPANDED.search(words[0]):
            return
        if words[0] not in names:
            yield " ".join(("hvdlm", *path)), f"command {words[0]}", nearest(words[0], names)
            return
        path, words = (*path, words[0]), words[1:]
    options, command = _split(words, commands[path], ends_at_a_word=path == ("launch",))
    for name in options:
        if not _EXPANDED.search(name) and (name.startswith("--") or path == ("launch",)):
            yield " ".join(("hvdlm", *path)), f"option {name}", nearest(name, commands[path])
    if path == ("launch",):
        named = [at for at, word in enumerate(command[:3]) if base_name(word) == "hvdlm"]  # also python -m hvdlm
        yield from _complaints(command[named[0] + 1 if named else 0 :], commands)


def _split(
    words: tuple[str, ...], known: Mapping[str, bool], ends_at_a_word: bool
) -> tuple[list[str], tuple[str, ...]]:
    """The options that are not known, and what stands behind the options: all of a command that is to be launched."""
    unknown: list[str] = []
    at = 0
    while at < len(words) and words[at] != "--":
        name, is_given, _ = words[at].partition("=")
        if not name.startswith("-") and ends_at_a_word:
            return unknown, words[at:]
        is_known = name in known or (ends_at_a_word and re.fullmatch(r"-n\d+", name))
        if name.startswith("-") and not is_known:
            unknown.append(name)
            if ends_at_a_word:  # whether a word of its own follows is not known
                at = words.index("--") if "--" in words else len(words)
                break
        at += 2 if known.get(name) and not is_given else 1
    return unknown, words[at + 1 :]


# Launchers that start a process for each GPU of their node, and know nothing of the tasks of SLURM.
_OF_A_NODE = ("torchrun", "deepspeed", "colossalai")
_MODULES = ("torch.distributed.run", "torch.distributed.launch", "accelerate.commands.launch", "deepspeed")
_PROCESSES = re.compile(r"--?(?:nproc[-_]per[-_]node|num[-_]gpus|num[-_]processes)[= ](\d+)")
_NODES_ARE_TASKS = re.compile(r"--?nnodes[= ]\S*(TASKS|NPROCS)")  # each task is a node to it


def launcher_of_a_node(script: Script) -> Findings:
    """`srun torchrun --nproc_per_node=4` with four tasks a node starts 16 processes there, on the same ports."""
    for line in every_launch(script):
        found = next(filter(None, map(_launcher_of_node, _programs_of(line.program))), None)
        tasks, where = _tasks_a_node(script, line)
        if found is None or tasks is None or tasks <= 1:
            continue
        name, words = found[0], " ".join(found[1])
        if _NODES_ARE_TASKS.search(words):
            continue
        each = _PROCESSES.search(words)
        many = f"{each[1]} processes" if each else "processes of its own"
        message = (
            f"{line.launcher} starts {name} {tasks} times {where}, and each starts {many}: a launcher in a launcher"
        )
        yield warning(line.line, message, f"write --ntasks-per-node=1, or start the program without {name}")


def _programs_of(words: tuple[str, ...]) -> list[tuple[str, ...]]:
    """The commands that a launcher starts, behind wrappers and `bash -c`; those behind containers as they stand."""
    words = tuple(map(unquote, behind_wrappers(words)))
    text = inner_text(words)
    if text is None:
        return [words]
    return [each for command in read_body(text).commands for each in _programs_of(command.words)]


def _launcher_of_node(words: tuple[str, ...]) -> tuple[str, tuple[str, ...]] | None:
    """The launcher's name and its words: `torchrun`, `accelerate launch`, `python -m torch.distributed.run`, also in
    a container; None for others, such as a program with an option --backend=deepspeed."""
    is_carried = bool(words) and re.search(
        r"apptainer|singularity|shifter|podman|uv$|conda|mamba|pixi|poetry", words[0]
    )
    for at, word in enumerate(words):
        if base_name(word) in _OF_A_NODE or (base_name(word) == "accelerate" and words[at + 1 : at + 2] == ("launch",)):
            return base_name(word), words[at + 1 :]
        if re.match(r"python[\d.]*$", base_name(word)):
            rest = words[at + 1 :]
            module = rest.index("-m") + 1 if "-m" in rest[:4] else len(rest)
            return (
                (rest[module], rest[module + 1 :]) if rest[module : module + 1] and rest[module] in _MODULES else None
            )
        if not is_carried:
            return None
    return None


def _tasks_a_node(script: Script, line: LaunchLine) -> tuple[int | None, str]:
    """How many of a launch line start on each node, or in all where the nodes are not told; None where neither is."""
    nodes = line.number("nodes") or num_nodes(script)
    told = line.number("ntasks-per-node") or line.number("npernode") or line.number("ppn")
    if told or ("ntasks" in line.options and line.tasks is None):
        return told, "a node"
    tasks = line.tasks or tasks_asked(script)
    if line.tasks is None and script.has("ntasks-per-node"):
        return script.number("ntasks-per-node"), "a node"
    return (-(-tasks // nodes) if tasks and nodes else tasks), "a node" if nodes else "in all"
