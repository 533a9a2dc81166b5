"""Checks of the lines that start ranks: numbers, binding, environment, hosts. Pure."""

from __future__ import annotations

import re
from itertools import pairwise

from hvdlm.tables import counted

from .findings import Findings, error, warning
from .launch_lines import LAUNCHERS, RANKED, LaunchLine, every_launch, launch_lines, started
from .programs import own_commands
from .sbatch import Script
from .shell import base_name, unquote
from .sizes import cores_of_step as _width
from .sizes import cores_per_rank, has_whole_nodes, num_nodes, num_tasks, tasks_asked, threads_set


def _steps(script: Script, *, unless_set: str) -> list[LaunchLine]:
    """What srun starts, unless the script sets this variable, which then holds for all of them."""
    lines = [] if unless_set in script.body.exports else launch_lines(script)
    return [line for line in lines if line.launcher == "srun"]


def tasks_of_launch(script: Script) -> Findings:
    """S1, S11: the launch line starts another number of ranks than the header asks for."""
    tasks, lines = tasks_asked(script), launch_lines(script)
    if tasks is None or "SLURM_NTASKS" in script.body.exports:
        return
    for line in lines:
        if line.tasks is None or line.tasks == tasks:
            continue
        message = f"{line.launcher} starts {counted(line.tasks, 'rank')}, the job has {counted(tasks, 'task')}"
        option = "-n" if line.launcher == "srun" else "-np"
        remedy = f'write {option} "$SLURM_NTASKS", and the number in the header alone'
        if _is_refused(script, line, tasks):
            yield error(line.line, message, remedy)
        elif line.tasks > tasks or (len(lines) == 1 and not line.command.in_loop):
            yield warning(line.line, message, remedy)


def _is_refused(script: Script, line: LaunchLine, tasks: int) -> bool:
    """By srun, which has not so many cores; by Open MPI, which has not so many slots; or by hvdlm itself."""
    wanted, job_cores = line.tasks or 0, tasks * (script.number("cpus-per-task") or 1)
    if line.launcher == "srun":  # a step has a count of its own
        lifts = has_whole_nodes(script) or {"overcommit", "O"} & line.options.keys()
        return wanted > tasks and not lifts and wanted * (_width(script, line) or 0) > job_cores
    if line.is_hvdlm:
        return any(word in RANKED for word in line.words)
    is_oversubscribed = re.search("oversubscribe", " ".join([*line.options, *line.options.values()]), re.IGNORECASE)
    return wanted > tasks and _is_open_mpi(script, line) and not is_oversubscribed


def tasks_of_whole_nodes(script: Script) -> Findings:
    """A header of nodes alone gives one core of each, unless --exclusive or the partition gives whole nodes."""
    nodes, says_tasks = num_nodes(script), any(map(script.has, ("ntasks", "ntasks-per-node", "ntasks-per-gpu")))
    if not script.has("nodes") or nodes is None or says_tasks or has_whole_nodes(script):
        return
    for line in launch_lines(script):
        if line.tasks is not None and line.tasks > nodes:
            message = f"{line.launcher} starts {line.tasks} ranks, and the header asks for no tasks or whole nodes"
            remedy = f"add --ntasks={line.tasks}, or --exclusive where the partition does not give whole nodes anyway"
            yield warning(line.line, message, remedy)


def ranks_without_launcher(script: Script) -> Findings:
    """One process in a job of many tasks: hvdlm refuses to do alone what the others are there for."""
    tasks = tasks_asked(script)
    for command, words in own_commands(script):
        if words[1:2] == ("launch",):
            counts = [number for option, number in pairwise(words) if option in ("-np", "-n", "--ranks")]
            if tasks and counts and counts[0].isdecimal() and int(counts[0]) > tasks:
                message = f"hvdlm launch starts {counts[0]} ranks, the job has {counted(tasks, 'task')}"
                yield error(command.line, message, f"ask for --ntasks={counts[0]} in the header, or leave -np out")
        elif "SLURM_NTASKS" in {**script.body.exports, **command.assignments} or "world=serial" in words:
            continue
        elif tasks and tasks > 1 and words[1:2] and words[1] in RANKED:
            message = f"hvdlm {words[1]} runs as one process in a job of {tasks} tasks, and refuses that"
            yield error(
                command.line, message, f"write: hvdlm launch -- {words[1]} …, or srun --mpi=pmix hvdlm {words[1]} …"
            )


def launcher_without_program(script: Script) -> Findings:
    """srun: "No command given to execute": a comment or an empty line within a command that goes on by `\\` ends it."""
    asks = {"help", "h", "usage", "version", "V", "mpi", "app", "f", "hostfile", "configfile"}
    for line in every_launch(script):
        is_question = asks & line.options.keys() and line.options.get("mpi", "list") == "list"
        if not line.program and not is_question and len(line.command.arguments) > 1:
            message = f"{line.launcher} has no program: a comment or an empty line ends a command that goes on by \\"
            yield error(line.line, message, "put the comment above the command")


def typographic_dash(script: Script) -> Findings:
    """`srun –n 4 hvdlm`: srun takes `–n`, with the dash of a word processor, for the program."""
    for line in every_launch(script):
        if line.program and line.program[0][0] in "\u2013\u2014\u2212":  # en dash, em dash, minus
            message = f"{line.program[0]!r} begins with no ASCII hyphen, so {line.launcher} takes it for the program"
            yield error(line.line, message, "type the hyphen anew")


def launcher_in_launcher(script: Script) -> Findings:
    """`srun mpirun …` hangs (Open MPI 4.1 in SLURM 22.05) or starts N x N ranks."""
    outer = [(line.command, line, words) for line in every_launch(script) for words in started(line.program)]
    for command, line, words in outer:
        inner = "hvdlm launch" if words[:2] == ("hvdlm", "launch") else words[0]
        if inner not in LAUNCHERS and inner != "hvdlm launch":
            continue
        message = f"{line.launcher} starts {inner}, a launcher in a launcher: it hangs or starts ranks many times over"
        is_one = line.tasks == 1 and inner not in ("srun", "hvdlm launch", "horovodrun")
        yield (warning if is_one else error)(command.line, message, f"leave {line.launcher} out, or {inner}")
    for command, words in own_commands(script):
        program = words[words.index("--") + 1 :] if "--" in words else words[2:]
        if words[1:2] == ("launch",) and program and base_name(program[0]) in LAUNCHERS:
            message = f"hvdlm launch starts {program[0]}, a launcher in a launcher"
            yield error(command.line, message, "write: hvdlm launch -- train …")


def cores_of_job(script: Script) -> Findings:
    """S7: since 22.05 srun does not take cpus-per-task from the job, and gives each rank one core."""
    if not script.has("cpus-per-task") or cores_per_rank(script) == 1:
        return
    for line in _steps(script, unless_set="SRUN_CPUS_PER_TASK"):
        places_itself = line.options.get("cpu-bind", "").partition(":")[0] in ("mask_cpu", "map_cpu")
        if "cpus-per-task" not in line.options and not places_itself:
            remedy = "export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK before it"
            yield warning(line.line, "srun does not take --cpus-per-task from the job (since 22.05)", remedy)


def one_core_a_rank(script: Script) -> Findings:
    """H34: all threads of a rank bound to one core."""
    threads = max(script.facts.threads or 1, threads_set(script) or 1, cores_per_rank(script) or 1)
    if threads == 1:
        return
    for line in launch_lines(script):
        per_core = line.options.get("bind-to", "").partition(":")[0] in ("core", "hwthread")
        several = re.search(r"pe=\d|pe=\$", line.options.get("map-by", ""), re.IGNORECASE)
        if per_core and not several:
            remedy = "write --bind-to none, or --map-by slot:PE=$SLURM_CPUS_PER_TASK --bind-to core"
            yield error(line.line, f"--bind-to core puts the {threads} threads of a rank on one core", remedy)
        elif _binds_by_default(script, line):
            remedy = "write --bind-to none, or --map-by slot:PE=$SLURM_CPUS_PER_TASK"
            yield warning(line.line, f"Open MPI binds two ranks to a core each, {threads} threads on it", remedy)


def _is_open_mpi(script: Script, line: LaunchLine) -> bool:
    text = " ".join(word for command in script.body.commands for word in command.words)
    options = line.options.keys() & {"mca", "x", "map-by"}
    return bool(re.search(r"OMPI_|\bopen-?mpi\b", text, re.IGNORECASE) or options)


def _binds_by_default(script: Script, line: LaunchLine) -> bool:
    """Open MPI binds to a core for up to two ranks; nothing is known where the MPI is another, or not named."""
    decides = {"bind-to", "map-by", "rankfile", "cpu-set", "cpu-list"} & line.options.keys()
    text = " ".join(word for command in script.body.commands for word in command.words)
    decides_elsewhere = re.search(r"hwloc_base_binding|PRTE_MCA|rmaps_base|binding_policy", text)
    tasks = line.tasks or num_tasks(script)
    return bool(line.is_mpirun and _is_open_mpi(script, line) and not decides and not decides_elsewhere and tasks == 2)


def affinity_of_threads(script: Script) -> Findings:
    """H34: importing torch with these set shrinks the process's affinity to one core."""
    is_torch = any(line.is_hvdlm for line in launch_lines(script)) or "torch" in script.body.text
    if not is_torch or not launch_lines(script) or cores_per_rank(script) == 1:
        return
    for command in script.body.commands:
        for name, value in command.assignments.items():
            is_off = unquote(value).lower() in ("", "false", "disabled", "none")
            if name in ("OMP_PROC_BIND", "KMP_AFFINITY") and not is_off:
                message = f"{name}={unquote(value)}: importing torch then binds the rank to one core"
                yield warning(command.line, message, f"leave {name} out; the launcher binds ranks to cores")


def plugin_of_srun(script: Script) -> Findings:
    """S1: without the right plugin srun starts N separate processes, each "rank 0 of 1"."""
    lines = _steps(script, unless_set="SLURM_MPI_TYPE")
    says_so_elsewhere = any("mpi" in line.options for line in lines)  # then other programs need none, it seems
    for line in lines:
        if "mpi" not in line.options and (line.is_hvdlm or not says_so_elsewhere):
            message = "srun without --mpi starts each rank alone where the site's default is another"
            yield warning(line.line, message, "write srun --mpi=pmix, or what `srun --mpi=list` offers for your MPI")


def end_of_step(script: Script) -> Findings:
    """S8: one rank dies and the others wait until the time limit."""
    for line in _steps(script, unless_set="SLURM_KILL_BAD_EXIT"):
        if line.options.get("kill-on-bad-exit", "0") == "0":
            message = "when one rank fails, srun leaves the others waiting"
            yield warning(line.line, message, "write srun --kill-on-bad-exit=1")


def fixed_hosts(script: Script) -> Findings:
    """S10: a job gets different nodes each time."""
    if script.has("nodelist"):
        return
    for line in launch_lines(script):
        hosts = line.options.get("host") or (line.options.get("nodelist") if line.launcher == "srun" else "")
        names = re.split(r"[:,]", hosts or "localhost")
        if re.search(r"[$`]", hosts or "") or names[0] in ("localhost", "127.0.0.1"):
            continue
        remedy = "leave it to the launcher, or take the names from: scontrol show hostnames"
        yield warning(line.line, f"the hosts {hosts} are fixed, but each job gets different nodes", remedy)


def hosts_of_horovodrun(script: Script) -> Findings:
    """H33: horovodrun knows nothing of SLURM and starts all ranks on the first node."""
    nodes, tasks = num_nodes(script), num_tasks(script)
    for line in launch_lines(script):
        named = {"host", "hostfile", "host-discovery-script"} & line.options.keys()
        if line.launcher != "horovodrun" or named or nodes == 1 or (nodes is None and (tasks or 1) == 1):
            continue
        where = f"the first of {nodes} nodes" if nodes else "the first node"
        remedy = "write -H with the nodes of the job and their slots, or use srun or mpirun"
        yield (error if nodes else warning)(line.line, f"horovodrun without -H starts all ranks on {where}", remedy)
