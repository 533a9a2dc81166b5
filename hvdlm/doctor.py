"""`hvdlm doctor`: do torch, Horovod, MPI and HDF5 here fit together? Each problem with its remedy."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hvdlm.errors import UserError
from hvdlm.host import affinity
from hvdlm.launch.environment import launched_as, met_over_gloo
from hvdlm.launch.known_errors import explain
from hvdlm.launch.plan import find_mpirun, fresh_environment, start_command
from hvdlm.tables import table
from hvdlm.world.connect import WorldKind, connect
from hvdlm.world.horovod import load_horovod
from hvdlm.world.mpi import library_version

HELLO_TIMEOUT_S = 120
MPI_LIBRARY = re.compile(r"/lib(mpi|mpich|mpi_(gnu|cray|intel|amd|nvidia)\w*)\.so")  # Open MPI and Intel, MPICH, Cray


@dataclass(frozen=True)
class Check:
    """One fact; `remedy` is the command or change that mends it when it is not `ok`."""

    name: str
    ok: bool
    detail: str
    remedy: str = ""


def examine(*, is_job: bool = False) -> list[Check]:
    """All checks, in an order in which a later one may need the earlier.

    In a job (`is_job`, called by all its ranks) the ranks at hand say hello; else two are started for it.
    """
    checks: list[Check] = []
    meeting = _hello_here if is_job else _hello_of_two
    for check in (_python, _torch, _mpi, _horovod, _h5py, _one_libmpi, _launchers, _interfaces, meeting):
        try:
            checks += check()
        except (UserError, ImportError, OSError) as error:
            name, remedy = check.__name__.lstrip("_"), "`make setup`, or what the message says"
            checks.append(Check(name, False, str(error), remedy))
    return checks


def to_text(checks: list[Check]) -> str:
    """A line a check, problems with their remedy below, and the verdict last."""
    rows = []
    for check in checks:
        rows.append(["ok " if check.ok else "BAD", check.name, check.detail])
        if not check.ok:
            rows.append(["", "", f"remedy: {check.remedy}"])
    bad = sum(not check.ok for check in checks)
    return f"{table([], rows, num_left=3)}\n" + (f"{bad} of {len(checks)} checks failed" if bad else "all is well")


def _python() -> Iterator[Check]:
    found = f"{platform.python_version()} on {platform.machine()}"
    yield Check("python", sys.version_info >= (3, 10), found, "use Python 3.10 or newer")


def _torch() -> Iterator[Check]:
    before = affinity()
    try:
        import torch
    except ImportError as error:
        yield Check("torch", False, f"cannot be imported ({error})", "make setup")
        return
    gpus = torch.cuda.device_count()
    yield Check("torch", True, f"{torch.__version__}, CUDA {torch.version.cuda or 'none'}, {gpus} GPUs")
    after = affinity()
    detail = f"{os.cpu_count()} on the node, {len(after)} for this process, {torch.get_num_threads()} torch threads"
    if len(after) < len(before):
        detail = f"{len(before)} before `import torch`, {len(after)} after"
    yield Check("cores", len(after) >= len(before), detail, "unset OMP_PROC_BIND, GOMP_CPU_AFFINITY and KMP_AFFINITY")


def _mpi() -> Iterator[Check]:
    yield Check("MPI", True, f"{library_version()}, MPI_THREAD_MULTIPLE, mpi4py {importlib.metadata.version('mpi4py')}")


def _horovod() -> Iterator[Check]:
    if importlib.util.find_spec("horovod") is None:
        yield Check("horovod", False, "is not installed", "make setup (or train with world=mpi)")
        return
    import horovod
    import torch

    facts = Path(horovod.__file__).parent / "metadata.json"
    built_for = json.loads(facts.read_text()).get("pytorch") if facts.exists() else None
    if built_for and built_for != torch.__version__:
        yield Check("horovod", False, f"was built for torch {built_for}, this is {torch.__version__}", "make setup")
        return
    hvd = load_horovod()
    kinds = {"MPI": hvd.mpi_built(), "Gloo": hvd.gloo_built(), "NCCL": bool(hvd.nccl_built())}
    detail = f"{horovod.__version__} for torch {built_for}: " + ", ".join(k for k, built in kinds.items() if built)
    yield Check("horovod", bool(kinds["MPI"]), detail, "it was built without MPI: load an MPI, then `make setup`")
    if sys.version_info >= (3, 12):
        has_shim = importlib.util.find_spec("distutils") is not None
        detail = f"distutils shim {'found' if has_shim else 'missing'}"
        yield Check("horovodrun", has_shim, detail, "pip install 'setuptools<81' (mpirun and srun work without it)")


def _h5py() -> Iterator[Check]:
    import h5py

    parallel = "parallel (mpio)" if h5py.get_config().mpi else "serial (enough for every stage)"
    yield Check("h5py", True, f"{h5py.__version__} on HDF5 {h5py.version.hdf5_version}, {parallel}")


def _one_libmpi() -> Iterator[Check]:
    """Two MPIs in one process are the usual cause of `every rank is 0 of 1`."""
    maps = Path("/proc/self/maps").read_text().splitlines()
    libraries = sorted({os.path.realpath(line.split()[-1]) for line in maps if MPI_LIBRARY.search(line)})
    remedy = "build mpi4py, Horovod and h5py with one MPI: remove .venv, then `make setup`"
    yield Check("libmpi", len(libraries) == 1, ", ".join(libraries) or "none mapped", remedy)


def _launchers() -> Iterator[Check]:
    horovodrun = Path(sys.executable).parent / "horovodrun"
    others = [name for name in ("srun", "sbatch") if shutil.which(name)]
    if horovodrun.exists():
        others.insert(0, str(horovodrun))
    yield Check("launchers", True, ", ".join([str(find_mpirun()), *others]))


def _interfaces() -> Iterator[Check]:
    """MPI may try networks that lead nowhere, such as a container bridge's, and then hangs between hosts."""
    up = [name for _, name in socket.if_nameindex() if name != "lo" and _is_up(name)]
    private = [name for name in up if name.startswith(("docker", "virbr", "br-", "veth", "cni", "lxc", "podman"))]
    detail = ", ".join(up) or "none but lo"
    if private:
        detail += f"; {', '.join(private)} lead to no other host: name the right one by --interface if MPI hangs"
    yield Check("interfaces", True, detail)


def _is_up(interface: str) -> bool:
    state = Path(f"/sys/class/net/{interface}/operstate")
    return not state.exists() or state.read_text().strip() != "down"


def _hello_of_two() -> Iterator[Check]:
    """Two ranks meet through mpi4py and through Horovod, started by the mpirun found above."""
    command = start_command(2, [sys.executable, "-m", "hvdlm", "doctor", "--hello"], is_small=True)
    streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True}
    with tempfile.TemporaryDirectory() as folder:  # a folder without hvdlm's sources: what is installed counts
        try:
            done = subprocess.run(command, cwd=folder, env=fresh_environment(), timeout=HELLO_TIMEOUT_S, **streams)
        except subprocess.TimeoutExpired:
            yield Check("2 ranks", False, f"no answer in {HELLO_TIMEOUT_S} s", "does `mpirun -np 2 hostname` work?")
            return
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        said = (line.strip(" -") for line in (done.stderr + done.stdout).splitlines())  # mpirun draws rules of dashes
        reason = next(filter(None, said), "no output")
        cures = [known.cure for known in explain(done.stderr + done.stdout)]
        remedy = "; ".join(cures) or "run that command by hand"
        yield Check("2 ranks", False, f"{' '.join(command[:3])} failed: {reason}", remedy)
        return
    yield _meeting(json.loads(lines[-1]), 2)


def _hello_here() -> Iterator[Check]:
    """The ranks of the job at hand meet."""
    launched = launched_as()
    yield _meeting(hello(), launched[1] if launched else 1)


def _meeting(sizes: dict[str, int], expected: int) -> Check:
    met = " and ".join(f"{name} ({size} ranks)" for name, size in sizes.items())
    remedy = "mpirun belongs to another MPI than the one Horovod and mpi4py use"
    return Check(f"{expected} ranks", set(sizes.values()) == {expected}, f"allreduce over {met}", remedy)


def hello() -> dict[str, int]:
    """Sum the ranks in both worlds, called by all ranks: how many met in each, or -1 for a wrong sum."""
    sizes = {}
    worlds: list[tuple[str, WorldKind]] = [] if met_over_gloo() else [("mpi4py", "mpi")]
    if importlib.util.find_spec("horovod") is not None:
        worlds.append(("horovod", "horovod"))
    for name, kind in worlds:
        world = connect(kind)
        total = np.array([world.rank], dtype=np.int64)
        world.sum_(total)
        sizes[name] = world.size if int(total[0]) == world.size * (world.size - 1) // 2 else -1
        world.close()
    return sizes
