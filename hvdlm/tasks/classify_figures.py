"""What predicted classes or numbers are worth, and the line that each record's prediction is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from hvdlm.tasks.records import Judged

if TYPE_CHECKING:
    from hvdlm.tasks.classify import Classify


def judged(task: Classify, gold: Sequence[np.ndarray], logits: np.ndarray, *, lines: bool) -> Judged:
    """`gold` has each record's labels or number; `logits` are float32 (n, K)."""
    truth = np.array([int(one[0]) for one in gold])
    found = logits.argmax(1)
    return Judged({"accuracy": float((truth == found).mean())})
