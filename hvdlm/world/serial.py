"""A world of one rank: every collective is the identity."""

from __future__ import annotations

import os
import sys
from typing import Any

from hvdlm.world.interface import World


class SerialWorld(World):
    kind = "serial"
    rank = 0
    size = 1

    def sum_(self, buffer: Any) -> None:
        """The sum over one rank is what is there."""

    def broadcast_(self, buffer: Any) -> None:
        """Rank 0 is the only rank."""

    def gather_bytes(self, data: bytes) -> list[bytes]:
        return [data]

    def abort(self, code: int) -> None:
        sys.stderr.flush()
        os._exit(code)

    def close(self) -> None:
        """Nothing is held."""
