"""Who evaluates which part of a split: each rank its own, or the ranks that hold one model together the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from hvdlm.models import LanguageModel
from hvdlm.tasks.interface import Batch
from hvdlm.world.interface import World

T = TypeVar("T")


def at_once(model: LanguageModel, batch: Batch, question: Callable[[LanguageModel], T]) -> T:
    """Of a whole model."""
    return question(model)


@dataclass(frozen=True)
class Readers:
    """This rank belongs to reader `rank` of `size`; what each finds is added up over the `world`."""

    world: World
    rank: int
    size: int
    speaks: bool = True  # it tells what its reader has found; of the ranks of a reader one does
    # (model, batch, question) -> the answer; None on a rank that has not the last of the model's layers.
    ask: Callable[[LanguageModel, Batch, Callable[[LanguageModel], Any]], Any] = at_once

    @staticmethod
    def each_of(world: World) -> Readers:
        """Every rank has a whole model, and reads for itself."""
        return Readers(world, world.rank, world.size)
