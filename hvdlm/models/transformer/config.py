"""The transformer as a family: presets, what it can be trained for, and the model that is built."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import model_validator

from hvdlm.models.interface import BODY_TASKS, LanguageModel, Vocabulary
from hvdlm.models.presets import departures, filled
from hvdlm.models.transformer.model import Transformer
from hvdlm.models.transformer.options import Options
from hvdlm.models.transformer.presets import PRESETS


class TransformerConfig(Options):
    """`model: {family: transformer, …}`."""

    family: Literal["transformer"] = "transformer"

    presets = PRESETS

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, values: Any) -> Any:
        return filled(values, cls.presets)

    @property
    def tasks(self) -> tuple[str, ...]:
        if self.encoder_layers:
            return ("seq2seq",)
        return ("lm", "seq2seq", *BODY_TASKS) if self.causal else ("mlm", *BODY_TASKS)

    @property
    def can_be_cut(self) -> bool:
        return not self.encoder_layers

    @property
    def task_remedy(self) -> str:
        if self.encoder_layers:
            return "; model.encoder_layers: 0 makes it one for lm"
        return f"; model.causal: {'false' if self.causal else 'true'} makes it one for {'mlm' if self.causal else 'lm'}"

    @property
    def state_remedy(self) -> str:
        return ", or set model.window, behind which it forgets" if self.may_forget else ""

    @property
    def remarks(self) -> tuple[str, ...]:
        found = departures(self, self.preset, PRESETS[self.preset])
        if not self.causal and self.positions.kind == "none":
            found += ("model.positions: none with model.causal: false: the model sees a bag of tokens, in no order",)
        return found

    def for_sequences(self, seq_len: int) -> TransformerConfig:
        return self.model_copy(update={"positions": self.positions.for_sequences(seq_len)})

    def build(self, vocabulary: Vocabulary) -> LanguageModel:
        return Transformer(self, vocabulary)
