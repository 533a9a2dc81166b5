"""Attention of queries to keys and values: what a query may see, and its weighted mean of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hvdlm.compute.draws import Draws, dropout
from hvdlm.models.interface import State
from hvdlm.models.transformer.layers import NORMS, softcapped
from hvdlm.models.transformer.options import Options
from hvdlm.models.transformer.positions import Rotation, rotate

HAS_GROUPS = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 5)  # enable_gqa of torch's attention


class Sight(NamedTuple):
    """What T queries see of S keys; where neither says anything, all."""

    is_causal: bool = False  # as many queries as keys, each sees the keys up to its own
    mask: Tensor | None = None  # to (B, H, T, S): bool, True is seen; or a number that is added to the score


class Shelf(NamedTuple):
    """Where keys and values of several rows are kept, with room for the new ones: views, that are written to."""

    keys: Tensor  # (B, kv heads, S, D), rotated
    values: Tensor
    places: slice | Tensor  # of the new ones, along S; of rows of different lengths int64 (B, T)

    def put(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Keep (B, kv heads, T, D) of new tokens; all there are then."""
        for kept, new in ((self.keys, k), (self.values, v)):
            if isinstance(self.places, slice):
                kept[:, :, self.places] = new
            else:
                rows = torch.arange(len(kept), device=kept.device).unsqueeze(1)
                kept.transpose(1, 2)[rows, self.places] = new.transpose(1, 2).to(kept.dtype)
        return self.keys, self.values


class View(NamedTuple):
    """What all blocks of one pass share."""

    sight: Sight
    rotation: Rotation | None = None  # of all keys, of which the last are those of the queries; of these alone by row
    keep: int | None = None  # so many of the last keys are remembered, None: all
    first: int = 0  # where ranks share a sequence, its place of the stream's first token


def sight_of(  # noqa: PLR0913 - the ways in which less than all is seen
    time: int,
    seen: int,
    device: torch.device,
    *,
    causal: bool = True,
    window: int | None = None,
    known: Tensor | None = None,
    segments: Tensor | None = None,
    bias: Callable[[Tensor], Tensor] | None = None,
) -> Sight:
    """The last of `time` queries stands where the last of `seen` keys does.

    `known` (B, S) bool says which keys there are; of `segments` (B, T), where all keys are those of the queries, one
    sees its own alone. A query sees its own place in any case, for a softmax over nothing is NaN.
    """
    if bias is None and known is None and segments is None and (window is None or seen <= window):  # no (T, S) is built
        if not causal or time == 1:
            return Sight()
        if time == seen:
            return Sight(is_causal=True)
    places = torch.arange(seen, dtype=torch.int32, device=device)
    distance = places[seen - time :].unsqueeze(1) - places  # (T, S)
    mask = distance >= 0 if causal else torch.ones_like(distance, dtype=torch.bool)
    if window is not None:
        mask = mask & (distance.abs() < window)
    if known is not None:
        mask = mask & known[:, None, None, :] | (distance == 0)  # (B, 1, T, S)
    if segments is not None:
        mask = mask & (segments[:, None, :, None] == segments[:, None, None, :])
    return Sight(mask=mask if bias is None else torch.where(mask, bias(distance), float("-inf")))


def source_sight(known: Tensor) -> Sight:
    """Of a source, of whose tokens there are `known` (B, S); one without any is seen as it is, for NaN's sake."""
    return Sight(mask=(known | ~known.any(1, keepdim=True))[:, None, None, :])


class Attending(nn.Module):
    """What self-attention and attention to a source share."""

    # Is given the weights (B, H, T, S) of each pass, where somebody looks on.
    watcher: Callable[[Tensor], None] | None = None

    first_head = 0  # where ranks share the heads, the number of this one's first

    def __init__(self, options: Options, *, site: int) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_width = options.heads, options.num_kv_heads, options.width_of_head
        self.dropout, self.site = options.dropout_of(options.attention_dropout), site
        self.softcap = options.attention_softcap
        self.q_norm = self.k_norm = None
        if options.qk_norm:
            norm = NORMS[options.norm]
            self.q_norm, self.k_norm = (norm(self.head_width, options.norm_eps, options.bias) for _ in range(2))

    def by_head(self, x: Tensor, norm: nn.Module | None = None) -> Tensor:
        """(B, T, H x D) -> (B, H, T, D)."""
        x = x.unflatten(-1, (-1, self.head_width)).transpose(1, 2)
        return x if norm is None else norm(x).to(x.dtype)

    def mixed(self, q: Tensor, k: Tensor, v: Tensor, sight: Sight, draws: Draws | None) -> Tensor:
        """(B, T, H x D): for each query the values of the keys that it sees, weighted."""
        if self.watcher is not None:
            self.watcher(self.weights(q, k, sight))
        if self.softcap is None and (draws is None or self.dropout == 0):
            mixed = self._fused(q, k, v, sight)
        else:
            mixed = self._by_weights(q, k, v, sight, draws)
        return mixed.transpose(1, 2).flatten(2)

    def _fused(self, q: Tensor, k: Tensor, v: Tensor, sight: Sight) -> Tensor:
        mask = sight.mask if sight.mask is None or sight.mask.dtype == torch.bool else sight.mask.to(q.dtype)
        if self.kv_heads < self.heads and q.shape[2] == 1 and not torch.is_grad_enabled():
            return self._grouped(q, k, v, mask)
        options: dict[str, Any] = {"attn_mask": mask, "is_causal": sight.is_causal}
        if self.kv_heads < self.heads and HAS_GROUPS and mask is None:
            options["enable_gqa"] = True  # of CUDA's kernels only the one that takes no masks can group
        else:
            k, v = self._for_all_heads(k), self._for_all_heads(v)
        return F.scaled_dot_product_attention(q, k, v, **options)

    def _grouped(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """Of one token: the heads of a group are its queries, so that keys are read once and never repeated."""
        groups = self.kv_heads, self.heads // self.kv_heads
        if mask is not None and mask.dim() > 2 and mask.shape[-3] == self.heads:  # a bias, of each head its own
            mask = mask.expand(len(q), -1, -1, -1).view(len(q), *groups, -1)
        mixed = F.scaled_dot_product_attention(q.view(len(q), *groups, -1), k, v, attn_mask=mask)
        return mixed.view(q.shape)

    def _by_weights(self, q: Tensor, k: Tensor, v: Tensor, sight: Sight, draws: Draws | None) -> Tensor:
        """With the weights built, for torch's fused kernels know neither keyed masks nor soft-caps."""
        weights = self.weights(q, k, sight)
        start = self.first_head * weights.shape[2] * weights.shape[3]
        weights = dropout(weights, self.dropout, draws, self.site, start=start)
        return weights.to(v.dtype) @ self._for_all_heads(v)

    def weights(self, q: Tensor, k: Tensor, sight: Sight) -> Tensor:
        """How much each query takes of each key, float32 at least (B, H, T, S): a row adds up to 1."""
        scores = softcapped(q * self.head_width**-0.5 @ self._for_all_heads(k).transpose(-1, -2), self.softcap)
        mask = sight.mask
        if sight.is_causal:
            mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
        return scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32))

    def _for_all_heads(self, x: Tensor) -> Tensor:
        """(B, kv heads, S, D) -> (B, H, S, D): each head's group."""
        return x if self.kv_heads == self.heads else x.repeat_interleave(self.heads // self.kv_heads, dim=1)


class Attention(Attending):
    """Of a sequence to itself."""

    def __init__(self, options: Options, *, site: int) -> None:
        super().__init__(options, site=site)
        self.qkv = nn.Linear(options.width, (self.heads + 2 * self.kv_heads) * self.head_width, bias=options.bias)
        self.out = nn.Linear(self.heads * self.head_width, options.width, bias=options.bias)

    def forward(self, x: Tensor, view: View, draws: Draws | None, past: State | Shelf | None) -> tuple[Tensor, State]:
        """What it makes of x (B, T, C); with a `past` the keys and values so far, as they are before any rotation.

        What has a shelf keeps them there.
        """
        parts = self.qkv(x).split([heads * self.head_width for heads in (self.heads, self.kv_heads, self.kv_heads)], -1)
        q, k, v = map(self.by_head, parts, (self.q_norm, self.k_norm, None))
        if isinstance(past, Shelf):
            if view.rotation is not None:
                q, k = rotate(q, view.rotation), rotate(k, view.rotation)
            return self.out(self.mixed(q, *past.put(k, v), view.sight, draws)), ()
        seen: State = ()  # what nobody asked for is kept by nobody
        if past is not None:
            k, v = (torch.cat((before.to(now.dtype), now), dim=2) for before, now in zip(past, (k, v), strict=True))
            seen = k, v
            if view.keep is not None:  # a state of fixed size, of one type too
                first = k.shape[2] - view.keep
                seen = tuple(part[:, :, first:].to(before.dtype) for part, before in zip(seen, past, strict=True))
        if view.rotation is not None:
            cos, sin = view.rotation
            first = k.shape[2] - q.shape[2]
            q, k = rotate(q, (cos[first:], sin[first:])), rotate(k, view.rotation)
        return self.out(self.mixed(q, k, v, view.sight, draws)), seen


class CrossAttention(Attending):
    """Of a sequence to a source, whose keys and values are made once."""

    def __init__(self, options: Options, *, site: int) -> None:
        super().__init__(options, site=site)
        self.q = nn.Linear(options.width, self.heads * self.head_width, bias=options.bias)
        self.kv = nn.Linear(options.width, 2 * self.kv_heads * self.head_width, bias=options.bias)
        self.out = nn.Linear(self.heads * self.head_width, options.width, bias=options.bias)

    def keys_values(self, source: Tensor) -> State:
        """(B, S, C) -> keys and values, each (B, kv heads, S, D)."""
        k, v = self.kv(source).chunk(2, dim=-1)
        return self.by_head(k, self.k_norm), self.by_head(v)

    def forward(self, x: Tensor, source: State, sight: Sight, draws: Draws | None) -> Tensor:
        q = self.by_head(self.q(x), self.q_norm)
        k, v = (part.to(q.dtype) for part in source)
        return self.out(self.mixed(q, k, v, sight, draws))
