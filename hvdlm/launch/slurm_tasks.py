"""What SLURM says about the number of ranks, against how many there are: a job of N lonely processes helps nobody."""

from __future__ import annotations

from collections.abc import Mapping

from hvdlm.errors import UserError
from hvdlm.launch.ancestors import Starter
from hvdlm.launch.environment import STEP_TASKS


def tasks_of_job(env: Mapping[str, str]) -> int | None:
    """Tasks that the SLURM job was asked for; None outside a job, or where only nodes were asked for.

    >>> tasks_of_job({"SLURM_NTASKS_PER_NODE": "4", "SLURM_JOB_NUM_NODES": "2"})
    8
    """
    if env.get("SLURM_NTASKS", "").isdigit():
        return int(env["SLURM_NTASKS"])
    per_node, nodes = env.get("SLURM_NTASKS_PER_NODE", ""), env.get("SLURM_JOB_NUM_NODES", "")
    return int(per_node) * int(nodes) if per_node.isdigit() and nodes.isdigit() else None


def check_tasks(
    env: Mapping[str, str],
    launched: tuple[int, int] | None,
    starter: Starter = "unknown",
    *,
    has_mpirun_as_task: bool = False,
) -> str:
    """UserError if the launcher started another number of ranks than the SLURM job has tasks, or there was none.

    `launched` is (rank, size) as the launcher said it. Within a step SLURM's numbers are those of the step: of
    srun's tasks, which MPI's own size is compared with, or of the daemons that an mpirun has on other nodes. An
    interactive step (salloc) keeps the job's number beside its own. One process that a person types in the shell
    of a step is meant as one; what is returned says so where the step has more tasks.
    """
    tasks, step = tasks_of_job(env), env.get(STEP_TASKS) if starter != "batch script" else None
    size = launched[1] if launched else 1
    if has_mpirun_as_task and step is not None and int(step) > 1:
        raise UserError(
            f"srun started {step} copies of mpirun, so {step} jobs of {size} ranks; use srun or mpirun alone (for"
            f" {step} jobs with folders of their own: `env -u {STEP_TASKS} mpirun ...`)"
        )
    if launched is None and step is not None and starter == "terminal":
        return f"one process in a SLURM job of {tasks} tasks; `hvdlm launch` starts ranks here" if tasks != 1 else ""
    is_of_step = step is not None and (int(step) == tasks or int(step) == size > 1)
    if tasks is None or tasks == size or is_of_step:
        return ""
    if size > 1:
        raise UserError(
            f"the launcher started {size} ranks in a SLURM job of {tasks} tasks; leave its -np out, or ask SLURM for"
            f" {size} tasks, or use `hvdlm launch -np {size} -- ...`"
        )
    raise UserError(
        f"one process in a SLURM job of {tasks} tasks; start it by `hvdlm launch -- ...` or `srun --mpi=pmix ...`, or"
        " by `srun -n1 ...` for one process on purpose"
    )
