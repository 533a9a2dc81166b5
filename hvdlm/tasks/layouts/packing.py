"""Several examples in one row, each as if it stood alone: no place of a batch is left empty for want of a long text.

What keeps them apart is the model's `segments`: tokens see those of their own example, and positions begin anew in it.
"""

from __future__ import annotations

from bisect import bisect_left, insort

import numpy as np

from hvdlm.data.record_batches import Layout
from hvdlm.tasks.layouts.text import padded


class PackedLayout(Layout):
    """Rows of another layout one behind the other, each token with the number of its example in the row behind it."""

    def __init__(self, layout: Layout, columns: int, seq_len: int) -> None:
        self._layout, self._columns = layout, columns
        self._packs = packs_of(layout.lengths, seq_len)
        self.lengths = np.array([layout.lengths[pack].sum() for pack in self._packs])
        self.targets = np.array([layout.targets[pack].sum() for pack in self._packs])
        self.records = np.array([layout.records[pack[0]] for pack in self._packs])
        self.is_cut = layout.is_cut

    def rows(self, examples: np.ndarray) -> np.ndarray:
        return padded([self._row(self._packs[number]) for number in examples.tolist()])

    def _row(self, pack: np.ndarray) -> np.ndarray:
        parts = []
        for place, example in enumerate(pack.tolist()):
            tokens = self._layout.rows(np.array([example])).reshape(-1, self._columns)
            parts.append(np.concatenate([tokens, np.full((len(tokens), 1), place)], axis=1))
        return np.concatenate(parts).reshape(-1)


def packs_of(lengths: np.ndarray, room: int) -> list[np.ndarray]:
    """Examples in packs of at most `room` tokens, the longest first, each where the least room is left (best fit).

    >>> [pack.tolist() for pack in packs_of(np.array([5, 9, 4, 1]), 10)]
    [[1, 3], [0, 2]]
    """
    packs: list[list[int]] = []
    left: list[tuple[int, int]] = []  # (room, pack), ascending
    for example in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[example])
        at = bisect_left(left, (length, -1))
        if at == len(left):
            packs.append([])
            space, pack = room, len(packs) - 1
        else:
            space, pack = left.pop(at)
        packs[pack].append(example)
        insort(left, (space - length, pack))
    return [np.array(pack) for pack in packs]
