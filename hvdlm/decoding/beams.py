"""Beam search, of which greedy search is the one with a single beam.

Of all continuations of a prompt's open hypotheses the likeliest go on, one for each beam; the one that ends closes its
beam, as in the search of Bahdanau et al. 2015, so one beam takes the likeliest token each time and stops where it is
the end of text. What is best has the highest score log p / length^a, the end of text counted in both.

The search for a prompt is over when no open hypothesis can still win. log p only falls, so what goes on from one with
log p = L never scores more than L / max_tokens^a.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from hvdlm.decoding.logits import refuse_diverged
from hvdlm.models import LanguageModel


@dataclass(frozen=True)
class Decoding:
    """What is searched for; `max_tokens` are those of a hypothesis, an end of text among them.

    `min_tokens` stand before an end of text, and ids of `never` nowhere: what begins a text, and rows of the vocabulary
    that stand for nothing. Probabilities are the model's own, as they are with these.
    """

    max_tokens: int
    eos_id: int
    beams: int = 1
    length_penalty: float = 1.0  # a
    min_tokens: int = 0
    never: tuple[int, ...] = ()
    other_ends: tuple[int, ...] = ()  # ids that end a text as well as eos_id does

    @property
    def ends(self) -> list[int]:
        return [self.eos_id, *self.other_ends]

    def __post_init__(self) -> None:
        if self.beams < 1 or self.max_tokens < 1 or self.length_penalty < 0:
            raise ValueError(
                f"beams {self.beams} and max_tokens {self.max_tokens} are 1 or more, length_penalty"
                f" {self.length_penalty} is 0 or more"
            )

    def score(self, log_prob: Tensor, length: Tensor) -> Tensor:
        return log_prob / length.double() ** self.length_penalty


class Hypothesis(NamedTuple):
    """A continuation. One that has not `ended` was cut at max_tokens."""

    ids: list[int]  # without the end of text
    log_prob: float
    score: float
    ended: bool


class Open(NamedTuple):
    """Hypotheses that go on, N of all prompts, those of one prompt side by side and the likeliest first."""

    rows: Tensor  # int64 (N,): their prompt
    log_probs: Tensor  # float64 (N,)
    ids: Tensor  # int64 (N, t): all that was read or is to be read next, the prompt's first


class Chosen(NamedTuple):
    """Continuations, in the same order."""

    parents: Tensor  # int64 (M,): of which of the N
    tokens: Tensor  # int64 (M,)
    log_probs: Tensor  # float64 (M,)


@torch.no_grad()
def decode(model: LanguageModel, ids: Tensor, lengths: Tensor | None, how: Decoding) -> list[list[Hypothesis]]:
    """Of each prompt in ids (B, T) the hypotheses that were finished, one for each beam at most, the best one first.

    What stands behind `lengths` (B,) is padding. A model with an encoder reads the prompt as its source. No result
    depends on the other prompts: those of a decoder are read together as far as the shortest goes, and then token by
    token beside what the shorter ones write. So none is ever padded, and all stand at their places.
    """
    model.eval()
    given, lengths, state = model.prompted(ids.to(model.device), None if lengths is None else lengths.to(model.device))
    if int(lengths.min()) < 1:
        raise ValueError(f"prompt {int(lengths.argmin())} has no token; begin it with an end of text")
    search = Search(given, lengths, how)
    unread = search.open.ids
    while len(unread):
        hidden, after = model(unread, state)
        assert after is not None, "a state was given"
        parents = search.step(model.head(hidden[:, -1:])[:, -1])
        is_same = len(parents) == len(unread) and bool((parents.diff() == 1).all())
        state = after if is_same else tuple(part.index_select(0, parents) for part in after)
        unread = search.open.ids[:, -1:]
    return [sorted(found, key=lambda one: -one.score) for found in search.found]


class Search:
    """Of B prompts: what is open, and what was found."""

    def __init__(self, given: Tensor, lengths: Tensor, how: Decoding) -> None:
        self._given, self._lengths, self._how = given, lengths, how
        num, device = len(given), given.device
        self.open = Open(
            torch.arange(num, device=device),
            torch.zeros(num, dtype=torch.float64, device=device),
            given[:, : int(lengths.min())],
        )
        self.found: list[list[Hypothesis]] = [[] for _ in range(num)]
        self._room = torch.full((num,), how.beams, device=device)  # beams that are not closed
        self._best = torch.full((num,), -math.inf, dtype=torch.float64, device=device)  # score found so far

    def step(self, logits: Tensor) -> Tensor:
        """Go on by one token, from logits (N, V) of what is open; which of the N those come from that then are."""
        how, before = self._how, self.open
        is_given = before.ids.shape[1] < self._lengths[before.rows]  # their prompt goes on (N,)
        chosen = self._chosen(*self._continued(logits, is_given))
        rows = before.rows[chosen.parents]
        ids = torch.cat((before.ids[chosen.parents], chosen.tokens.unsqueeze(1)), dim=1)
        written = ids.shape[1] - self._lengths[rows]  # below 1 within a prompt
        ended = torch.isin(chosen.tokens, chosen.tokens.new_tensor(how.ends)) & (written > 0)
        closes = ended | (written == how.max_tokens)
        scores = how.score(chosen.log_probs, written.clamp(min=1))
        self._room -= torch.bincount(rows[closes], minlength=len(self._room))
        self._best.scatter_reduce_(0, rows[closes], scores[closes], "amax")
        self._keep(ids[closes], rows[closes], chosen.log_probs[closes], scores[closes], ended[closes])
        may_win = ~closes & (chosen.log_probs / how.max_tokens**how.length_penalty > self._best[rows])
        goes_on = ~closes & torch.zeros_like(self._best, dtype=torch.bool).index_fill(0, rows[may_win], True)[rows]
        self.open = Open(rows[goes_on], chosen.log_probs[goes_on], ids[goes_on])
        return chosen.parents[goes_on]

    def _continued(self, logits: Tensor, is_given: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities (N, K), the highest first, of the likeliest continuations, and their last ids (N, K)."""
        refuse_diverged(logits)
        how, before, logits = self._how, self.open, logits.to(torch.float32, copy=True)
        total = logits.logsumexp(-1, keepdim=True)
        logits[:, list(how.never)] = -math.inf
        is_short = before.ids.shape[1] - self._lengths[before.rows] < how.min_tokens
        for end in how.ends:
            logits[is_short, end] = -math.inf
        values, tokens = logits.topk(min(how.beams, logits.shape[1]))
        log_probs = before.log_probs.unsqueeze(1) + (values - total).double()
        if is_given.any():  # one continuation, at no cost
            log_probs[is_given] = -math.inf
            log_probs[is_given, 0] = before.log_probs[is_given]
            tokens[is_given, 0] = self._given[before.rows[is_given], before.ids.shape[1]]
        return log_probs, tokens

    def _chosen(self, log_probs: Tensor, tokens: Tensor) -> Chosen:
        """Of each prompt's continuations, (N, K) of all, as many as it has room for."""
        rows, num = self.open.rows, tokens.shape[1]
        starts = torch.searchsorted(rows, torch.arange(len(self._room), device=rows.device))
        beams = self._how.beams
        table = log_probs.new_full((len(self._room), beams, num), -math.inf)
        table[rows, torch.arange(len(rows), device=rows.device) - starts[rows]] = log_probs
        ranked, places = table.flatten(1).sort(dim=1, descending=True, stable=True)  # of equal ones the first
        rank = torch.arange(ranked.shape[1], device=rows.device)
        row, rank = ((rank < self._room.unsqueeze(1)) & (ranked > -math.inf)).nonzero(as_tuple=True)
        place = places[row, rank]
        parents = starts[row] + place // num
        return Chosen(parents, tokens[parents, place % num], ranked[row, rank])

    def _keep(self, ids: Tensor, rows: Tensor, log_probs: Tensor, scores: Tensor, ended: Tensor) -> None:
        """What was closed."""
        columns = (part.tolist() for part in (ids, rows, self._lengths[rows], log_probs, scores, ended))
        for every, row, length, log_prob, score, has_ended in zip(*columns, strict=True):
            self.found[row].append(Hypothesis(every[length : len(every) - has_ended], log_prob, score, has_ended))
