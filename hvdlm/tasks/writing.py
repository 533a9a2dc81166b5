"""What a model writes freely for the records of a batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from hvdlm.decoding import Decoding, decode, never_written
from hvdlm.models import LanguageModel, Vocabulary


def written(
    model: LanguageModel, vocabulary: Vocabulary, ids: Tensor, lengths: Tensor, how: Decoding
) -> list[np.ndarray]:
    """Ids, int64, of the best text for each source or prompt: ids (B, T), of which the first `lengths` (B,) are read.

    The end of text stands behind a text that has ended.

    A text is shorter than `how` allows where the model has no more positions.
    """
    found: list[np.ndarray] = [np.empty(0, dtype=np.int64)] * len(ids)
    for rows, most in _rooms(model, lengths, how.max_tokens):
        search = replace(how, max_tokens=most, never=never_written(model, vocabulary))
        for row, best in zip(rows.tolist(), decode(model, ids[rows], lengths[rows], search), strict=True):
            end = [vocabulary.eos_id] if best[0].ended else []
            found[row] = np.array([*best[0].ids, *end], dtype=np.int64)
    return found


def _rooms(model: LanguageModel, lengths: Tensor, most: int) -> Iterator[tuple[Tensor, int]]:
    """Rows that are searched together, and how many tokens they may have: no more than there are positions for."""
    there = model.most_positions
    everybody = torch.arange(len(lengths), device=lengths.device)
    if there is None or model.reads_source:
        yield everybody, most if there is None else min(most, there)
        return
    for length in lengths.unique().tolist():
        yield everybody[lengths == length], max(1, min(most, there - length + 1))
