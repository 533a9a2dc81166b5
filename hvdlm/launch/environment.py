"""What the launcher and the user told this process by variables."""

from __future__ import annotations

import os
from collections.abc import Mapping

# What each launcher tells a process about itself; the first pair that is set holds. A SLURM batch
# script is no step, so SLURM_NTASKS, which it sees, says nothing about the process at hand.
LAUNCHER_VARIABLES = (
    ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
    ("PMI_SIZE", "PMI_RANK"),
    ("HOROVOD_SIZE", "HOROVOD_RANK"),
    ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID"),
)


def launched_as(env: Mapping[str, str] = os.environ) -> tuple[int, int] | None:
    """(rank, size) that the launcher announced, or None for a process that was started by hand."""
    for size, rank in LAUNCHER_VARIABLES:
        if size in env and rank in env:
            return int(env[rank]), int(env[size])
    return None


def threads_wanted(env: Mapping[str, str] = os.environ) -> int:
    """Threads that the user set by OMP_NUM_THREADS, or 0."""
    value = env.get("OMP_NUM_THREADS", "").split(",")[0]
    return int(value) if value.isdigit() else 0


def memory_is_tuned(env: Mapping[str, str] = os.environ) -> bool:
    """Whether the user has told glibc's malloc himself when to give memory back."""
    names = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "MALLOC_MMAP_MAX_")
    return any(name in env for name in names) or "glibc.malloc." in env.get("GLIBC_TUNABLES", "")


def met_over_gloo(env: Mapping[str, str] = os.environ) -> bool:
    """Whether the ranks were started by `horovodrun --gloo`: then they are no MPI processes."""
    return "HOROVOD_GLOO_RENDEZVOUS_ADDR" in env


def launcher_waits_for_all(env: Mapping[str, str] = os.environ) -> bool:
    """Whether this process is a task of srun, which by itself lets the other tasks run on when one fails."""
    return "SLURM_STEP_NUM_TASKS" in env and "OMPI_COMM_WORLD_SIZE" not in env
