"""The training order of labelled records: permuted anew each epoch, each exactly once; the same at any number of ranks.

An example is a row of int64 as a task lays it out. Steps have equal numbers of examples, or as many as fill a budget
of padded tokens: then an epoch is cut into pools, examples of about the same length come together, and the batches are
permuted again. All of it is a function of the seed, the epoch and the lengths.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import lru_cache

import numpy as np

from hvdlm.partition import permute_each, samples_at

POOL_BATCHES = 64  # of about so many batches examples are sorted by length together


class Layout(ABC):
    """How a task lays out the records of a split: as examples, which are rows of int64."""

    lengths: np.ndarray  # int64 (n,): tokens that each example takes in a batch
    targets: np.ndarray  # int64 (n,): what `Task.count_of` is asked with
    records: np.ndarray  # int64 (n,): the record that each example is of
    is_cut: np.ndarray | None = None  # bool, of each record: whether some of its tokens are in no example
    remark: str = ""  # what may not be as it was meant, in a line

    @property
    def num_examples(self) -> int:
        return len(self.lengths)

    @property
    def num_cut(self) -> int:
        """Records of which some tokens are in no example."""
        return 0 if self.is_cut is None else int(self.is_cut.sum())

    @abstractmethod
    def rows(self, examples: np.ndarray) -> np.ndarray:
        """Examples, int64 (n,), as int64 (n, W), IGNORED behind the end of each."""


class RecordBatches:
    """An infinite order of one split's examples; with `batch_tokens` also which of them make a step."""

    pads = True

    def __init__(self, layout: Layout, *, seed: int, most: int, batch_tokens: int = 0) -> None:
        self.layout, self._seed, self._most, self._batch_tokens = layout, seed, most, batch_tokens
        self._epoch = lru_cache(maxsize=2)(self._ordered)
        self._sums = lru_cache(maxsize=2)(self._summed)

    @property
    def epoch_samples(self) -> list[float]:
        return [float(self.layout.num_examples)]

    @property
    def tokens_per_sample(self) -> float:
        return float(self.layout.lengths.mean())

    def lengths(self, positions: np.ndarray) -> np.ndarray:
        """Targets at ascending places, both int64 (n,)."""
        return self.layout.targets[self.examples(positions)]

    def windows(self, positions: np.ndarray, step: int) -> np.ndarray:
        return self.layout.rows(self.examples(positions))

    def num_tokens(self, positions: np.ndarray) -> np.ndarray:
        """Tokens that the examples at places take: int64 (n,)."""
        return self.layout.lengths[self.examples(positions)]

    def examples(self, positions: np.ndarray) -> np.ndarray:
        """The examples at ascending places of the order, both int64 (n,)."""
        num = self.layout.num_examples
        if not self._batch_tokens:
            return samples_at(positions, num_samples=num, seed=self._seed)
        epochs, within = np.divmod(positions, num)
        found = np.empty(len(positions), dtype=np.int64)
        for epoch in np.unique(epochs).tolist():
            is_there = epochs == epoch
            found[is_there] = self._epoch(epoch)[0][within[is_there]]
        return found

    def tokens_before(self, position: int) -> int:
        """Tokens of all examples before a place of the order."""
        epoch, within = divmod(position, self.layout.num_examples)
        return epoch * int(self.layout.lengths.sum()) + int(self._sums(epoch)[within])

    def _summed(self, epoch: int) -> np.ndarray:
        """Tokens of an epoch's first examples: int64 (n + 1,)."""
        places = epoch * self.layout.num_examples + np.arange(self.layout.num_examples)
        return np.concatenate([[0], np.cumsum(self.num_tokens(places))])

    def batch_ends(self, epoch: int) -> np.ndarray:
        """Where in the order of an epoch its steps end: int64 (steps,)."""
        return self._epoch(epoch)[1]

    def _ordered(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The examples of an epoch in order, and where its batches end."""
        num = self.layout.num_examples
        order = _permuted(num, f"epoch {self._seed} {epoch}")
        lengths = self.layout.lengths[order]
        mean = max(1.0, float(lengths.mean()))
        pool = POOL_BATCHES * max(1, min(self._most, round(self._batch_tokens / mean)))
        pools = np.arange(num) // pool
        order = order[np.lexsort((lengths, pools))]  # stable: ties stay as they were drawn
        starts = _cut(self.layout.lengths[order], pools, self._batch_tokens, self._most)
        sizes = np.diff([*starts, num])
        shuffled = _permuted(len(starts), f"batches of epoch {self._seed} {epoch}")
        picked = [order[starts[b] : starts[b] + sizes[b]] for b in shuffled.tolist()]
        return np.concatenate(picked), np.cumsum(sizes[shuffled])


def _permuted(num: int, key: str) -> np.ndarray:
    """range(num) in the order of a key: int64 (num,)."""
    return permute_each(np.arange(num), np.zeros(num, dtype=np.int64), [num], [key])


def _cut(lengths: np.ndarray, pools: np.ndarray, budget: int, most: int) -> list[int]:
    """Where batches begin, of which each pads to at most `budget` tokens, unless it is one example.

    `lengths` ascend within a pool, and no batch is of two.
    """
    starts = [0]
    for place in range(1, len(lengths)):
        size = place - starts[-1] + 1
        if pools[place] != pools[place - 1] or size > most or size * int(lengths[place]) > budget:
            starts.append(place)
    return starts
