"""Sample numbers to tensors. A sample is a window of seq_len + 1 tokens of a split's stream."""

from __future__ import annotations

from collections.abc import Iterator
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

    path: Path = Field(description="folder with manifest.json, written by `hvdlm preprocess`")
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


def evaluation_batches(
    stream: TokenStream, *, seq_len: int, eos_id: int, batch: int, rank: int, size: int, max_tokens: int = 0
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The rank's part of a split as (inputs, targets), both int64 (<= batch, seq_len), each target once.

    Every token of the split (or of its first `max_tokens`) is a target on exactly one rank. The first
    is predicted from an eos id, as each document's first token is. Padding targets are IGNORED.
    """
    total = min(len(stream), max_tokens) if max_tokens else len(stream)
    num_windows = -(-total // seq_len)
    mine = slice_of(rank, size, num_windows)
    for first in range(mine.start, mine.stop, batch):
        windows = range(first, min(first + batch, mine.stop))
        inputs = np.full((len(windows), seq_len), eos_id, dtype=np.int64)
        targets = np.full((len(windows), seq_len), IGNORED, dtype=np.int64)
        for row, window in enumerate(windows):
            start, end = window * seq_len, min((window + 1) * seq_len, total)
            tokens = stream.read(start, end - start)
            targets[row, : end - start] = tokens
            if start:
                inputs[row, 0] = stream.read(start - 1, 1)[0]
            inputs[row, 1 : end - start] = tokens[:-1]
        yield inputs, targets
