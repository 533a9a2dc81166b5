"""Questions before windows of the text that has their answer."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from hvdlm.data.fields import PLACES, WORDS
from hvdlm.data.record_batches import Layout
from hvdlm.data.records import Records
from hvdlm.errors import UserError
from hvdlm.tasks.layouts.text import Text, padded

NO_ANSWER = 0  # the place that a window without the answer points at


class SpanFields(NamedTuple):
    """The question and the text as they stand in a row, and the field of type span."""

    question: Text
    text: Text
    answer: str


class SpanLayout(Layout):
    """First and last token of the answer, where the text begins, then question and a window of the text."""

    def __init__(self, records: Records, fields: SpanFields, stride: int, seq_len: int) -> None:
        self._records, self._fields = records, fields
        questions, texts = fields.question.lengths(records), fields.text.lengths(records)
        room = seq_len - questions
        if (tight := np.flatnonzero(room < stride)).size and (texts[tight] > room[tight]).any():
            raise UserError(
                f"data.seq_len: {seq_len} leaves less than task.stride {stride} tokens beside a question of"
                f" {int(questions[tight].max())}: some of the text would be missed; raise it, or lower the stride"
            )
        windows = 1 + -(-np.maximum(texts - room, 0) // stride)
        self.records = np.repeat(np.arange(len(records)), windows)
        first = np.concatenate([[0], np.cumsum(windows)])[:-1]
        self.starts = (np.arange(len(self.records)) - first[self.records]) * stride  # in the text
        self.widths = np.minimum(texts[self.records] - self.starts, room[self.records])
        self.lengths = questions[self.records] + self.widths
        self.targets = np.ones(len(self.records), dtype=np.int64)

    def rows(self, examples: np.ndarray) -> np.ndarray:
        return padded(
            [self._row(int(self.records[n]), int(self.starts[n]), int(self.widths[n])) for n in examples.tolist()]
        )

    def _row(self, record: int, start: int, width: int) -> np.ndarray:
        fields, records = self._fields, self._records
        question, text = fields.question.ids(records, record), fields.text.ids(records, record)
        shift = len(question) - start
        first, last = NO_ANSWER, NO_ANSWER
        for place in records.values(fields.answer, record).reshape(-1, 2).tolist():  # the first one that lies in it
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
        text = self._fields.text.field
        places = self._records.values(text + PLACES, record).reshape(-1, 2)
        return places, np.cumsum(self._records.values(text + WORDS, record).astype(np.int64))
