"""One mpirun of `hvdlm`, started by a bench: what it printed, or in one line why it failed. It does not outlive us."""

from __future__ import annotations

import re
import subprocess
import sys

from hvdlm.launch.plan import fresh_environment

from .cell_job import end_job, start_job

QUIT_LIMIT_S = 15.0

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
        self.for_memory = bool(NO_MEMORY.search(stderr))


def run_job(ranks: int, words: list[str], *, timeout_s: float | None = None) -> str:
    """`hvdlm WORDS` on so many ranks of this machine; returns its stdout.

    Raises JobFailed, or subprocess.TimeoutExpired. However this is left, mpirun has ended, and its ranks with it.
    """
    process = start_job(
        ranks, [sys.executable, "-m", "hvdlm", *words], fresh_environment(),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        stdout, stderr = process.communicate(timeout=timeout_s)
    except BaseException:
        process.terminate()
        end_job(process, QUIT_LIMIT_S)
        raise
    if process.returncode:
        raise JobFailed(process.returncode, stderr)
    return stdout
