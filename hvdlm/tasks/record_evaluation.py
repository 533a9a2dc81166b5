"""A split of labelled records evaluated: every record once, the same numbers at any number of ranks, to the last bit.

Which examples are computed together is fixed by their lengths before ranks are known. Ranks take groups in turn; what
they find is put in order again, and added up in that order.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from hvdlm.compute.device import autocast
from hvdlm.compute.draws import draws_for
from hvdlm.data.record_batches import Layout
from hvdlm.data.records import Records
from hvdlm.models import LanguageModel
from hvdlm.partition import spread
from hvdlm.tasks.interface import Better
from hvdlm.tasks.readers import Readers, at_once
from hvdlm.tasks.records import RecordTask
from hvdlm.world.interface import World

GROUP_TOKENS = 8192  # padded, of examples that are computed together


@dataclass(frozen=True)
class RecordEvaluation:
    """`loss` is in nats per target. `figures` are the task's own: numbers, intervals, tables."""

    loss: float
    num_records: int
    split_records: int
    num_tokens: int  # targets
    figures: dict[str, Any] = field(default_factory=dict)
    lines: Sequence[dict[str, Any]] = ()  # a record each, where predictions were asked for; on rank 0

    @property
    def split_tokens(self) -> int:
        """Targets of the whole split, by the share that was read."""
        return round(self.num_tokens * self.split_records / max(1, self.num_records))

    def to_dict(self) -> dict[str, Any]:
        return {"loss": self.loss, "num_records": self.num_records, **self.figures}

    @property
    def numbers(self) -> dict[str, float]:
        """The figures that are single numbers; one is none where it is undefined, as by records of one class alone."""
        numbers = {name: value for name, value in self.figures.items() if isinstance(value, int | float)}
        return {name: value for name, value in numbers.items() if math.isfinite(value)}

    @property
    def coverage(self) -> str:
        """How much of the split it is about, in words."""
        if self.num_records == self.split_records:
            return f"all {self.split_records:,} records"
        return f"{self.num_records:,} of {self.split_records:,} records"


class RecordSplit:
    """The examples of a split in groups of about equal length."""

    def __init__(self, task: RecordTask, records: Records, seq_len: int, *, most: int = 0) -> None:
        self.task, self.records, self._seq_len = task, records, seq_len
        self.layout = task.layout(records, seq_len)
        self._chosen = np.arange(len(records))
        if most and most < len(records):  # from everywhere, for a look
            self._chosen = spread(np.arange(most), most, len(records))
        examples = np.flatnonzero(np.isin(self.layout.records, self._chosen))
        self.groups = groups_of(self.layout, examples[np.argsort(self.layout.lengths[examples], kind="stable")])

    @property
    def num_records(self) -> int:
        return len(self._chosen)

    @property
    def is_whole(self) -> bool:
        return self.num_records == len(self.records)

    @property
    def better(self) -> dict[str, Better]:
        """Figures of a validation by which a checkpoint may be chosen, the task's main one first."""
        return {**(self.task.better_predictions if self.is_whole else {}), **self.task.better}

    def __str__(self) -> str:
        return f"records, each once, at most {self._seq_len} tokens of it"

    @torch.no_grad()
    def evaluate(
        self, model: LanguageModel, precision: str, world: World | Readers, *, judges: bool, lines: bool = False
    ) -> RecordEvaluation:
        """Loss, and where it `judges` what the predictions are worth; equal on all ranks. Collective."""
        task, readers = self.task, world if isinstance(world, Readers) else Readers.each_of(world)
        world = readers.world
        model.eval()
        mine: list[tuple[int, np.ndarray, list[np.ndarray]]] = []
        is_alone = readers.ask is at_once  # else the ranks of a reader talk while they look
        with world.together() if is_alone else contextlib.nullcontext():
            for number in range(readers.rank, len(self.groups), readers.size):
                seen = self._look(model, self.groups[number], precision, readers, judges=judges)
                if seen is not None and readers.speaks:
                    mine.append((number, *seen))
                world.beats += 1
        found = sorted((part for parts in world.gather_on_root(mine) for part in parts), key=lambda part: part[0])
        told: list[dict[str, Any]] = []

        def conclude() -> tuple[dict[str, float], dict[str, Any]]:
            """Sums, and figures of them and of the predictions."""
            sums, by_example = np.zeros(len(task.sums)), dict[int, np.ndarray]()
            for number, values, predictions in found:
                sums += values
                by_example.update(zip(self.groups[number].tolist(), predictions, strict=False))
            named = task.named(sums)
            figures: dict[str, Any] = dict(task.figures(named))
            if judges and self.is_whole:
                in_order = [by_example[example] for example in range(self.layout.num_examples)]
                judged = task.judge(self.records, self.layout, in_order, lines=lines)
                told.extend(judged.lines)
                figures |= judged.figures
            return named, figures

        named, figures = world.on_root(conclude)
        loss = figures.pop("loss")
        return RecordEvaluation(loss, self.num_records, len(self.records), round(named["targets"]), figures, told)

    def _look(
        self, model: LanguageModel, group: np.ndarray, precision: str, readers: Readers, *, judges: bool
    ) -> tuple[np.ndarray, list[np.ndarray]] | None:
        """Sums over a group of examples, and what is predicted of each; None where the last layer is elsewhere."""
        task, device = self.task, model.device
        ids = torch.from_numpy(self.layout.rows(group))
        draws = draws_for(0, 0, group).to(device) if task.evaluation_takes_draws else None
        batch = task.batch(ids.to(device), None, draws, training=False)
        with autocast(device, precision):
            found = readers.ask(model, batch, lambda model: task.loss(model, batch, None, None))
            said = readers.ask(model, batch, lambda model: task.predict(model, batch, self._seq_len)) if judges else []
        return None if found is None else (found[0].values.cpu().numpy(), said)


@torch.no_grad()
def predictions_of(
    task: RecordTask, model: LanguageModel, layout: Layout, *, seq_len: int, precision: str, most: int = 0
) -> Iterator[tuple[np.ndarray, list[np.ndarray]]]:
    """Of all examples of a layout: some of them, at most so many, and what is predicted of each."""
    model.eval()
    for group in groups_of(layout, np.argsort(layout.lengths, kind="stable"), most):
        ids = torch.from_numpy(layout.rows(group)).to(model.device)
        with autocast(model.device, precision):
            yield group, task.predict(model, task.batch(ids, None, None, training=False), seq_len)


def groups_of(layout: Layout, examples: np.ndarray, most: int = 0) -> list[np.ndarray]:
    """Examples of ascending length in groups that pad to at most GROUP_TOKENS, or that are one example.

    With `most` they are at most so many.
    """
    return list(_cut(examples, layout.lengths[examples], most or len(examples)))


def _cut(examples: np.ndarray, lengths: np.ndarray, most: int) -> Iterator[np.ndarray]:
    start = 0
    for place in range(1, len(examples) + 1):
        size = place - start + 1
        if place == len(examples) or size > most or size * int(lengths[place]) > GROUP_TOKENS:
            yield examples[start:place]
            start = place
