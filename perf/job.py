"""One mpirun of a bench: started, ended, and, where it failed, the reason in one line. It does not outlive us."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import re
import signal
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

from hvdlm.launch.plan import fresh_environment, own_command, start_command

HVDLM = tuple(own_command())
QUIT_LIMIT_S = 15.0
TAKE_TURNS = "%s on %s: they will take turns"  # of a bench with more ranks than cores

# In this order: our own one-line error, a library's exception, what mpirun says of a rank that was killed.
REASONS = (
    re.compile(r"^hvdlm: error: (.*)", re.MULTILINE),
    re.compile(r"^((?:[\w.]*(?:Error|Exception)): .*)", re.MULTILINE),
    re.compile(r"(exited on signal \d+[^.\n]*)"),
)
NO_MEMORY = re.compile(r"out of memory|can't allocate memory|Cannot allocate memory|MemoryError|signal 9\b")


class JobFailed(Exception):
    """The message is one line; `for_memory` if memory was the reason, as far as one can tell."""

    def __init__(self, code: int, stderr: str) -> None:
        found = next((match for reason in REASONS if (match := reason.search(stderr))), None)
        super().__init__(found.group(1) if found else f"exit code {code}")
        self.code, self.stderr = code, stderr
        self.for_memory = bool(NO_MEMORY.search(stderr))


def end_with_parent(signal_number: int) -> None:
    """Let Linux send this process a signal when its parent ends; elsewhere it does nothing."""
    set_parent_death_signal = 1  # PR_SET_PDEATHSIG of prctl(2)
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal_number, 0, 0, 0)


def start_job(
    ranks: int, command: Sequence[str], environment: Mapping[str, str] | None = None, **streams: Any
) -> subprocess.Popen:
    """mpirun in a session of its own (Ctrl-C is the parent's, which cleans up), ended with the parent."""
    streams |= {"stdin": subprocess.DEVNULL, "env": environment or fresh_environment(), "start_new_session": True}
    end = functools.partial(end_with_parent, signal.SIGTERM)
    return subprocess.Popen(start_command(ranks, list(command)), preexec_fn=end, **streams)


def end_job(mpirun: subprocess.Popen, patience_s: float) -> None:
    """Wait for a job that is about to end by itself, then terminate it, then kill it."""
    for urge in (mpirun.terminate, mpirun.kill, None):
        try:
            mpirun.wait(patience_s)
            return
        except subprocess.TimeoutExpired:
            assert urge is not None, "a killed process can be waited for"
            urge()


def run_job(ranks: int, words: Sequence[str], *, timeout_s: float | None = None) -> str:
    """`hvdlm WORDS` on so many ranks of this machine; returns its stdout.

    Raises JobFailed, or subprocess.TimeoutExpired. However this is left, mpirun has ended, and its ranks with it.
    """
    pipe = subprocess.PIPE
    process = start_job(ranks, [*HVDLM, *words], stdout=pipe, stderr=pipe, text=True)
    try:
        stdout, stderr = process.communicate(timeout=timeout_s)
    except BaseException:
        process.terminate()
        end_job(process, QUIT_LIMIT_S)
        raise
    if process.returncode:
        raise JobFailed(process.returncode, stderr)
    return stdout
