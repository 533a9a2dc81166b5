"""Checkpoints that are complete or absent: safetensors and JSON, written aside, renamed, `latest` last.

    RUN/checkpoints/step_00000100/{model.safetensors, optimizer.safetensors, engine.safetensors, state.json}
    RUN/checkpoints/latest -> step_00000100

state.json holds size and sha256 of the other files and is loaded first, so a damaged checkpoint is
passed over for the one before. Nothing is pickled.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim import Optimizer

from hvdlm.config import Section
from hvdlm.errors import UserError
from hvdlm.files import replace_durably, sha256_of, sync_folder, write_text_durably

log = logging.getLogger("hvdlm")

STATE = "state.json"
MODEL = "model.safetensors"
OPTIMIZER = "optimizer.safetensors"
ENGINE = "engine.safetensors"
LATEST = "latest"


class CheckpointConfig(Section):
    """The `checkpoint` section."""

    every: int = Field(100, ge=1, description="steps between checkpoints; the last step always has one")
    keep: int = Field(2, ge=1, description="how many of the newest are kept")


def folder_of(run_dir: Path) -> Path:
    return run_dir / "checkpoints"


def save(  # noqa: PLR0913 - what a checkpoint is made of
    run_dir: Path,
    step: int,
    model: nn.Module,
    optimizer: Optimizer,
    state: dict[str, Any],
    tensors: dict[str, torch.Tensor] | None = None,
    *,
    keep: int,
    permit: Callable[[], None] = lambda: None,
) -> Path:
    """Write the checkpoint of `step` (rank 0 calls this alone), then drop all but the newest `keep`.

    `tensors` is what else must be kept, such as a running mean of the weights. `permit` is called when all is written
    and nothing is visible yet; by raising an error it keeps the checkpoint from appearing.
    """
    root = folder_of(run_dir)
    root.mkdir(parents=True, exist_ok=True)
    for leftover in root.glob(".step_*"):  # of a job that died, or of one whose run was taken over
        shutil.rmtree(leftover, ignore_errors=True)
    final, aside = root / f"step_{step:08d}", root / f".step_{step:08d}.{uuid.uuid4().hex}"
    aside.mkdir()
    moments, scalars = _optimizer_state(model, optimizer)
    files = {}
    contents = {MODEL: _model_state(model), OPTIMIZER: moments, **({ENGINE: tensors} if tensors else {})}
    for name, content in contents.items():
        part = aside / f".{name}"
        save_file(content, part)
        replace_durably(part, aside / name)
        files[name] = {"bytes": (aside / name).stat().st_size, "sha256": sha256_of(aside / name)}
    record = {**state, "step": step, "files": files, "optimizer_scalars": scalars}
    write_text_durably(aside / STATE, json.dumps(record, indent=1) + "\n")
    permit()
    shutil.rmtree(final, ignore_errors=True)  # there only if it was found damaged
    aside.rename(final)
    sync_folder(root)
    _point_latest(root, final.name)
    for old in [old for old in complete_steps(run_dir) if old <= step][:-keep]:
        shutil.rmtree(root / f"step_{old:08d}")
    return final


def _point_latest(root: Path, name: str) -> None:
    aside = root / f".{LATEST}"
    aside.unlink(missing_ok=True)
    aside.symlink_to(name)
    os.replace(aside, root / LATEST)
    sync_folder(root)


def complete_steps(run_dir: Path) -> list[int]:
    """Steps of the finished checkpoints, oldest first."""
    found = (re.fullmatch(r"step_(\d{8,})", path.parent.name) for path in folder_of(run_dir).glob(f"step_*/{STATE}"))
    return sorted(int(match.group(1)) for match in found if match)


def newest(run_dir: Path) -> Path | None:
    """The newest checkpoint whose every file has its size and checksum; None for a fresh run.

    UserError if there are checkpoints and none is sound: to start anew must be the user's decision.
    """
    steps = complete_steps(run_dir)
    for step in reversed(steps):
        path = folder_of(run_dir) / f"step_{step:08d}"
        fault = damage(path)
        if fault is None:
            return path
        log.warning("%s: %s; trying the checkpoint before it", path, fault)
    if steps:
        raise UserError(f"{folder_of(run_dir)}: every checkpoint is damaged; restore one, or remove them to start anew")
    return None


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint folder, or None."""
    try:
        files = json.loads((path / STATE).read_text())["files"]
        for name, facts in files.items():
            if (path / name).stat().st_size != facts["bytes"]:
                return f"{name} is cut short"
            if sha256_of(path / name) != facts["sha256"]:
                return f"{name} is damaged (checksum)"
    except (OSError, ValueError, KeyError) as error:
        return f"{STATE} or a file it lists cannot be read ({error})"
    return None


def resolve(path: Path) -> Path:
    """The checkpoint that a user means by a checkpoint folder, `latest`, or a run folder."""
    if (path / STATE).exists():
        if fault := damage(path):
            raise UserError(f"{path}: {fault}; use another checkpoint of this run")
        return path
    found = newest(path)
    if found is None:
        raise UserError(f"{path}: holds no complete checkpoint; give a run folder or RUN/checkpoints/step_…")
    return found


def read_state(path: Path) -> dict[str, Any]:
    return json.loads((path / STATE).read_text())


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The `tensors` of `save`."""
    return load_file(path / ENGINE) if (path / ENGINE).exists() else {}


def load_model(path: Path, model: nn.Module) -> None:
    """Copy the checkpoint's weights into `model`, every one of them, bit for bit."""
    saved = load_file(path / MODEL)
    current = _model_state(model)
    if saved.keys() != current.keys():
        odd = sorted(saved.keys() ^ current.keys())
        raise UserError(f"{path}: its model has other tensors than this config ({', '.join(odd[:3])} …)")
    with torch.no_grad():
        for name, tensor in current.items():
            if tensor.shape != saved[name].shape:
                raise UserError(f"{path}: {name} is {tuple(saved[name].shape)}, this config says {tuple(tensor.shape)}")
            tensor.copy_(saved[name])


def load_optimizer(path: Path, model: nn.Module, optimizer: Optimizer) -> None:
    """Restore the optimizer's state by parameter name; call it after the optimizer was wrapped."""
    parameters = dict(model.named_parameters())
    scalars = read_state(path)["optimizer_scalars"]
    for key, value in {**load_file(path / OPTIMIZER), **scalars}.items():
        name, _, entry = key.rpartition("/")
        is_tensor = isinstance(value, torch.Tensor)
        optimizer.state[parameters[name]][entry] = value.to(parameters[name].device) if is_tensor else value


def _model_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers by name; a tied weight once, under its first name."""
    return {name: tensor.detach() for name, tensor in [*model.named_parameters(), *model.named_buffers()]}


def _optimizer_state(model: nn.Module, optimizer: Optimizer) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The optimizer's tensors and its plain values, both keyed `parameter/entry`."""
    tensors, scalars = {}, {}
    for name, parameter in model.named_parameters():
        for entry, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, torch.Tensor):
                tensors[f"{name}/{entry}"] = value
            else:
                scalars[f"{name}/{entry}"] = value
    return tensors, scalars
