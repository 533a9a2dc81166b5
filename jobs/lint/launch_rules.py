"""Checks of the lines that start ranks: numbers, binding, environment, hosts. Pure."""

from __future__ import annotations

import re

from hvdlm.tables import counted

from .findings import Findings, error, warning
from .launch_lines import LaunchLine, launch_lines
from .sbatch import Script
from .shell import expanded_names, unquote
from .sizes import cores_per_rank, num_nodes, num_tasks, threads_set

_OF_A_TASK = {"SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID"}


def _steps(script: Script, *, unless_set: str) -> list[LaunchLine]:
    """What srun starts, unless the script sets this variable, which then holds for all of them."""
    lines = [] if unless_set in script.body.exports else launch_lines(script)
    return [line for line in lines if line.launcher == "srun"]


def tasks_of_launch(script: Script) -> Findings:
    """S1, S11: the launch line starts another number of ranks than the header asks for."""
    tasks, lines = num_tasks(script), launch_lines(script)
    if tasks is None or "SLURM_NTASKS" in script.body.exports:
        return
    for line in lines:
        if line.tasks is None or line.tasks == tasks:
            continue
        message = f"{line.launcher} starts {counted(line.tasks, 'rank')}, the job has {counted(tasks, 'task')}"
        option = "-n" if line.launcher == "srun" else "-np"
        remedy = f'write {option} "$SLURM_NTASKS", and the number in the header alone'
        if line.tasks > tasks or (line.is_hvdlm and line.launcher != "srun"):  # a step has a count of its own
            yield error(line.line, message, remedy)
        elif len(lines) == 1 and not line.command.in_loop:
            yield warning(line.line, message, remedy)


def cores_of_step(script: Script) -> Findings:
    """S7: since 22.05 srun does not take cpus-per-task from the job, and gives each rank one core."""
    if not script.has("cpus-per-task") or cores_per_rank(script) == 1:
        return
    for line in _steps(script, unless_set="SRUN_CPUS_PER_TASK"):
        places_itself = line.options.get("cpu-bind", "").partition(":")[0] in ("mask_cpu", "map_cpu")
        if "cpus-per-task" not in line.options and not places_itself:
            remedy = "export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK before it"
            yield warning(line.line, "srun does not take --cpus-per-task from the job (since 22.05)", remedy)


def variables_of_header(script: Script) -> Findings:
    """SLURM_CPUS_PER_TASK is set only where --cpus-per-task is given; SLURM_NTASKS only where tasks are."""
    tasks = ("ntasks", "ntasks-per-node", "ntasks-per-gpu")
    for name, keys in (("SLURM_CPUS_PER_TASK", ("cpus-per-task",)), ("SLURM_NTASKS", tasks)):
        if not script.directives or any(map(script.has, keys)) or name in script.body.exports:
            continue
        for command in script.body.commands:
            if any(re.search(rf"\${name}\b|\${{{name}}}", word) for word in command.words):
                remedy = f"add #SBATCH --{keys[0]}=…, or write ${{{name}:-1}}"
                yield warning(command.line, f"SLURM sets {name} only with --{keys[0]}", remedy)
                break


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


def _binds_by_default(script: Script, line: LaunchLine) -> bool:
    """Open MPI binds to a core for up to two ranks; nothing is known where the MPI is another, or not named."""
    text = " ".join(word for command in script.body.commands for word in command.words)
    is_open_mpi = re.search(r"OMPI_|\bopen-?mpi\b", text, re.IGNORECASE) or line.options.keys() & {"mca", "x", "map-by"}
    decides = {"bind-to", "map-by", "rankfile", "cpu-set", "cpu-list"} & line.options.keys()
    decides_elsewhere = re.search(r"hwloc_base_binding|PRTE_MCA|rmaps_base|binding_policy", text)
    tasks = line.tasks or num_tasks(script)
    return bool(line.is_mpirun and is_open_mpi and not decides and not decides_elsewhere and tasks == 2)


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


def early_expansion(script: Script) -> Findings:
    """S11: the batch shell expands a rank's variable, so that all ranks get the batch shell's own."""
    by_line = {id(line.command): line for line in launch_lines(script)}
    starts = [line.line for line in by_line.values()]
    for command in script.body.commands:
        words = [*command.words, *command.targets] if id(command) in by_line else _exported(command.words)
        found = {name for word in words for name in expanded_names(word)} & _OF_A_TASK
        if found and starts and command.line <= max(starts):
            name = min(found)
            remedy = f"let each task do it: srun … bash -c '… ${name} …', in single quotes"
            yield error(command.line, f"${name} is expanded once, by the batch shell, where it is 0", remedy)


def _exported(words: tuple[str, ...]) -> list[str]:
    return [word for word in words if "=" in word] if words[:1] == ("export",) else []


def fixed_hosts(script: Script) -> Findings:
    """S10: a job gets other nodes each time."""
    if script.has("nodelist"):
        return
    for line in launch_lines(script):
        hosts = line.options.get("host") or (line.options.get("nodelist") if line.launcher == "srun" else "")
        names = re.split(r"[:,]", hosts or "localhost")
        if re.search(r"[$`]", hosts or "") or names[0] in ("localhost", "127.0.0.1"):
            continue
        remedy = "leave it to the launcher, or take the names from: scontrol show hostnames"
        yield warning(line.line, f"the hosts {hosts} are fixed, but each job gets other nodes", remedy)


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
