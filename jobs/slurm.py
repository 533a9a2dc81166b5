"""SLURM's commands: submit, ask, cancel. Nothing is decided here.

Every function takes the environment in which the commands run. It must not be that of a job: what SLURM told a
job, such as SLURM_CPUS_PER_TASK, would become options of the next one.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hvdlm.errors import UserError

TIMEOUT_S = 60
ACTIVE = ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "REQUEUED", "REQUEUE_HOLD", "STOPPED")


@dataclass(frozen=True)
class State:
    """What SLURM says of a job; an array is active as long as one of its tasks is."""

    state: str  # PENDING, RUNNING, COMPLETED, FAILED, TIMEOUT, CANCELLED, NODE_FAIL …
    reason: str = ""
    start: str = ""  # when it began, or is expected to
    restarts: int = 0
    exit_code: str = ""

    @property
    def is_active(self) -> bool:
        return self.state in ACTIVE


def is_here(environment: Mapping[str, str]) -> bool:
    return shutil.which("sbatch", path=environment.get("PATH")) is not None


def submit(
    script: Path, environment: Mapping[str, str], *, after: Sequence[str] = (), after_any: Sequence[str] = ()
) -> str:
    """Queue a script; its job id. It starts when all jobs of `after` have ended well and those of `after_any` ended."""
    words = ["sbatch", "--parsable"]
    conditions = [f"{kind}:{':'.join(ids)}" for kind, ids in (("afterok", after), ("afterany", after_any)) if ids]
    if conditions:
        words += ["--dependency=" + ",".join(conditions)]
        words += ["--kill-on-invalid-dep=yes"]  # else a job waits for ever for one that failed
    done = _run([*words, str(script)], environment)
    if done.returncode:
        raise UserError(f"{script}: sbatch refuses it: {_first_line(done.stderr)}")
    number = (done.stdout.strip().splitlines() or [""])[-1].split(";")[0]
    if not number.isdecimal():
        raise UserError(f"{script}: sbatch accepts it, but prints no number of a job: {_first_line(done.stdout)}")
    return number


def test_only(script: Path, environment: Mapping[str, str]) -> str:
    """What `sbatch --test-only` has against a script; empty if nothing."""
    done = _run(["sbatch", "--test-only", str(script)], environment)
    return _first_line(done.stderr) if done.returncode else ""


def states(ids: Sequence[str], environment: Mapping[str, str]) -> dict[str, State]:
    """The state of each job that SLURM still knows. A job may have been gone from its memory for minutes."""
    queue = _run(["squeue", "-h", "--me", "--array", "-o", "%F|%T|%S|%r"], environment)
    if queue.returncode:
        raise UserError(f"squeue: {_first_line(queue.stderr)}; is this a login node of a SLURM cluster?")
    found: dict[str, State] = {}
    for line in queue.stdout.splitlines():
        job, state, start, reason, *_ = [*line.split("|", 3), "", "", ""]
        if job in ids and (job not in found or state == "RUNNING"):
            found[job] = State(state, "" if reason == "None" else reason, "" if start == "N/A" else start)
    for job in ids:
        if not found.get(job, State("")).is_active:
            ended = _ended(job, environment)
            if ended is not None:
                found[job] = ended
    return found


def _ended(job: str, environment: Mapping[str, str]) -> State | None:
    """A job that has left the queue: from the controller's memory, else from accounting where there is some."""
    known = _lines_of(["scontrol", "-o", "show", "job", job], environment)
    tasks = [dict(re.findall(r"(\w+)=(\S*)", line)) for line in known]
    if not tasks and shutil.which("sacct", path=environment.get("PATH")):
        known = _lines_of(["sacct", "-X", "-n", "-P", "-j", job, "-o", "State,ExitCode"], environment)
        rows = [line.split("|") for line in known if "|" in line]
        tasks = [{"JobState": state.split()[0], "ExitCode": code} for state, code, *_ in rows if state.split()]
    if not tasks:
        return None
    worst = next((task for task in tasks if task["JobState"] != "COMPLETED"), tasks[0])
    restarts = max(int(task.get("Restarts", 0)) for task in tasks)
    return State(worst["JobState"], restarts=restarts, exit_code=worst.get("ExitCode", ""))


def _lines_of(words: Sequence[str], environment: Mapping[str, str]) -> list[str]:
    """What a command prints; nothing where it fails."""
    done = _run(words, environment)
    return [] if done.returncode else done.stdout.splitlines()


def cancel(ids: Sequence[str], environment: Mapping[str, str]) -> None:
    done = _run(["scancel", *ids], environment)
    if done.returncode:
        raise UserError(f"scancel: {_first_line(done.stderr)}")


def _run(words: Sequence[str], environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(words, env=environment, input="", capture_output=True, text=True, timeout=TIMEOUT_S)
    except FileNotFoundError:
        raise UserError(f"no {words[0]} on PATH: is this a login node of a SLURM cluster?") from None
    except subprocess.TimeoutExpired:
        raise UserError(f"{words[0]} gave no answer in {TIMEOUT_S} s; is the SLURM controller up?") from None


def _first_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0].removeprefix("sbatch: error: ") if lines else "it says nothing"
