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
import hashlib
import math
import shutil
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field
from torch import nn
from torch.optim import Optimizer

from hvdlm.checkpoint.boxes import Cut, Piece
from hvdlm.checkpoint.folder import folder_of, path_of, remove
from hvdlm.checkpoint.links import LATEST, point_latest, settle_latest
from hvdlm.checkpoint.parts import PartFacts, Row, Share, files_of, shares_of, table_of, tensors_of, write_parts
from hvdlm.checkpoint.reading import ENGINE, MODEL, OF_VERSION_1, OPTIMIZER, model_state, table
from hvdlm.checkpoint.record import SCHEMA, STATE, digest_of, read_record
from hvdlm.checkpoint.soundness import is_finite
from hvdlm.config import Section
from hvdlm.errors import UserError
from hvdlm.files import naming, sync_folder, to_json, write_text_durably

AUTO = "auto"  # of `checkpoint.best`


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


def prepare(run_dir: Path) -> None:
    """Make the folder of checkpoints; OSError before a run begins that could not save."""
    root = folder_of(run_dir)
    root.mkdir(parents=True, exist_ok=True)
    settle_latest(root)
    probe = root / f".step_probe.{uuid.uuid4().hex}"  # what is left of it goes with the next save
    with naming(root):
        probe.mkdir()
        probe.rmdir()


def save(
    run_dir: Path,
    step: int,
    model: nn.Module,
    optimizer: Optimizer | None,
    state: Mapping[str, Any],
    tensors: Mapping[str, torch.Tensor] = {},
) -> Path:
    """Write the checkpoint of `step` in one process; `tensors` is what else must be kept.

    NotFiniteError for what holds inf or NaN; else errors are those of `write`.
    """
    pieces, scalars = pieces_of(model, optimizer, tensors)
    if culprit := not_finite_in(pieces, scalars):
        raise NotFiniteError(f"{culprit} is not finite")
    return write(run_dir, step, pieces, {**state, "optimizer_scalars": scalars})


def write(
    run_dir: Path,
    step: int,
    pieces: Sequence[Piece],
    state: Mapping[str, Any],
    permit: Callable[[], None] = lambda: None,
) -> Path:
    """Make a checkpoint of all pieces of a state in one process; errors are those of `write_parts` and `commit`."""
    files = files_of(shares_of(pieces))
    tables = {number: table_of(shares) for number, shares in files.items()}
    aside = begin(run_dir, step)
    try:
        with naming(path_of(run_dir, step)):
            facts = write_parts(aside, files)
        return commit(run_dir, step, aside, tables, facts, state, permit)
    except BaseException:  # what is left of a full disk is needed
        drop(aside)
        raise


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
    parts: Iterable[PartFacts],
    state: Mapping[str, Any],
    permit: Callable[[], None] = lambda: None,
) -> Path:
    """Make a checkpoint of parts that have all been written, by number; from here on it is there.

    `permit` is called when all is written and nothing is visible yet; by raising an error it keeps the checkpoint from
    appearing. ValueError where boxes do not fill each tensor exactly; OSError that names the checkpoint.
    """
    root, final = folder_of(run_dir), path_of(run_dir, step)
    record: dict[str, Any] = {**state, "schema": SCHEMA, "step": step}
    record["files"] = {facts.name: {"bytes": facts.bytes, "sha256": facts.sha256} for facts in parts}
    record["tensors"] = tensors_of(tables)
    with naming(final):
        record["digest"] = digest_of(record)
        write_text_durably(aside / STATE, to_json(record) + "\n")
    try:  # as whoever resumes will
        table(aside, read_record(aside))
    except ValueError as error:
        raise UserError(f"{final}: cannot be saved: {error}") from None
    permit()
    with naming(final):
        remove(final)  # there only if it was passed over
        aside.rename(final)
    with naming(root / LATEST):
        sync_folder(root)
        point_latest(root, final.name)
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
