"""Sources and the targets that are written for them."""

from __future__ import annotations

import numpy as np

from hvdlm.data.record_batches import Layout
from hvdlm.data.records import Records, stacked
from hvdlm.data.windows import IGNORED
from hvdlm.tasks.layouts.text import Text, interleaved, padded, room_for


class PairLayout(Layout):
    """For an encoder: tokens of the source beside those of the target."""

    def __init__(self, records: Records, source: Text, target: Text, seq_len: int) -> None:
        self._records, self._texts, self._seq_len = records, (source, target), seq_len
        sources, targets = source.lengths(records), target.lengths(records)
        self.lengths = np.minimum(np.maximum(sources, targets), seq_len)
        self.targets = np.minimum(targets, seq_len)
        self.records = np.arange(len(records))
        self.is_cut = (sources > seq_len) | (targets > seq_len)

    def rows(self, examples: np.ndarray) -> np.ndarray:
        return padded([self._row(record) for record in examples.tolist()])

    def _row(self, record: int) -> np.ndarray:
        parts = [text.ids(self._records, record, self._seq_len) for text in self._texts]
        return interleaved(*stacked(parts, max(map(len, parts)), IGNORED))


class PrefixLayout(Layout):
    """For a decoder alone: source and target one behind the other, each token beside the one that is to follow."""

    def __init__(self, records: Records, source: Text, target: Text, seq_len: int) -> None:
        self._records, self._source, self._target = records, source, target
        sources, targets = source.lengths(records), target.lengths(records)
        self._sources, self.targets = room_for([sources, targets], seq_len + 1)
        self.lengths = self._sources + self.targets - 1
        self.records = np.arange(len(records))
        self.is_cut = (sources > self._sources) | (targets > self.targets)

    def rows(self, examples: np.ndarray) -> np.ndarray:
        return padded([self._row(record) for record in examples.tolist()])

    def _row(self, record: int) -> np.ndarray:
        source = self._source.ids(self._records, record, int(self._sources[record]))
        target = self._target.ids(self._records, record, int(self.targets[record]))
        follows = np.concatenate([np.full(len(source) - 1, IGNORED), target])
        return interleaved(np.concatenate([source, target])[:-1], follows)
