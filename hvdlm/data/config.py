"""The `data` section: which shards, how long a sequence is, in which order."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationInfo, field_validator
from pydantic_core import PydanticKnownError

from hvdlm.config import Free, Section, choice_of
from hvdlm.data.mixture import Mixture
from hvdlm.data.orders import ORDERS


class CorpusConfig(Section):
    """One corpus of a mixture."""

    path: Path = Field(strict=False, description="folder with manifest.json, written by `hvdlm preprocess`")
    weight: float = Field(gt=0, description="its share of the training samples, relative to the other weights")


class DataConfig(Section):
    """The `data` section: which shards, and how long a sequence is. Either `path` or `mixture`."""

    mixture: Free[tuple[CorpusConfig, ...]] = Field(
        (), strict=False, description="several corpora, each path with a weight"
    )
    path: Free[Path | None] = Field(
        None, strict=False, validate_default=True, description="folder with manifest.json: the only corpus"
    )
    seq_len: int = Field(256, ge=1, description="tokens a sequence, T")
    order: Annotated[str, choice_of(ORDERS)] = Field(
        "random",
        description="contiguous: each sequence of a batch goes on where the one of the last step ended; "
        "documents: each is one, alone, in as many pieces of seq_len as it needs",
    )

    @field_validator("mixture")
    @classmethod
    def _check_mixture(cls, mixture: tuple[CorpusConfig, ...]) -> tuple[CorpusConfig, ...]:
        paths = [corpus.path for corpus in mixture]
        twice = next((path for path in paths if paths.count(path) > 1), None)
        if twice is not None:
            raise ValueError(f"{twice} is given twice; add up its weights")
        if mixture:
            Mixture([corpus.weight for corpus in mixture], seed=0)
        return mixture

    @field_validator("path")
    @classmethod
    def _check_path(cls, path: Path | None, info: ValidationInfo) -> Path | None:
        mixture = info.data.get("mixture")
        if path is None and mixture == ():
            raise PydanticKnownError("missing")
        if path is not None and mixture:
            raise ValueError("path and mixture exclude each other; set data.path=null or data.mixture=[]")
        return path

    @field_validator("order")
    @classmethod
    def _check_order(cls, order: str, info: ValidationInfo) -> str:
        if order != "random" and info.data.get("mixture"):
            raise ValueError(f"{order} is an order of one corpus; set data.path, or data.order=random")
        return order

    @property
    def corpora(self) -> tuple[CorpusConfig, ...]:
        """The mixture, or the only corpus as a mixture of one."""
        return self.mixture or (CorpusConfig(path=self.path, weight=1),)

    @property
    def names(self) -> list[str]:
        """What the corpora are called: their folders' names, or the whole paths where two have the same."""
        paths = [corpus.path for corpus in self.corpora]
        distinct = len({path.name for path in paths}) == len(paths)
        return [path.name if distinct and path.name else str(path) for path in paths]
