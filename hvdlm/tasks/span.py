"""An answer that stands in a text (`task: {kind: span}`): extractive question answering (Rajpurkar et al. 2016).

A text that is longer than a sequence is read in windows that overlap; a window without the answer points at its first
token. Places are kept as words, whose characters are known, so that no tokenizer moves an answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from hvdlm.compute.draws import Draws, dropout
from hvdlm.data.fields import PLACES, WORDS
from hvdlm.data.record_batches import Layout
from hvdlm.data.records import Records, stacked
from hvdlm.data.windows import IGNORED
from hvdlm.errors import UserError
from hvdlm.exchange.heads import SPAN_LABELS, TaskHead
from hvdlm.models import LanguageModel, State
from hvdlm.tasks.interface import Batch, Sums, Task, TaskContext, without_padding
from hvdlm.tasks.language_model import ObjectiveConfig
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
    state_of,
)
from hvdlm.tasks.text_figures import of_answers

NO_ANSWER = 0  # the place that a window without the answer points at


class SpanConfig(RecordTaskConfig):
    """`task: {kind: span}`: where in a text the answer to a question stands."""

    kind: Literal["span"] = "span"
    question: str | None = Field(None, description="field of type pair; null: the only one")
    answer: str | None = Field(None, description="field of type span; null: the only one")
    stride: int = Field(128, ge=1, description="tokens from one window of a long text to the next")
    most_tokens: int = Field(64, ge=1, description="of an answer")
    may_lack: bool = Field(
        False, description="a question may have no answer, which is said where its score is above the best one's"
    )
    language: Literal["en", "zh"] = Field("en", description="by whose rules answers are compared")
    dropout: float = Field(0.0, ge=0, lt=1, description="of the hidden vectors before the head")

    def build(self, context: TaskContext) -> Task:
        return Span(self, context)


class SpanHead(nn.Module):
    """Hidden vectors (B, T, C) -> scores of first and last token (B, T, 2)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.out = initialize(nn.Linear(width, 2))

    def forward(self, hidden: Tensor) -> Tensor:
        return self.out(hidden)


class SpanLayout(Layout):
    """First and last token of the answer, where the text begins, then question and a window of the text."""

    def __init__(self, records: Records, task: Span, seq_len: int) -> None:
        self._records, self._task = records, task
        questions, texts = records.num_ids(task.question), records.num_tokens() - int(task.has_bos)
        room = seq_len - questions
        if (tight := np.flatnonzero(room < task.config.stride)).size and (texts[tight] > room[tight]).any():
            raise UserError(
                f"data.seq_len: {seq_len} leaves less than task.stride {task.config.stride} tokens beside a question of"
                f" {int(questions[tight].max())}: some of the text would be missed; raise it, or lower the stride"
            )
        windows = 1 + -(-np.maximum(texts - room, 0) // task.config.stride)
        self.records = np.repeat(np.arange(len(records)), windows)
        first = np.concatenate([[0], np.cumsum(windows)])[:-1]
        self.starts = (np.arange(len(self.records)) - first[self.records]) * task.config.stride  # in the text
        self.widths = np.minimum(texts[self.records] - self.starts, room[self.records])
        self.lengths = questions[self.records] + self.widths
        self.targets = np.ones(len(self.records), dtype=np.int64)

    def rows(self, examples: np.ndarray) -> np.ndarray:
        rows = [self._row(int(self.records[n]), int(self.starts[n]), int(self.widths[n])) for n in examples.tolist()]
        return stacked(rows, max(map(len, rows), default=3), IGNORED)

    def _row(self, record: int, start: int, width: int) -> np.ndarray:
        task, records = self._task, self._records
        question, text = records.ids(task.question, record), records.tokens(record)[int(task.has_bos) :]
        shift = len(question) - start
        first, last = NO_ANSWER, NO_ANSWER
        for place in records.values(task.answer, record).reshape(-1, 2).tolist():  # the first one that lies in it
            answer_first, answer_last = self.tokens_of(record, *place)
            if start <= answer_first and answer_last < start + width:
                first, last = answer_first + shift, answer_last + shift
                break
        return np.concatenate([[first, last, len(question)], question, text[start : start + width]])

    def tokens_of(self, record: int, start: int, stop: int) -> tuple[int, int]:
        """First and last token, in the text, of the words that characters [start, stop) touch."""
        words, ends = self._words(record)
        touched = np.flatnonzero((words[:, 0] < stop) & (words[:, 1] > start))
        if not touched.size:  # blanks alone
            return -1, -1
        first, last = int(touched[0]), int(touched[-1])
        return int(ends[first - 1]) if first else 0, int(ends[last]) - 1

    def characters_of(self, record: int, first: int, last: int) -> tuple[int, int]:
        """The characters [start, stop) of the words that tokens first to last of the text are of."""
        words, ends = self._words(record)
        at = np.minimum(np.searchsorted(ends, [first, last], side="right"), len(words) - 1)
        return int(words[at[0], 0]), int(words[at[1], 1])

    def _words(self, record: int) -> tuple[np.ndarray, np.ndarray]:
        """Of the text's words: characters [start, stop) of each (W, 2), and the token behind its last (W,)."""
        places = self._records.values(self._task.text + PLACES, record).reshape(-1, 2)
        return places, np.cumsum(self._records.values(self._task.text + WORDS, record).astype(np.int64))


class Span(RecordTask):
    """The denominator is the number of windows; the loss of one is the mean of those of its two places."""

    sums = ("loss", "targets")
    shown = ("exact_match", "token_f1")

    def __init__(self, config: SpanConfig, context: TaskContext) -> None:
        assert isinstance(context.objective, ObjectiveConfig)
        context.objective.refuse_all_but((), config.kind)
        vocabulary, fields = context.vocabulary, context.fields
        self.config, self._eos_id, self.has_bos = config, vocabulary.eos_id, vocabulary.bos_id is not None
        self.text = field_of(fields, None, ("text",), "text") or ""
        self.question = field_of(fields, config.question, ("pair",), "question") or ""
        self.answer = field_of(fields, config.answer, ("span",), "answer") or ""
        self.fields, self.raw_fields = (self.text, self.question, self.answer), (self.text,)
        if not fields[self.text].raw:
            raise UserError(
                f"task: span compares answers by their characters; preprocess with fields.{self.text}.raw: true"
            )
        self.takes_draws = config.dropout > 0

    def fit(self, model: LanguageModel) -> None:
        model.head = SpanHead(model.hidden_width)

    def layout(self, records: Records, seq_len: int, *, training: bool = False) -> Layout:
        return SpanLayout(records, self, seq_len)

    def count(self, ids: np.ndarray) -> int:
        return len(ids)

    def count_of(self, lengths: np.ndarray) -> int | None:
        return len(lengths)

    def batch(self, ids: Tensor, context: Tensor | None, draws: Draws | None, *, training: bool) -> Batch:
        targets, tokens = ids[:, :3], ids[:, 3:]
        return Batch(without_padding(tokens, self._eos_id), targets, lengths_of(tokens), draws if training else None)

    def loss(
        self, model: LanguageModel, batch: Batch, state: State | None, draws: Draws | None
    ) -> tuple[Sums, State | None]:
        scores = self._scores(model, batch, draws)  # (B, T, 2)
        losses = F.cross_entropy(scores, batch.targets[:, :2], reduction="none").mean(1)
        count = losses.new_tensor(len(losses), dtype=torch.float64)
        return Sums(losses.sum(), torch.stack((losses.detach().double().sum(), count))), None

    def _scores(self, model: LanguageModel, batch: Batch, draws: Draws | None) -> Tensor:
        """float32 (B, T, 2): -inf but for tokens of the text and the place of no answer."""
        hidden = hidden_of(model, batch, draws, self._eos_id)
        assert batch.lengths is not None
        places = torch.arange(hidden.shape[1], device=hidden.device)
        is_text = (places >= batch.targets[:, 2:]) & (places < batch.lengths.unsqueeze(1))
        may_be = is_text | (places == NO_ANSWER)
        scores = model.head(dropout(hidden, self.config.dropout, batch.draws, HEAD_SITE)).float()
        return scores.masked_fill(~may_be.unsqueeze(2), -torch.inf)

    def head_for_exchange(self, model: LanguageModel) -> TaskHead | None:
        assert isinstance(model.head, SpanHead)
        return TaskHead(self.config.kind, state_of(model.head.out), SPAN_LABELS)

    def predict(self, model: LanguageModel, batch: Batch, seq_len: int) -> list[np.ndarray]:
        """Of each window: score of its best answer, that answer's first and last token in it, score of none."""
        scores = on_host(self._scores(model, batch, None))
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
        answers = [""] * len(records)
        best = np.full(len(records), -np.inf)
        none = np.full(len(records), np.inf)
        for example, (score, first, last, without) in enumerate(predictions):
            record, start = int(layout.records[example]), int(layout.starts[example])
            none[record] = min(none[record], without)
            if score > best[record]:
                best[record] = score
                place = layout.characters_of(record, start + int(first), start + int(last))
                answers[record] = records.texts(self.text, record)[0][slice(*place)]
        gold = [self._gold(records, record) for record in range(len(records))]
        if self.config.may_lack:
            answers = ["" if none[n] > best[n] else answer for n, answer in enumerate(answers)]
        return of_answers(answers, [one or [""] for one in gold], self.config.language, lines=lines)

    def _gold(self, records: Records, record: int) -> list[str]:
        text = records.texts(self.text, record)[0]
        return [text[start:stop] for start, stop in records.values(self.answer, record).reshape(-1, 2).tolist()]
