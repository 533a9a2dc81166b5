"""Tasks of labelled records: which fields they read, how records become examples, what each prediction is worth."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from hvdlm.compute.draws import Draws
from hvdlm.data.fields import FieldEntry, FieldType
from hvdlm.data.record_batches import Layout
from hvdlm.data.records import Records
from hvdlm.data.windows import IGNORED
from hvdlm.errors import UserError
from hvdlm.models import LanguageModel
from hvdlm.records.in_memory import RecordsInMemory
from hvdlm.tasks.interface import Batch, Better, Task, TaskConfig
from hvdlm.tokenizer import Tokenizer


@dataclass(frozen=True)
class Judged:
    """What predictions for a whole split are worth."""

    figures: dict[str, Any]  # numbers by name, and tables; intervals as NAME_interval: [low, high]
    lines: Sequence[dict[str, Any]] = ()  # of each record, where predictions are asked for


class RecordTaskConfig(TaskConfig):
    """What all tasks of records have in common."""

    reads_records: ClassVar[bool] = True


class RecordTask(Task):
    """Its examples are rows that it lays out itself; a record has one of them or several.

    The denominator is the number of examples, unless a task says otherwise.
    """

    # As `better`, but of figures of predictions, for which each validation of a whole split then asks; a line of the
    # log has the first two. Where there are none predictions are asked for at the end alone.
    better_predictions: Mapping[str, Better] = {}
    # Names of the fields of the data that it reads, and of those that are known before it has answered.
    fields: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()
    # Those of them whose characters it compares.
    raw_fields: tuple[str, ...] = ()
    # Whether its figures have a matrix of what was taken for what.
    has_confusion: bool = False
    predicts_text: ClassVar[bool] = False
    predicts_tokens: ClassVar[bool] = False
    takes_context: ClassVar[bool] = False

    def count(self, ids: np.ndarray) -> int:
        return len(ids)

    def count_of(self, lengths: np.ndarray) -> int | None:
        return len(lengths)

    @abstractmethod
    def layout(self, records: Records, seq_len: int, *, training: bool = False) -> Layout:
        """The examples of a split, each of at most seq_len tokens; in training as they are to be learnt from."""

    @abstractmethod
    def predict(self, model: LanguageModel, batch: Batch, seq_len: int) -> list[np.ndarray]:
        """What the model says of each example: an array of any length, a function of that example alone."""

    @abstractmethod
    def said(
        self, records: RecordsInMemory, layout: Layout, predictions: Sequence[np.ndarray], tokenizer: Tokenizer
    ) -> list[dict[str, Any]]:
        """What the predictions for all examples, in order, say of each record whose answer nobody knows."""

    @abstractmethod
    def judge(self, records: Records, layout: Layout, predictions: Sequence[np.ndarray], *, lines: bool) -> Judged:
        """What the predictions for all examples, in order, are worth; with `lines` what each record's is."""


def field_of(
    fields: Mapping[str, FieldEntry], named: str | None, types: Sequence[FieldType], key: str, *, optional: bool = False
) -> str | None:
    """The field that a task means by a key: the named one, else the only one of these types.

    UserError where there is none, unless it is `optional`, or where there are several to choose from.
    """
    having = [name for name, field in fields.items() if field.type in types]
    if named is not None:
        if named not in having:
            raise UserError(
                f"task.{key}: {named} is no field of type {' or '.join(types)} of the data (which has:"
                f" {', '.join(f'{name} ({field.type})' for name, field in fields.items())})"
            )
        return named
    if len(having) > 1:
        raise UserError(f"task.{key}: the data have {' and '.join(having)} of type {' or '.join(types)}; name one")
    if not having and not optional:
        told = ", ".join(f"{name} ({field.type})" for name, field in fields.items()) or "no fields"
        raise UserError(f"task.{key}: the data have no field of type {' or '.join(types)}, but {told}; preprocess anew")
    return having[0] if having else None


def need_raw(fields: Mapping[str, FieldEntry], name: str, kind: str) -> None:
    """UserError where the characters of a text are not kept."""
    if not fields[name].raw:
        raise UserError(f"task: {kind} compares with {name} as it was written; preprocess with fields.{name}.raw: true")


def rounded(value: float) -> float:
    """A probability or a score as lines tell it: more digits differ from machine to machine."""
    return round(float(value), 6)


def hidden_of(model: LanguageModel, batch: Batch, draws: Draws | None, eos_id: int) -> Tensor:
    """What the body makes of a batch (B, T, C); texts behind the first end of text are of another kind to it."""
    if model.num_token_types < 2:
        return model(batch.inputs, None, draws, lengths=batch.lengths)[0]
    is_end = (batch.inputs == eos_id).long()
    types = (is_end.cumsum(1) - is_end).clamp(max=model.num_token_types - 1)
    return model(batch.inputs, None, draws, lengths=batch.lengths, types=types)[0]


def lengths_of(ids: Tensor) -> Tensor:
    """Tokens of rows (B, T) before their padding: int64 (B,)."""
    return (ids != IGNORED).sum(1)


def on_host(tensor: Tensor) -> np.ndarray:
    return tensor.detach().to(torch.float32 if tensor.is_floating_point() else tensor.dtype).cpu().numpy()
