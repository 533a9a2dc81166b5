"""The `init` section: which weights a new run begins with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field, create_model

from hvdlm.config import Section

# A field of this name cannot be written as the others are: `from` is a keyword.
_FROM: dict[str, Any] = {
    "from": (
        Path,
        Field(strict=False, description="folder of a run, one of its checkpoints/step_…, or one of Hugging Face's"),
    )
}
_From: Any = create_model("_From", __base__=Section, **_FROM)


class InitConfig(_From):
    """The `init` section: a new run begins with another one's weights, or published ones."""

    optimizer: bool = Field(False, description="take the optimizer's state too; optim.name must be the same")
    ema: bool | None = Field(
        None, description="the running mean of the weights, not the last; null: where there is one, without optimizer"
    )
    step: int | None = Field(None, ge=1, description="which checkpoint of the run; null: the newest, noted here")
    digest: str | None = Field(None, description="sha256 of its weights, checked; null: noted here")

    @property
    def source(self) -> Path:
        return getattr(self, "from")
