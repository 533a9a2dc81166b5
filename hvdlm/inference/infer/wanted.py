"""What is asked of a model for each record of a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from hvdlm.inference.generate import Texts
from hvdlm.inference.sampling import Sampling

# Options by name: of texts that are drawn, and of all that are written.
OF_DRAWING = (*(setting.name for setting in fields(Sampling)), "slides")
OF_TEXTS = (*OF_DRAWING, "max_tokens", "stops", "choices", "beams", "echo")

# Names of options where they are not those here.
WRITTEN = {"choices": "n", "scores": "score", "stops": "stop", "slides": "slide"}
OPTIONS = (
    *("max_tokens", *WRITTEN.values(), *(name for name in OF_DRAWING if name not in WRITTEN)),
    *("beams", "logprobs", "echo", "batch", "int8"),
)


def said(name: str, value: Any) -> str:
    """A setting of `Wanted.settings`, or another one that an output depends on, as a person writes it.

    >>> said("max_tokens", 20), said("echo", True), said("beams", None), said("precision", "fp32")
    ('--max-tokens 20', '--echo', 'no --beams', 'precision fp32')
    >>> said("stop", [";", "a b"])
    "--stop ';' 'a b'"
    """
    if name not in OPTIONS:
        return f"{name} {value}"
    option = f"--{name.replace('_', '-')}"
    if value is None or value is False or value in ([], {}):
        return f"no {option}"
    if isinstance(value, dict):
        value = " ".join(f"{key}={one}" for key, one in value.items())
    if isinstance(value, list):
        value = " ".join(map(repr, value))
    return option if value is True else f"{option} {value}"


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
        found |= {**texts, **sampling, "stops": list(texts["stops"]), "logit_bias": bias}
        return {WRITTEN.get(name, name): value for name, value in found.items()}

    def among(self, *options: str) -> str:
        """The first of these options that was named, as it is written, or nothing."""
        return next((self.given[name] for name in options if name in self.given), "")
