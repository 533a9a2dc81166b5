"""Checkpoints that are complete or absent: safetensors and JSON, written aside, renamed, `latest` last.

    RUN/checkpoints/step_00000100/{model.safetensors, optimizer.safetensors, engine.safetensors, state.json}
    RUN/checkpoints/latest -> step_00000100
    RUN/checkpoints/best -> step_00000050, where checkpoint.best says what is judged by

state.json holds size and sha256 of the other files and is loaded first, so a damaged checkpoint is
passed over for the one before, and so is one that holds a NaN. Nothing is pickled, and no name out of a file is a path.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import os
import re
import shutil
import uuid
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from pydantic import Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim import Optimizer

from hvdlm.checkpoint.record import STATE, digest_of, read_record
from hvdlm.config import Section
from hvdlm.errors import UserError
from hvdlm.files import (
    NO_SUCH_CALL,
    naming,
    read_text,
    replace_durably,
    sha256_of,
    sync_folder,
    to_json,
    write_text_durably,
)

log = logging.getLogger("hvdlm")

MODEL = "model.safetensors"
OPTIMIZER = "optimizer.safetensors"
ENGINE = "engine.safetensors"
AUTO = "auto"  # of `checkpoint.best`
LATEST, BEST = "latest", "best"
STEP = re.compile(r"step_(\d{8,18})")


class CheckpointConfig(Section):
    """The `checkpoint` section."""

    every: int = Field(100, ge=1, description="steps between checkpoints; the last step always has one")
    keep: int = Field(2, ge=1, description="how many of the newest are kept, once the step after them was sound")
    best: str | None = Field(
        None,
        description="also keep the one with the best validation by this figure, as loss, accuracy or f1 (of equal ones"
        " that of less loss), for eval and all that uses the run; auto: the task's main one; null: the newest is used",
    )


class NotFiniteError(UserError):
    """A state that holds inf or NaN, which no checkpoint may."""


def folder_of(run_dir: Path) -> Path:
    return run_dir / "checkpoints"


def path_of(run_dir: Path, step: int) -> Path:
    return folder_of(run_dir) / name_of(step)


def name_of(step: int) -> str:
    return f"step_{step:08d}"


def prepare(run_dir: Path) -> None:
    """Make the folder of checkpoints; OSError before a run begins that could not save."""
    root = folder_of(run_dir)
    root.mkdir(parents=True, exist_ok=True)
    _settle_latest(root)
    probe = root / f".probe.{uuid.uuid4().hex}"
    with naming(root):
        probe.mkdir()
        probe.rmdir()


def save(  # noqa: PLR0913 - what a checkpoint is made of
    run_dir: Path,
    step: int,
    model: nn.Module,
    optimizer: Optimizer | None,
    state: dict[str, Any],
    tensors: dict[str, torch.Tensor] | None = None,
    *,
    keep: int | None = None,
    permit: Callable[[], None] = lambda: None,
) -> Path:
    """Write the checkpoint of `step` (rank 0 calls this alone), then drop all but the newest `keep`, or none.

    `tensors` is what else must be kept, such as a running mean of the weights. `permit` is called when all is written
    and nothing is visible yet; by raising an error it keeps the checkpoint from appearing. NotFiniteError, before
    anything is written, for a state that holds inf or NaN; OSError that names the checkpoint where it cannot be
    written.
    """
    root, final = folder_of(run_dir), path_of(run_dir, step)
    moments, scalars = _optimizer_state(model, optimizer)
    contents = {MODEL: model_state(model), OPTIMIZER: moments, **({ENGINE: tensors} if tensors else {})}
    if culprit := _not_finite(contents, scalars):
        raise NotFiniteError(f"{culprit} is not finite")
    with naming(final):
        root.mkdir(parents=True, exist_ok=True)
    for leftover in root.glob(".step_*"):  # of a job that died, or of one whose run was taken over
        with contextlib.suppress(OSError):
            _remove(leftover)
    aside = root / f".{final.name}.{uuid.uuid4().hex}"
    try:
        with naming(final):
            aside.mkdir()
            files = {name: _write_part(aside, name, content) for name, content in contents.items()}
            record = {**state, "step": step, "files": files, "optimizer_scalars": scalars}
            record["digest"] = digest_of(record)
            write_text_durably(aside / STATE, to_json(record, indent=1) + "\n")
        permit()
        with naming(final):
            _remove(final)  # there only if it was passed over
            aside.rename(final)
    except BaseException:  # what is left of a full disk is needed
        shutil.rmtree(aside, ignore_errors=True)
        raise
    with naming(root / LATEST):
        sync_folder(root)
        _point_latest(root, final.name)
    if keep is not None:
        prune(run_dir, step, keep=keep)
    return final


def _write_part(folder: Path, name: str, content: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Write one file of a checkpoint; its size and the hash of what was read back."""
    part, final = folder / f".{name}", folder / name
    try:
        save_file(content, part)
    except SafetensorError as error:  # it tells what write() said in words alone
        code = re.search(r"(?:os error|code:) (\d+)", str(error))
        number = int(code.group(1)) if code else errno.EIO
        raise OSError(number, os.strerror(number) if code else str(error), str(final)) from None
    replace_durably(part, final)
    return {"bytes": final.stat().st_size, "sha256": sha256_of(final)}


def prune(run_dir: Path, step: int, *, keep: int, unsound: Collection[int] = ()) -> None:
    """Drop checkpoints up to `step` but for the newest `keep`; the `unsound` do not count and go too.

    What cannot be removed stays, with a warning: no reason to stop training.
    """
    best = best_of(run_dir)
    found = [old for old in complete_steps(run_dir) if old <= step and path_of(run_dir, old) != best]
    sound = [old for old in found if old not in unsound]
    for old in [*sound[:-keep], *(old for old in found if old in unsound)]:
        try:
            _remove(path_of(run_dir, old))
        except OSError as error:
            log.warning("%s: cannot remove this old checkpoint (%s)", path_of(run_dir, old), error.strerror)


def _remove(path: Path) -> None:
    """A folder with all that it holds, or a link to one, which alone goes."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def point_best(run_dir: Path, step: int | None) -> None:
    """From here on the checkpoint of this step is the best, and kept until another one is; None: there is no best."""
    if step is not None and (path_of(run_dir, step) / STATE).exists():
        _point(folder_of(run_dir), name_of(step), BEST)
    elif (folder_of(run_dir) / BEST).is_symlink() or (folder_of(run_dir) / BEST).exists():
        _remove(folder_of(run_dir) / BEST)


def best_of(run_dir: Path) -> Path | None:
    """The checkpoint that was judged the best, if any was, and is still there."""
    best = folder_of(run_dir) / BEST
    if best.is_dir() and not best.is_symlink():  # as in a copy that followed links
        return best
    try:
        name = best.readlink().name if best.is_symlink() else read_text(best).strip()
    except (OSError, ValueError):
        return None
    path = folder_of(run_dir) / name
    return path if STEP.fullmatch(name) and (path / STATE).exists() else None


def _point_latest(root: Path, name: str) -> None:
    _settle_latest(root)
    _point(root, name, LATEST)


def _point(root: Path, name: str, link: str) -> None:
    """A link of that name to the checkpoint of that name, in place of what was there."""
    aside = root / f".{link}"
    _remove(aside)
    try:
        aside.symlink_to(name)
    except OSError as error:
        if error.errno not in (errno.EPERM, *NO_SUCH_CALL):
            raise
        aside.write_text(name + "\n", encoding="utf-8")  # FAT and some network file systems have no links
    if (root / link).is_dir() and not (root / link).is_symlink():  # as in a copy that followed links
        _remove(root / link)
    os.replace(aside, root / link)
    sync_folder(root)


def _settle_latest(root: Path) -> None:
    """Where `latest` is a folder, as in a copy that followed links, make it what it is a copy of."""
    latest = root / LATEST
    if latest.is_symlink() or not latest.is_dir():
        return
    try:
        home = root / name_of(read_record(latest)["step"])
        is_copy = home.exists() and (home / STATE).read_bytes() == (latest / STATE).read_bytes()
    except (OSError, ValueError):
        home, is_copy = latest, False
    if is_copy and damage(home) is None:
        shutil.rmtree(latest)
        log.info("%s: was a copy of %s and is removed", latest, home.name)
        return
    home = root / f"{LATEST}.{uuid.uuid4().hex[:8]}" if home.exists() else home
    latest.rename(home)
    log.info("%s: was a folder, and is %s from now on", latest, home.name)


def complete_steps(run_dir: Path) -> list[int]:
    """Steps of the finished checkpoints, oldest first; `damage` tells what has happened to one since."""
    found = (STEP.fullmatch(path.name) for path in folder_of(run_dir).glob("step_*"))
    return sorted(int(match.group(1)) for match in found if match)


def newest(run_dir: Path, *, before: int | None = None) -> Path | None:
    """The newest checkpoint (before a step) that is whole (size and checksum of every file) and finite, or None.

    UserError if there are checkpoints and none is sound: to start anew must be the user's decision.
    """
    steps = [step for step in complete_steps(run_dir) if before is None or step < before]
    for step in reversed(steps):
        path = path_of(run_dir, step)
        fault = damage(path)
        if fault is None:
            return path
        log.warning("%s: %s; trying the checkpoint before it", path, fault)
    if steps and before is None:
        raise UserError(
            f"{folder_of(run_dir)}: every checkpoint is damaged; restore one, or remove them to start anew"
            f" (the oldest: {fault})"
        )
    return None


def damage(path: Path, *, finite: Iterable[str] = (MODEL, OPTIMIZER, ENGINE)) -> str | None:
    """What is wrong with a checkpoint folder, or None. The files `finite` must hold neither inf nor NaN."""
    try:
        record = read_record(path)
        named = STEP.fullmatch(path.name)
        if named and int(named.group(1)) != record["step"]:
            return f"{STATE} is of step {record['step']}"
        if missing := {MODEL, OPTIMIZER} - record["files"].keys():
            return f"{STATE} does not list {min(missing)}"
        for name, facts in record["files"].items():
            if (path / name).stat().st_size != facts["bytes"]:
                return f"{name} is cut short"
            if sha256_of(path / name) != facts["sha256"]:
                return f"{name} is damaged (checksum)"
        for name in record["files"].keys() & set(finite):
            with safe_open(path / name, framework="pt") as tensors:
                names = tensors.keys()
                culprit = next((key for key in names if not _is_finite(tensors.get_tensor(key))), None)
            if culprit:
                return f"{culprit} in {name} is not finite"
    except (OSError, ValueError, SafetensorError) as error:
        return f"{STATE} or a file it lists cannot be read ({error})"
    return None


def _not_finite(contents: Mapping[str, Mapping[str, torch.Tensor]], scalars: Mapping[str, Any]) -> str | None:
    """The first tensor or number that holds inf or NaN, with its file."""
    for file, tensors in contents.items():
        for name, tensor in tensors.items():
            if not _is_finite(tensor):
                return f"{name} in {file}"
    return next((name for name, value in scalars.items() if isinstance(value, float) and not math.isfinite(value)), "")


def _is_finite(tensor: torch.Tensor) -> bool:
    """Whether no element is inf or NaN, in one pass (a sixth of what hashing takes): one NaN makes both ends NaN."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    if tensor.dtype.itemsize == 1:  # torch compares no float8
        tensor = tensor.float()
    return all(math.isfinite(end) for end in torch.aminmax(tensor.detach()))


def resolve(path: Path) -> Path:
    """The checkpoint that a user means by a checkpoint folder, `latest`, or a run folder.

    Of a checkpoint that is named itself the optimizer's state need not be finite: nothing is trained from it.
    """
    if path.name == LATEST and path.parent.name == folder_of(path).name:
        path = _behind_latest(path)
    if (path / STATE).exists():
        if fault := damage(path, finite=(MODEL, ENGINE)):
            raise UserError(f"{path}: {fault}; use another checkpoint of this run")
        return path
    best = best_of(path)
    if best is not None and (fault := damage(best, finite=(MODEL, ENGINE))):
        raise UserError(f"{best}: {fault}; it was the best of this run: use another checkpoint")
    found = best or newest(path)
    if found is None:
        raise UserError(f"{path}: holds no complete checkpoint; give a run folder or RUN/checkpoints/step_…")
    return found


def _behind_latest(latest: Path) -> Path:
    """RUN/checkpoints/latest, or what it names where it is a text for want of links; never outside its own folder."""
    if latest.is_symlink():
        if Path(os.path.realpath(latest)).parent != latest.parent.resolve():
            raise UserError(f"{latest}: points out of its run, to {latest.readlink()}; name the checkpoint itself")
        return latest
    if not latest.is_file():
        return latest
    try:
        name = read_text(latest, limit=100).strip()
    except ValueError:
        name = ""
    if not STEP.fullmatch(name):
        raise UserError(f"{latest}: names no checkpoint beside it; give the run folder or RUN/checkpoints/step_…")
    return latest.parent / name


def read_state(path: Path) -> dict[str, Any]:
    """state.json of a checkpoint; UserError if it is none."""
    try:
        return read_record(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path / STATE}: cannot be read ({error}); use another checkpoint of this run") from None


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The `tensors` of `save`."""
    return load_file(path / ENGINE) if ENGINE in read_state(path)["files"] else {}


@runtime_checkable
class TakesShapes(Protocol):
    """A model whose tensors have the shapes of what it was estimated from, such as an n-gram model's tables."""

    def take_shapes(self, shapes: Mapping[str, torch.Size]) -> None:
        """Make room for tensors of these shapes."""


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """The checkpoint's weights by name, for a model that takes some of them."""
    return load_file(path / MODEL)


def load_model(path: Path, model: nn.Module, *, rounded: bool = False) -> None:
    """Copy the checkpoint's weights into `model`, every one of them, bit for bit.

    With `rounded` a model of float32 takes those of float64, and the reverse.
    """
    saved = load_file(path / MODEL)
    if isinstance(model, TakesShapes):
        model.take_shapes({name: tensor.shape for name, tensor in saved.items()})
    current = model_state(model)
    if saved.keys() != current.keys():
        odd = sorted(saved.keys() ^ current.keys())
        raise UserError(f"{path}: its model has other tensors than this config ({', '.join(odd[:3])} …)")
    with torch.no_grad():
        for name, tensor in current.items():
            if tensor.shape != saved[name].shape:
                raise UserError(f"{path}: {name} is {tuple(saved[name].shape)}, this config says {tuple(tensor.shape)}")
            types = {tensor.dtype, saved[name].dtype}
            if len(types) > 1 and not (rounded and types == {torch.float32, torch.float64}):
                raise UserError(f"{path}: {name} is {saved[name].dtype}, and not {tensor.dtype} as it was saved")
            tensor.copy_(saved[name])


def load_optimizer(path: Path, model: nn.Module, optimizer: Optimizer | None) -> None:
    """Restore the optimizer's state by parameter name; call it after the optimizer was wrapped.

    What is learnt without one has None.
    """
    if optimizer is None:
        return
    parameters = dict(model.named_parameters())
    scalars = read_state(path).get("optimizer_scalars", {})
    for key, value in {**load_file(path / OPTIMIZER), **scalars}.items():
        name, _, entry = key.rpartition("/")
        if name not in parameters:
            raise UserError(f"{path}: holds the optimizer's state of {name or key}, which this model has not")
        is_tensor = isinstance(value, torch.Tensor)
        optimizer.state[parameters[name]][entry] = value.to(parameters[name].device) if is_tensor else value


def model_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers by name, but for buffers that are computed; a tied weight once, under its first name."""
    kept = model.state_dict().keys()
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return {name: tensor.detach() for name, tensor in tensors if name in kept}


def _optimizer_state(model: nn.Module, optimizer: Optimizer | None) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The optimizer's tensors and its plain values, both keyed `parameter/entry`."""
    tensors, scalars = {}, {}
    states = {} if optimizer is None else optimizer.state
    for name, parameter in model.named_parameters():
        for entry, value in states.get(parameter, {}).items():
            if isinstance(value, torch.Tensor):
                tensors[f"{name}/{entry}"] = value
            else:
                scalars[f"{name}/{entry}"] = value
    return tensors, scalars
