"""What is asked of logits before anything is chosen by them."""

from __future__ import annotations

from torch import Tensor

from hvdlm.errors import UserError


def refuse_diverged(logits: Tensor) -> None:
    """UserError where they are not finite."""
    if not logits.isfinite().all():
        raise UserError("the model's logits are not finite: it has diverged; use a checkpoint from before that")
