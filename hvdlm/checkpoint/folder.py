"""Names in a run's folder of checkpoints: what is where, and which of them stand there complete."""

from __future__ import annotations

import re
import shutil
import uuid
from pathlib import Path

STEP = re.compile(r"step_([0-9]{8}|[1-9][0-9]{8,17})")  # as `name_of` has it, and no other way


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
    """A folder with all that it holds, or a link to one, which alone goes.

    A checkpoint is gone at once: what is left of it when this is killed has a name by which the next save removes it.
    """
    if path.is_dir() and not path.is_symlink():
        if STEP.fullmatch(path.name):
            path = path.rename(path.with_name(f".{path.name}.{uuid.uuid4().hex}"))
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
