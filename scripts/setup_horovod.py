"""What Horovod 0.28.1 needs to be built with today's torch, and for which device (standard library only)."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from setup_errors import SetupError

HOROVOD = "0.28.1"
CXX_STANDARD_OF_GUARD = {"201402": 14, "201703": 17, "202002": 20, "202302": 23}
CHOICES = ("cpu", "cuda", "keep")


def cxx_standard(aten_header: str) -> int:
    """C++ standard that torch's headers demand, from the guard in ATen/ATen.h.

    >>> cxx_standard("#if !defined(_MSC_VER) && __cplusplus < 201703L")
    17
    """
    guard = re.search(r"__cplusplus\s*<\s*(\d{6})L", aten_header)
    return CXX_STANDARD_OF_GUARD.get(guard.group(1), 20) if guard else 17


NEEDS_GPU = 'set(NEEDS_GPU "$ENV{HOROVOD_GPU_OPERATIONS}$ENV{HOROVOD_GPU_ALLREDUCE}")'
# Its sources lean on headers that other headers brought along: up to GCC 12, and each later one brings fewer.
HEADERS = re.findall(
    r"\w+", "algorithm array cstdint cstring functional limits memory mutex numeric sstream stdexcept string thread"
)
INCLUDES = f'add_compile_options("$<$<COMPILE_LANGUAGE:CXX>:SHELL:{" ".join(f"-include {name}" for name in HEADERS)}>")'
UNLESS_ASKED = "".join(f"if(NOT HAVE_{kind})\n  set(Pytorch_{kind} FALSE)\nendif()\n" for kind in ("CUDA", "ROCM"))


def _replace(file: Path, *changes: tuple[str, str]) -> None:
    text = file.read_text()
    for pattern, new in changes:
        text, num_found = re.subn(pattern, new, text)
        if not num_found:
            raise SetupError(f"Horovod's {file.name} has no `{pattern}` to change; is it {HOROVOD}?")
    file.write_text(text)


def patch_horovod(source: Path, standard: int) -> None:
    """Make the published 0.28.1 build with today's torch and start under today's Open MPI.

    - Its CMake files ask for C++14 (CUDA kernels: C++11), and its sources name not all the headers that they use.
    - It takes the CUDA toolkit or ROCm as needed wherever torch was built with them; here only HOROVOD_GPU_OPERATIONS
      does, so that a CUDA torch on a machine without nvcc gets a Horovod for CPU tensors.
    - `horovodrun` says `-bind-to`, of which Open MPI 5 understands only the spelling with two dashes, as Open MPI 4
      does too.
    """
    standards = (r"(CMAKE_CXX_STANDARD\s+)\d+", rf"\g<1>{standard}")
    needs_gpu = (r"(include\(CheckLanguage\))", f"{INCLUDES}\n{NEEDS_GPU}" + r"\n\1")
    uses_nvcc = (r"if\(CMAKE_CUDA_COMPILER\)", "if(CMAKE_CUDA_COMPILER AND NEEDS_GPU)")
    _replace(source / "CMakeLists.txt", standards, needs_gpu, uses_nvcc)
    _replace(source / "horovod/torch/CMakeLists.txt", standards)
    _replace(source / "cmake/Modules/FindPytorch.cmake", (r"\n(if\s*\(Pytorch_ROCM\)\n)", rf"\n{UNLESS_ASKED}\1"))
    _replace(source / "horovod/common/ops/cuda/CMakeLists.txt", (r"(CMAKE_CUDA_STANDARD\s+)\d+", r"\g<1>17"))
    _replace(source / "horovod/runner/mpi_run.py", (r"'-(bind-to|map-by|rank-by) ", r"'--\1 "))
    for name in ("CMakeLists.txt", "horovod/torch/CMakeLists.txt"):
        text = (source / name).read_text()
        (source / name).write_text(re.sub(r"-std=c\+\+\d+", f"-std=c++{standard}", text))


@dataclass(frozen=True)
class Torch:
    """The torch that the venv sees: version, what it was built for ("None" if not), and where it lies."""

    version: str
    cuda: str
    hip: str
    home: Path

    @property
    def build(self) -> str:
        return "rocm" if self.hip != "None" else "cuda" if self.cuda != "None" else "cpu"


@dataclass(frozen=True)
class Toolkit:
    """A CUDA toolkit: its folder and release, such as 13.0."""

    home: Path
    release: str


def find_toolkit(environment: Mapping[str, str]) -> Toolkit | None:
    """The toolkit of the nvcc on PATH, or under CUDA_HOME; None if there is none that runs."""
    homes = [environment[name] for name in ("CUDA_HOME", "CUDA_PATH") if environment.get(name)]
    path = os.pathsep.join([environment.get("PATH", ""), *(f"{home}/bin" for home in homes)])
    nvcc = shutil.which("nvcc", path=path)
    if not nvcc:
        return None
    try:
        said = subprocess.run([nvcc, "--version"], capture_output=True, text=True, timeout=60).stdout
        # /usr/local/bin/nvcc may be a script that calls the real one.
        words = ["-dryrun", "-x", "cu", "-c", "/dev/null"]
        dry = subprocess.run([nvcc, *words], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    release = re.search(r"release (\d+\.\d+)", said)
    top = re.search(r"^#\$ TOP=(\S.*)$", dry.stderr, re.MULTILINE)
    home = Path(top[1]).resolve() if top else Path(nvcc).resolve().parent.parent
    return Toolkit(home, release[1]) if release else None


def has_nvidia_gpu() -> bool:
    return any([*Path("/proc/driver/nvidia/gpus").glob("*"), *Path("/dev").glob("nvidia[0-9]*")])


def torch_to_install(wanted: str, build: str | None, *, has_gpu: bool) -> str:
    """The build to install, or "keep", for what TORCH says ("" if nothing) and the build that is there (None if none).

    >>> torch_to_install("", None, has_gpu=False)
    'cpu'
    """
    if wanted == "keep" and build is None:
        raise SetupError("TORCH=keep, but this Python finds no torch; activate its environment, or TORCH=cpu or cuda")
    if wanted in ("cpu", "cuda"):
        return "keep" if build == wanted else wanted
    if build is not None:
        return "keep"
    return "cuda" if has_gpu else "cpu"


def horovod_device(
    wanted: str, torch: Torch, toolkit: Toolkit | None, *, has_gpu: bool, was_cuda: bool
) -> tuple[str, str]:
    """Where Horovod's tensors may lie, "cpu" or "cuda", and why not cuda where a person might have expected it.

    It was built for GPUs before (`was_cuda`): a login node without one does not take that back.
    """
    if torch.build != "cuda":
        reason = {"cpu": "torch is a CPU build", "rocm": "torch is a ROCm build, for which this set-up has no Horovod"}
        lacks = reason[torch.build] if torch.build == "rocm" or has_gpu else ""
    elif wanted == "cpu":
        lacks = "TORCH=cpu"
    elif toolkit is None:
        lacks = f"no CUDA toolkit here (nvcc {torch.cuda})"
    elif toolkit.release.split(".")[0] != torch.cuda.split(".")[0]:
        lacks = f"nvcc here is {toolkit.release}, torch's CUDA {torch.cuda}"
    elif wanted == "cuda" or has_gpu or was_cuda:
        return "cuda", ""
    else:
        lacks = "no GPU here; TORCH=cuda builds it for the GPUs of other nodes"
    if wanted == "cuda":
        why = lacks or "torch is a CPU build"
        raise SetupError(f"TORCH=cuda: {why}; load that toolkit (`module load cuda`), or TORCH=cpu")
    return "cpu", lacks
