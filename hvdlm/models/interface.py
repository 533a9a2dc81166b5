"""What the rest asks of a model family: its config, which builds the model and says what it can."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from torch import nn

from hvdlm.config import Section


class FamilyConfig(Section, ABC):
    """`model: {family: …, …}`; each family is a subclass in a file of its own.

    The model: `model(ids, draws=None)`, (B, T) ids -> (B, T, V) logits. Training gives the draws that dropout is made
    from; without them there is no dropout, whatever mode the module is in.
    """

    family: str

    # Has `initial_state` and `forward_from`, so that windows may go on from where others ended.
    carries_state: ClassVar[bool] = False
    # As a message names it, where torch has no float16 of it on CPUs.
    without_cpu_fp16: ClassVar[str] = ""
    # Settings beside the dropouts that change how it is trained, and not what weights mean.
    of_training: ClassVar[frozenset[str]] = frozenset()

    @abstractmethod
    def build(self, vocab_size: int) -> nn.Module:
        """A model of this config, initialized by torch's generator."""

    @property
    def is_random(self) -> bool:
        """Whether training the model takes draws."""
        return any(getattr(self, name) for name in type(self).model_fields if name.endswith("dropout"))

    @property
    def architecture(self) -> dict[str, Any]:
        """The settings that weights depend on: those of one such model fit another one whose are equal."""
        names = {name for name in type(self).model_fields if not name.endswith("dropout")} - self.of_training
        return self.model_dump(include=names)

    def attention_flops(self, seq_len: int) -> int:
        """FLOPs that a token's forward and backward pass needs beside the products with weights."""
        return 0
