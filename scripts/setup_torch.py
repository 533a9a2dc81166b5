"""Which torch hvdlm uses: one that is here, or the CPU or CUDA build that fits this machine (standard library only)."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import setup_venv as venv
from setup_errors import NotServed, SetupError
from setup_venv import State, say

TORCH = "2.13.0"
TORCH_PYTHONS = "3.10 to 3.14"  # what it has wheels for
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
# (download, in place), GB: torch 2.13.0 with what it asks for
TORCH_GB = {"cpu": (0.3, 1.0), "cuda": (3, 6)}
CHOICES = ("cpu", "cuda", "keep")


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


def torch_here() -> Torch | None:
    """The torch that the venv sees; SetupError if it sees one that cannot be imported."""
    if not venv.has_module(venv.PYTHON, "torch"):
        return None
    words = ("torch.__version__", "torch.version.cuda", "torch.version.hip", "torch.__path__[0]")
    done = subprocess.run(
        [str(venv.PYTHON), "-c", f"import torch; print({', '.join(words)}, sep='\\n')"], capture_output=True, text=True
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
            return venv.pip("torch-cpu", "install", *few, f"torch=={TORCH}+cpu", remedy=remedy)
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
    return venv.pip("torch", "install", f"torch{exactly}{TORCH}", remedy=remedy)


def _check_space(needed_gb: float) -> None:
    free = shutil.disk_usage(venv.VENV).free / 1e9
    if free < needed_gb:
        raise SetupError(f"torch takes {needed_gb} GB in .venv, {free:.1f} are free; use a checkout on a larger disk")
