"""What is asked of a model for each record of a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from hvdlm.inference.generate import Texts
from hvdlm.inference.sampling import Sampling

# Options by name: of texts that are drawn, and of all that are written.
OF_DRAWING = (*(setting.name for setting in fields(Sampling)), "slides")
OF_TEXTS = (*OF_DRAWING, "max_tokens", "stops", "choices", "beams")


@dataclass(frozen=True)
class Wanted:
    """Texts, or with `scores` how likely those are that there are; `given` are the options that were named."""

    texts: Texts
    scores: bool = False
    choices: int = 1  # texts a record
    beams: int | None = None  # None: texts are drawn
    logprobs: int | None = None
    echo: bool = False
    batch: int | None = None
    int8: bool = False  # matrices
    given: Mapping[str, str] = field(default_factory=dict)  # by names, as they are written

    @property
    def settings(self) -> dict[str, Any]:
        """What a line depends on, by the names of options."""
        found = asdict(self)
        texts = found.pop("texts")
        sampling = texts.pop("sampling")
        bias = {str(token): value for token, value in sampling.pop("logit_bias").items()}
        del found["given"]
        return {**found, **texts, **sampling, "stops": list(texts["stops"]), "logit_bias": bias}

    def among(self, *options: str) -> str:
        """The first of these options that was named, as it is written, or nothing."""
        return next((self.given[name] for name in options if name in self.given), "")
