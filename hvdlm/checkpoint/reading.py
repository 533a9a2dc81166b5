"""A checkpoint's state as tensors: all of it or boxes of it, whatever ranks wrote it, in parts or as version 1 did.

Nothing is unpickled, and no name out of a file is a path: a part's name is made from its number.
"""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.optim import Optimizer

from hvdlm.checkpoint.boxes import Box, Cut, whole
from hvdlm.checkpoint.parts import DTYPES, check_cover, part_name
from hvdlm.checkpoint.record import STATE, in_a_line, read_record
from hvdlm.errors import UserError

MODEL, OPTIMIZER, ENGINE = "model/", "optimizer/", "engine/"  # what keys of the state begin with
OF_VERSION_1 = {MODEL: "model.safetensors", OPTIMIZER: "optimizer.safetensors", ENGINE: "engine.safetensors"}
HEADER_BYTES = 100 << 20  # of a file of safetensors, at most
TORCH_DTYPES = {name: dtype for dtype, name in DTYPES.items()}


class Stored(NamedTuple):
    """Where a box of a tensor is."""

    file: str
    name: str  # in it
    box: Box


class Entry(NamedTuple):
    """A tensor of the state."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    boxes: list[Stored]


def read_state(path: Path) -> dict[str, Any]:
    """state.json of a checkpoint; UserError if it is none."""
    try:
        return read_record(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path / STATE}: cannot be read ({error}); use another checkpoint of this run") from None


def table(path: Path, record: Mapping[str, Any]) -> dict[str, Entry]:
    """The tensors of a checkpoint by key; ValueError or OSError for what cannot be.

    Boxes fill each tensor exactly, and parts are among the record's files.
    """
    if record.get("schema", 1) == 1:
        return _table_of_version_1(path, record)
    if not record.get("tensors"):
        raise ValueError(f"{STATE} lists no tensors")
    found = {}
    for key, facts in record["tensors"].items():
        dtype = TORCH_DTYPES.get(facts["dtype"])
        if dtype is None:
            raise ValueError(f"{key}: there is no type {facts['dtype']}")
        shape = tuple(facts["shape"])
        if math.prod(max(1, size) for size in shape) >= 1 << 63:
            raise ValueError(f"{key}: no tensor has the shape {list(shape)}")
        boxes = [Stored(part_name(part), str(n), Box(tuple(o), tuple(size))) for part, n, o, size in facts["boxes"]]
        check_cover(key, shape, [stored.box for stored in boxes])
        if odd := next((stored.file for stored in boxes if stored.file not in record["files"]), ""):
            raise ValueError(f"{key}: is said to be in {odd}, which {STATE} does not list")
        found[key] = Entry(shape, dtype, boxes)
    _check_room(record, found)
    return found


def _check_room(record: Mapping[str, Any], entries: Mapping[str, Entry]) -> None:
    """ValueError where the boxes of a part would hold more bytes than the part has."""
    held: dict[str, int] = {}
    for entry in entries.values():
        for stored in entry.boxes:
            held[stored.file] = held.get(stored.file, 0) + stored.box.numel * entry.dtype.itemsize
    for file, num_bytes in held.items():
        if num_bytes > record["files"][file]["bytes"]:
            raise ValueError(f"{file} is said to hold {num_bytes:,} bytes and has {record['files'][file]['bytes']:,}")


def _table_of_version_1(path: Path, record: Mapping[str, Any]) -> dict[str, Entry]:
    found = {}
    for prefix, file in OF_VERSION_1.items():
        if file not in record["files"]:
            if prefix != ENGINE:
                raise ValueError(f"{STATE} does not list {file}")
            continue
        with _opened_file(path / file) as tensors:
            for name in tensors.keys():  # noqa: SIM118 - it is no dict
                part = tensors.get_slice(name)
                shape, dtype = tuple(part.get_shape()), TORCH_DTYPES.get(part.get_dtype())
                if dtype is None:
                    raise ValueError(f"{name} in {file}: there is no type {part.get_dtype()} here")
                found[f"{prefix}{name}"] = Entry(shape, dtype, [Stored(file, name, whole(shape))])
    return found


def _opened_file(path: Path) -> Any:
    """A file of safetensors; OSError for what is no regular file, ValueError for a header without end."""
    facts = os.lstat(path)
    if not stat.S_ISREG(facts.st_mode):
        raise ValueError(f"{path.name} is no regular file")
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if length > min(HEADER_BYTES, facts.st_size):
        raise ValueError(f"{path.name}: its header would have {length:,} bytes")
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, RuntimeError) as error:  # torch's, which opens it once more: the file may have gone
        raise ValueError(f"{path.name}: {in_a_line(str(error))}") from None


def read_boxes(
    path: Path, entries: Mapping[str, Entry], wanted: Mapping[str, Iterable[Box]]
) -> dict[str, list[Tensor]]:
    """Boxes of tensors by key, new tensors in the order in which they are asked for; parts without any stay shut.

    ValueError or OSError where a file does not hold what the record says.
    """
    found: dict[str, list[Tensor]] = {}
    with ExitStack() as stack:
        files: dict[str, Any] = {}
        for key, boxes in wanted.items():
            entry = entries[key]
            as_stored = {stored.box: stored for stored in entry.boxes}
            found[key] = []
            for box in boxes:
                if (stored := as_stored.get(box)) is not None:
                    found[key].append(_read(_part_of(path, stack, files, entry, stored), stored, box))
                    continue
                meeting = [(each, common) for each in entry.boxes if (common := each.box.meeting(box)) is not None]
                parts = [_part_of(path, stack, files, entry, each) for each, _ in meeting]
                made = torch.empty(box.shape, dtype=entry.dtype)  # the files have as much: their shapes were looked at
                for part, (each, common) in zip(parts, meeting, strict=True):
                    made[common.within(box)] = _read(part, each, common)
                found[key].append(made)
    return found


def _part_of(path: Path, stack: ExitStack, files: dict[str, Any], entry: Entry, stored: Stored) -> Any:
    """What a file holds of a tensor, not read yet; ValueError unless its shape and type are what the record says."""
    if stored.file not in files:
        files[stored.file] = stack.enter_context(_opened_file(path / stored.file))
    try:
        part = files[stored.file].get_slice(stored.name)
    except SafetensorError as error:
        raise ValueError(f"{stored.file}: {in_a_line(str(error))}") from None
    shape, dtype = tuple(part.get_shape()), TORCH_DTYPES.get(part.get_dtype())
    if (shape, dtype) != (stored.box.shape, entry.dtype):
        raise ValueError(f"{stored.file}: {stored.name} is {part.get_dtype()} {shape}, not as {STATE} says")
    return part


def _read(part: Any, stored: Stored, box: Box) -> Tensor:
    """A box of what one file holds."""
    try:
        return part[box.within(stored.box) if box.shape else ...]
    except (SafetensorError, IndexError) as error:
        raise ValueError(f"{stored.file}: {in_a_line(str(error))}") from None


class Checkpoint:
    """A checkpoint folder, opened for reading; UserError for one that cannot be read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.state = read_state(path)
        with _telling(self.path):
            self.entries = table(path, self.state)

    def names(self, prefix: str) -> list[str]:
        """Of the keys that begin so, the rest."""
        return [key.removeprefix(prefix) for key in self.entries if key.startswith(prefix)]

    def shapes(self, prefix: str) -> dict[str, tuple[int, ...]]:
        """Of the whole tensors, by name."""
        return {name: self.entries[f"{prefix}{name}"].shape for name in self.names(prefix)}

    def read(self, prefix: str, names: Iterable[str] | None = None, cuts: Mapping[str, Cut] = {}) -> dict[str, Tensor]:
        """The tensors by name, or of those with a cut this rank's part of them."""
        chosen = list(self.names(prefix) if names is None else names)
        shapes = {name: self.entries[f"{prefix}{name}"].shape for name in chosen}
        for name, shape in shapes.items():
            if name in cuts and cuts[name].shape != shape:
                raise UserError(f"{self.path}: {name} is {shape}, this config says {cuts[name].shape}")
        mine = {name: cuts.get(name) or Cut(shape) for name, shape in shapes.items()}
        with _telling(self.path):
            found = read_boxes(self.path, self.entries, {f"{prefix}{name}": cut.boxes() for name, cut in mine.items()})
        return {
            name: parts[0] if len(parts := found[f"{prefix}{name}"]) == 1 else torch.cat(parts, dim=cut.dim)
            for name, cut in mine.items()
        }

    def boxes(self, prefix: str, wanted: Mapping[str, Iterable[Box]]) -> dict[str, list[Tensor]]:
        """Boxes of the tensors, by name, in the order in which they are asked for."""
        with _telling(self.path):
            found = read_boxes(self.path, self.entries, {f"{prefix}{name}": boxes for name, boxes in wanted.items()})
        return {key.removeprefix(prefix): tensors for key, tensors in found.items()}


@contextmanager
def _telling(path: Path) -> Iterator[None]:
    """Makes one line of what is wrong with a checkpoint's files."""
    try:
        yield
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"{path}: {error}; use another checkpoint of this run") from None


@runtime_checkable
class TakesShapes(Protocol):
    """A model whose tensors have the shapes of what it was estimated from, such as an n-gram model's tables."""

    def take_shapes(self, shapes: Mapping[str, torch.Size]) -> None:
        """Make room for tensors of these shapes."""


def read_weights(path: Path) -> dict[str, Tensor]:
    """The checkpoint's weights by name, for a model that takes some of them."""
    return Checkpoint(path).read(MODEL)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """What else was kept: the tensors of `engine/…` by name."""
    return Checkpoint(path).read(ENGINE)


def _opened(found: Path | Checkpoint) -> Checkpoint:
    return Checkpoint(found) if isinstance(found, Path) else found


def load_model(
    found: Path | Checkpoint, model: nn.Module, *, rounded: bool = False, cuts: Mapping[str, Cut] | None = None
) -> None:
    """Copy the checkpoint's weights into `model`, every one of them, bit for bit.

    With `rounded` a model of float32 takes those of float64, and the reverse. With `cuts` the model is this rank's part
    of the whole one.
    """
    found = _opened(found)
    path, names = found.path, found.names(MODEL)
    if isinstance(model, TakesShapes):
        model.take_shapes({name: torch.Size(found.entries[f"{MODEL}{name}"].shape) for name in names})
    current = model_state(model)
    odd = set(current) - set(names) if cuts is not None else set(current) ^ set(names)
    if odd:
        raise UserError(f"{path}: its model has other tensors than this config ({', '.join(sorted(odd)[:3])} …)")
    if cuts is None:
        for name, tensor in current.items():
            shape = found.entries[f"{MODEL}{name}"].shape
            if shape != tuple(tensor.shape):
                raise UserError(f"{path}: {name} is {shape}, this config says {tuple(tensor.shape)}")
    saved = found.read(MODEL, current, cuts or {})
    with torch.no_grad():
        for name, tensor in current.items():
            types = {tensor.dtype, saved[name].dtype}
            if len(types) > 1 and not (rounded and types == {torch.float32, torch.float64}):
                raise UserError(f"{path}: {name} is {saved[name].dtype} there, this config says {tensor.dtype}")
            tensor.copy_(saved[name])


def load_optimizer(
    found: Path | Checkpoint,
    model: nn.Module,
    optimizer: Optimizer | None,
    cuts: Mapping[str, Cut] | None = None,
) -> None:
    """Restore the optimizer's state by parameter name; call it after the optimizer was wrapped.

    What is learnt without one has None. With `cuts` the model is this rank's part of the whole one.
    """
    if optimizer is None:
        return
    parameters = dict(model.named_parameters())
    found = _opened(found)
    scalars = found.state.get("optimizer_scalars", {})
    keys = [key for key in found.names(OPTIMIZER) if cuts is None or key.rpartition("/")[0] in parameters]
    for key in [*keys, *(scalars if cuts is None else ())]:
        name = key.rpartition("/")[0]
        if name not in parameters:
            raise UserError(f"{found.path}: holds the optimizer's state of {name or key}, which this model has not")
    of_parameter = {key: cuts[key.rpartition("/")[0]] for key in keys} if cuts is not None else {}
    shaped = {key: cut for key, cut in of_parameter.items() if found.entries[f"{OPTIMIZER}{key}"].shape == cut.shape}
    values: dict[str, Any] = {**found.read(OPTIMIZER, keys, shaped), **scalars}
    for key, value in values.items():
        name, _, entry = key.rpartition("/")
        if name in parameters:
            kept = value
            if isinstance(value, Tensor):  # copied: else it would stay a map of the file, which may go or change
                kept = value.to(parameters[name].device, copy=True)
            optimizer.state[parameters[name]][entry] = kept


def model_state(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, but for buffers that are computed; a tied weight once, under its first name."""
    kept = model.state_dict().keys()
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return {name: tensor.detach() for name, tensor in tensors if name in kept}
