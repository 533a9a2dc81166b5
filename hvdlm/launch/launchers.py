"""What each launcher has to be told to start ranks: its words and its environment. Pure text.

Words and variables were tried on Open MPI 4.1.4 and 5.0.11, MPICH 5.0.2, Intel MPI 2021.18, SLURM 22.05 and
Horovod 0.28.1. Nothing here chooses a transport: what a site configured holds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Kind = Literal["openmpi4", "openmpi5", "hydra", "srun", "horovodrun"]
KINDS: tuple[Kind, ...] = get_args(Kind)

PROGRAMS: dict[Kind, str] = {
    "openmpi4": "mpirun", "openmpi5": "mpirun", "hydra": "mpiexec", "srun": "srun", "horovodrun": "horovodrun",
}  # fmt: skip


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
    pass_on: tuple[str, ...] = ()  # variables that are set here and that ranks on other hosts need
    program: str = ""  # its path; "": found on PATH


def launch_words(kind: Kind, launch: Launch) -> list[str]:
    """The command line before the program that each rank runs. ValueError where the launcher has no such thing."""
    if isinstance(launch.cpu_bind, list) and kind != "srun":
        raise ValueError(f"CPU masks are srun's, {kind} has none")
    return [launch.program or PROGRAMS[kind], *_WORDS[kind](launch)]


def launch_environment(kind: Kind, launch: Launch) -> dict[str, str]:
    """Variables that are set where the launcher is called; it hands them to all ranks itself."""
    found: dict[str, str] = {}
    if launch.interface:
        names = (*_INTERFACE[kind], "NCCL_SOCKET_IFNAME", "HOROVOD_GLOO_IFACE")
        found |= dict.fromkeys(names, launch.interface)
    if launch.in_container:
        found |= _CONTAINER[kind]
    if kind == "hydra":  # Intel MPI binds by its own variables and does as it likes with -bind-to; MPICH knows none
        found |= {"I_MPI_PIN": "off"} if launch.cpu_bind == "none" else {"I_MPI_PIN_DOMAIN": "omp"}
    return found


# Which variable tells it the one interface: MPI's own traffic, and the launcher's with its daemons.
_INTERFACE: dict[Kind, tuple[str, ...]] = {
    "openmpi4": ("OMPI_MCA_btl_tcp_if_include", "OMPI_MCA_oob_tcp_if_include"),
    "openmpi5": ("OMPI_MCA_btl_tcp_if_include", "PRTE_MCA_prte_if_include"),
    "hydra": ("FI_TCP_IFACE",),
    "srun": ("OMPI_MCA_btl_tcp_if_include", "OMPI_MCA_oob_tcp_if_include"),
    "horovodrun": ("OMPI_MCA_btl_tcp_if_include", "OMPI_MCA_oob_tcp_if_include"),
}

# Reading another process's memory (CMA) is forbidden in most containers; "Read -1, expected N, errno = 1".
_NO_CMA_4 = {"OMPI_MCA_btl_vader_single_copy_mechanism": "none"}
_NO_CMA_5 = {"OMPI_MCA_smsc": "^cma"}
_CONTAINER: dict[Kind, dict[str, str]] = {
    "openmpi4": _NO_CMA_4,
    "openmpi5": _NO_CMA_5,
    "hydra": {},
    "srun": _NO_CMA_4 | _NO_CMA_5,
    "horovodrun": _NO_CMA_4 | _NO_CMA_5,
}


def _option(name: str, value: int | str | None) -> list[str]:
    """A string stays the object it is: a job script knows by its type what the shell shall expand."""
    if value is None or value == "":
        return []
    return [name, value if isinstance(value, str) else str(value)]


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


def _open_mpi_binding(launch: Launch, *, allow: str) -> list[str]:
    """Without a word Open MPI would put each rank on one core, whatever its number of threads."""
    if launch.oversubscribe:
        return ["--bind-to", "none", *allow.split()]
    if launch.cpu_bind == "cores":
        return ["--map-by", f"slot:PE={launch.threads}", "--bind-to", "core"]
    return ["--bind-to", "none"]


def _open_mpi(launch: Launch, *, allow: str, tag: str) -> list[str]:
    return [
        *_option("-np", launch.ranks), *_option("--host", _hosts_with_slots(launch)),
        *_open_mpi_binding(launch, allow=allow), *(["--allow-run-as-root"] if launch.is_root else []),
        *(tag.split() if launch.label else []), *(word for name in launch.pass_on for word in ("-x", name)),
    ]  # fmt: skip


def _open_mpi_4(launch: Launch) -> list[str]:
    return _open_mpi(launch, allow="--oversubscribe", tag="--tag-output")


def _open_mpi_5(launch: Launch) -> list[str]:
    return _open_mpi(launch, allow="--map-by slot:OVERSUBSCRIBE", tag="--output tag")


def _hydra(launch: Launch) -> list[str]:
    """MPICH and Intel MPI. Both hand all variables on, take root, and put any number of ranks on a host.

    Different numbers of slots as `-hosts a:4,b:2` are MPICH's; Intel MPI has them in a -machinefile only.
    """
    hosts = _option("-hosts", _hosts_with_slots(launch))
    names, slots = _per_host(launch)
    if launch.hosts and slots:
        hosts = ["-hosts", ",".join(names), "-ppn", str(slots)]
    bind = f"core:{launch.threads}" if launch.cpu_bind == "cores" and not launch.oversubscribe else "none"
    return [
        *_option("-n", launch.ranks), *hosts, *_option("-iface", launch.interface), "-bind-to", bind,
        *(["-l"] if launch.label else []),
    ]  # fmt: skip


def _srun(launch: Launch) -> list[str]:
    """A step of the allocation; one failed task ends the others, which srun by itself would let wait for ever."""
    bind = launch.cpu_bind if isinstance(launch.cpu_bind, str) else "mask_cpu:" + ",".join(launch.cpu_bind)
    return [
        *([f"--mpi={launch.srun_mpi}"] if launch.srun_mpi else []), "--kill-on-bad-exit=1", "--wait=60",
        *([f"--ntasks={launch.ranks}", f"--cpus-per-task={launch.threads}"] if launch.ranks is not None else []),
        *_srun_hosts(launch), f"--cpu-bind={bind}", *(["--gpu-bind=none"] if launch.gpus else []),
        *(["--overcommit"] if launch.oversubscribe else []), *(["--label"] if launch.label else []),
    ]  # fmt: skip


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
    if launch.cpu_bind == "cores" and not launch.oversubscribe:
        binding = f"--bind-to core --map-by slot:PE={launch.threads}"
    return [
        *_option("-np", launch.ranks), *_option("-H", _hosts_with_slots(launch)),
        *_option("--network-interfaces", launch.interface), "--binding-args", binding,
    ]  # fmt: skip


_WORDS = {"openmpi4": _open_mpi_4, "openmpi5": _open_mpi_5, "hydra": _hydra, "srun": _srun, "horovodrun": _horovodrun}
