"""The loss scale of float16."""

from __future__ import annotations


class LossScaler:
    """Dynamic loss scaling for float16 (Micikevicius et al. 2018): halved on overflow, doubled after a quiet while.

    The reduced gradient decides: an inf on one rank is an inf or nan in the mean of all, so all ranks skip the
    same step and keep the same scale.
    """

    GROWTH_STEPS, SMALLEST = 2000, 1.0

    def __init__(self) -> None:
        self.scale = 2.0**16
        self._quiet = 0

    def update(self, *, is_finite: bool) -> None:
        """After each step."""
        if not is_finite:
            self.scale, self._quiet = max(self.scale / 2, self.SMALLEST), 0
            return
        self._quiet += 1
        if self._quiet == self.GROWTH_STEPS:
            self.scale, self._quiet = self.scale * 2, 0

    def to_dict(self) -> dict:
        return {"scale": self.scale, "quiet": self._quiet}

    def load(self, state: dict) -> None:
        self.scale, self._quiet = state["scale"], state["quiet"]
