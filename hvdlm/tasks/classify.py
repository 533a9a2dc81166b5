"""A class, several classes or a number for each text or pair of texts (`task: {kind: classify}`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from hvdlm.compute.draws import Draws, dropout
from hvdlm.config import choice_of
from hvdlm.data.fields import FieldEntry
from hvdlm.data.record_batches import Layout
from hvdlm.data.records import Records, stacked
from hvdlm.data.windows import IGNORED
from hvdlm.errors import UserError
from hvdlm.exchange.heads import TaskHead
from hvdlm.models import LanguageModel, State
from hvdlm.tasks.classify_figures import of_classes, of_numbers, of_several
from hvdlm.tasks.interface import Batch, Sums, Task, TaskContext, without_padding
from hvdlm.tasks.language_model import ObjectiveConfig
from hvdlm.tasks.pooling import POOLINGS
from hvdlm.tasks.records import (
    HEAD_SITE,
    Judged,
    RecordTask,
    RecordTaskConfig,
    field_of,
    hidden_of,
    initialize,
    lengths_of,
    on_host,
    room_for,
    shortened,
    state_of,
)


class ClassifyConfig(RecordTaskConfig):
    """`task: {kind: classify}`: a text's class; of a label with `several` each class by itself; a number."""

    kind: Literal["classify"] = "classify"
    label: str | None = Field(None, description="field of type label or number; null: the only one")
    pair: str | None = Field(None, description="field of type pair that is read behind the text; null: the only one")
    pooling: Annotated[str, choice_of(POOLINGS)] = Field("mean", description="of the text's hidden vectors, to one")
    dropout: float = Field(0.0, ge=0, lt=1, description="of that vector")
    transform: bool = Field(False, description="a layer with tanh before the head, as BERT's pooler")
    bias: bool = Field(True, description="in the head")
    class_weights: Literal["balanced"] | list[float] | None = Field(
        None, description="of the loss, in the order of the labels; balanced: as rare as they are in train"
    )

    def build(self, context: TaskContext) -> Task:
        return Classify(self, context)


class ClassifyHead(nn.Module):
    """Pooled vectors (B, C) -> logits (B, K)."""

    def __init__(self, width: int, outputs: int, config: ClassifyConfig) -> None:
        super().__init__()
        self.transform = nn.Linear(width, width) if config.transform else None
        self.out = nn.Linear(width, outputs, bias=config.bias)
        for layer in (self.transform, self.out):
            if layer is not None:
                initialize(layer)

    def forward(self, pooled: Tensor) -> Tensor:
        return self.out(pooled if self.transform is None else torch.tanh(self.transform(pooled)))


class ClassifyLayout(Layout):
    """Targets, then the tokens of the text and of the pair, each with its end of text, behind one beginning of text."""

    def __init__(self, records: Records, task: Classify, seq_len: int) -> None:
        self._records, self._task = records, task
        self._parts = [field for field in (task.text, task.pair) if field is not None]
        self._skipped = [0, int(task.has_bos)]  # ids at the beginning of each
        parts = zip(self._parts, self._skipped, strict=False)
        given = [records.num_ids(field) - skipped for field, skipped in parts]
        self._kept = room_for(given, seq_len)
        self.lengths = np.sum(self._kept, axis=0)
        self.num_cut = int((np.sum(given, axis=0) > seq_len).sum())
        self.targets = np.ones(len(records), dtype=np.int64)
        self.records = np.arange(len(records))

    def rows(self, examples: np.ndarray) -> np.ndarray:
        rows = [np.concatenate([self._task.targets_of(self._records, n), *self._ids(n)]) for n in examples.tolist()]
        return stacked(rows, max(map(len, rows), default=1), IGNORED)

    def _ids(self, record: int) -> list[np.ndarray]:
        parts = zip(self._parts, self._skipped, self._kept, strict=False)
        return [
            shortened(self._records.ids(field, record)[skipped:], int(kept[record])) for field, skipped, kept in parts
        ]


class Classify(RecordTask):
    """The denominator is the number of records."""

    sums = ("loss", "targets")
    shown = ("accuracy", "f1_macro", "pearson")

    def __init__(self, config: ClassifyConfig, context: TaskContext) -> None:
        assert isinstance(context.objective, ObjectiveConfig)
        fields = context.fields
        self.config, self._eos_id, self._objective = config, context.vocabulary.eos_id, context.objective
        self.has_bos = context.vocabulary.bos_id is not None
        self.text = field_of(fields, None, ("text",), "text")
        self.pair = field_of(fields, config.pair, ("pair",), "pair", optional=True)
        self.label = field_of(fields, config.label, ("label", "number"), "label") or ""
        self.fields = tuple(name for name in (self.text, self.pair, self.label) if name)
        field = fields[self.label]
        self.labels, self.is_number, self.is_several = list(field.labels), field.type == "number", field.several
        self._weights = _weights(config, field)
        self.takes_draws = config.dropout > 0
        is_one = not (self.is_number or self.is_several)
        context.objective.refuse_all_but(("label_smoothing",) if is_one else (), config.kind)
        self.num_targets = len(self.labels) if self.is_several else 1  # columns of an example

    def fit(self, model: LanguageModel) -> None:
        model.head = ClassifyHead(int(model.hidden_width), 1 if self.is_number else len(self.labels), self.config)

    def layout(self, records: Records, seq_len: int, *, training: bool = False) -> Layout:
        if self.config.class_weights == "balanced" and training:
            self._weights = balanced(records, self.label, len(self.labels))
        return ClassifyLayout(records, self, seq_len)

    def targets_of(self, records: Records, record: int) -> np.ndarray:
        """What stands first in an example: int64; the bits of a number."""
        values = records.values(self.label, record)
        if self.is_number:
            return values.astype("<f8").view("<i8")
        if self.is_several:
            return np.isin(np.arange(len(self.labels)), values).astype(np.int64)
        return values.astype(np.int64)

    def count(self, ids: np.ndarray) -> int:
        return len(ids)

    def count_of(self, lengths: np.ndarray) -> int | None:
        return len(lengths)

    def batch(self, ids: Tensor, context: Tensor | None, draws: Draws | None, *, training: bool) -> Batch:
        targets, tokens = ids[:, : self.num_targets], ids[:, self.num_targets :]
        inputs, lengths = without_padding(tokens, self._eos_id), lengths_of(tokens)
        weights = None if self._weights is None or not training else self._weights.to(ids.device)
        return Batch(inputs, targets, lengths, draws if training else None, weights)

    def loss(
        self, model: LanguageModel, batch: Batch, state: State | None, draws: Draws | None
    ) -> tuple[Sums, State | None]:
        logits = self.logits(model, batch, draws)
        plain = self._losses(logits, batch.targets, None, 0.0)
        smoothing, weights = self._objective.label_smoothing, batch.term_weights
        aim = plain if not smoothing and weights is None else self._losses(logits, batch.targets, weights, smoothing)
        values = torch.stack((plain.detach().double().sum(), plain.new_tensor(len(plain), dtype=torch.float64)))
        return Sums(aim.sum(), values), None

    def logits(self, model: LanguageModel, batch: Batch, draws: Draws | None) -> Tensor:
        """float32 (B, K)."""
        hidden = hidden_of(model, batch, draws, self._eos_id)
        assert batch.lengths is not None
        pooled = POOLINGS[self.config.pooling](hidden, batch.lengths)
        return model.head(dropout(pooled, self.config.dropout, batch.draws, HEAD_SITE)).float()

    def _losses(self, logits: Tensor, targets: Tensor, weights: Tensor | None, smoothing: float) -> Tensor:
        """Of each record: cross-entropy, the sum of those of all classes, or the squared error: (B,)."""
        if self.is_number:
            return (logits.squeeze(1) - targets.squeeze(1).contiguous().view(torch.float64).float()).square()
        if self.is_several:
            each = F.binary_cross_entropy_with_logits(logits, targets.float(), reduction="none")
            return (each if weights is None else each * weights).sum(1)
        return F.cross_entropy(logits, targets.squeeze(1), weights, label_smoothing=smoothing, reduction="none")

    def head_for_exchange(self, model: LanguageModel) -> TaskHead | None:
        if self.is_number or self.is_several:
            what = "a number" if self.is_number else "several labels"
            raise UserError(f"task: classify with {what} is not exported; one label a text is")
        head = model.head
        assert isinstance(head, ClassifyHead)
        state = state_of(head.out)
        if head.transform is not None:
            state |= state_of(head.transform, "pooler.")
        return TaskHead(self.config.kind, state, tuple(self.labels), self.config.pooling)

    def predict(self, model: LanguageModel, batch: Batch, seq_len: int) -> list[np.ndarray]:
        return list(on_host(self.logits(model, batch, None)))

    def judge(self, records: Records, layout: Layout, predictions: Sequence[np.ndarray], *, lines: bool) -> Judged:
        gold = [records.values(self.label, record) for record in range(len(records))]
        logits = np.stack(predictions)
        if self.is_number:
            return of_numbers(np.concatenate(gold), logits[:, 0], lines=lines)
        if self.is_several:
            truth = np.stack([np.isin(np.arange(len(self.labels)), one) for one in gold])
            return of_several(truth, logits, self.labels, lines=lines)
        return of_classes(np.concatenate(gold).astype(np.int64), logits, self.labels, lines=lines)


def _weights(config: ClassifyConfig, field: FieldEntry) -> Tensor | None:
    given = config.class_weights
    if given is not None and field.type == "number":
        raise UserError("task.class_weights: are of classes, and the target is a number; leave them out")
    if not isinstance(given, list):
        return None
    if len(given) != len(field.labels):
        told = ", ".join(field.labels[:8])
        raise UserError(f"task.class_weights: {len(given)} weights for {len(field.labels)} labels ({told})")
    return torch.tensor(given)


def balanced(records: Records, label: str, num_labels: int) -> Tensor:
    """A weight a class, by which all count alike: n / (classes x its records) (King and Zeng 2001)."""
    counts = np.zeros(num_labels)
    for record in range(len(records)):
        counts[records.values(label, record)] += 1
    return torch.from_numpy(len(records) / (num_labels * np.maximum(counts, 1))).float()
