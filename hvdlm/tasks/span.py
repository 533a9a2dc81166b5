"""An answer that stands in a text (`task: {kind: span}`): extractive question answering (Rajpurkar et al. 2016).

A text that is longer than a sequence is read in windows that overlap; a window without the answer points at its first
token. Places are kept as words, whose characters are known, so that no tokenizer moves an answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from hvdlm.compute.draws import Draws, dropout
from hvdlm.data.record_batches import Layout
from hvdlm.data.records import Records
from hvdlm.errors import UserError
from hvdlm.exchange.heads import SPAN_LABELS, TaskHead
from hvdlm.models import LanguageModel, State
from hvdlm.records.in_memory import RecordsInMemory
from hvdlm.tables import count, counted
from hvdlm.tasks.heads import HEAD_SITE, SpanHead, state_of
from hvdlm.tasks.interface import Batch, Measured, Sums, Task, TaskContext, more, without_padding
from hvdlm.tasks.language_model import ObjectiveConfig
from hvdlm.tasks.layouts import NO_ANSWER, SpanFields, SpanLayout, Text
from hvdlm.tasks.records import (
    Judged,
    RecordTask,
    RecordTaskConfig,
    field_of,
    hidden_of,
    lengths_of,
    need_raw,
    on_host,
    rounded,
)
from hvdlm.tasks.text_figures import of_answers
from hvdlm.tokenizer import Tokenizer


class SpanConfig(RecordTaskConfig):
    """`task: {kind: span}`: where in a text the answer to a question stands."""

    kind: Literal["span"] = "span"
    question: str | None = Field(None, description="field of type pair; null: the only one")
    answer: str | None = Field(None, description="field of type span; null: the only one")
    stride: Measured[int] = Field(128, ge=1, description="tokens from one window of a long text to the next")
    most_tokens: Measured[int] = Field(64, ge=1, description="of an answer")
    may_lack: Measured[bool] = Field(
        False, description="a question may have no answer, which is said where its score is above the best one's"
    )
    language: Measured[Literal["en", "zh"]] = Field("en", description="by whose rules answers are compared")
    dropout: float = Field(0.0, ge=0, lt=1, description="of the hidden vectors before the head")
    match: bool = Field(
        False, description="tokens are compared with the question's mean vector too: for a body without attention"
    )

    def build(self, context: TaskContext) -> Task:
        return Span(self, context)


class Answer(NamedTuple):
    """Characters [start, stop) of a text; "" where none is said to be the answer."""

    answer: str
    place: tuple[int, int]
    score: float  # of this answer
    without: float  # of there being none


class Span(RecordTask):
    """The denominator is the number of windows; the loss of one is the mean of those of its two places."""

    outputs = SPAN_LABELS
    better_predictions = more("exact_match", "token_f1")

    def __init__(self, config: SpanConfig, context: TaskContext) -> None:
        assert isinstance(context.objective, ObjectiveConfig)
        context.objective.refuse_all_but((), config.kind)
        vocabulary, fields = context.vocabulary, context.fields
        self.config, self._eos_id = config, vocabulary.eos_id
        text = field_of(fields, None, ("text",), "text") or ""
        question = field_of(fields, config.question, ("pair",), "question") or ""
        answer = field_of(fields, config.answer, ("span",), "answer") or ""
        self._fields = SpanFields(Text(question), Text(text, skipped=vocabulary.num_begins), answer)
        self.inputs, self.fields, self.raw_fields = (text, question), (text, question, answer), (text,)
        need_raw(fields, text, config.kind)
        self.takes_draws = config.dropout > 0

    def fit(self, model: LanguageModel) -> None:
        model.head = SpanHead(model.hidden_width, match=self.config.match)

    def layout(self, records: Records, seq_len: int, *, training: bool = False) -> Layout:
        layout = SpanLayout(records, self._fields, self.config.stride, seq_len)
        without = int((records.num_values(self._fields.answer) == 0).sum())
        if without and not self.config.may_lack:
            told = f"{count(without)} of {counted(len(records), 'record')} of {records.split}"
            layout.remark = f"{told} have no answer; task.may_lack: true learns to say so"
        return layout

    def batch(self, ids: Tensor, context: Tensor | None, draws: Draws | None, *, training: bool) -> Batch:
        targets, tokens = ids[:, :3], ids[:, 3:]
        return Batch(without_padding(tokens, self._eos_id), targets, lengths_of(tokens), draws if training else None)

    def loss(
        self, model: LanguageModel, batch: Batch, state: State | None, draws: Draws | None
    ) -> tuple[Sums, State | None]:
        scores = self.scores(model, batch, draws)  # (B, T, 2)
        losses = F.cross_entropy(scores, batch.targets[:, :2], reduction="none").mean(1)
        targets = losses.new_tensor(len(losses), dtype=torch.float64)
        return Sums(losses.sum(), torch.stack((losses.detach().double().sum(), targets))), None

    def scores(self, model: LanguageModel, batch: Batch, draws: Draws | None) -> Tensor:
        """float32 (B, T, 2): -inf but for tokens of the text and the place of no answer."""
        hidden = hidden_of(model, batch, draws, self._eos_id)
        assert batch.lengths is not None
        places, begins = torch.arange(hidden.shape[1], device=hidden.device), batch.targets[:, 2]
        is_text = (places >= begins.unsqueeze(1)) & (places < batch.lengths.unsqueeze(1))
        may_be = is_text | (places == NO_ANSWER)
        scores = model.head(dropout(hidden, self.config.dropout, batch.draws, HEAD_SITE), begins).float()
        return scores.masked_fill(~may_be.unsqueeze(2), -torch.inf)

    def head_for_exchange(self, model: LanguageModel) -> TaskHead | None:
        assert isinstance(model.head, SpanHead)
        if self.config.match:
            raise UserError("task.match: transformers has no such head; a reader without it is exported")
        return TaskHead(self.config.kind, state_of(model.head.out), self.outputs)

    def predict(self, model: LanguageModel, batch: Batch, seq_len: int) -> list[np.ndarray]:
        """Of each window: score of its best answer, that answer's first and last token in it, score of none."""
        scores = on_host(self.scores(model, batch, None))
        begins = batch.targets[:, 2].tolist()
        return [self._best(row, begin) for row, begin in zip(scores, begins, strict=True)]

    def _best(self, scores: np.ndarray, begin: int) -> np.ndarray:
        starts, ends = scores[begin:, 0], scores[begin:, 1]
        best = -np.inf, 0, 0
        for length in range(min(self.config.most_tokens, len(starts))):
            sums = starts[: len(starts) - length] + ends[length:]
            at = int(sums.argmax())
            if sums[at] > best[0]:
                best = float(sums[at]), at, at + length
        return np.array([*best, scores[NO_ANSWER].sum()], dtype=np.float64)

    def judge(self, records: Records, layout: Layout, predictions: Sequence[np.ndarray], *, lines: bool) -> Judged:
        assert isinstance(layout, SpanLayout)
        answers = [found.answer for found in self._answers(records, layout, predictions)]
        gold = [self._gold(records, record) for record in range(len(records))]
        return of_answers(answers, [one or [""] for one in gold], self.config.language, lines=lines)

    def said(
        self, records: RecordsInMemory, layout: Layout, predictions: Sequence[np.ndarray], tokenizer: Tokenizer
    ) -> list[dict[str, Any]]:
        assert isinstance(layout, SpanLayout)
        lines = []
        for found in self._answers(records, layout, predictions):
            start, stop = found.place if found.answer else (None, None)
            scores = {"score": rounded(found.score), "no_answer_score": rounded(found.without)}
            lines.append({"answer": found.answer, "start": start, "stop": stop, **scores})
        return lines

    def _answers(self, records: Records, layout: SpanLayout, predictions: Sequence[np.ndarray]) -> list[Answer]:
        """The best one of each record's windows; where that may be, none."""
        found = [Answer("", (0, 0), -np.inf, np.inf)] * len(records)
        for example, (score, first, last, without) in enumerate(predictions):
            record, start = int(layout.records[example]), int(layout.starts[example])
            best = found[record]
            if score > best.score:
                place = layout.characters_of(record, start + int(first), start + int(last))
                text = records.texts(self._fields.text.field, record)[0]
                best = Answer(text[slice(*place)], place, score, best.without)
            found[record] = best._replace(without=min(best.without, without))
        if self.config.may_lack:
            found = [one._replace(answer="") if one.without > one.score else one for one in found]
        return found

    def _gold(self, records: Records, record: int) -> list[str]:
        text = records.texts(self._fields.text.field, record)[0]
        return [text[start:stop] for start, stop in records.values(self._fields.answer, record).reshape(-1, 2).tolist()]
