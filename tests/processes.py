"""Processes of test jobs: found in /proc and waited for."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


def until(
    what: Callable[[], T], timeout_s: float = 60, process: subprocess.Popen | None = None, log: Path | None = None
) -> T:
    """Wait for `what()` to be true, and return it.

    AssertionError with what was said, in `log` or on stderr, if it takes too long or if `process` ends before.
    """
    deadline = time.monotonic() + timeout_s
    while not (found := what()):
        if process is not None and process.poll() is not None:
            said = log.read_text() if log else process.communicate()[1]
            raise AssertionError(f"it ended with {process.returncode}: {said}")
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s} s: {log.read_text() if log else ''}")
        time.sleep(0.05)
    return found


def find_processes(look: Callable[[Path], T]) -> dict[int, T]:
    """What `look` says of a process's folder in /proc, by process id, where it says anything."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended, or is not ours to see
            if said := look(folder):
                found[int(folder.name)] = said
    return found


def parent_of(folder: Path) -> int:
    return int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])


def rank_of(folder: Path) -> str:
    """The rank of a process that Open MPI has started, or nothing."""
    prefix = b"OMPI_COMM_WORLD_RANK="
    environment = (folder / "environ").read_bytes().split(b"\0")
    return next((word.removeprefix(prefix).decode() for word in environment if word.startswith(prefix)), "")


def ranks_of(mpirun: int) -> list[int]:
    """Process ids of the ranks below an mpirun, in rank order."""
    found = find_processes(lambda folder: parent_of(folder) == mpirun and rank_of(folder))
    return sorted(found, key=lambda pid: int(found[pid]))
