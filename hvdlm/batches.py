"""Sample numbers to tensors. A sample is a window of seq_len + 1 tokens of a split's stream."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import Field

from hvdlm.config import Section
from hvdlm.errors import UserError
from hvdlm.partition import samples_of_step, slice_of
from hvdlm.shards import TokenStream

IGNORED = -100  # target of a padded position; cross_entropy's ignore_index


class DataConfig(Section):
    """The `data` section: which shards, and how long a sequence is."""

    path: Path = Field(strict=False, description="folder with manifest.json, written by `hvdlm preprocess`")
    seq_len: int = Field(256, ge=1, description="tokens a sequence, T")


class TrainBatches:
    """The training order: windows at multiples of seq_len, permuted anew each epoch, for ever."""

    def __init__(self, stream: TokenStream, *, seq_len: int, global_batch: int, seed: int) -> None:
        self.num_samples = (len(stream) - 1) // seq_len
        if self.num_samples < 1:
            raise UserError(f"the train split has {len(stream)} tokens, fewer than one sequence of {seq_len} + 1")
        self._stream, self._seq_len = stream, seq_len
        self._global_batch, self._seed = global_batch, seed

    def of_step(self, step: int, *, rank: int, size: int) -> np.ndarray:
        """The rank's windows of a step: int64 (global_batch / size, seq_len + 1)."""
        samples = samples_of_step(
            step, rank=rank, size=size,
            global_batch=self._global_batch, num_samples=self.num_samples, seed=self._seed,
        )  # fmt: skip
        return self._stream.read_windows(samples * self._seq_len, self._seq_len + 1)


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
