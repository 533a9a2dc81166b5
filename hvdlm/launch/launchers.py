"""What each launcher has to be told to start ranks: its words and its environment. Pure text.

Words and variables were tried on Open MPI 4.1.4 and 5.0.11, MPICH 5.0.2, Intel MPI 2021.18, SLURM 22.05 and
Horovod 0.28.1. Nothing here chooses a transport: what a site configured holds.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

# A new step waits for the resources of the old one, mpirun's daemons on other nodes too, unless srun is told not to.
BESIDE_STEP = {"SLURM_OVERLAP": "1"}

MPIRUN_PROGRAMS = ("mpirun", "mpiexec", "mpiexec.hydra", "orterun", "prterun")


@dataclass(frozen=True)
class Launch:
    """What is asked of a launcher.

    Strings for `ranks` and `hosts` are taken as they are: a job script gives what its shell shall expand.
    """

    ranks: int | str | None = None  # None: as many as the scheduler's allocation has
    hosts: tuple[tuple[str, int], ...] | str = ()  # (name, slots); none: this machine, or the allocation
    threads: int = 1  # cores of a rank
    interface: str = ""  # network interface for all that opens sockets
    srun_mpi: str = "pmix"  # "": what the site has configured
    cpu_bind: Literal["none", "cores"] | list[str] = "none"  # a list: one hexadecimal mask a rank of a node (srun)
    label: bool = False  # each line of output with its rank
    gpus: bool = False  # every rank sees all GPUs of its node and takes the one of its number
    is_root: bool = False
    oversubscribe: bool = False  # more ranks than cores
    in_container: bool = False
    in_step: bool = False  # called within a step of srun, which a new step would wait for
    pass_on: tuple[str, ...] = ()  # variables that are set here and that ranks on other hosts need
    program: str = ""  # its path; "": found on PATH

    @property
    def binds_cores(self) -> bool:
        return self.cpu_bind == "cores" and not self.oversubscribe


def launch_words(kind: str, launch: Launch) -> list[str]:
    """The command line before the program that each rank runs. ValueError where the launcher has no such thing."""
    launcher = LAUNCHERS[kind]
    if isinstance(launch.cpu_bind, list) and not launcher.takes_masks:
        raise ValueError(f"CPU masks are srun's, {kind} has none")
    return [launch.program or launcher.program, *launcher.words(launch)]


def launch_environment(kind: str, launch: Launch) -> dict[str, str]:
    """Variables that are set where the launcher is called; it hands them to all ranks itself."""
    launcher = LAUNCHERS[kind]
    found: dict[str, str] = {}
    if launch.interface:
        names = (*launcher.interface_variables, "NCCL_SOCKET_IFNAME", "HOROVOD_GLOO_IFACE")
        found |= dict.fromkeys(names, launch.interface)
    if launch.in_container:
        found |= launcher.in_container
    if launch.in_step and not launcher.starts_a_step:
        found |= BESIDE_STEP
    return found | launcher.binding(launch)


def _option(name: str, value: int | str | None) -> list[str]:
    """A string stays the object it is: a job script knows by its type what the shell shall expand."""
    if value is None or value == "":
        return []
    return [name, value if isinstance(value, str) else str(value)]


def _flag(name: str, is_wanted: bool) -> list[str]:
    return name.split() if is_wanted else []


def _hosts_with_slots(launch: Launch) -> str:
    if isinstance(launch.hosts, str):
        return launch.hosts
    return ",".join(f"{name}:{slots}" for name, slots in launch.hosts)


def _per_host(launch: Launch) -> tuple[list[str], int | None]:
    """Names, and the slots of each if they all have the same number."""
    if isinstance(launch.hosts, str):
        return launch.hosts.split(","), None
    slots = {slots for _, slots in launch.hosts}
    return [name for name, _ in launch.hosts], slots.pop() if len(slots) == 1 else None


def _open_mpi(launch: Launch, *, allow: str, tag: str) -> list[str]:
    """Without a word Open MPI would put each rank on one core, whatever its number of threads."""
    binding = f"--map-by slot:PE={launch.threads} --bind-to core" if launch.binds_cores else "--bind-to none"
    words = [*_option("-np", launch.ranks), *_option("--host", _hosts_with_slots(launch)), *binding.split()]
    words += _flag(allow, launch.oversubscribe) + _flag("--allow-run-as-root", launch.is_root)
    words += _flag(tag, launch.label)
    return [*words, *(word for name in launch.pass_on for word in ("-x", name))]


_open_mpi_4 = functools.partial(_open_mpi, allow="--oversubscribe", tag="--tag-output")
_open_mpi_5 = functools.partial(_open_mpi, allow="--map-by slot:OVERSUBSCRIBE", tag="--output tag")


def _hydra(launch: Launch) -> list[str]:
    """MPICH and Intel MPI. Both hand all variables on, take root, and put any number of ranks on a host.

    Different numbers of slots as `-hosts a:4,b:2` are MPICH's; Intel MPI has them in a -machinefile only.
    """
    hosts = _option("-hosts", _hosts_with_slots(launch))
    names, slots = _per_host(launch)
    if launch.hosts and slots:
        hosts = ["-hosts", ",".join(names), "-ppn", str(slots)]
    bind = ["-bind-to", f"core:{launch.threads}" if launch.binds_cores else "none"]
    interface = _option("-iface", launch.interface)
    return [*_option("-n", launch.ranks), *hosts, *interface, *bind, *_flag("-l", launch.label)]


def _hydra_binding(launch: Launch) -> dict[str, str]:
    """Intel MPI binds by its own variables and does as it likes with -bind-to; MPICH knows none of them."""
    return {"I_MPI_PIN": "off"} if launch.cpu_bind == "none" else {"I_MPI_PIN_DOMAIN": "omp"}


def _srun(launch: Launch) -> list[str]:
    """A step of the allocation; one failed task ends the others, which srun by itself would let wait for ever."""
    words = _flag("--overlap", launch.in_step) + _flag(f"--mpi={launch.srun_mpi}", bool(launch.srun_mpi))
    words += ["--kill-on-bad-exit=1", "--wait=60"]
    if launch.ranks is not None:
        words += [f"--ntasks={launch.ranks}", f"--cpus-per-task={launch.threads}"]
    bind = launch.cpu_bind if isinstance(launch.cpu_bind, str) else "mask_cpu:" + ",".join(launch.cpu_bind)
    words += [*_srun_hosts(launch), f"--cpu-bind={bind}", *_flag("--gpu-bind=none", launch.gpus)]
    return words + _flag("--overcommit", launch.oversubscribe) + _flag("--label", launch.label)


def _srun_hosts(launch: Launch) -> list[str]:
    if not launch.hosts:
        return []
    names, slots = _per_host(launch)
    if slots:
        return [f"--nodes={len(names)}", f"--ntasks-per-node={slots}", f"--nodelist={','.join(names)}"]
    if isinstance(launch.hosts, str):
        return [f"--nodelist={launch.hosts}"]
    once_a_rank = ",".join(name for name, slots in launch.hosts for _ in range(slots))
    return ["--distribution=arbitrary", f"--nodelist={once_a_rank}"]


def _horovodrun(launch: Launch) -> list[str]:
    """It adds root, tags and every variable itself, and calls mpirun on TCP alone; so it is the last choice."""
    binding = "--bind-to none --map-by slot"  # its own, said so that a change of it does not bind
    if launch.binds_cores:
        binding = f"--bind-to core --map-by slot:PE={launch.threads}"
    words = [*_option("-np", launch.ranks), *_option("-H", _hosts_with_slots(launch))]
    return [*words, *_option("--network-interfaces", launch.interface), "--binding-args", binding]


# Reading another process's memory (CMA) is forbidden in most containers; "Read -1, expected N, errno = 1".
_NO_CMA_4 = {"OMPI_MCA_btl_vader_single_copy_mechanism": "none"}
_NO_CMA_5 = {"OMPI_MCA_smsc": "^cma"}


@dataclass(frozen=True)
class Launcher:
    """One of the programs that start ranks, and what the rest of the house has to know about it."""

    program: str
    words: Callable[[Launch], list[str]]
    in_container: Mapping[str, str] = field(default_factory=lambda: _NO_CMA_4 | _NO_CMA_5)
    # Variables that tell it the one interface: MPI's own traffic, and the launcher's with its daemons.
    interface_variables: tuple[str, ...] = ("OMPI_MCA_btl_tcp_if_include", "OMPI_MCA_oob_tcp_if_include")
    binding: Callable[[Launch], dict[str, str]] = lambda launch: {}  # variables beside the words that bind
    asked_as: str = "mpirun"  # the word for it in `hvdlm launch --launcher`
    srun_plugins: tuple[str, ...] = ("pmix",)  # by which srun starts ranks of its MPI, the best first
    only_in_slurm: str = ""  # why no other scheduler can have it
    in_slurm_job: Mapping[str, str] = field(default_factory=dict)  # exported by a batch script
    takes_masks: bool = False  # a CPU mask for each rank
    starts_a_step: bool = False  # whose tasks SLURM counts by themselves
    knows_allocation: bool = True  # else it is told the job's ranks and hosts
    passes_signals: bool = True  # to all ranks


LAUNCHERS = {
    "openmpi4": Launcher("mpirun", _open_mpi_4, _NO_CMA_4),
    "openmpi5": Launcher("mpirun", _open_mpi_5, _NO_CMA_5, ("OMPI_MCA_btl_tcp_if_include", "PRTE_MCA_prte_if_include")),
    "hydra": Launcher("mpiexec", _hydra, {}, ("FI_TCP_IFACE",), _hydra_binding, srun_plugins=("cray_shasta", "pmi2")),
    "srun": Launcher(
        "srun",
        _srun,
        asked_as="srun",
        only_in_slurm="belongs to SLURM",
        in_slurm_job={"SRUN_CPUS_PER_TASK": "$SLURM_CPUS_PER_TASK"},  # it no longer takes it from the job by itself
        takes_masks=True,
        starts_a_step=True,
    ),
    "horovodrun": Launcher(
        "horovodrun",
        _horovodrun,
        asked_as="horovodrun",
        only_in_slurm="is told its hosts in SLURM only",
        knows_allocation=False,
        passes_signals=False,
    ),
}
