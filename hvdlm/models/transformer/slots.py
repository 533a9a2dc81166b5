"""Keys and values of several texts at once, each of its own length: what a transformer remembers while it writes.

They are kept as attention reads them, rotated, in tensors with room for more, so that a token adds its own and nothing
is copied. Rows that are read together stand side by side; one that is shorter than its neighbours does not see what
lies behind its end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from hvdlm.models.interface import State
from hvdlm.models.slots import Slots
from hvdlm.models.transformer.attention import Shelf, Sight, View, sight_of, source_sight
from hvdlm.models.transformer.options import Options
from hvdlm.models.transformer.stack import Entrance, Source, through

LEAST_ROOM = 64  # tokens of a row at first; then it doubles


class KeyValueSlots(Slots):
    """`embed` gives vectors (B, T, C) of ids in rows first, first + 1, …; `finish` is what comes behind the blocks.

    Of a model with an encoder `encode` gives what its decoder sees of a source: of each block keys and values, and
    `start_id` is what that reads first.
    """

    def __init__(  # noqa: PLR0913 - a decoder, part by part
        self,
        options: Options,
        entrance: Entrance,
        blocks: Sequence[torch.nn.Module],
        num: int,
        *,
        embed: Callable[[int, Tensor], Tensor],
        finish: Callable[[Tensor], Tensor],
        encode: Callable[[Tensor], State] | None = None,
        start_id: int = 0,
    ) -> None:
        self._options, self._entrance, self._blocks = options, entrance, blocks
        self._embed, self._finish, self._encode, self._start_id = embed, finish, encode, start_id
        self._num_read = [0] * num
        like = next(blocks[0].parameters())
        empty = like.new_zeros(num, options.num_kv_heads, 0, options.width_of_head)
        self._kept = [[empty, empty] for _ in blocks]  # keys and values, (num, kv heads, room, D)
        self._of_source = [[empty, empty] for _ in blocks] if encode else []
        self._known = torch.zeros(num, 0, dtype=torch.bool, device=like.device)  # which tokens of a source there are

    def begin(self, row: int, prompt: Sequence[int], random: torch.Generator) -> Sequence[int]:
        self._num_read[row] = 0
        if self._encode is None:
            return prompt
        parts = self._encode(torch.tensor([prompt], device=self._known.device))
        num = len(prompt)
        self._known = _with_room(self._known, num, dim=1)
        self._known[row] = torch.arange(self._known.shape[1], device=self._known.device) < num
        for number, kept in enumerate(self._of_source):
            kept[:] = (_with_room(part, num, dim=2) for part in kept)
            for part, own in zip(kept, parts[2 * number :], strict=False):
                part[row, :, :num] = own[0]
        return [self._start_id]

    def read(self, first: int, ids: Tensor, lengths: Sequence[int]) -> Tensor:
        (num, time), device = ids.shape, ids.device
        starts = self._num_read[first : first + num]
        ends = [start + length for start, length in zip(starts, lengths, strict=True)]
        seen = max(starts) + time
        for kept in self._kept:
            kept[:] = (_with_room(part, seen, dim=2) for part in kept)
        begin = torch.tensor(starts, device=device).unsqueeze(1)
        # Padding has a place, too, which is no further than the last one's: a model may have no more.
        last = torch.tensor(ends, device=device).unsqueeze(1) - 1
        places = torch.minimum(begin + torch.arange(time, device=device), last)  # (B, T)
        x = self._entrance(self._embed(first, ids), None, places=places)
        view = self._view(starts, places, seen)
        at = slice(starts[0], starts[0] + time) if len(set(starts)) == 1 else begin + torch.arange(time, device=device)
        rows = slice(first, first + num)
        shelves: list[Shelf] = [Shelf(keys[rows, :, :seen], values[rows, :, :seen], at) for keys, values in self._kept]
        x, _ = through(self._blocks, x, view, None, frugal=False, pasts=shelves, source=self._source(rows))
        self._num_read[first : first + num] = ends
        return self._finish(x)

    def _view(self, starts: Sequence[int], places: Tensor, seen: int) -> View:
        positions, time = self._entrance.positions, places.shape[1]
        rotation = positions.rotation(seen, places.device)
        if rotation is not None:
            rotation = rotation[0][places], rotation[1][places]
        if len(set(starts)) == 1:
            sight = sight_of(time, seen, places.device, window=self._options.window, bias=positions.bias)
            return View(sight, rotation)
        begin = places.new_tensor(starts).view(-1, 1, 1, 1)
        distance = begin + torch.arange(time, device=places.device).unsqueeze(1)  # of a query, (B, 1, T, 1)
        distance = distance - torch.arange(seen, device=places.device)  # (B, 1, T, S)
        mask = distance >= 0
        if self._options.window is not None:
            mask = mask & (distance < self._options.window)
        bias = positions.bias
        return View(Sight(mask=mask if bias is None else torch.where(mask, bias(distance), float("-inf"))), rotation)

    def _source(self, rows: slice) -> Source | None:
        if self._encode is None:
            return None
        known = self._known[rows]
        most = int(known.sum(1).max())
        pairs: list[State] = [(keys[rows, :, :most], values[rows, :, :most]) for keys, values in self._of_source]
        return pairs, source_sight(known[:, :most])

    def copy(self, source: int, target: int) -> None:
        for part in self._of_rows(source):
            part[target] = part[source]
        self._num_read[target] = self._num_read[source]

    def swap(self, one: int, other: int) -> None:
        for part in self._of_rows(one, other):
            part[[one, other]] = part[[other, one]]
        self._num_read[one], self._num_read[other] = self._num_read[other], self._num_read[one]

    def _of_rows(self, *rows: int) -> list[Tensor]:
        """All that is kept by row, as far as one of these rows reaches."""
        length = max(self._num_read[row] for row in rows)
        own = [part[:, :, :length] for kept in self._kept for part in kept]
        return [*own, *(part for kept in self._of_source for part in kept), self._known]


def _with_room(x: Tensor, length: int, dim: int) -> Tensor:
    """x with at least `length` places along a dimension: itself, or a copy with twice the room and zeros in it."""
    there = x.shape[dim]
    if length <= there:
        return x
    shape = list(x.shape)
    shape[dim] = max(length, 2 * there, LEAST_ROOM)
    larger = x.new_zeros(shape)
    larger.narrow(dim, 0, there).copy_(x)
    return larger
