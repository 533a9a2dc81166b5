"""Texts of records as parts of a row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from hvdlm.data.records import Records, stacked
from hvdlm.data.windows import IGNORED


class Text(NamedTuple):
    """A field of type text or pair, of which some first ids, such as a beginning of text, are not part of the row."""

    field: str
    skipped: int = 0

    def lengths(self, records: Records) -> np.ndarray:
        """Tokens of each record: int64 (n,)."""
        return records.num_ids(self.field) - self.skipped

    def ids(self, records: Records, record: int, most: int | None = None) -> np.ndarray:
        """At most so many ids: the text's beginning, and the end of text behind it."""
        ids = records.ids(self.field, record)[self.skipped :]
        return ids if most is None or len(ids) <= most else np.concatenate([ids[: most - 1], ids[-1:]])


def room_for(lengths: Sequence[np.ndarray], most: int) -> list[np.ndarray]:
    """How many tokens of one text or two, (n,) each, have place in `most`: the longer one gives way first.

    >>> [part.tolist() for part in room_for([np.array([3, 9]), np.array([4, 2])], 7)]
    [[3, 5], [4, 2]]
    """
    if len(lengths) == 1:
        return [np.minimum(lengths[0], most)]
    one, other = lengths
    shorter = np.minimum(np.minimum(one, other), most // 2)
    longer = np.minimum(np.maximum(one, other), most - shorter)
    return [np.where(one <= other, shorter, longer), np.where(one <= other, longer, shorter)]


def padded(rows: Sequence[np.ndarray]) -> np.ndarray:
    """Rows as int64 (n, W), IGNORED behind the end of each; of none, (0, 3): the columns that a token has at most."""
    return stacked(rows, max(map(len, rows), default=3), IGNORED)


def interleaved(*columns: np.ndarray) -> np.ndarray:
    """Columns (T,) as one row in which what belongs to a token stands together."""
    return np.stack(columns, axis=1).reshape(-1)
