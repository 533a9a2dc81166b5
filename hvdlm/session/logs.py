"""What a run tells people line by line: on stderr, by rank 0 alone; stdout is left to results."""

from __future__ import annotations

import logging
import sys

from pydantic import Field, model_validator

from hvdlm.config import Section


class LogConfig(Section):
    """The `log` section."""

    every: int = Field(10, ge=1, description="steps between two lines in a batch log")
    tensorboard: bool = Field(True, description="also write RUN/tensorboard")
    trace: tuple[int, int] | None = Field(
        None, strict=False, description="[first, end): steps to record in RUN/trace/rank*.json, every operator"
    )

    @model_validator(mode="after")
    def _check(self) -> LogConfig:
        if self.trace is not None and not 0 <= self.trace[0] < self.trace[1]:
            raise ValueError(f"trace {list(self.trace)} must be [first, end) with 0 <= first < end")
        return self


class _CurrentStderr:
    """sys.stderr as it is at each write: rich puts itself there while it shows a bar."""

    def write(self, text: str) -> None:
        sys.stderr.write(text)

    def flush(self) -> None:
        sys.stderr.flush()


def setup_logging(rank: int) -> None:
    """Lines with the time on stderr; ranks other than 0 say only what went wrong."""
    handler = logging.StreamHandler(_CurrentStderr())
    handler.setFormatter(logging.Formatter("[%(asctime)s] %(message)s", "%H:%M:%S"))
    logger = logging.getLogger("hvdlm")
    logger.handlers[:] = [handler]
    logger.setLevel(logging.INFO if rank == 0 else logging.ERROR)
    logger.propagate = False
