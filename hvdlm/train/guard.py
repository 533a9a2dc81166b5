"""What to do with a gradient that is not finite or far too large.

Where replicas are equal the averaged gradient's norm is the same number on all ranks, so all decide alike
without a word. Elsewhere `Verdict`s are compared when the ranks next meet.
"""

from __future__ import annotations

import enum
import math
from dataclasses import asdict, dataclass, fields
from typing import Annotated

from pydantic import Field

from hvdlm.config import Section, choice_of


class Verdict(enum.IntEnum):
    """The graver the larger: the ranks act on the largest."""

    APPLY = 0
    SKIP = 1
    REWIND = 2
    STOP = 3


ACTIONS = [verdict.name.lower() for verdict in Verdict if verdict]


class GuardConfig(Section):
    """The `guard` section: skip leaves one update out; rewind goes back to the last checkpoint, past those samples."""

    nonfinite: Annotated[str, choice_of(ACTIONS)] = Field("stop", description="for a gradient with inf or nan")
    spike: Annotated[str, choice_of(["off", *ACTIONS])] = Field("off", description="for a norm far above the usual")
    spike_factor: float = Field(10.0, gt=1, description="a spike is so many times the running mean of the norm")
    spike_warmup: int = Field(100, ge=1, description="steps before the running mean counts")
    max_skips: int = Field(10, ge=1, description="so many skipped steps in a row, or rewinds in a run, stop it")
    stall_s: float = Field(600.0, ge=0, description="a rank that waits so long for another ends the job; 0 is never")


@dataclass
class GuardState:
    """What the next decision depends on; saved with each checkpoint."""

    mean_norm: float = 0.0
    seen: int = 0
    skipped_in_a_row: int = 0
    skipped: int = 0


class Guard:
    """Judges each step by the norm of its gradient."""

    MEMORY = 0.99  # of the running mean

    def __init__(self, config: GuardConfig) -> None:
        self.config = config
        self.state = GuardState()
        self.reason = ""  # of the last verdict but APPLY

    @property
    def is_needed(self) -> bool:
        """Whether the norm must be known before the update, which on a GPU costs a synchronization."""
        return self.config.nonfinite != "stop" or self.config.spike != "off"

    def judge(self, norm: float) -> Verdict:
        """What to do with a step whose gradient has this norm."""
        if not math.isfinite(norm):
            return self._act(self.config.nonfinite, f"gradient norm {norm}")
        usual = self.state.mean_norm
        knows_usual = self.config.spike != "off" and self.state.seen >= self.config.spike_warmup
        if knows_usual and norm > self.config.spike_factor * usual:
            return self._act(self.config.spike, f"gradient norm {norm:.4g}, usually {usual:.4g}")
        memory = min(self.MEMORY, self.state.seen / (self.state.seen + 1))
        self.state.mean_norm = memory * usual + (1 - memory) * norm
        self.state.seen += 1
        self.state.skipped_in_a_row = 0
        return Verdict.APPLY

    def _act(self, action: str, reason: str) -> Verdict:
        self.reason = reason
        self.state.skipped += 1
        self.state.skipped_in_a_row += 1
        if action == "skip" and self.state.skipped_in_a_row > self.config.max_skips:
            self.reason = f"{reason}, after {self.config.max_skips} skipped steps in a row"
            return Verdict.STOP
        return Verdict[action.upper()]

    def to_dict(self) -> dict:
        return asdict(self.state)

    def load(self, state: dict) -> None:
        """Take what `to_dict` gave, here or in another version."""
        known = {field.name for field in fields(GuardState)}
        self.state = GuardState(**{name: value for name, value in state.items() if name in known})
