"""What Horovod 0.28.1 needs to be built with today's torch, and for which device (standard library only)."""

from __future__ import annotations

import inspect
import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import setup_venv as venv
from setup_errors import SetupError
from setup_processes import compiler_jobs
from setup_torch import Torch, has_nvidia_gpu
from setup_venv import State, say
from setup_wheels import FROM_SOURCE, build_environment, install_built

HOROVOD = "0.28.1"
CXX_STANDARD_OF_GUARD = {"201402": 14, "201703": 17, "202002": 20, "202302": 23}


def cxx_standard(aten_header: str) -> int:
    """C++ standard that torch's headers demand, from the guard in ATen/ATen.h.

    >>> cxx_standard("#if !defined(_MSC_VER) && __cplusplus < 201703L")
    17
    """
    guard = re.search(r"__cplusplus\s*<\s*(\d{6})L", aten_header)
    return CXX_STANDARD_OF_GUARD.get(guard.group(1), 20) if guard else 17


NEEDS_GPU = 'set(NEEDS_GPU "$ENV{HOROVOD_GPU_OPERATIONS}$ENV{HOROVOD_GPU_ALLREDUCE}")'
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

    - Its CMake files ask for C++14 (CUDA kernels: C++11).
    - It takes the CUDA toolkit or ROCm as needed wherever torch was built with them; here only HOROVOD_GPU_OPERATIONS
      does, so that a CUDA torch on a machine without nvcc gets a Horovod for CPU tensors.
    - `horovodrun` says `-bind-to`, of which Open MPI 5 understands only the spelling with two dashes, as Open MPI 4
      does too.
    """
    standards = (r"(CMAKE_CXX_STANDARD\s+)\d+", rf"\g<1>{standard}")
    needs_gpu = (r"(include\(CheckLanguage\))", NEEDS_GPU + r"\n\1")
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


def cuda_options(torch: Torch, toolkit: Toolkit) -> dict[str, str]:
    """Environment for a Horovod with NCCL."""
    options = dict.fromkeys(("CUDA_HOME", "HOROVOD_CUDA_HOME"), str(toolkit.home))
    options["HOROVOD_NCCL_LINK"] = "shared"
    if not any(name.startswith("HOROVOD_GPU_") for name in os.environ):
        options["HOROVOD_GPU_OPERATIONS"] = "NCCL"
    capabilities = venv.ask(
        "import torch",
        "print(','.join(sorted({'%d%d' % torch.cuda.get_device_capability(i)"
        " for i in range(torch.cuda.device_count())})))",
    )
    if capabilities and "HOROVOD_BUILD_CUDA_CC_LIST" not in os.environ:
        options["HOROVOD_BUILD_CUDA_CC_LIST"] = capabilities
    nccl = torch.home.parent / "nvidia" / "nccl"
    if nccl.is_dir() and "HOROVOD_NCCL_HOME" not in os.environ:
        link_home = venv.VENV / "nccl"  # the wheel ships libnccl.so.2 alone, the linker looks for libnccl.so
        (link_home / "lib").mkdir(parents=True, exist_ok=True)
        for name, target in (("include", "include"), ("lib/libnccl.so", "lib/libnccl.so.2")):
            (link_home / name).unlink(missing_ok=True)
            (link_home / name).symlink_to(nccl / target)
        options["HOROVOD_NCCL_HOME"] = str(link_home)
    return options


def cpu_features() -> list[str]:
    """What of this processor Horovod compiles for, so that a wheel in a shared home does not meet an older one."""
    try:
        flags = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return []
    return sorted(flags & {"f16c", "avx", "fma"})


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
        venv.pip(
            "horovod-download", "download", *FROM_SOURCE, "--no-binary=horovod", "-d", str(aside), f"horovod=={HOROVOD}"
        )
        (archive,) = aside.glob("horovod-*.tar.gz")
        with tarfile.open(archive) as tar:
            tar.extractall(aside)  # noqa: S202 - the published source archive
        source = aside / f"horovod-{HOROVOD}"
        patch_horovod(source, standard)
        remedy = "the log has the compiler's words"
        venv.pip("horovod-build", "wheel", *FROM_SOURCE, "-w", str(aside), str(source), env=environment, remedy=remedy)
        shutil.rmtree(source)
        archive.unlink()

    facts = {"horovod": HOROVOD, "patch": inspect.getsource(patch_horovod), "standard": standard, "cpu": cpu_features()}
    facts |= {**mpi, "torch": torch.version, "cuda": torch.cuda, "device": device, **options}
    for place in ("MAKEFLAGS", "HOROVOD_NCCL_HOME"):  # the binary finds things at run time, wherever they lie
        facts.pop(place, None)
    install_built(state, "horovod", facts, build)
    state.set("horovod-device", device)
