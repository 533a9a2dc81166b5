"""How much a script asks for, as far as its text says: None wherever it does not, or leaves it to the shell. Pure."""

from __future__ import annotations

import math
import re

from hvdlm.launch.hosts import expand

from .launch_lines import LaunchLine, launch_lines
from .sbatch import Script
from .shell import unquote
from .values import Signal, parse_minutes, parse_signal


def num_nodes(script: Script) -> int | None:
    """Nodes; without --nodes as few as hold the tasks, if the script says how many a node may have."""
    tasks, per_node, nodes = (script.number(key) for key in ("ntasks", "ntasks-per-node", "nodes"))
    if script.has("nodes"):
        return min(nodes, tasks) if nodes and tasks else nodes  # sbatch lowers the number to that of the tasks
    if script.has("ntasks"):
        return 1 if tasks == 1 else math.ceil(tasks / per_node) if tasks and per_node else None
    return 1 if per_node else None


def count_hosts(hostlist: str) -> int | None:
    """How many nodes a list names; None where it is the name of a file, or the text does not tell.

    >>> count_hosts("n1,n[2-3],n1"), count_hosts("nodes.txt/"), count_hosts("$NODES")
    (3, None, None)
    """
    if not re.fullmatch(r"[\w.,\[\]-]+", hostlist) or re.search(r"\[[^\]]*\d{6}", hostlist):  # more than SLURM takes
        return None
    try:
        return len(set(expand(hostlist)))
    except ValueError:
        return None


def tasks_asked(script: Script) -> int | None:
    """What SLURM_NTASKS will be: SLURM sets it only where tasks are asked for, and not for nodes alone."""
    if script.has("ntasks"):
        return script.number("ntasks")
    nodes, per_node = num_nodes(script), script.number("ntasks-per-node")
    return nodes * per_node if nodes and per_node and not script.has("ntasks-per-gpu") else None


def num_tasks(script: Script) -> int | None:
    """How many srun starts by itself. A script that says nothing of it may get it on sbatch's command line."""
    says_tasks = any(map(script.has, ("ntasks", "ntasks-per-node", "ntasks-per-gpu")))
    return tasks_asked(script) if says_tasks else num_nodes(script)  # one a node


def has_whole_nodes(script: Script) -> bool:
    """All cores of its nodes are the job's, however few tasks it names. A partition may see to that too."""
    return script.directive("exclusive") is not None and (script.get("exclusive") or "exclusive") == "exclusive"


def ranks_per_node(script: Script, line: LaunchLine) -> int | None:
    """Those of a launch; the header's where it says nothing itself."""
    if line.number("ntasks-per-node"):
        return line.number("ntasks-per-node")
    nodes = line.number("nodes") or num_nodes(script)
    if line.tasks is None and script.has("ntasks-per-node"):
        return script.number("ntasks-per-node")
    tasks = line.tasks or num_tasks(script)
    return math.ceil(tasks / nodes) if nodes and tasks else None


def gpus_in(text: str | None) -> int | None:
    """The number in a value of --gpus… or --gres; one where a kind alone is named; None if there is none.

    >>> gpus_in("a100:4"), gpus_in("nvme:10,gpu:a100:2"), gpus_in("gpu:1,gpu:v100:2"), gpus_in("$N")
    (4, 2, 3, None)
    """
    items = [re.sub(r"\(.*", "", item) for item in (text or "").split(",")]
    items = [item for item in items if item.startswith("gpu")] if "gpu" in (text or "") else items
    counts = [
        int(found[1] or found[2] or found[3] or 1) if (found := _GPUS.fullmatch(item)) else None for item in items
    ]
    return None if None in counts else sum(count or 0 for count in counts)


_GPUS = re.compile(r"(\d+)|[A-Za-z][^:$]*(?::[^:$]*)??(?::(\d+))?|\d[^:$]*:(\d+)")


def gpus_per_node(script: Script) -> int | None:
    """By --gpus-per-node, --gres=gpu:… or --gpus over the nodes."""
    if script.has("gpus-per-node"):
        return gpus_in(script.get("gpus-per-node"))
    if "gpu" in (script.get("gres") or ""):
        return gpus_in(script.get("gres"))
    total, nodes = gpus_in(script.get("gpus")), num_nodes(script)
    return total // nodes if total and nodes and total % nodes == 0 else None


def cores_per_rank(script: Script) -> int | None:
    """cpus-per-task, or SLURM's default of one; None where whole nodes or sockets are given."""
    if script.has("cpus-per-task"):
        return script.number("cpus-per-task")
    if has_whole_nodes(script) or not tasks_asked(script):
        return None
    gives_more = ("cpus-per-gpu", "mincpus", "extra-node-info", "ntasks-per-core", "ntasks-per-socket")
    if any(map(script.has, gives_more)):
        return None
    asks_itself = any("cpus-per-task" in line.options for line in launch_lines(script))
    return None if asks_itself or "SRUN_CPUS_PER_TASK" in script.body.exports else 1


def cores_of_step(script: Script, line: LaunchLine) -> int | None:
    """Cores a rank of a step of srun's, which since 22.05 does not take them from the job; None if not known."""
    if "cpus-per-task" in line.options:
        return line.number("cpus-per-task")
    if "SRUN_CPUS_PER_TASK" not in script.body.exports:
        return 1
    value = unquote(script.body.exports["SRUN_CPUS_PER_TASK"])
    return script.number("cpus-per-task") if value.startswith("$") else int(value) if value.isdecimal() else None


def threads_set(script: Script) -> int | None:
    """OMP_NUM_THREADS, where the script sets it to a number."""
    value = unquote(script.body.exports.get("OMP_NUM_THREADS", ""))
    return int(value) if value.isdecimal() else None


def time_limit(script: Script) -> float:
    """Seconds; infinite if there is no limit or the partition's default counts."""
    try:
        return 60 * parse_minutes(script.get("time") or "0")
    except ValueError:
        return math.inf


def signal_of(script: Script) -> Signal | None:
    try:
        return parse_signal(script.get("signal") or "")
    except ValueError:
        return None
