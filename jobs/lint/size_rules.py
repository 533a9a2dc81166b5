"""Checks of what a job asks for: tasks, cores, GPUs and time that do not fit each other. Pure."""

from __future__ import annotations

import math
import re

from hvdlm.tables import counted

from .findings import Findings, error, warning
from .launch_lines import every_launch, launch_lines
from .sbatch import Script
from .sizes import (
    cores_of_step,
    cores_per_rank,
    count_hosts,
    gpus_in,
    gpus_per_node,
    has_whole_nodes,
    num_nodes,
    num_tasks,
    ranks_per_node,
    signal_of,
    tasks_asked,
    threads_set,
    time_limit,
)
from .values import parse_megabytes


def tasks_against_nodes(script: Script) -> Findings:
    """S11: nodes, ntasks and ntasks-per-node that contradict each other."""
    nodes, ntasks, per_node = (script.number(key) for key in ("nodes", "ntasks", "ntasks-per-node"))
    line = script.line_of("ntasks")
    if nodes is None or ntasks is None:
        return
    if ntasks < nodes:
        message = f"{counted(ntasks, 'task')} cannot fill {nodes} nodes, and sbatch takes {counted(ntasks, 'node')}"
        yield warning(line, message, "ask for fewer nodes or more tasks")
    elif per_node is not None and ntasks != nodes * per_node:
        most = nodes * per_node
        message = f"--ntasks={ntasks}, but {counted(nodes, 'node')} x {counted(per_node, 'task')} are {most}"
        report = error if ntasks > most else warning  # fewer are allowed: ntasks-per-node is then a limit
        yield report(line, message, f"write --ntasks={most}, or leave --ntasks out")


def nodelist_against_nodes(script: Script) -> Findings:
    """sbatch: "invalid number of nodes (-N 2-1)". A list of fewer nodes is filled up."""
    most = re.fullmatch(r"(?:\d+-)?(\d+)", script.get("nodes") or "")
    listed = count_hosts(script.get("nodelist") or "")
    if most and listed is not None and listed > int(most[1]):
        message = (
            f"--nodelist names {listed} nodes, --nodes={script.get('nodes')} allows {counted(int(most[1]), 'node')}"
        )
        yield error(script.line_of("nodelist"), message, f"write --nodes={listed}, or leave --nodes out")


def gpus_against_nodes(script: Script) -> Findings:
    """sbatch: "Failed to validate job spec, --gpus < -N". For fewer tasks than nodes it takes fewer nodes."""
    least = re.fullmatch(r"(\d+)(?:-\d+)?", script.get("nodes") or "")
    gpus, tasks = gpus_in(script.get("gpus")), script.number("ntasks")
    if least is None or not gpus or (script.has("ntasks") and tasks is None):
        return
    nodes = min(int(least[1]), tasks or int(least[1]))
    if gpus < nodes:
        message = f"--gpus={script.get('gpus')} is the number of all GPUs, fewer than {counted(nodes, 'node')}"
        yield error(script.line_of("gpus"), message, "write --gpus-per-node for a number of each node")


def threads_against_cores(script: Script) -> Findings:
    """H34: more threads than cores a rank, so that ranks take the cores from each other."""
    cores = cores_per_rank(script)
    line = script.line_of("cpus-per-task", "ntasks-per-node", "ntasks")
    exported, configured = threads_set(script) or 0, script.facts.threads or 0
    source, threads = ("OMP_NUM_THREADS", exported) if exported >= configured else ("the config's threads", configured)
    if cores is None or threads <= cores:
        return
    remedy = f"write --cpus-per-task={threads}, or set OMP_NUM_THREADS=$SLURM_CPUS_PER_TASK"
    report = error if script.has("cpus-per-task") else warning  # SLURM may be set up to give whole cores
    yield report(line, f"{source}: {threads} threads a rank on {counted(cores, 'core')}", remedy)


def gpus_against_ranks(script: Script) -> Findings:
    """A GPU for each rank: NCCL refuses two ranks on one, and one without a rank is idle. Other programs may share."""
    gpus, line = gpus_per_node(script), script.line_of("gpus-per-node", "gres", "gpus")
    for launch in launch_lines(script) if gpus else ():
        ranks = ranks_per_node(script, launch)
        if ranks is None or gpus is None or not launch.is_horovod:
            continue
        if ranks > gpus:
            message = f"{ranks} ranks a node share {counted(gpus, 'GPU')}"
            yield error(line, message, f"ask for {ranks} GPUs or {gpus} ranks a node")
        elif ranks < gpus and launch.is_hvdlm:
            message = f"{counted(ranks, 'rank')} a node, {gpus} GPUs: some stay idle"
            yield warning(line, message, f"start {gpus} ranks a node")


def step_against_nodes(script: Script) -> Findings:
    """srun: "Only allocated 1 nodes asked for 4"."""
    most = re.fullmatch(r"(?:\d+-)?(\d+)", script.get("nodes") or "")
    nodes = int(most[1]) if most else num_nodes(script)
    for line in every_launch(script):
        wanted = re.match(r"(\d+)(?:-\d+)?$", line.options.get("nodes", ""))
        if line.launcher != "srun" or nodes is None or wanted is None or int(wanted[1]) <= nodes or line.has_parts:
            continue
        tasks = line.tasks or tasks_asked(script) or int(wanted[1])
        report = error if tasks >= int(wanted[1]) else warning  # for fewer tasks srun takes fewer nodes
        message = f"the step asks for {wanted[1]} nodes, the job has {nodes}"
        yield report(line.line, message, f"ask for --nodes={wanted[1]} in the header, or leave -N out")


def step_against_cores(script: Script) -> Findings:
    """srun: "More processors requested than permitted"."""
    tasks, cores = tasks_asked(script), cores_per_rank(script)
    for line in every_launch(script):
        wanted, width = line.tasks or tasks, cores_of_step(script, line)
        is_plain = not ({"overcommit", "O"} & line.options.keys() or line.has_parts)
        if line.launcher != "srun" or not (tasks and wanted and width and is_plain) or wanted > tasks:
            continue
        if width == 1 or has_whole_nodes(script) or wanted * width <= tasks * (script.number("cpus-per-task") or 1):
            continue
        message = (
            f"{counted(wanted, 'task')} x {width} cores of the step are more than the job's {tasks} x {cores or 1}"
        )
        remedy = "ask for as many --cpus-per-task in the header (or --exclusive, for whole nodes)"
        yield (error if script.has("cpus-per-task") else warning)(line.line, message, remedy)


def step_against_gpus(script: Script) -> Findings:
    """srun: "Invalid generic resource (gres) specification"."""
    gpus, nodes = gpus_per_node(script), num_nodes(script)
    for line in every_launch(script) if gpus and nodes else ():
        per_node = gpus_in(line.options.get("gpus-per-node") or line.options.get("gres") or "")
        if "gres" in line.options and "gpu" not in line.options["gres"]:
            per_node = None
        total = gpus_in(line.options.get("gpus"))
        wanted, has, where = (per_node, gpus, " a node") if per_node else (total, (gpus or 0) * (nodes or 0), "")
        if line.launcher == "srun" and wanted and has and wanted > has and not line.has_parts:
            message = f"the step asks for {counted(wanted, 'GPU')}{where}, the job has {has}"
            report = warning if has_whole_nodes(script) else error
            yield report(line.line, message, f"ask for {wanted} in the header")


def step_against_memory(script: Script) -> Findings:
    """srun: "Memory required by task is not available", where memory is counted."""
    for line in every_launch(script):
        for key in ("mem", "mem-per-cpu", "mem-per-gpu"):
            try:
                wanted, has = (parse_megabytes(value or "") for value in (line.options.get(key), script.get(key)))
            except ValueError:
                continue
            if line.launcher == "srun" and wanted > has > 0:
                message = f"the step asks for --{key}={line.options[key]}, the job has {script.get(key)}"
                yield warning(line.line, message, f"raise --{key} in the header")


def gpu_of_each_task(script: Script) -> Findings:
    """S9: with --gpus-per-task each rank sees one GPU, called 0, and NCCL cannot reach its neighbours' directly."""
    unbound = any("gpu-bind" in line.options for line in launch_lines(script)) or script.get("gpu-bind") == "none"
    if script.has("gpus-per-task") and not unbound and launch_lines(script) and num_tasks(script) != 1:
        remedy = "use --gpus-per-node, and --gpu-bind=none for srun"
        yield warning(script.line_of("gpus-per-task"), "--gpus-per-task hides the other ranks' GPUs from NCCL", remedy)


def time_against_signal(script: Script) -> Findings:
    """S5: a signal that comes at once, or too late to save."""
    limit, signal = time_limit(script), signal_of(script)
    line, remedy = script.line_of("signal"), "raise --time or lower the lead"
    if signal is None:
        return
    if limit <= signal.lead_s:
        yield error(line, f"the signal comes {signal.lead_s} s before the end of {limit:.0f} s", remedy)
    elif limit <= signal.lead_s + 60:
        message = f"SLURM may send the signal 60 s early, which is at once: the limit is {limit:.0f} s"
        yield warning(line, message, remedy)
    step_s = script.facts.step_s or 0.0
    if signal.lead_s < 2 * step_s:
        message = f"{signal.lead_s} s are too short to stop and save: a step takes {step_s:.1f} s"
        yield error(line, message, f"write @{math.ceil(2 * step_s)} or more")


def time_against_checkpoints(script: Script) -> Findings:
    """A job that ends before its first checkpoint gets nowhere, however often it is started."""
    step_s, every = script.facts.step_s or 0.0, script.facts.checkpoint_every or 0
    limit, interval = time_limit(script), step_s * every
    if not interval or limit > interval:
        return
    message = f"the limit of {limit:.0f} s ends before the first checkpoint, after {interval:.0f} s"
    remedy = f"raise --time, or set checkpoint.every to {max(1, int(limit / step_s / 2))} or less"
    saves_at_end = script.has("signal") or "HVDLM_JOB_END" in script.body.exports
    yield (warning if saves_at_end else error)(script.line_of("time"), message, remedy)
