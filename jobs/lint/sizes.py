"""How much a script asks for, as far as its text says: None wherever it does not, or leaves it to the shell. Pure."""

from __future__ import annotations

import math
import re

from .launch_lines import launch_lines
from .sbatch import Script, Signal, parse_minutes, parse_signal
from .shell import unquote


def num_nodes(script: Script) -> int | None:
    """Nodes; without --nodes as few as hold the tasks, if the script says how many a node may have."""
    tasks, per_node = script.number("ntasks"), script.number("ntasks-per-node")
    if script.has("nodes"):
        return script.number("nodes")
    if script.has("ntasks"):
        return 1 if tasks == 1 else math.ceil(tasks / per_node) if tasks and per_node else None
    return 1 if per_node else None


def num_tasks(script: Script) -> int | None:
    """What SLURM_NTASKS will be. A script that says nothing of it may get it on sbatch's command line."""
    if script.has("ntasks"):
        return script.number("ntasks")
    if script.has("ntasks-per-gpu") or not (script.has("nodes") or script.has("ntasks-per-node")):
        return None
    nodes = num_nodes(script)
    per_node = script.number("ntasks-per-node") if script.has("ntasks-per-node") else 1
    return nodes * per_node if nodes and per_node else None


def ranks_per_node(script: Script) -> int | None:
    if script.has("ntasks-per-node"):
        return script.number("ntasks-per-node")
    nodes, tasks = num_nodes(script), num_tasks(script)
    return math.ceil(tasks / nodes) if nodes and tasks else None


def gpus_per_node(script: Script) -> int | None:
    """By --gpus-per-node, --gres=gpu:… or --gpus over the nodes."""
    found = None
    if script.has("gpus-per-node"):
        found = re.fullmatch(r"(?:[^:]+:)?(\d+)", script.get("gpus-per-node") or "")
    elif "gpu" in (script.get("gres") or ""):
        found = re.fullmatch(r"(?:[^,]*,)*?gpu(?::[^:,]+)??:(\d+)(?:\(.*\))?(?:,(?!gpu).*)?", script.get("gres") or "")
    elif script.has("gpus"):
        found = re.fullmatch(r"(?:[^:]+:)?(\d+)", script.get("gpus") or "")
        nodes = num_nodes(script)
        return int(found[1]) // nodes if found and nodes and int(found[1]) % nodes == 0 else None
    return int(found[1]) if found else None


def cores_per_rank(script: Script) -> int | None:
    """cpus-per-task, or SLURM's default of one; None where whole nodes or sockets are given."""
    if script.has("cpus-per-task"):
        return script.number("cpus-per-task")
    gives_more = ("exclusive", "cpus-per-gpu", "mincpus", "extra-node-info", "ntasks-per-core", "ntasks-per-socket")
    if num_tasks(script) is None or any(map(script.has, gives_more)):
        return None
    asks_itself = any("cpus-per-task" in line.options for line in launch_lines(script))
    return None if asks_itself or "SRUN_CPUS_PER_TASK" in script.body.exports else 1


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
