"""Weights of another model put into this run's: the body, and the head where it is the same one."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hvdlm.checkpoint import Cut
from hvdlm.errors import UserError
from hvdlm.models.lora import is_of_adapter
from hvdlm.optim.roles import HEAD
from hvdlm.tables import counted

OF_VOCABULARY = re.compile(rf"(^|\.)embed\.weight$|^{HEAD}\.(weight|bias)$")  # they have a row for each id


Shape = tuple[int, ...]


@dataclass(frozen=True)
class Source:
    """Tensors by the names of ours, of a model whose first `size` ids mean what they mean here; `read` gives one.

    With `same_extras` so do those behind them. Else `extra` is the id there whose row stands for each of ours, as its
    mask for our mask; None: these rows begin at the mean of all.
    """

    name: str
    shapes: Mapping[str, Shape]
    read: Callable[[str], Tensor]
    size: int
    same_extras: bool = False
    extra: int | None = None


@dataclass(frozen=True)
class Target:
    """A model that takes them: the shapes of all its tensors, and those that this rank has, some by a cut in part."""

    shapes: Mapping[str, Shape]
    held: Mapping[str, Tensor]
    cuts: Mapping[str, Cut] = field(default_factory=dict)

    def put(self, name: str, whole: Tensor) -> None:
        cut = self.cuts.get(name)
        self.held[name].copy_(whole if cut is None else cut.of(whole))


@dataclass
class Taken:
    """What became of each tensor, by name."""

    whole: list[str] = field(default_factory=list)
    cut: list[str] = field(default_factory=list)  # by rows, to the ids that there are here
    anew: list[str] = field(default_factory=list)

    @property
    def new_head(self) -> list[str]:
        return [name for name in self.anew if is_of_head(name)]

    def __str__(self) -> str:
        parts = [f"{counted(len(self.whole) + len(self.cut), 'tensor')} taken"]
        parts += [f"of {', '.join(self.cut)} the rows of this vocabulary"] if self.cut else []
        verb = "begins" if len(self.new_head) == 1 else "begin"
        parts += [f"{', '.join(self.new_head)} {verb} anew"] if self.new_head else []
        return "; ".join(parts)


def is_of_head(name: str) -> bool:
    return name.startswith(f"{HEAD}.")


def head_shapes(shapes: Mapping[str, Shape]) -> dict[str, tuple[int | str, ...]]:
    """Of a model's head, by name; a row for each id of the embedding is `ids`, however many there are."""
    ids = shapes["embed.weight"][:1] if "embed.weight" in shapes else None
    heads = {name: shape for name, shape in shapes.items() if is_of_head(name)}
    return {name: ("ids", *shape[1:]) if shape[:1] == ids else shape for name, shape in heads.items()}


@torch.no_grad()
def take(target: Target, source: Source, *, with_head: bool) -> Taken:
    """Put the source's tensors into the model; only adapters and the head may be missing, which then begin anew.

    Without `with_head` that of the source is left aside. What a rank has not is not read, and told all the same.
    UserError for any other tensor that the source lacks, or that the model has no place for.
    """
    theirs = {name: shape for name, shape in source.shapes.items() if with_head or not is_of_head(name)}
    lacking = [
        name for name in target.shapes if name not in theirs and not is_of_head(name) and not is_of_adapter(name)
    ]
    if odd := [*lacking, *(name for name in theirs if name not in target.shapes)]:
        what = "lacks" if lacking else "has, and this model has not,"
        raise UserError(f"init.from: {source.name} {what} {', '.join(odd[:3])}{' …' if len(odd) > 3 else ''}")
    taken = Taken()
    for name, shape in target.shapes.items():
        if name not in theirs:
            taken.anew.append(name)
            continue
        is_whole = theirs[name] == shape and (not _has_extras(name, shape, source) or source.same_extras)
        if not is_whole:
            _check_rows(name, theirs[name], shape, source)
        (taken.whole if is_whole else taken.cut).append(name)
        if name in target.held:
            tensor = source.read(name)
            target.put(name, tensor if is_whole else _rows(tensor, shape[0], source))
    return taken


@torch.no_grad()
def take_parts(target: Target, parts: Mapping[str, Tensor], taken: Taken) -> None:
    """Put those tensors of a head that begins anew into it that there are, by names of ours; the rest stay new."""
    for name in [name for name in taken.new_head if name in parts and tuple(parts[name].shape) == target.shapes[name]]:
        if name in target.held:
            target.put(name, parts[name])
        taken.anew.remove(name)
        taken.whole.append(name)


def _has_extras(name: str, ours: Shape, source: Source) -> bool:
    return OF_VOCABULARY.search(name) is not None and ours[0] > source.size


def _check_rows(name: str, theirs: Shape, wanted: Shape, source: Source) -> None:
    """UserError where one is not the other but for rows of ids."""
    if not OF_VOCABULARY.search(name) or theirs[1:] != wanted[1:] or wanted[0] < source.size:
        raise UserError(
            f"init.from: {source.name}: {name} is {theirs} there and {wanted} here; make the model the same"
        )


def _rows(theirs: Tensor, num: int, source: Source) -> Tensor:
    """The rows of our ids: those of the vocabulary, and behind it the extra one, or the mean."""
    known, row = theirs[: source.size], theirs.shape[1:]
    new = known.mean(0, keepdim=True) if source.extra is None else theirs[source.extra : source.extra + 1]
    missing = known.mean(0, keepdim=True).expand(source.size - len(known), *row)
    return torch.cat((known, missing, new.expand(num - source.size, *row)))
