"""Names in a run's folder of checkpoints: what is where, and which of them stand there complete."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

STEP = re.compile(r"step_(\d{8,18})")


def folder_of(run_dir: Path) -> Path:
    return run_dir / "checkpoints"


def path_of(run_dir: Path, step: int) -> Path:
    return folder_of(run_dir) / name_of(step)


def name_of(step: int) -> str:
    return f"step_{step:08d}"


def complete_steps(run_dir: Path) -> list[int]:
    """Steps of the finished checkpoints, oldest first; `damage` tells what has happened to one since."""
    found = (STEP.fullmatch(path.name) for path in folder_of(run_dir).glob("step_*"))
    return sorted(int(match.group(1)) for match in found if match)


def remove(path: Path) -> None:
    """A folder with all that it holds, or a link to one, which alone goes."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
