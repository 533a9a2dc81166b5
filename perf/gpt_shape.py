"""The transformer of a benchmark of ranks that share one."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import ValidationError

from hvdlm.errors import UserError
from hvdlm.models.transformer import TransformerConfig


@dataclass(frozen=True)
class GptShape:
    layers: int = 4
    heads: int = 8
    width: int = 512

    def config(self) -> TransformerConfig:
        """UserError, on all ranks alike, for sizes that do not go together."""
        try:
            return TransformerConfig(layers=self.layers, heads=self.heads, width=self.width)
        except ValidationError as error:
            told = error.errors()[0]["msg"].removeprefix("Value error, ")
            raise UserError.shared(f"--width, --heads: {told}") from None
