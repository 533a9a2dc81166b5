"""Texts, or pairs of them, with what is to be said of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from hvdlm.data.record_batches import Layout
from hvdlm.data.records import Records
from hvdlm.tasks.layouts.text import Text, padded, room_for

Goals = Callable[[Records, np.ndarray], np.ndarray]  # of some records (n,)


class ClassifyLayout(Layout):
    """What `goals` says of each, int64 (n, K), then the tokens of the texts, each with its end of text."""

    def __init__(self, records: Records, goals: Goals, texts: Sequence[Text], seq_len: int) -> None:
        self._records, self._goals, self._texts = records, goals, texts
        given = [text.lengths(records) for text in texts]
        self._kept = room_for(given, seq_len)
        self.lengths = np.sum(self._kept, axis=0)
        self.is_cut = np.sum(given, axis=0) > seq_len
        self.targets = np.ones(len(records), dtype=np.int64)
        self.records = np.arange(len(records))

    def rows(self, examples: np.ndarray) -> np.ndarray:
        goals = self._goals(self._records, examples)
        rows = zip(goals, examples.tolist(), strict=True)
        return padded([np.concatenate([goal, *self._ids(record)]) for goal, record in rows])

    def _ids(self, record: int) -> list[np.ndarray]:
        parts = zip(self._texts, self._kept, strict=True)
        return [text.ids(self._records, record, int(kept[record])) for text, kept in parts]
