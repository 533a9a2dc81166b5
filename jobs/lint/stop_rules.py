"""Checks of how a script stops, saves and comes back: signal, trap, wait, requeue, logs. Pure."""

from __future__ import annotations

import re
from itertools import pairwise

from .findings import Findings, error, warning
from .launch_lines import RANKED, every_launch, launch_lines
from .programs import is_setup, own_commands, programs, ranks_in_background, runs_other_scripts
from .sbatch import Script
from .shell import ShellCommand
from .sizes import signal_of
from .traps import handler_text, traps_of, traps_of_batch_shell
from .values import SIGNALS


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
    calls = script.body.named(waits[0].function) if waits[0].function else []
    if len(calls) > 1 or any(call.in_loop for call in calls):
        return
    if ranks_in_background(script):
        message = "the trapped signal ends this wait, and then the job, before the ranks have saved"
        report = error if re.search(r"\bkill\b|STOP|touch|scancel", handler_text(script, traps)) else warning
        yield report(waits[0].line, message, "wait again, best in a loop until the launcher has ended")


def comes_back(script: Script) -> Findings:
    """S6, S12: what stops before its end must be started again by somebody."""
    signal = signal_of(script)
    texts = " ".join(" ".join(command.words) for command in script.body.commands)
    requeues = re.search(r"(scontrol|\$\S+)\"? requeue", texts) is not None
    if script.has("no-requeue") and requeues:
        line = script.line_of("no-requeue")
        yield error(line, "SLURM refuses `scontrol requeue` for a job with --no-requeue", "write --requeue")
    is_ours = launch_lines(script) or ranks_in_background(script)
    if signal is None or not is_ours or requeues or re.search(r"\bsbatch\b|hvdlm submit", texts):
        return
    # --no-requeue says that this is meant: somebody else sees to it, for example by a chain of jobs
    chained = any(map(script.has, ("no-requeue", "dependency"))) or "%" in (script.get("array") or "")
    traps = traps_of(script, signal.name)
    asks_to_stop = not traps or re.search(r"\bkill\b|STOP", handler_text(script, traps))
    if not chained and asks_to_stop:
        message = f"the ranks stop at {signal.name}, and nothing starts the job again"
        allows = "--requeue and" if not script.has("requeue") else "what --requeue alone does not do"
        remedy = f'add {allows}: scontrol requeue "$SLURM_JOB_ID", or submit a chain with --dependency'
        yield warning(script.line_of("signal"), message, remedy)


def _is_strict(script: Script, at: ShellCommand) -> bool:
    """Whether `set -e` holds where a command stands, as far as the order of the lines tells."""
    is_strict = re.search(r" -[a-zA-Z]*e[a-zA-Z]*( |$)| errexit\b", script.shebang) is not None
    for command in script.body.commands:
        if command is at:
            break
        if command.name not in ("set", "shopt") or command.in_subshell:
            continue
        words = command.arguments[1:]
        words = words[: words.index("--")] if "--" in words else words
        for before, word in pairwise(("", *words)):
            if word == "errexit":
                is_strict = "-u" not in words if command.name == "shopt" else before[:1] == "-"
            elif command.name == "set" and re.fullmatch(r"[-+][a-zA-Z]*e[a-zA-Z]*", word):
                is_strict = word[0] == "-"
    return is_strict


def _ended_by_errexit(script: Script) -> list[ShellCommand]:
    """The launchers in the foreground and the `wait`s whose failure ends the script."""
    body = script.body
    looked_at = {command.name for command in body.commands if command.is_tested and command.name}
    launched = [launch.command for launch in launch_lines(script)]
    launched += [command for command, words in own_commands(script) if words[1:2] and words[1] in (*RANKED, "launch")]
    found = [each for each in [*launched, *body.named("wait")] if not each.is_tested and each.function not in looked_at]
    return [each for each in found if not each.in_background and not each.in_subshell and _is_strict(script, each)]


def script_outlives_its_launcher(script: Script) -> Findings:
    """S6: under `set -e` an exit code of 75, and a `wait` that a signal ended, end the script before it can requeue."""
    ended = _ended_by_errexit(script)
    requeues = [command for command in script.body.named("scontrol") if "requeue" in command.words]
    straight = [command for command in requeues if not command.function][:1]
    for requeue in [*straight, *(command for command in requeues if command.function)]:
        before = [
            each for each in ended if each.line < requeue.line or (requeue.function and each.line == requeue.line)
        ]
        for command in [each for each in before if each.function == requeue.function][-1:]:
            message = f"set -e ends the script here when the ranks exit with 75, before line {requeue.line}"
            yield error(command.line, message, f"write: code=0; {command.name} … || code=$?")


def script_outlives_its_signal(script: Script) -> Findings:
    """S3, S6: a trapped signal ends `wait` with 128 and its number, for `set -e` a failure that ends the script."""
    traps, signal = traps_of_batch_shell(script), signal_of(script)
    at_exit = handler_text(script, traps_of(script, "EXIT"))
    handler = handler_text(script, traps)
    if signal is None or not traps or not ranks_in_background(script) or re.search(r"\bwait\b", handler + at_exit):
        return
    told = {finding.line for finding in script_outlives_its_launcher(script)}
    first = min(trap.line for trap in traps)
    functions = set(re.findall(r"[\w-]+", handler))
    for command in _ended_by_errexit(script):
        if command.name != "wait" or command.line < first or command.line in told or command.function in functions:
            continue
        code = 128 + SIGNALS.get(signal.name, 0)
        message = f"the trapped {signal.name} ends this wait with {code}, and set -e the script before the ranks saved"
        report = error if re.search(r"\bkill\b|STOP|touch|scancel", handler) else warning
        yield report(command.line, message, f"write: {' '.join(command.words)} || true, in a loop; or set +e before it")
