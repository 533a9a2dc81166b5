"""Checkpoints that are complete or absent: safetensors and JSON, written aside, renamed, `latest` last.

    RUN/checkpoints/step_00000100/{part-0000.safetensors, part-0001.safetensors, …, state.json}
    RUN/checkpoints/latest -> step_00000100
    RUN/checkpoints/best -> step_00000050, where checkpoint.best says what is judged by

state.json holds size and sha256 of the parts, and which box of which tensor lies where; it is written last and loaded
first, so a damaged checkpoint is passed over for the one before, and so is one that holds a NaN. Nothing is pickled,
and no name out of a file is a path.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import math
import os
import re
import shutil
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field
from safetensors import SafetensorError
from torch import nn
from torch.optim import Optimizer

from hvdlm.checkpoint.boxes import Cut, Piece
from hvdlm.checkpoint.parts import PartFacts, Row, Share, shares_of, table_of, tensors_of, write_part
from hvdlm.checkpoint.reading import (
    ENGINE,
    MODEL,
    OF_VERSION_1,
    OPTIMIZER,
    faults,
    is_finite,
    model_state,
    not_finite,
    table,
)
from hvdlm.checkpoint.record import SCHEMA, STATE, digest_of, read_record
from hvdlm.config import Section
from hvdlm.errors import UserError
from hvdlm.files import (
    NO_SUCH_CALL,
    naming,
    read_text,
    sync_folder,
    to_json,
    write_text_durably,
)

log = logging.getLogger("hvdlm")

AUTO = "auto"  # of `checkpoint.best`
LATEST, BEST = "latest", "best"
STEP = re.compile(r"step_(\d{8,18})")


class CheckpointConfig(Section):
    """The `checkpoint` section."""

    every: int = Field(100, ge=1, description="steps between checkpoints; the last step always has one")
    keep: int = Field(2, ge=1, description="how many of the newest are kept, once the step after them was sound")
    keep_every: int = Field(0, ge=0, description="those of each so many steps stay for ever; 0: none does")
    asynchronous: bool = Field(True, description="write while training goes on, from a copy of the state in memory")
    unfinished: Literal["wait", "skip"] = Field(
        "wait", description="where the next is due and the last is not written yet: wait for it, or leave the next out"
    )
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
    """Write the checkpoint of `step` in one process, then drop all but the newest `keep`, or none.

    `tensors` is what else must be kept. Errors are those of `begin`, `write_part` and `commit`.
    """
    pieces, scalars = pieces_of(model, optimizer, tensors or {})
    if culprit := not_finite_in(pieces, scalars):
        raise NotFiniteError(f"{culprit} is not finite")
    shares, aside = shares_of(pieces), begin(run_dir, step)
    try:
        with naming(path_of(run_dir, step)):
            facts = write_part(aside, 0, shares)
        record = {**state, "optimizer_scalars": scalars}
        final = commit(run_dir, step, aside, {0: table_of(shares)}, {0: facts}, record, permit)
    except BaseException:  # what is left of a full disk is needed
        drop(aside)
        raise
    if keep is not None:
        prune(run_dir, step, keep=keep)
    return final


def begin(run_dir: Path, step: int) -> Path:
    """A new folder for the parts of a checkpoint, which nobody takes for one; what dead jobs have left behind goes."""
    root, final = folder_of(run_dir), path_of(run_dir, step)
    with naming(final):
        root.mkdir(parents=True, exist_ok=True)
    for leftover in root.glob(".step_*"):  # of a job that died, or of one whose run was taken over
        with contextlib.suppress(OSError):
            remove(leftover)
    aside = root / f".{final.name}.{uuid.uuid4().hex}"
    with naming(final):
        aside.mkdir()
    return aside


def drop(aside: Path) -> None:
    """Of a checkpoint that will not be."""
    shutil.rmtree(aside, ignore_errors=True)


def commit(  # noqa: PLR0913 - what a checkpoint is made of
    run_dir: Path,
    step: int,
    aside: Path,
    tables: Mapping[int, Sequence[Row]],
    parts: Mapping[int, PartFacts],
    state: Mapping[str, Any],
    permit: Callable[[], None] = lambda: None,
) -> Path:
    """Make a checkpoint of parts that have all been written, by number; from here on it is there.

    `permit` is called when all is written and nothing is visible yet; by raising an error it keeps the checkpoint from
    appearing. ValueError where boxes do not fill each tensor exactly; OSError that names the checkpoint.
    """
    root, final = folder_of(run_dir), path_of(run_dir, step)
    record: dict[str, Any] = {**state, "schema": SCHEMA, "step": step}
    record["files"] = {facts.name: {"bytes": facts.bytes, "sha256": facts.sha256} for facts in parts.values()}
    record["tensors"] = tensors_of(tables)
    with naming(final):
        record["digest"] = digest_of(record)
        write_text_durably(aside / STATE, to_json(record) + "\n")
    permit()
    with naming(final):
        remove(final)  # there only if it was passed over
        aside.rename(final)
    with naming(root / LATEST):
        sync_folder(root)
        _point_latest(root, final.name)
    return final


class Shares(NamedTuple):
    """Among how many ranks this one is which, that hold alike what is whole, and what is cut."""

    of_whole: tuple[int, int] = (0, 1)
    of_cut: tuple[int, int] = (0, 1)


def pieces_of(
    model: nn.Module,
    optimizer: Optimizer | None,
    tensors: Mapping[str, torch.Tensor],
    cuts: Mapping[str, Cut] = {},
    shares: Shares = Shares(),  # noqa: B008 - frozen
) -> tuple[list[Piece], dict[str, Any]]:
    """A model's tensors, the optimizer's, what else must be kept; and the optimizer's plain values.

    By `cuts`, by parameter, this rank holds parts; moments and running means of a parameter are cut alike.
    """
    found = [(f"{MODEL}{name}", name, tensor) for name, tensor in model_state(model).items()]
    scalars = {}
    states = {} if optimizer is None else optimizer.state
    for name, parameter in model.named_parameters():
        for entry, value in states.get(parameter, {}).items():
            if isinstance(value, torch.Tensor):
                found.append((f"{OPTIMIZER}{name}/{entry}", name, value))
            else:
                scalars[f"{name}/{entry}"] = value
    found += [(f"{ENGINE}{name}", name.removeprefix("ema/"), tensor) for name, tensor in tensors.items()]
    pieces = []
    for key, name, tensor in found:
        cut = cuts.get(name)
        if cut is None or cut.is_whole or tuple(tensor.shape) != cut.shape_held:
            cut = Cut(tuple(tensor.shape))
        share = shares.of_whole if cut.is_whole else shares.of_cut
        pieces += [Piece(key, part, cut.shape, box, share) for part, box in cut.parts(tensor.detach())]
    return pieces, scalars


def not_finite_in(pieces: Iterable[Piece | Share], scalars: Mapping[str, Any]) -> str:
    """The first tensor or number that holds inf or NaN, or nothing."""
    for piece in pieces:
        if not is_finite(piece.tensor):
            return piece.key
    return next((name for name, value in scalars.items() if isinstance(value, float) and not math.isfinite(value)), "")


def weights_digest(state: Mapping[str, Any]) -> str:
    """sha256 that tells a checkpoint's weights from others, as its record has it."""
    files = state["files"]
    if state.get("schema", 1) == 1:
        return files[OF_VERSION_1[MODEL]]["sha256"]
    return hashlib.sha256("".join(files[name]["sha256"] for name in sorted(files)).encode()).hexdigest()


def prune(run_dir: Path, step: int, *, keep: int, keep_every: int = 0, unsound: Collection[int] = ()) -> None:
    """Drop checkpoints up to `step` but for the newest `keep` and those of each `keep_every` steps.

    The `unsound` do not count and go too.

    What cannot be removed stays, with a warning: no reason to stop training.
    """
    best = best_of(run_dir)
    found = [old for old in complete_steps(run_dir) if old <= step and path_of(run_dir, old) != best]
    sound = [old for old in found if old not in unsound]
    going = [old for old in sound[:-keep] if not (keep_every and old % keep_every == 0)]
    for old in [*going, *(old for old in found if old in unsound)]:
        try:
            remove(path_of(run_dir, old))
        except OSError as error:
            log.warning("%s: cannot remove this old checkpoint (%s)", path_of(run_dir, old), error.strerror)


def remove(path: Path) -> None:
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
        remove(folder_of(run_dir) / BEST)


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
    remove(aside)
    try:
        aside.symlink_to(name)
    except OSError as error:
        if error.errno not in (errno.EPERM, *NO_SUCH_CALL):
            raise
        aside.write_text(name + "\n", encoding="utf-8")  # FAT and some network file systems have no links
    if (root / link).is_dir() and not (root / link).is_symlink():  # as in a copy that followed links
        remove(root / link)
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
        raise nothing_sound(run_dir, fault)
    return None


def nothing_sound(run_dir: Path, fault: str | None) -> UserError:
    """That to start anew must be the user's decision; `fault` is of the oldest checkpoint."""
    text = "every checkpoint is damaged; restore one, or remove them to start anew"
    return UserError.shared(f"{folder_of(run_dir)}: {text} (the oldest: {fault})")


def damage(path: Path, *, finite: tuple[str, ...] = (MODEL, OPTIMIZER, ENGINE)) -> str | None:
    """What is wrong with a checkpoint folder, or None. Tensors whose keys begin so must hold neither inf nor NaN."""
    try:
        record = read_record(path)
        return fault_of(path, record) or next(damages(path, record, sorted(record["files"]), finite), None)
    except (OSError, ValueError, SafetensorError) as error:
        return cannot_be_read(error)


def fault_of(path: Path, record: Mapping[str, Any]) -> str:
    """What a checkpoint's record says that cannot be, or nothing; its files are not read."""
    named = STEP.fullmatch(path.name)
    if named and int(named.group(1)) != record["step"]:
        return f"{STATE} is of step {record['step']}"
    if record.get("schema", 1) == 1:  # whose tables stand in the files
        missing = {OF_VERSION_1[MODEL], OF_VERSION_1[OPTIMIZER]} - record["files"].keys()
        return f"{STATE} does not list {min(missing)}" if missing else ""
    table(path, record)
    return ""


def damages(path: Path, record: Mapping[str, Any], files: Sequence[str], finite: tuple[str, ...]) -> Iterator[str]:
    """What is wrong with some of the files that a sound record lists."""
    try:
        yield from faults(path, record, files)
        if culprit := not_finite(path, table(path, record), files, finite):
            yield f"{culprit} is not finite"
    except (OSError, ValueError, SafetensorError) as error:
        yield cannot_be_read(error)


def cannot_be_read(error: Exception) -> str:
    return f"{STATE} or a file it lists cannot be read ({error})"


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
