"""How likely a model finds texts: the log-probability of each token from those before it, of any family.

A text is read as `hvdlm eval` reads a document: from what begins one, in pieces of at most the model's context, of
which each sees of the one before no more than its last token. Its end counts there as a token of its own.
(`inference.log_likelihoods` has the sums that benchmarks ask for, in their windows.)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from hvdlm.compute.device import autocast
from hvdlm.compute.draws import draws_for
from hvdlm.data.windows import IGNORED
from hvdlm.errors import UserError
from hvdlm.inference.load import Loaded, context_of

HEAD_TOKENS = 1024  # whose logits are held at once
Top = tuple[tuple[int, float], ...]  # ids and their log-probabilities, the likeliest first


class Text(NamedTuple):
    """Ids, of which the first `num_given` are there to be seen alone."""

    ids: tuple[int, ...]
    num_given: int = 1


@dataclass(frozen=True)
class Likelihood:
    """Of the ids of a text that are not given, in order; `top` are the likeliest ids at each place and theirs."""

    ids: tuple[int, ...]
    log_probs: np.ndarray  # float64 (n,): nats
    top: tuple[Top, ...] = ()

    @property
    def is_greedy(self) -> bool:
        """Whether each is the likeliest at its place."""
        return all(likeliest[0][0] == own for own, likeliest in zip(self.ids, self.top, strict=True))


class Judge:
    """Tells likelihoods by one model; `batch` pieces of texts are computed together."""

    def __init__(self, loaded: Loaded, *, batch: int = 32) -> None:
        if not loaded.task.predicts_text:
            kind = loaded.config.task.kind
            raise UserError(f"--score: task: {kind} does not predict each token of a text; leave it out")
        self._loaded, self._batch, self._precision = loaded, batch, loaded.config.train.precision
        self.context = context_of(loaded)
        self.is_by_token = loaded.task.takes_context  # else there is but a bound for a text as a whole

    @torch.no_grad()
    def likelihoods(self, texts: Sequence[Text], num_top: int = 0) -> list[Likelihood]:
        """Of each text, in order; with `num_top` the likeliest ids too."""
        model = self._loaded.model.eval()
        cut = [list(_cut(text, self.context)) for text in texts]
        pieces = [piece for parts in cut for piece in parts]
        order = sorted(range(len(pieces)), key=lambda place: len(pieces[place].ids))
        found: list[list[tuple[float, Top]]] = [[] for _ in pieces]
        for start in range(0, len(order), self._batch):
            group = order[start : start + self._batch]
            ids = _padded([pieces[place] for place in group]).to(model.device)
            with autocast(model.device, self._precision):
                hidden, _ = model(ids[0], None, None)
                told = list(self._tell(hidden, ids[1], num_top))
            counts = (ids[1] != IGNORED).sum(1).tolist()
            for place, stop, count in zip(group, np.cumsum(counts).tolist(), counts, strict=True):
                found[place] = told[stop - count : stop]
        of_pieces = iter(found)
        return [
            _joined(text, [one for own in islice(of_pieces, len(parts)) for one in own])
            for text, parts in zip(texts, cut, strict=True)
        ]

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

    def _tell(self, hidden: Tensor, targets: Tensor, num_top: int) -> Iterator[tuple[float, Top]]:
        """(log-probability, likeliest ids with theirs) of each target (B, T) that there is, row by row."""
        model, is_target = self._loaded.model, targets != IGNORED
        if not num_top:
            own = model.target_log_probs(hidden, targets.clamp(min=0))
            if own is not None:
                yield from ((value, ()) for value in own[is_target].double().tolist())
                return
        hidden, targets = hidden[is_target], targets[is_target]  # (M, C), (M,)
        for start in range(0, len(targets), HEAD_TOKENS):
            logits = model.head(hidden[start : start + HEAD_TOKENS].unsqueeze(0))[0].float()
            log_probs = logits.log_softmax(-1)
            own = log_probs.gather(1, targets[start : start + HEAD_TOKENS].unsqueeze(1))[:, 0].double()
            if not num_top:
                yield from ((value, ()) for value in own.tolist())
                continue
            values, ids = log_probs.topk(min(num_top, log_probs.shape[1]))
            tops = (tuple(zip(*pair, strict=True)) for pair in zip(ids.tolist(), values.tolist(), strict=True))
            yield from zip(own.tolist(), tops, strict=True)


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


def _padded(texts: Sequence[Text]) -> Tensor:
    """Inputs and targets: int64 (2, B, T); inputs 0 and targets IGNORED where there are none."""
    ids = torch.zeros(2, len(texts), max(len(text.ids) for text in texts) - 1, dtype=torch.int64)
    ids[1] = IGNORED
    for row, text in enumerate(texts):
        own = torch.tensor(text.ids)
        ids[0, row, : len(own) - 1] = own[:-1]
        ids[1, row, text.num_given - 1 : len(own) - 1] = own[text.num_given :]
    return ids


def _joined(text: Text, told: list[tuple[float, Top]]) -> Likelihood:
    values = np.array([value for value, _ in told], dtype=np.float64)
    return Likelihood(text.ids[text.num_given :], values, tuple(top for _, top in told if top))
