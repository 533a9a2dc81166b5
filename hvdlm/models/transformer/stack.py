"""What ids pass through: the entrance, and blocks one after the other."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hvdlm.compute.draws import Draws, dropout
from hvdlm.models.interface import State
from hvdlm.models.padding import only
from hvdlm.models.transformer.attention import Shelf, Sight, View, sight_of
from hvdlm.models.transformer.blocks import Block, norm_of
from hvdlm.models.transformer.options import Options
from hvdlm.models.transformer.positions import Positions

Source = tuple[list[State], Sight]  # keys and values for each block, and what is seen of them


class Entrance(nn.Module):
    """What is done to embeddings before the first block; its draws have one site."""

    def __init__(self, options: Options, *, site: int) -> None:
        super().__init__()
        self.positions = options.positions.build(options.width, options.heads, options.width_of_head)
        self.types = nn.Embedding(options.token_types, options.width) if options.token_types else None
        self.norm = norm_of(options) if options.embed_norm else nn.Identity()
        self.scale = options.width**0.5 if options.embed_scale else 1.0
        self.dropout, self.site = options.dropout_of(options.embed_dropout), site

    def forward(
        self,
        x: Tensor,
        draws: Draws | None,
        *,
        first: int = 0,
        types: Tensor | None = None,
        places: Tensor | None = None,
        start: int = 0,
    ) -> Tensor:
        """(B, T, C), which stand at the positions from `first` on, or at `places` (B, T).

        `types` (B, T) are kinds of text, None: all 0. Where ranks share a sequence, `start` is the place of its first
        token here.
        """
        x = x if self.scale == 1.0 else x * self.scale
        added = self.positions.added(first, x.shape[1]) if places is None else self._added_at(places)
        x = x if added is None else x + added
        if self.types is not None:
            x = x + (self.types.weight[0] if types is None else self.types(types))
        elif types is not None:
            raise ValueError("model.token_types is 0: this model knows one kind of text")
        return dropout(self.norm(x), self.dropout, draws, self.site, start=start * x.shape[2])

    def drop_parameters(self) -> None:
        """Where other layers stand before: there it only tells attention what that must know of positions."""
        self.types, self.norm = None, nn.Identity()
        if any(True for _ in self.positions.parameters()):  # added to embeddings, no more
            self.positions = Positions()

    def _added_at(self, places: Tensor) -> Tensor | None:
        """As `added` of positions, (B, T, C)."""
        added = self.positions.added(0, int(places.max()) + 1)
        return None if added is None else added[places]


def places_within(segments: Tensor) -> Tensor:
    """From 0 on in each run of one number, of (B, T)."""
    place = torch.arange(segments.shape[1], device=segments.device).expand_as(segments)
    begins = torch.ones_like(segments, dtype=torch.bool)
    begins[:, 1:] = segments[:, 1:] != segments[:, :-1]
    return place - torch.where(begins, place, 0).cummax(dim=1).values


class Encoder(nn.Module):
    """Blocks that see both sides; entrance and blocks have the sites from first_site on."""

    def __init__(self, options: Options, *, first_site: int) -> None:
        super().__init__()
        self._options = options
        self.entrance = Entrance(options, site=first_site)
        first, sites = first_site + 1, Block.num_sites(crosses=False)
        self.blocks = nn.ModuleList(
            Block(options, first_site=first + sites * layer) for layer in range(options.encoder_layers)
        )
        self.norm = last_norm_of(options)

    def forward(self, x: Tensor, known: Tensor | None, draws: Draws | None) -> Tensor:
        """Embeddings (B, T, C), of which `known` (B, T) are no padding -> hidden (B, T, C)."""
        time = x.shape[1]
        view = view_of(self.entrance, self._options, time, time, known, device=x.device, causal=False)
        x = only(self.entrance(x, draws), known)
        x, _ = through(self.blocks, x, view, draws, frugal=self._options.activation_checkpointing)
        return only(self.norm(x), known)


def view_of(  # noqa: PLR0913 - the ways in which less than all is seen
    entrance: Entrance,
    options: Options,
    time: int,
    seen: int,
    known: Tensor | None,
    *,
    device: torch.device,
    causal: bool,
    segments: Tensor | None = None,
) -> View:
    """Of `time` positions, the last of `seen`."""
    bias, window = entrance.positions.bias, options.window
    sight = sight_of(time, seen, device, causal=causal, window=window, known=known, segments=segments, bias=bias)
    return View(sight, entrance.positions.rotation(seen, device), options.keep)


def through(  # noqa: PLR0913 - blocks and what they read
    blocks: Iterable[nn.Module],
    x: Tensor,
    view: View,
    draws: Draws | None,
    *,
    frugal: bool,
    pasts: Sequence[State | Shelf] | None = None,
    source: Source | None = None,
) -> tuple[Tensor, State]:
    """The stream behind the last block; and with `pasts` each block's keys and values so far.

    A `frugal` pass keeps each block's input alone and computes the rest again.
    """
    after: State = ()
    for number, block in enumerate(blocks):
        past = None if pasts is None else pasts[number]
        of_source = None if source is None else (source[0][number], source[1])
        if frugal and torch.is_grad_enabled():
            # Draws are keyed, so the second pass draws the same; torch's generator has no part in it.
            parts = x, view, draws, past, of_source
            x, seen = checkpoint(block, *parts, use_reentrant=False, preserve_rng_state=False)
        else:
            x, seen = block(x, view, draws, past, of_source)
        after += seen
    return x, after


def last_norm_of(options: Options) -> nn.Module:
    """Behind the last block, where no norm stands yet."""
    return norm_of(options) if options.norm_position == "pre" else nn.Identity()
