"""Words with their labels, and a mark before the predicate."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from hvdlm.data.fields import WORDS
from hvdlm.data.record_batches import Layout
from hvdlm.data.records import Records
from hvdlm.data.windows import IGNORED
from hvdlm.errors import UserError
from hvdlm.tasks.layouts.text import interleaved, padded


class TagFields(NamedTuple):
    """Names of fields; `mark_id` stands before the predicate. `num_begins` ids of a text are before its words."""

    text: str
    labels: str
    predicate: str | None
    mark_id: int
    num_begins: int


class TagLayout(Layout):
    """Each token beside its label; IGNORED where none begins a word."""

    def __init__(self, records: Records, fields: TagFields, seq_len: int) -> None:
        self._records, self._fields, self._seq_len = records, fields, seq_len
        lengths = records.num_tokens() + (0 if fields.predicate is None else 1)
        self.lengths = np.minimum(lengths, seq_len)
        self.records = np.arange(len(records))
        self.num_words = records.num_values(fields.text + WORDS)
        too_long = np.flatnonzero(lengths > seq_len).tolist()
        if fields.predicate is not None:
            self._check_predicates(records.all_values(fields.predicate), too_long)
        self.targets = self.num_words.copy()
        for record in too_long:
            self.targets[record] = int((self._marked(record)[1] < seq_len - 1).sum())
        self.is_cut = self.targets < self.num_words

    def _check_predicates(self, asked: np.ndarray, too_long: list[int]) -> None:
        """UserError for one that is no word of its sentence, or that is cut away, so that nothing would mark it."""
        records = self._records
        odd = np.flatnonzero((asked < 0) | (asked >= self.num_words) | (asked != np.floor(asked)))
        if odd.size:
            record = int(odd[0])
            raise UserError(
                f"{records.folder}: {self._fields.predicate} of record {record} of {records.split} is"
                f" {asked[record]:g}, and its {self.num_words[record]} words are counted from 0"
            )
        for record in too_long:
            if int(self._marked(record)[1][int(asked[record])]) >= self._seq_len - 1:
                raise UserError(
                    f"data.seq_len: {self._seq_len} cuts the predicate off record {record} of {records.split}; raise it"
                )

    def _marked(self, record: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens of a record, its predicate marked, and the place of each word's first."""
        fields, ids = self._fields, self._records.tokens(record)
        tokens = self._records.values(fields.text + WORDS, record).astype(np.int64)
        firsts = fields.num_begins + np.cumsum(tokens) - tokens
        if fields.predicate is None:
            return ids, firsts
        place = int(firsts[int(self._records.values(fields.predicate, record)[0])])
        return np.insert(ids, place, fields.mark_id), firsts + (firsts >= place)

    def rows(self, examples: np.ndarray) -> np.ndarray:
        return padded([self._row(record) for record in examples.tolist()])

    def _row(self, record: int) -> np.ndarray:
        ids, firsts = self._marked(record)
        labels = np.full(len(ids), IGNORED, dtype=np.int64)
        labels[firsts] = self._records.values(self._fields.labels, record)
        if len(ids) > self._seq_len:
            ids = np.concatenate([ids[: self._seq_len - 1], ids[-1:]])
            labels = np.concatenate([labels[: self._seq_len - 1], [IGNORED]])
        return interleaved(ids, labels)
