"""Checks of how a script stops, saves and comes back: signal, trap, wait, requeue, logs. Pure."""

from __future__ import annotations

import re

from .findings import Findings, error, warning
from .launch_lines import every_launch, launch_lines
from .programs import is_setup, own_commands, programs, runs_other_scripts
from .sbatch import Script
from .sizes import signal_of
from .traps import handler_text, traps_of, traps_of_batch_shell


def signal_reaches_ranks(script: Script) -> Findings:
    """S2: without B: SLURM signals the steps, and mpirun's ranks are none; the batch shell gets nothing either."""
    signal = signal_of(script)
    if signal is None or signal.to_batch_shell:
        return
    line = script.line_of("signal")
    remedy = f"write --signal=B:{signal.name}@{signal.lead_s} and pass it on in a trap"
    traps = traps_of(script, signal.name)
    if traps:
        message = f"the trap of line {traps[0].line} never runs: without B: only steps get {signal.name}"
        yield error(line, message, remedy)
    elif any(launch.launcher != "srun" for launch in launch_lines(script)):
        yield error(line, f"without B: {signal.name} reaches no rank that mpirun or horovodrun started", remedy)
    elif not every_launch(script) and not runs_other_scripts(script):
        found = programs(script)
        report = error if any(words[:1] == ("hvdlm",) for words in found) else warning
        if found:
            message = f"without B: only steps of srun get {signal.name}, and this script starts none"
            yield report(line, message, f"start it by: srun -n1 {' '.join(found[0][:2])} …, or {remedy}")


def signal_is_trapped(script: Script) -> Findings:
    """B: sends the signal to the batch shell, which dies of it unless it is trapped."""
    signal = signal_of(script)
    if signal is None or not signal.to_batch_shell or traps_of(script, signal.name):
        return
    commands = script.body.commands
    others = any(not is_setup(command) for command in script.body.named("source", "."))
    if others or not commands or any(command.words[:1] == ("exec",) for command in commands):
        return
    message = f"nothing traps {signal.name}, which therefore ends the batch shell"
    remedy = f"add: trap 'touch RUN/STOP; kill -{signal.name} \"$launcher\"' {signal.name}"
    is_lost = launch_lines(script) or own_commands(script)
    yield (error if is_lost else warning)(script.line_of("signal"), message, remedy)


def launcher_is_awaited(script: Script) -> Findings:
    """A job ends with its batch script, and takes what runs in the background along."""
    launches = [launch for launch in launch_lines(script) if launch.command.in_background]
    polls = re.search(r"kill -0|--pid|/proc/", script.body.text)
    if launches and not polls and not script.body.named("wait", "fg"):
        launch = launches[-1]
        message = f"{launch.launcher} runs in the background and nothing waits for it: the job ends at once"
        yield error(launch.line, message, 'add: wait "$!"')


def second_wait(script: Script) -> Findings:
    """S3: a trapped signal ends `wait`; the script goes on, and its end takes the ranks along before they saved."""
    traps = traps_of_batch_shell(script)
    waits = script.body.named("wait")
    if not traps or len(waits) != 1 or waits[0].in_loop or re.search(r"\bwait\b", handler_text(script, traps)):
        return
    if any(launch.command.in_background for launch in launch_lines(script)):
        message = "the trapped signal ends this wait, and then the job, before the ranks have saved"
        report = error if re.search(r"\bkill\b|STOP|touch|scancel", handler_text(script, traps)) else warning
        yield report(waits[0].line, message, "wait again, best in a loop until the launcher has ended")


def comes_back(script: Script) -> Findings:
    """S6, S12: what stops before its end must be started again by somebody."""
    signal = signal_of(script)
    texts = " ".join(" ".join(command.words) for command in script.body.commands)
    requeues = "scontrol requeue" in texts
    if script.has("no-requeue") and requeues:
        line = script.line_of("no-requeue")
        yield error(line, "SLURM refuses `scontrol requeue` for a job with --no-requeue", "write --requeue")
    if signal is None or not launch_lines(script) or requeues or "sbatch" in texts:
        return
    # --no-requeue says that this is meant: somebody else sees to it, for example by a chain of jobs
    chained = any(map(script.has, ("requeue", "no-requeue", "dependency"))) or "%" in (script.get("array") or "")
    traps = traps_of(script, signal.name)
    asks_to_stop = not traps or re.search(r"\bkill\b|STOP", handler_text(script, traps))
    if not chained and asks_to_stop:
        message = f"the ranks stop at {signal.name}, and nothing starts the job again"
        remedy = 'add --requeue and: scontrol requeue "$SLURM_JOB_ID", or submit a chain with --dependency'
        yield warning(script.line_of("signal"), message, remedy)


def script_outlives_its_launcher(script: Script) -> Findings:
    """S6: under `set -e` an exit code of 75, and a `wait` that a signal ended, end the script before it can requeue."""
    body = script.body
    switches = [word for command in body.named("set") for word in command.words[1:]]
    states = [word[0] == "-" for word in switches if re.match(r"[-+]\w*e", word)]
    is_strict = "errexit" in switches or (states or [re.search(r" -\w*e", script.shebang) is not None])[-1]
    requeue = next((c for c in body.named("scontrol") if "requeue" in c.words and not c.function), None)
    if not is_strict or requeue is None:
        return
    launched = [launch.command for launch in launch_lines(script) if not launch.command.in_background]
    ends = [c for c in [*launched, *body.named("wait")] if c.line < requeue.line and not c.function and not c.is_tested]
    for command in ends[-1:]:
        message = f"set -e ends the script here when the ranks exit with 75, before line {requeue.line}"
        yield error(command.line, message, f"write: code=0; {command.name} … || code=$?")
