"""What the launcher and the user told this process by variables."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, MutableMapping

from hvdlm.launch.ancestors import Starter, started_by

STEP_TASKS = "SLURM_STEP_NUM_TASKS"
STEP_NUMBER = ("SLURM_STEP_ID", "SLURM_STEPID")
OPEN_MPI_SIZE = "OMPI_COMM_WORLD_SIZE"
BAR_IN_LAUNCHER = "HVDLM_BAR_IN_LAUNCHER"  # set by `hvdlm launch` on a terminal, for the ranks whose words it reads

# What each launcher tells a process about itself; the first pair that is set holds. A SLURM batch
# script is no step, so SLURM_NTASKS, which it sees, says nothing about the process at hand.
LAUNCHER_VARIABLES = (
    (OPEN_MPI_SIZE, "OMPI_COMM_WORLD_RANK"),
    ("PMI_SIZE", "PMI_RANK"),
    ("HOROVOD_SIZE", "HOROVOD_RANK"),
    (STEP_TASKS, "SLURM_PROCID"),
)
OF_STEP = ("PMI_SIZE", STEP_TASKS)  # which srun gives to a task, and a shell that is one to all that is typed in it


def launched_as(
    env: Mapping[str, str] = os.environ, starter: Callable[[], Starter] = started_by
) -> tuple[int, int] | None:
    """(rank, size) that the launcher announced, or None for a process that was started by hand.

    By hand too: from a terminal's shell that is itself the task of an srun, and from a batch script that was
    submitted in such a shell. They hand on variables that tell of others.
    """
    for size, rank in LAUNCHER_VARIABLES:
        if env.get(size, "").isdecimal() and env.get(rank, "").isdecimal():
            is_told_of_others = size in OF_STEP and STEP_TASKS in env and starter() in ("terminal", "batch script")
            if not is_told_of_others:
                return int(env[rank]), int(env[size])
    return None


def is_in_step(env: Mapping[str, str] = os.environ, starter: Callable[[], Starter] = started_by) -> bool:
    """Whether this process runs within a step of srun, where a new step waits for the old one unless told otherwise."""
    return STEP_TASKS in env and starter() != "batch script"


def is_word_of_pmi(name: str) -> bool:
    """Whether a variable is a PMI server's word to its client; PMIX_MCA_ are settings of the user's."""
    return name.startswith(("PMIX_", "PMI_", "PMI2_")) and not name.startswith("PMIX_MCA_")


def meets_by_pmi(env: Mapping[str, str] = os.environ) -> bool:
    """Whether there is a server by which ranks find each other: without it each MPI process is alone."""
    return any(is_word_of_pmi(name) or name.startswith(("PALS_", "FLUX_")) for name in env)


def forget_the_step(
    env: MutableMapping[str, str] = os.environ,
    starter: Callable[[], Starter] = started_by,
    *,
    knows_slurm: Callable[[], bool],
) -> None:
    """Take out of the environment what would stop the MPI of a process that is alone in its world.

    Open MPI without SLURM's own PMI aborts where SLURM_STEP_ID is set and no PMIx is, and a rank may meet its PMIx
    server once: a second program of the same task fails, and takes the whole step with it. So one process never asks
    the step. Nor do tasks whom nothing brings together: MPI then counts one each, which `connect` refuses in
    words. `knows_slurm` says whether the MPI at hand meets through SLURM itself (PMI-1, which has no variables).
    """
    if STEP_TASKS not in env or OPEN_MPI_SIZE in env:
        return
    is_one_of_many = (launched_as(env, starter) or (0, 1))[1] > 1
    if is_one_of_many and (meets_by_pmi(env) or knows_slurm()):
        return
    for name in [name for name in env if name in STEP_NUMBER or is_word_of_pmi(name)]:
        del env[name]


def threads_wanted(env: Mapping[str, str] = os.environ) -> int:
    """Threads that the user set by OMP_NUM_THREADS, or 0."""
    value = env.get("OMP_NUM_THREADS", "").split(",")[0]
    return int(value) if value.isdigit() else 0


def memory_is_tuned(env: Mapping[str, str] = os.environ) -> bool:
    """Whether the user has told glibc's malloc himself when to give memory back."""
    names = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "MALLOC_MMAP_MAX_")
    return any(name in env for name in names) or "glibc.malloc." in env.get("GLIBC_TUNABLES", "")


def launcher_draws_bar(env: Mapping[str, str] = os.environ) -> bool:
    """Whether `hvdlm launch` has a terminal and draws there how far rank 0 says it is: a rank has only a pipe."""
    return env.get(BAR_IN_LAUNCHER) == "1"


def fix_cublas_workspace(env: MutableMapping[str, str] = os.environ) -> None:
    """What cuBLAS reads at its first call, to give the same bits each time (NVIDIA's manual of cuBLAS, 2.1.4)."""
    env.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def met_over_gloo(env: Mapping[str, str] = os.environ) -> bool:
    """Whether the ranks were started by `horovodrun --gloo`: then they are no MPI processes."""
    return "HOROVOD_GLOO_RENDEZVOUS_ADDR" in env


def launcher_waits_for_all(env: Mapping[str, str] = os.environ) -> bool:
    """Whether this process is a task of srun, which by itself lets the other tasks run on when one fails."""
    return STEP_TASKS in env and OPEN_MPI_SIZE not in env
