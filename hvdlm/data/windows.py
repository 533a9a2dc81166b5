"""A split cut into windows in which every token is a target exactly once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from hvdlm.data.stream import TokenStream
from hvdlm.partition import slice_of

IGNORED = -100  # target of a padded position; cross_entropy's ignore_index


@dataclass(frozen=True)
class EvaluationWindows:
    """A split cut into windows in which every token is a target exactly once.

    The first token is predicted from an eos id, as each document's first is. `max_tokens` keeps the
    beginning of the split, 0 all of it.
    """

    stream: TokenStream
    seq_len: int
    eos_id: int
    max_tokens: int = 0

    @property
    def num_tokens(self) -> int:
        return min(len(self.stream), self.max_tokens) if self.max_tokens else len(self.stream)

    def batches(self, batch: int, *, rank: int, size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The rank's windows as (inputs, targets), both int64 (<= batch, seq_len); padding is IGNORED."""
        mine = slice_of(rank, size, -(-self.num_tokens // self.seq_len))
        for first in range(mine.start, mine.stop, batch):
            pairs = [self._window(window) for window in range(first, min(first + batch, mine.stop))]
            yield np.stack([inputs for inputs, _ in pairs]), np.stack([targets for _, targets in pairs])

    def _window(self, window: int) -> tuple[np.ndarray, np.ndarray]:
        start, end = window * self.seq_len, min((window + 1) * self.seq_len, self.num_tokens)
        inputs = np.full(self.seq_len, self.eos_id, dtype=np.int64)
        targets = np.full(self.seq_len, IGNORED, dtype=np.int64)
        targets[: end - start] = self.stream.read(start, end - start)
        inputs[1 : end - start] = targets[: end - start - 1]
        if start:
            inputs[0] = self.stream.read(start - 1, 1)[0]
        return inputs, targets
