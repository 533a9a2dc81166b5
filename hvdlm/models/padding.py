"""Padding: what stands behind the `lengths` (B,) of rows. A token is told from it by its place, never by its id."""

from __future__ import annotations

import torch
from torch import Tensor


def known_of(lengths: Tensor | None, time: int) -> Tensor | None:
    """Which of `time` tokens come before the end of their row, bool (B, T)."""
    return None if lengths is None else torch.arange(time, device=lengths.device) < lengths.unsqueeze(1)


def only(x: Tensor, known: Tensor | None) -> Tensor:
    """x (B, T, C) with 0 for padding."""
    return x if known is None else x.masked_fill(~known.unsqueeze(-1), 0.0)


def backwards(like: Tensor, lengths: Tensor | None) -> Tensor:
    """Places in the flat (B x T,) of the tokens of `like` (B, T), each row from its own last to its first.

    Padding stays where it is, so what is turned twice is as it was.
    """
    batch, time = like.shape
    places = torch.arange(time, device=like.device)
    ends = places.new_full((batch, 1), time) if lengths is None else lengths.unsqueeze(1)
    places = torch.where(places < ends, ends - 1 - places, places)
    return (places + time * torch.arange(batch, device=like.device).unsqueeze(1)).flatten()


def turned(x: Tensor, places: Tensor) -> Tensor:
    """x (B, T, C) in the order of `places`."""
    return x.flatten(0, 1).index_select(0, places).view(x.shape)
