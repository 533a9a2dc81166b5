"""A tensor of ours beside what it is called in another layout, and how it lies there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Weight:
    """`ours` is what `join` makes of the tensors `theirs`, and these are what `split` makes of it."""

    ours: str
    theirs: tuple[str, ...]
    join: Callable[[list[Tensor]], Tensor] = lambda parts: parts[0]
    split: Callable[[Tensor], list[Tensor]] = lambda whole: [whole]


def flipped(ours: str, theirs: str) -> Weight:
    """A matrix that they keep as (in, out), where nn.Linear has (out, in)."""
    return Weight(ours, (theirs,), lambda parts: parts[0].T, lambda whole: [whole.T])


def stacked(ours: str, theirs: tuple[str, ...], rows: tuple[int, ...]) -> Weight:
    """Layers of the same input, which are one of ours: so many outputs of each, one below the other."""
    return Weight(ours, theirs, torch.cat, lambda whole: list(whole.split(list(rows))))


def by_head(ours: str, theirs: str, heads: int) -> Weight:
    """Queries, keys and values: ours are those of all heads, then the next; theirs are all three of a head."""

    def moved(whole: Tensor, outer: int) -> Tensor:
        return whole.unflatten(0, (outer, 3 * heads // outer, -1)).transpose(0, 1).flatten(0, 2)

    return Weight(ours, (theirs,), lambda parts: moved(parts[0], heads), lambda whole: [moved(whole, 3)])


TYPES = "entrance.types.weight"  # a vector for each kind of text


def pairs(ours: str, theirs: str) -> list[Weight]:
    """Weight and bias of a layer that lies there as here."""
    return [Weight(f"{ours}.{part}", (f"{theirs}.{part}",)) for part in ("weight", "bias")]


def to_ours(table: Iterable[Weight], theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """KeyError for what is not there."""
    return {entry.ours: entry.join([theirs[name] for name in entry.theirs]) for entry in table}


def to_theirs(table: Iterable[Weight], ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What our model has not is 0 there: a bias, the vector of its one kind of text; KeyError for any other tensor."""
    found: dict[str, Tensor] = {}
    for entry in table:
        whole = ours.get(entry.ours)
        if whole is None and entry.ours.endswith(".bias"):
            whole = torch.zeros(len(ours[entry.ours.removesuffix("bias") + "weight"]))
        if whole is None and entry.ours == TYPES:
            whole = torch.zeros(1, ours["embed.weight"].shape[1])
        if whole is None:
            raise KeyError(entry.ours)
        found |= {name: part.contiguous() for name, part in zip(entry.theirs, entry.split(whole), strict=True)}
    return found
