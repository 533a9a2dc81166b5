"""A class, several classes or a number for each text or pair of texts (`task: {kind: classify}`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from hvdlm.compute.draws import Draws, dropout
from hvdlm.config import choice_of
from hvdlm.data.record_batches import Layout
from hvdlm.data.records import Records
from hvdlm.errors import UserError
from hvdlm.exchange.heads import TaskHead
from hvdlm.models import LanguageModel, State
from hvdlm.records.in_memory import RecordsInMemory
from hvdlm.tasks.classes import Goal, OneClass, balanced_weights, goal_of
from hvdlm.tasks.heads import HEAD_SITE, ClassifyHead, state_of
from hvdlm.tasks.interface import Batch, Sums, Task, TaskContext, without_padding
from hvdlm.tasks.language_model import ObjectiveConfig
from hvdlm.tasks.layouts import ClassifyLayout, Text
from hvdlm.tasks.pooling import POOLINGS
from hvdlm.tasks.records import Judged, RecordTask, RecordTaskConfig, field_of, hidden_of, lengths_of, on_host
from hvdlm.tokenizer import Tokenizer


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


class Classify(RecordTask):
    """The denominator is the number of records."""

    def __init__(self, config: ClassifyConfig, context: TaskContext) -> None:
        assert isinstance(context.objective, ObjectiveConfig)
        fields = context.fields
        self.config, self._eos_id, self._objective = config, context.vocabulary.eos_id, context.objective
        text = field_of(fields, None, ("text",), "text") or ""
        pair = field_of(fields, config.pair, ("pair",), "pair", optional=True)
        label = field_of(fields, config.label, ("label", "number"), "label") or ""
        self._texts = [Text(text)]
        if pair is not None:  # one row has one beginning of text
            self._texts.append(Text(pair, skipped=context.vocabulary.num_begins))
        self.inputs = tuple(part.field for part in self._texts)
        self.fields = (*self.inputs, label)
        self.goal = goal_of(label, fields[label])
        self.outputs, self.better_predictions = tuple(self.goal.labels), self.goal.better
        self.has_confusion = isinstance(self.goal, OneClass)
        context.objective.refuse_all_but(("label_smoothing",) if isinstance(self.goal, OneClass) else (), config.kind)
        self._weights = _weights(config.class_weights, self.goal)
        self.takes_draws = config.dropout > 0

    def fit(self, model: LanguageModel) -> None:
        how = self.config
        model.head = ClassifyHead(model.hidden_width, self.goal.outputs, transform=how.transform, bias=how.bias)

    def layout(self, records: Records, seq_len: int, *, training: bool = False) -> Layout:
        if self.config.class_weights == "balanced" and training:
            self._weights = torch.from_numpy(balanced_weights(records, self.goal)).float()
        return ClassifyLayout(records, self.goal.goals, self._texts, seq_len)

    def batch(self, ids: Tensor, context: Tensor | None, draws: Draws | None, *, training: bool) -> Batch:
        goals, tokens = ids[:, : self.goal.columns], ids[:, self.goal.columns :]
        inputs, lengths = without_padding(tokens, self._eos_id), lengths_of(tokens)
        weights = None if self._weights is None or not training else self._weights.to(ids.device)
        return Batch(inputs, goals, lengths, draws if training else None, weights)

    def loss(
        self, model: LanguageModel, batch: Batch, state: State | None, draws: Draws | None
    ) -> tuple[Sums, State | None]:
        logits = self.logits(model, batch, draws)
        plain = self.goal.losses(logits, batch.targets, None, 0.0)
        smoothing, weights = self._objective.label_smoothing, batch.term_weights
        aim = (
            plain if not smoothing and weights is None else self.goal.losses(logits, batch.targets, weights, smoothing)
        )
        values = torch.stack((plain.detach().double().sum(), plain.new_tensor(len(plain), dtype=torch.float64)))
        return Sums(aim.sum(), values), None

    def logits(self, model: LanguageModel, batch: Batch, draws: Draws | None) -> Tensor:
        """float32 (B, K)."""
        hidden = hidden_of(model, batch, draws, self._eos_id)
        assert batch.lengths is not None
        pooled = POOLINGS[self.config.pooling](hidden, batch.lengths)
        return model.head(dropout(pooled, self.config.dropout, batch.draws, HEAD_SITE)).float()

    def head_for_exchange(self, model: LanguageModel) -> TaskHead | None:
        head = model.head
        assert isinstance(head, ClassifyHead)
        state = state_of(head.out)
        if head.transform is not None:
            state |= state_of(head.transform, "pooler.")
        labels = self.outputs or (self.goal.name,)  # of a number, that of its field
        return TaskHead(self.config.kind, state, labels, self.config.pooling, self.goal.problem)

    def predict(self, model: LanguageModel, batch: Batch, seq_len: int) -> list[np.ndarray]:
        return list(on_host(self.logits(model, batch, None)))

    def said(
        self, records: RecordsInMemory, layout: Layout, predictions: Sequence[np.ndarray], tokenizer: Tokenizer
    ) -> list[dict[str, Any]]:
        return self.goal.said(np.stack(predictions)) if len(predictions) else []

    def judge(self, records: Records, layout: Layout, predictions: Sequence[np.ndarray], *, lines: bool) -> Judged:
        return self.goal.judged(records, np.stack(predictions), lines=lines)


def _weights(given: str | list[float] | None, goal: Goal) -> Tensor | None:
    if given is not None and not goal.labels:
        raise UserError("task.class_weights: are of classes, and the target is a number; leave them out")
    if not isinstance(given, list):
        return None
    if len(given) != len(goal.labels):
        told = ", ".join(goal.labels[:8])
        raise UserError(f"task.class_weights: {len(given)} weights for {len(goal.labels)} labels ({told})")
    return torch.tensor(given)
