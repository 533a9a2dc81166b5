"""h5py against the parallel HDF5 of the chosen MPI, else its wheel (standard library only)."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import setup_venv as venv
from setup_errors import SetupError
from setup_mpi import linked_mpi
from setup_venv import State, say
from setup_wheels import FROM_SOURCE, build_environment, install_built

H5PY = "3.16.0"


def install_h5py(state: State, mpi: dict[str, str]) -> None:
    h5pcc = shutil.which("h5pcc")
    lacks = "no parallel HDF5 here" if not h5pcc or mpi["mpicc"] == "wheel" else ""
    if h5pcc and not lacks:
        other = other_mpi_of_hdf5(h5pcc, mpi)
        lacks = f"{h5pcc} is of another MPI, {other}" if other else ""
    if not h5pcc or lacks:
        say(f"h5py: ordinary wheel ({lacks}; every stage works without it)")
        if not state.fits("h5py", H5PY) or not venv.has_module(venv.PYTHON, "h5py"):
            state.set("h5py", "")
            venv.pip("h5py", "install", "--force-reinstall", "--no-deps", f"h5py=={H5PY}")
            state.set("h5py", H5PY)
        return
    config = subprocess.run([h5pcc, "-showconfig"], capture_output=True, text=True).stdout
    version = re.search(r"HDF5 Version:\s*(\S+)", config)
    numpy = venv.ask("import numpy", "print(numpy.__version__)")

    def build(aside: Path) -> None:
        say(f"h5py: building {H5PY} against parallel HDF5 (some minutes)")
        # Without --no-build-isolation an old mpi4py is compiled too, in tens of GB of memory.
        environment = build_environment(mpi, CC="mpicc", HDF5_MPI="ON")
        remedy = "is HDF5 built with the same MPI? `sudo make setup-system` on Debian"
        words = (*FROM_SOURCE, "--no-binary=h5py", "-w", str(aside), f"h5py=={H5PY}")
        venv.pip("h5py-build", "wheel", *words, env=environment, remedy=remedy)

    facts = {"h5py": H5PY, **mpi, "hdf5": version.group(1) if version else "?", "h5pcc": h5pcc, "numpy": numpy}
    install_built(state, "h5py", facts, build)


def other_mpi_of_hdf5(h5pcc: str, mpi: dict[str, str]) -> str:
    """The MPI of this HDF5 where it is not the chosen one, or why that cannot be told; "" where it is."""
    if not mpi.get("libmpi"):
        return ""
    try:
        found = linked_mpi(h5pcc)
    except SetupError as error:
        return str(error)
    return found if found != mpi["libmpi"] else ""
