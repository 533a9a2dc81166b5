"""The ranks of a job and how bytes travel between them."""

from hvdlm.world.interface import World

__all__ = ["World"]
