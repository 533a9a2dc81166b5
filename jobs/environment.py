"""What the environment of the one who submits says to sbatch, beside the command line and the site. Pure.

SBATCH_* variables override the #SBATCH lines of a script, and all other variables become the job's. So that a script
means what it says, a variable for an option that nothing else sets becomes a line of the script, and one for an
option that the script sets is left out. Checked against `man sbatch` of SLURM 22.05, with names of later releases.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from .lint.sbatch import OPTIONS

_SAME_NAME = """
    account acctg-freq batch cluster-constraint clusters constraint container container-id core-spec cpus-per-gpu
    delay-boot distribution error exclusive export get-user-env gpu-bind gpu-freq gpus gpus-per-node gpus-per-task gres
    gres-flags hint ignore-pbs input job-name mem-bind mem-per-cpu mem-per-gpu network no-kill no-requeue open-mode
    output overcommit partition power prefer profile qos requeue reservation signal spread-job thread-spec
    threads-per-core tres-bind tres-per-task use-min-nodes wait wait-all-nodes wckey
"""
# variable -> the option of sbatch that it stands for
VARIABLES = {
    **{f"SBATCH_{name.upper().replace('-', '_')}": name for name in _SAME_NAME.split()},
    "SBATCH_ARRAY_INX": "array",
    "SBATCH_DEBUG": "verbose",
    "SBATCH_MEM_PER_NODE": "mem",
    "SBATCH_REQ_SWITCH": "switches",
    "SBATCH_TIMELIMIT": "time",
    "SBATCH_WAIT4SWITCH": "switches",
    "SLURM_CLUSTERS": "clusters",
    "SLURM_HINT": "hint",
}
_SET_IN_JOBS = ("SBATCH_MEM_BIND", "SLURM_CLUSTERS", "SLURM_HINT")  # by SLURM, which tells by them how that job is

# Options that sbatch refuses together, or that mean the same: one that is set speaks for all of its line.
_ALTERNATIVES = """
    mem mem-per-cpu mem-per-gpu
    gpus gpus-per-node gpus-per-task gres
    core-spec thread-spec
    requeue no-requeue
    hint threads-per-core
"""
# What every script says, or what would keep `hvdlm submit` from its work.
_SAID = "clusters job-name array output error open-mode requeue signal cpus-per-gpu wait verbose dependency"

# Of srun. Outside a job these are a person's, and would become options of the script's steps.
_OF_STEPS = """
    BCAST COMPRESS CORE_SPEC CPU_BIND CPUS_PER_GPU CPUS_PER_TASK DEPENDENCY DIST_PLANESIZE DISTRIBUTION EPILOG EXACT
    EXCLUSIVE EXPORT_ENV GPU_BIND GPUS GPUS_PER_NODE GPUS_PER_TASK GRES IMMEDIATE JOB_NUM_NODES KILL_BAD_EXIT LABELIO
    MEM_PER_CPU MEM_PER_GPU MEM_PER_NODE MPI_TYPE NNODES NPROCS NTASKS NTASKS_PER_CORE NTASKS_PER_GPU NTASKS_PER_NODE
    NTASKS_PER_SOCKET OPEN_MODE OVERCOMMIT OVERLAP PROLOG REMOTE_CWD RESV_PORTS STDERRMODE STDINMODE STDOUTMODE
    STEP_GRES THREADS THREADS_PER_CORE THREAD_SPEC TIMELIMIT UNBUFFEREDIO WAIT WHOLE WORKING_DIR
"""
_STEP_VARIABLES = frozenset(f"SLURM_{name}" for name in _OF_STEPS.split())
# Of srun too, but without effect on the steps of a job, and unknown to sbatch.
_OF_ALLOCATIONS = "SLURM_ACCOUNT SLURM_CONSTRAINT SLURM_PARTITION SLURM_QOS SLURM_RESERVATION SLURM_SIGNAL SLURM_WCKEY"
# How a person likes to see tables, and which jobs are meant: our own questions mean all, in our own form.
_OF_QUESTIONS = "SLURM_TIME_FORMAT SQUEUE_ SCANCEL_ SCONTROL_ SACCT_ SINFO_"

# How SLURM is reached, inside a job too.
_KEPT = "SLURM_CONF SLURM_CONF_SERVER SLURM_JWT SLURM_SACK_JWKS SLURM_SACK_KEY SLURM_SACK_SOCKET"
# What an enclosing job says of itself, which the next is not,
_OF_JOB = """
    SLURM_ SLURMD_ _SLURM_ HVDLM_JOB_END CUDA_VISIBLE_DEVICES GPU_DEVICE_ORDINAL ROCR_VISIBLE_DEVICES ZE_AFFINITY_MASK
"""
# and an enclosing launcher, if one of these is set. With several ranks `hvdlm submit` refuses it.
_LAUNCHED = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "HOROVOD_SIZE", "PMIX_RANK")
_OF_LAUNCHER = """
    HOROVOD_LOCAL_ HOROVOD_CROSS_ HOROVOD_GLOO_ HOROVOD_CONTROLLER HOROVOD_CPU_OPERATIONS HOROVOD_HOSTNAME HYDI_
    MPI_LOCAL PALS_ OMPI_APP_CTX OMPI_ARGV OMPI_COMMAND OMPI_FILE_LOCATION OMPI_FIRST_RANKS OMPI_NUM_APP_CTX
    OMPI_MCA_ess OMPI_MCA_initial_wdir OMPI_MCA_orte_ OMPI_MCA_pmix OMPI_MCA_shmem_RUNTIME
"""


@dataclass(frozen=True)
class Wishes:
    """What SBATCH_* variables ask for: options that count, and variables that do not, as NAME=VALUE."""

    taken: Mapping[str, str]  # option -> value; "" for a flag
    left_out: tuple[str, ...]

    def lines(self) -> list[str]:
        """For the one who submits: what became of the variables."""
        taken = ", ".join(f"--{name}={value}" if value else f"--{name}" for name, value in self.taken.items())
        found = [f"taken from your environment: {taken}"] if taken else []
        if self.left_out:
            found.append(f"left out of your environment, for the job says otherwise: {', '.join(self.left_out)}")
        return found


def wishes(environment: Mapping[str, str], said: Mapping[str, str]) -> Wishes:
    """Hold the variables against the options that command line and site have set, which count.

    >>> wishes({"SBATCH_ACCOUNT": "a", "SBATCH_QOS": "long", "SBATCH_WAIT": "1"}, {"account": "mine"})
    Wishes(taken={'qos': 'long'}, left_out=('SBATCH_ACCOUNT=a', 'SBATCH_WAIT=1'))
    """
    settled = _with_alternatives({*said, *_SAID.split()})
    in_job = "SLURM_JOB_ID" in environment
    taken: dict[str, str] = {}
    left_out = [] if in_job else [name for name in environment if name in _STEP_VARIABLES or name.startswith("SRUN_")]
    for name in sorted(VARIABLES.keys() & environment.keys()):
        option, value = VARIABLES[name], environment[name]
        if (in_job and name in _SET_IN_JOBS) or not _asks(option, value) or said.get(option) == value:
            continue
        if option in settled or option in taken:
            left_out.append(name)
        else:
            taken[option] = "" if OPTIONS[option] == "no" or (OPTIONS[option] == "maybe" and value == "yes") else value
    return Wishes(taken, tuple(f"{name}={environment[name]}" for name in sorted(left_out)))


def _with_alternatives(said: Collection[str]) -> set[str]:
    groups = map(str.split, _ALTERNATIVES.strip().splitlines())
    return {*said, *(name for group in groups if not set(said).isdisjoint(group) for name in group)}


def _asks(option: str, value: str) -> bool:
    """Whether a variable sets its option at all: a flag's has to be empty, `yes` or a number above zero."""
    if OPTIONS[option] == "no":
        return value in ("", "yes") or (value.isdecimal() and int(value) > 0)
    return bool(value) or OPTIONS[option] == "maybe"


def for_slurm(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment for sbatch, and so for the job, and for questions to SLURM.

    Nothing is left in it that would become an option of either, nor what an enclosing job or launcher has said.
    """
    prefixes = f"SBATCH_ SRUN_ {_OF_QUESTIONS} {_OF_ALLOCATIONS}"
    prefixes += _OF_JOB if "SLURM_JOB_ID" in environment else ""
    prefixes += _OF_LAUNCHER if any(name in environment for name in _LAUNCHED) else ""
    told = {name for name in environment if name.startswith(tuple(prefixes.split()))}
    told |= {*_STEP_VARIABLES, *VARIABLES}
    return {name: value for name, value in environment.items() if name not in told or name in _KEPT.split()}
