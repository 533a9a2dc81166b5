"""Checks of batch scripts, rendered or written by hand: `check` finds what would fail or waste the job. Pure.

One small function a rule, each naming the trap that it guards against. A rule that cannot know is silent: what is
right is never reported, and values that only the job's shell knows count as right.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator

from .findings import Facts, Finding, counted, error, warning
from .launch_checks import LAUNCH_RULES
from .launch_lines import launch_lines
from .sbatch import Script, parse, parse_megabytes, parse_minutes, parse_signal
from .sizes import cores_per_rank, gpus_per_node, num_tasks, ranks_per_node, signal_of, threads_set, time_limit
from .stop_checks import STOP_RULES

__all__ = ["RULES", "Facts", "Finding", "check"]

Rule = Callable[[Script, Facts], Iterator[Finding]]

# sbatch refuses these together (slurm_opt.c, 22.05).
_EXCLUSIVE_OPTIONS = (
    ("mem", "mem-per-cpu"), ("mem", "mem-per-gpu"), ("mem-per-cpu", "mem-per-gpu"), ("core-spec", "thread-spec"),
    ("ntasks-per-gpu", "gpus-per-task"), ("ntasks-per-gpu", "gpus-per-socket"), ("ntasks-per-gpu", "ntasks-per-node"),
)  # fmt: skip

_NEVER_EXPANDED = ("output", "error", "input", "chdir", "partition", "account", "job-name", "nodes", "ntasks")


def check(text: str, facts: Facts | None = None) -> list[Finding]:
    """All findings on a batch script's text, in the order of its lines."""
    script = parse(text)
    found = [finding for rule in FORM_RULES for finding in rule(script, facts or Facts())]
    if script.num_components == 1:  # what the parts of a heterogeneous job ask for cannot be told apart here
        found += [finding for rule in JOB_RULES for finding in rule(script, facts or Facts())]
    return sorted(dict.fromkeys(found), key=lambda finding: finding.line)


# --- the form of the script


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


# --- what the job asks for


def tasks_against_nodes(script: Script, facts: Facts) -> Iterator[Finding]:
    """S11: nodes, ntasks and ntasks-per-node that contradict each other."""
    nodes, ntasks, per_node = (script.number(key) for key in ("nodes", "ntasks", "ntasks-per-node"))
    line = script.line_of("ntasks")
    if nodes is None or ntasks is None:
        return
    if ntasks < nodes:
        yield error(line, f"{counted(ntasks, 'task')} cannot fill {nodes} nodes", "ask for fewer nodes or more tasks")
    elif per_node is not None and ntasks != nodes * per_node:
        message = (
            f"--ntasks={ntasks}, but {counted(nodes, 'node')} x {counted(per_node, 'task')} are {nodes * per_node}"
        )
        remedy = f"write --ntasks={nodes * per_node}, or leave --ntasks out"
        # fewer tasks are allowed: ntasks-per-node is then a limit
        yield (error if ntasks > nodes * per_node else warning)(line, message, remedy)


def threads_against_cores(script: Script, facts: Facts) -> Iterator[Finding]:
    """H34: more threads than cores a rank, so that ranks take the cores from each other."""
    cores = cores_per_rank(script)
    line = script.line_of("cpus-per-task", "ntasks-per-node", "ntasks")
    threads, source = threads_set(script), "OMP_NUM_THREADS"
    if facts.threads is not None and (threads is None or facts.threads > threads):
        threads, source = facts.threads, "the config's threads"
    if cores is None or threads is None or threads <= cores:
        return
    remedy = f"write --cpus-per-task={threads}, or set OMP_NUM_THREADS=$SLURM_CPUS_PER_TASK"
    report = error if script.has("cpus-per-task") else warning  # SLURM may be set up to give whole cores
    yield report(line, f"{source}: {threads} threads a rank on {counted(cores, 'core')}", remedy)


def gpus_against_ranks(script: Script, facts: Facts) -> Iterator[Finding]:
    """A GPU for each rank: NCCL refuses two ranks on one, and one without a rank is idle."""
    gpus, ranks = gpus_per_node(script), ranks_per_node(script)
    line = script.line_of("gpus-per-node", "gres", "gpus")
    if gpus is None or ranks is None or not launch_lines(script):
        return
    if ranks > gpus:
        yield error(
            line, f"{ranks} ranks a node share {counted(gpus, 'GPU')}", f"ask for {ranks} GPUs or {gpus} ranks a node"
        )
    elif ranks < gpus and any(line.is_hvdlm for line in launch_lines(script)):
        yield warning(
            line, f"{counted(ranks, 'rank')} a node, {gpus} GPUs: some stay idle", f"start {gpus} ranks a node"
        )


def gpu_of_each_task(script: Script, facts: Facts) -> Iterator[Finding]:
    """S9: with --gpus-per-task each rank sees one GPU, called 0, and NCCL cannot reach its neighbours' directly."""
    unbound = any("gpu-bind" in line.options for line in launch_lines(script)) or script.get("gpu-bind") == "none"
    if script.has("gpus-per-task") and not unbound and launch_lines(script) and num_tasks(script) != 1:
        remedy = "use --gpus-per-node, and --gpu-bind=none for srun"
        yield warning(script.line_of("gpus-per-task"), "--gpus-per-task hides the other ranks' GPUs from NCCL", remedy)


# --- time


def time_against_signal(script: Script, facts: Facts) -> Iterator[Finding]:
    """S5: a signal that comes at once, or too late to save."""
    limit, signal = time_limit(script), signal_of(script)
    line = script.line_of("signal")
    if signal is None:
        return
    if limit <= signal.lead_s:
        yield error(
            line,
            f"the signal comes {signal.lead_s} s before the end of {limit:.0f} s",
            "raise --time or lower the lead",
        )
    elif limit <= signal.lead_s + 60:
        message = f"SLURM may send the signal 60 s early, which is at once: the limit is {limit:.0f} s"
        yield warning(line, message, "raise --time or lower the lead")
    need = 2 * ((facts.save_s or 0) + (facts.step_s or 0))
    if signal.lead_s < need:
        message = f"{signal.lead_s} s are too short to stop and save: a step takes {facts.step_s or 0:.1f} s"
        message += f", a save {facts.save_s:.1f} s" if facts.save_s else ""
        yield error(line, message, f"write @{math.ceil(need)} or more")


def time_against_checkpoints(script: Script, facts: Facts) -> Iterator[Finding]:
    """A job that ends before its first checkpoint gets nowhere, however often it is started."""
    if not facts.step_s or not facts.checkpoint_every:
        return
    limit, interval = time_limit(script), facts.step_s * facts.checkpoint_every
    if limit > interval:
        return
    message = f"the limit of {limit:.0f} s ends before the first checkpoint, after {interval:.0f} s"
    remedy = f"raise --time, or set checkpoint.every to {max(1, int(limit / facts.step_s / 2))} or less"
    saves_at_end = script.has("signal") or "HVDLM_JOB_END" in script.body.exports
    yield (warning if saves_at_end else error)(script.line_of("time"), message, remedy)


FORM_RULES: tuple[Rule, ...] = (
    first_line, line_breaks, options, unread_directives, repeated, exclusive_options, shell_variables, values,
)  # fmt: skip
JOB_RULES: tuple[Rule, ...] = (
    tasks_against_nodes, threads_against_cores, gpus_against_ranks, gpu_of_each_task, time_against_signal,
    time_against_checkpoints, *LAUNCH_RULES, *STOP_RULES,
)  # fmt: skip
RULES = FORM_RULES + JOB_RULES
