"""Each rank owns a slice of the parameters: it alone keeps the optimizer's state of them, and updates them.

ZeRO-1 (Rajbhandari et al. 2020, "ZeRO: memory optimizations toward training trillion parameter models"). Gradients
travel to their owners, weights back to all, which is what an allreduce sends. A slice is a range of all parameters one
behind the other, so its borders may lie within a parameter; what updates each element by itself does not notice.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hvdlm.checkpoint import OPTIMIZER, Checkpoint, Cut, Piece
from hvdlm.checkpoint.boxes import whole
from hvdlm.errors import UserError
from hvdlm.optim.norm import BLOCK, block_squares, total_of
from hvdlm.sync.flat import ROW_MULTIPLE, FlatLayout
from hvdlm.sync.interface import Square, Sync
from hvdlm.sync.traffic import Traffic
from hvdlm.world.interface import World

PIECE_FLOATS = 2 << 20  # what travels at a time, of all ranks' slices together
STEP = "step"  # the entry of torch's optimizers that is one number a parameter


class Slice(NamedTuple):
    """What a rank owns of one parameter."""

    name: str
    number: int  # among the parameters
    elements: range  # of the parameter as this rank holds it, in row-major order
    place: int  # from the beginning of all that the rank owns
    weights: nn.Parameter  # (n,), a view of the parameter


class ZeroSync(Sync):
    """How gradients come to their owners is a subclass's; all the rest is the same.

    The parameters become views of one vector. `optimizer` is one like that which is given, over slices of it; it must
    update each element by itself. Every parameter begins at a multiple of BLOCK, and so does every slice: thus the
    norm's blocks are whole, and vector instructions fall on the same elements as with one rank.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, world: World) -> None:
        super().__init__(model, optimizer, world)
        self._groups = optimizer.param_groups
        self._layout = FlatLayout(self.parameters, world.size, align=BLOCK)
        self._traffic = Traffic(world)
        self._width = self._layout.padded // world.size
        flat = self._layout.zeros()
        for parameter, view in zip(self.parameters, self._layout.views(flat), strict=True):
            parameter.data = view.copy_(parameter.detach())
        self._rows = flat.view(world.size, -1)  # of weights, one for each rank
        mine = self._rows[world.rank]
        self.slices = [
            Slice(self.named[part.number][0], *part, nn.Parameter(mine[part.place : part.place + len(part.elements)]))
            for part in self._layout.sections(self._owned_by(world.rank))
        ]
        build: Any = type(optimizer)
        self.optimizer = build(self._groups_of_slices())

    @property
    def groups(self) -> list[dict[str, Any]]:
        return self._groups

    def _owned_by(self, rank: int) -> range:
        return range(rank * self._width, (rank + 1) * self._width)

    def _groups_of_slices(self) -> list[dict[str, Any]]:
        """The optimizer's groups of what this rank owns; one may have nothing here."""
        mine = {id(self.parameters[part.number]): part.weights for part in self.slices}
        return [{**group, "params": [mine[id(p)] for p in group["params"] if id(p) in mine]} for group in self._groups]

    def _columns(self) -> Iterator[slice]:
        """Parts of a row that travel at a time."""
        width = max(1, PIECE_FLOATS // (self.world.size * ROW_MULTIPLE)) * ROW_MULTIPLE
        return (slice(start, min(start + width, self._width)) for start in range(0, self._width, width))

    @abstractmethod
    def _reduced(self) -> list[Tensor]:
        """The mean gradient of each slice, (n,); collective."""

    def reduce(self) -> None:
        found = self._reduced()
        self._layout.clear()
        for part, gradient in zip(self.slices, found, strict=True):
            part.weights.grad = gradient
        self.bytes_sent = self._traffic.bytes_sent

    def to_apply(self) -> list[Tensor]:
        return [part.weights.grad for part in self.slices if part.weights.grad is not None]

    def squares(self, square: Square) -> dict[str, Tensor]:
        """Blocks lie where they would with one rank, and are added up in the same order. Collective."""
        mine = torch.zeros(self._width // BLOCK, dtype=torch.float64, device=self._rows.device)
        for part, gradient in zip(self.slices, self.to_apply(), strict=True):
            found = block_squares(gradient)
            mine[part.place // BLOCK :][: len(found)] = found
        blocks = self._traffic.gather_rows(mine).view(-1)
        places = zip(self.named, self._layout.starts, strict=True)
        return {name: total_of(blocks[start // BLOCK :][: -(-p.numel() // BLOCK)]) for (name, p), start in places}

    def complete(self, names: Collection[str], total: Callable[[Tensor], Tensor]) -> None:
        sizes = {name: p.numel() for name, p in self.named if name in names}
        starts = dict(zip(sizes, accumulate(sizes.values(), initial=0), strict=False))
        flat = torch.zeros(sum(sizes.values()), device=self._rows.device)
        mine = [
            (gradient, range(starts[part.name], flat.numel())[part.elements.start : part.elements.stop])
            for part, gradient in zip(self.slices, self.to_apply(), strict=True)
            if part.name in sizes
        ]
        for gradient, place in mine:
            flat[place.start : place.stop] = gradient
        self._traffic.sum_(flat)  # each element is one rank's
        found = total(flat)
        for gradient, place in mine:
            gradient.copy_(found[place.start : place.stop])

    def step(self) -> None:
        self.optimizer.step()
        mine = self._rows[self.world.rank]
        for columns in self._columns():
            self._rows[:, columns] = self._traffic.gather_rows(mine[columns])
        self.bytes_sent = self._traffic.bytes_sent

    @property
    def kept_whole(self) -> None:
        return None

    def pieces(self, cuts: Mapping[str, Cut], *, tells_whole: bool) -> list[Piece]:
        found = []
        for part in self.slices:
            cut = self._cut_of(part, cuts)
            for entry, value in self.optimizer.state.get(part.weights, {}).items():
                key = f"{OPTIMIZER}{part.name}/{entry}"
                if not value.dim():  # alike in all slices of a parameter
                    if tells_whole and part.elements.start == 0:
                        found.append(Piece(key, value, (), whole(())))
                elif tells_whole or not cut.is_whole:
                    parts = cut.parts_of_range(value, part.elements)
                    found += [Piece(key, view, cut.shape, box) for view, box in parts]
        return found

    def load_optimizer(self, found: Checkpoint, model: nn.Module, cuts: Mapping[str, Cut]) -> None:
        mine = {part.name: part for part in self.slices}
        rooms: dict[str, Tensor] = {}
        views: dict[str, list[tuple[Tensor, Any]]] = {}
        for key in found.names(OPTIMIZER):
            name, _, entry = key.rpartition("/")
            if name not in mine:
                continue
            cut, (shape, dtype, _) = self._cut_of(mine[name], cuts), found.entries[f"{OPTIMIZER}{key}"]
            if shape != cut.shape and shape:
                raise UserError(f"{found.path}: {key} is {shape}, this config says {cut.shape}")
            is_number = shape != cut.shape or entry == STEP
            rooms[key] = torch.empty(() if is_number else len(mine[name].elements), dtype=dtype)
            whole_of_it = [(rooms[key], whole(()))]
            views[key] = whole_of_it if is_number else list(cut.parts_of_range(rooms[key], mine[name].elements))
        read = found.boxes(OPTIMIZER, {key: [box for _, box in parts] for key, parts in views.items()})
        for key, room in rooms.items():
            for (view, _), tensor in zip(views[key], read[key], strict=True):
                view.copy_(tensor)
            name, _, entry = key.rpartition("/")
            self.optimizer.state[mine[name].weights][entry] = room.to(self._rows.device)

    def _cut_of(self, part: Slice, cuts: Mapping[str, Cut]) -> Cut:
        return cuts.get(part.name) or Cut(tuple(self.parameters[part.number].shape))
