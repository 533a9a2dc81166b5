"""What a model remembers of several texts at once, each of its own length: texts come and go between two steps.

Rows are numbered; those that are read together stand side by side, so that nothing is gathered or copied for it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

# What a model remembers of the past: an LSTM's cells, a transformer's keys and values, an n-gram's last ids. Samples
# lie along dimension 0 of each tensor.
State = tuple[Tensor, ...]


class Slots(ABC):
    """`num` rows, each with the past of one text or with none."""

    @abstractmethod
    def begin(self, row: int, prompt: Sequence[int], random: torch.Generator) -> Sequence[int]:
        """A text begins in `row`, whatever was there: the ids that are to be read for it, none of which is read yet.

        Those are the prompt; a model with an encoder reads that here, as its source. `random` is for what is drawn.
        """

    @abstractmethod
    def read(self, first: int, ids: Tensor, lengths: Sequence[int]) -> Tensor:
        """Rows first, first + 1, … read on: ids (B, T), of which those behind `lengths` (1 to T) are padding.

        Hidden (B, T, C); what is there for padding means nothing.
        """

    @abstractmethod
    def copy(self, source: int, target: int) -> None:
        """What `source` remembers, `target` does too from now on."""

    @abstractmethod
    def swap(self, one: int, other: int) -> None: ...


class StateSlots(Slots):
    """Of any family, from its `forward` and state alone: rows whose states have equal shapes are computed together.

    None is ever padded: rows read as far as the shortest goes, then the longer ones read on.
    """

    def __init__(
        self,
        forward: Callable[[Tensor, State], tuple[Tensor, State | None]],
        first_state: Callable[[int, torch.Generator], State],
        num: int,
    ) -> None:
        self._forward, self._first_state = forward, first_state
        self._states: list[State] = [()] * num
        self._together: tuple[list[int], State] = ([], ())  # rows whose states stand in one, newer than those above

    def begin(self, row: int, prompt: Sequence[int], random: torch.Generator) -> Sequence[int]:
        self._part()
        self._states[row] = self._first_state(1, random)
        return prompt

    def read(self, first: int, ids: Tensor, lengths: Sequence[int]) -> Tensor:
        rows, parts = range(first, first + len(ids)), []
        bounds = [0, *sorted(set(lengths))]
        if len(bounds) == 2:
            return self._read(list(rows), ids[:, : bounds[1]])
        for start, stop in pairwise(bounds):
            going = [place for place, length in enumerate(lengths) if length >= stop]
            hidden = self._read([rows[place] for place in going], ids[going, start:stop])
            whole = hidden.new_zeros(len(ids), *hidden.shape[1:])
            whole[going] = hidden
            parts.append(whole)
        return torch.cat(parts, dim=1)

    def _read(self, rows: list[int], ids: Tensor) -> Tensor:
        if self._together[0] == rows:
            return self._run(rows, ids, self._together[1])
        self._part()
        groups = list(self._by_shape(rows))
        found: list[Tensor | None] = [None] * len(rows)
        for places in groups:
            state = tuple(map(torch.cat, zip(*(self._states[rows[place]] for place in places), strict=True)))
            hidden = self._run([rows[place] for place in places], ids[places], state)
            if len(groups) == 1:
                return hidden
            self._part()
            for place, own in zip(places, hidden.split(1), strict=True):
                found[place] = own
        return torch.cat([own for own in found if own is not None])

    def _run(self, rows: list[int], ids: Tensor, state: State) -> Tensor:
        hidden, after = self._forward(ids, state)
        assert after is not None, "a state was given"
        self._together = rows, after
        return hidden

    def _by_shape(self, rows: list[int]) -> Iterator[list[int]]:
        """Places of rows that can be computed together; those of a state of fixed size all can."""
        groups: dict[tuple[torch.Size, ...], list[int]] = {}
        for place, row in enumerate(rows):
            groups.setdefault(tuple(part.shape for part in self._states[row]), []).append(place)
        yield from groups.values()

    def _part(self) -> None:
        """Give each row its own state again."""
        rows, state = self._together
        for number, row in enumerate(rows):
            self._states[row] = tuple(part[number : number + 1] for part in state)
        self._together = [], ()

    def copy(self, source: int, target: int) -> None:
        self._part()
        self._states[target] = self._states[source]  # no state is ever changed in place

    def swap(self, one: int, other: int) -> None:
        self._part()
        self._states[one], self._states[other] = self._states[other], self._states[one]
