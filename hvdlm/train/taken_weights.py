"""Weights of another model put into this run's: the body, and the head where it is the same one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from hvdlm.errors import UserError
from hvdlm.models.lora import DOWN, UP
from hvdlm.optim.roles import HEAD
from hvdlm.tables import counted

OF_VOCABULARY = re.compile(rf"(^|\.)embed\.weight$|^{HEAD}\.(weight|bias)$")  # they have a row for each id


@dataclass(frozen=True)
class Source:
    """Tensors by the names of ours, of a model whose first `size` ids mean what they mean here.

    With `same_extras` so do those behind them. Else `extra` is the id there whose row stands for each of ours, as its
    mask for our mask; None: these rows begin at the mean of all.
    """

    name: str
    tensors: Mapping[str, Tensor]
    size: int
    same_extras: bool = False
    extra: int | None = None


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


def head_shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int | str, ...]]:
    """Of a model's head, by name; a row for each id of the embedding is `ids`, however many there are."""
    ids = tensors["embed.weight"].shape[:1] if "embed.weight" in tensors else None
    heads = {name: tensor.shape for name, tensor in tensors.items() if is_of_head(name)}
    return {name: ("ids", *shape[1:]) if shape[:1] == ids else tuple(shape) for name, shape in heads.items()}


def is_of_adapter(name: str) -> bool:
    return name.endswith((f".{DOWN}", f".{UP}"))


@torch.no_grad()
def take(model: nn.Module, source: Source, *, with_head: bool) -> Taken:
    """Put the source's tensors into the model; only adapters and the head may be missing, which then begin anew.

    Without `with_head` that of the source is left aside. UserError for any other tensor that the source lacks, or that
    the model has no place for.
    """
    kept = model.state_dict().keys()
    ours = {name: tensor for name, tensor in (*model.named_parameters(), *model.named_buffers()) if name in kept}
    theirs = {name: tensor for name, tensor in source.tensors.items() if with_head or not is_of_head(name)}
    lacking = [name for name in ours if name not in theirs and not is_of_head(name) and not is_of_adapter(name)]
    if odd := [*lacking, *(name for name in theirs if name not in ours)]:
        what = "lacks" if lacking else "has, and this model has not,"
        raise UserError(f"init.from: {source.name} {what} {', '.join(odd[:3])}{' …' if len(odd) > 3 else ''}")
    taken = Taken()
    for name, tensor in ours.items():
        if name not in theirs:
            taken.anew.append(name)
        elif theirs[name].shape == tensor.shape and (not _has_extras(name, tensor, source) or source.same_extras):
            tensor.copy_(theirs[name])
            taken.whole.append(name)
        else:
            tensor.copy_(_rows(name, theirs[name], tensor.shape, source))
            taken.cut.append(name)
    return taken


@torch.no_grad()
def take_parts(model: nn.Module, parts: Mapping[str, Tensor], taken: Taken) -> None:
    """Put those tensors of a head that begins anew into it that there are, by names of ours; the rest stay new."""
    ours = dict(model.named_parameters())
    for name in [name for name in taken.new_head if name in parts and parts[name].shape == ours[name].shape]:
        ours[name].copy_(parts[name])
        taken.anew.remove(name)
        taken.whole.append(name)


def _has_extras(name: str, ours: Tensor, source: Source) -> bool:
    return OF_VOCABULARY.search(name) is not None and len(ours) > source.size


def _rows(name: str, theirs: Tensor, wanted: torch.Size, source: Source) -> Tensor:
    """The rows of our ids: those of the vocabulary, and behind it the extra one, or the mean."""
    if not OF_VOCABULARY.search(name) or theirs.shape[1:] != wanted[1:] or wanted[0] < source.size:
        raise UserError(
            f"init.from: {source.name}: {name} is {tuple(theirs.shape)} there and {tuple(wanted)} here; make the model"
            " the same"
        )
    known = theirs[: source.size]
    new = known.mean(0, keepdim=True) if source.extra is None else theirs[source.extra : source.extra + 1]
    missing = known.mean(0, keepdim=True).expand(source.size - len(known), *theirs.shape[1:])
    return torch.cat((known, missing, new.expand(wanted[0] - source.size, *theirs.shape[1:])))
