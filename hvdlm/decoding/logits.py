"""What is asked of logits before anything is chosen by them."""

from __future__ import annotations

from torch import Tensor

from hvdlm.errors import UserError
from hvdlm.models import LanguageModel, Vocabulary


def refuse_diverged(logits: Tensor) -> None:
    """UserError where they are not finite."""
    if not logits.isfinite().all():
        raise UserError("the model's logits are not finite: it has diverged; use a checkpoint from before that")


def never_written(model: LanguageModel, vocabulary: Vocabulary) -> tuple[int, ...]:
    """What no text holds: the beginning of a text, and rows of a vocabulary that was rounded up."""
    rows = int(getattr(model.head, "out_features", vocabulary.size))
    begin = () if vocabulary.bos_id is None else (vocabulary.bos_id,)
    return (*begin, *range(vocabulary.size, rows))
