"""How likely a model finds texts: the log-probability of each token from those before it, of any family.

A text is read as `hvdlm eval` reads a document: from what begins one, in pieces of at most the model's context, of
which each sees of the one before no more than its last token. Its end counts there as a token of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch

from hvdlm.compute.device import autocast
from hvdlm.compute.draws import draws_for
from hvdlm.errors import UserError
from hvdlm.inference.load import Loaded, context_of
from hvdlm.inference.log_likelihoods import Score, Stretch, score, together


class Text(NamedTuple):
    """Ids, of which the first `num_given` are there to be seen alone."""

    ids: tuple[int, ...]
    num_given: int = 1


class Judge:
    """Tells likelihoods by one model; `batch` pieces of texts are computed together."""

    def __init__(self, loaded: Loaded, *, batch: int = 32) -> None:
        if not loaded.task.predicts_text:
            kind = loaded.config.task.kind
            raise UserError(f"--score: task: {kind} does not predict each token of a text; leave it out")
        self._loaded, self._batch, self._precision = loaded, batch, loaded.config.train.precision
        self.context = context_of(loaded.config)
        self.is_by_token = loaded.task.takes_context  # else there is but a bound for a text as a whole

    def likelihoods(
        self, texts: Sequence[Text], tell: Callable[[int], None], *, num_top: int = 0, asks_greedy: bool = False
    ) -> list[Score]:
        """Of the ids of each text that are not given; with `num_top` the likeliest ids at each place too.

        `tell` is told how many they were, again and again.
        """
        cut = [[Stretch(ids, len(ids) - given) for ids, given in _cut(text, self.context)] for text in texts]
        pieces = [piece for parts in cut for piece in parts]
        order = sorted(range(len(pieces)), key=lambda place: len(pieces[place].ids))
        found: dict[int, Score] = {}
        for start in range(0, len(order), self._batch):
            group = order[start : start + self._batch]
            asked = [pieces[place] for place in group]
            scores = score(self._loaded, asked, num_top=num_top, asks_greedy=asks_greedy)
            found.update(zip(group, scores, strict=True))
            tell(sum(piece.num for piece in asked))
        of_pieces = (found[place] for place in range(len(pieces)))
        return [together(list(islice(of_pieces, len(parts)))) for parts in cut]

    def bound(self, text: Text, place: int) -> float:
        """A lower bound of a whole text's log-probability, nats, where a model tells no more: as `hvdlm eval` has it.

        `place` is the text's number, which draws depend on.
        """
        task, model, most = self._loaded.task, self._loaded.model.eval(), self.context
        total = 0.0
        for piece in _cut(Text(text.ids, 1), most):
            ids = torch.tensor([piece.ids], device=model.device)
            draws = draws_for(0, 0, np.array([place])).to(model.device) if task.evaluation_takes_draws else None
            with torch.no_grad(), autocast(model.device, self._precision):
                sums, _ = task.loss(model, task.batch(ids, None, draws, training=False), None, None)
            total -= task.named(sums.values.tolist())["loss"]
        return total


def _cut(text: Text, most: int | None) -> Iterator[Text]:
    """Pieces that a model of a context of `most` tokens reads, which together have each id that is not given once.

    What is given is cut where it would leave no room: its last ones stay.

    >>> [tuple(piece) for piece in _cut(Text((0, 1, 2, 3, 4), 1), 3)]
    [((0, 1, 2, 3), 1), ((3, 4), 1)]
    >>> [tuple(piece) for piece in _cut(Text((0, 1, 2, 3, 4), 3), 3)]
    [((1, 2, 3, 4), 2)]
    """
    ids, given = text
    if most is None or len(ids) <= most + 1:
        yield text
        return
    start = max(0, min(given - 1, len(ids) - 1 - most))
    while start < len(ids) - 1:
        stop = min(start + most + 1, len(ids))
        yield Text(ids[start:stop], max(1, given - start))
        start = stop - 1


def num_cut(text: Text, most: int | None) -> int:
    """How many of the given ids `Judge` leaves out."""
    return 0 if most is None else max(0, min(text.num_given - 1, len(text.ids) - 1 - most))
