"""What takes minutes to build is kept as a wheel under a key of everything it depends on (standard library only)."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import setup_venv as venv
from setup_errors import SetupError
from setup_processes import alone
from setup_venv import State, digest, say

HOME = os.path.expanduser("~/.cache")  # noqa: PTH111 - without a home Path.expanduser raises
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or HOME, "hvdlm", "wheels")
COMPILE_TOOLS = ["cmake>=3.31,<5", "cython>=3.0,<4", "pkgconfig>=1.5,<2"]  # only where no wheel is kept yet
# What of the environment changes the outcome of a build.
BUILD_VARIABLES = re.compile(r"(HOROVOD|HDF5)_\w+|CC|CXX|(C|CXX|CPP|LD|NVCC)FLAGS|CPATH|(\w+_INCLUDE|LIBRARY)_PATH")
# What pip itself keeps of earlier builds is not asked: it does not know with which MPI they were made.
FROM_SOURCE = ("--no-deps", "--no-build-isolation", "--no-cache-dir")


def build_environment(mpi: dict[str, str], **extra: str) -> dict[str, str]:
    """The environment of a source build: the venv's tools first, then the chosen MPI, then PATH."""
    parts = [str(venv.PYTHON.parent)]
    if mpi["mpicc"] != "wheel":
        parts.append(str(Path(mpi["mpicc"]).parent))
    return {**os.environ, "PATH": os.pathsep.join([*parts, os.environ.get("PATH", "")]), **extra}


def platform_facts() -> dict[str, Any]:
    """What every compiled wheel depends on besides its own."""
    compiler = (os.environ.get("CXX") or "c++").split()
    version = subprocess.run([*compiler, "--version"], capture_output=True, text=True).stdout.strip()
    return {
        "python": venv.ask("import sys", "print(sys.implementation.cache_tag)"),
        "machine": platform.machine(),
        "libc": "-".join(platform.libc_ver()),
        "cxx": (version.splitlines() or ["?"])[0],
        "variables": {name: value for name, value in sorted(os.environ.items()) if BUILD_VARIABLES.fullmatch(name)},
    }


def install_built(state: State, name: str, facts: dict, build: Callable[[Path], None]) -> None:
    """Install the wheel of NAME for these facts: already there, from the cache, or from `build(dir)`."""
    facts = {**facts, **platform_facts()}
    key = digest(facts)
    if state.fits(name, key) and venv.has_module(venv.PYTHON, name):
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
    venv.pip(f"{name}-install", "install", "--no-deps", "--no-index", "--force-reinstall", str(wheel))
    state.set(name, key)
    say(f"{name}: installed {wheel.name}")


def build_wheel(state: State, shelf: Path, build: Callable[[Path], None], *, is_alone: bool) -> None:
    """Build beside the shelf; it appears whole, or nothing is left."""
    headers = Path(sysconfig.get_path("include")) / "Python.h"
    if not headers.exists():
        raise SetupError(f"no {headers}; `apt-get install python3-dev`, or PYTHON=… one that has its headers")
    venv.install_tools(state, "compile-tools", COMPILE_TOOLS)
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
