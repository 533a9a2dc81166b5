"""Baum-Welch: expected counts of a hidden Markov model over pieces of text, and the parameters that follow from them.

Rabiner 1989, "A tutorial on hidden Markov models", whose scaled recursions these are; Baum et al. 1970. One pass is
`accumulate` over fixed units of the text, the sum of their counts in a fixed order, `update`. Counts are float64, and
a unit's are the same bits wherever they are computed.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

# Tokens that go through the recursions side by side: fewer make thin matrix products of long pieces, more leave the
# cache, and a part of a text should have some for each thread.
BATCH_TOKENS = 1 << 13


class Probabilities(NamedTuple):
    """The parameters; all are positive, and each row sums to 1."""

    initial: Tensor  # (K,) of a document's first state
    inside: Tensor  # (K,) of the first state of what begins within a document
    transition: Tensor  # (K, K) from, to
    emission: Tensor  # (K, V)


class Counts(NamedTuple):
    """What all tokens of some text are expected to have come from; sums, float64."""

    initial: Tensor  # (K,)
    inside: Tensor  # (K,)
    transition: Tensor  # (K, K)
    emission: Tensor  # (K, V)
    nats: Tensor  # (), the log-likelihood
    num_tokens: Tensor  # ()


class Prior(NamedTuple):
    """Observations that are there before any text, so that no parameter is ever 0 (Dirichlet, MAP estimate)."""

    transition: float  # that leave each state, for all states alike; also of the two first ones
    emission: float  # of each word, from all states alike


class Pieces(NamedTuple):
    """Texts that are modelled one by one, within one array of ids."""

    ids: np.ndarray  # int64 (N,)
    starts: np.ndarray  # int64 (P,)
    lengths: np.ndarray  # int64 (P,), at least 1
    is_beginning: np.ndarray  # bool (P,): of a document


def pieces_of(ids: np.ndarray, eos_id: int, max_length: int, *, is_beginning: bool = True) -> Pieces:
    """Cut 1-D `ids` behind each end of text, and longer documents at multiples of `max_length`.

    `is_beginning` says whether the first id begins a document.

    >>> pieces = pieces_of(np.array([5, 0, 0, 7, 8, 9, 0]), 0, 3)
    >>> pieces.starts, pieces.lengths, pieces.is_beginning
    (array([0, 2, 3, 6]), array([2, 1, 3, 1]), array([ True,  True,  True, False]))
    """
    ends = np.flatnonzero(ids == eos_id) + 1
    documents = np.concatenate([[0], ends[ends < len(ids)]])[: len(ids)]
    lengths = np.diff(documents, append=len(ids))
    num = -(-lengths // max_length)
    within = np.arange(num.sum()) - np.repeat(np.cumsum(num) - num, num)  # 0, 1, … in each document
    starts = np.repeat(documents, num) + within * max_length
    begins = within == 0
    begins[:1] = is_beginning
    return Pieces(ids, starts, np.diff(starts, append=len(ids)), begins)


class Packed(NamedTuple):
    """Sequences side by side, longest first: at each time the tokens of those that have not ended follow each other."""

    places: np.ndarray  # int64 (N,) of the tokens, by time and then by sequence; the first P are the beginnings
    widths: list[int]  # sequences at each time; falling


def packed(starts: np.ndarray, lengths: np.ndarray) -> Packed:
    """Of sequences that begin at `starts` (P,) and have `lengths` (P,), at least one.

    >>> packed(np.array([0, 2]), np.array([2, 3]))
    Packed(places=array([2, 0, 3, 1, 4]), widths=[2, 2, 1])
    """
    order = np.argsort(-lengths, kind="stable")
    is_there = np.arange(lengths.max())[:, None] < lengths[order]  # (T, P)
    time, sequence = np.nonzero(is_there)
    return Packed(starts[order][sequence] + time, is_there.sum(1).tolist())


def accumulate(probabilities: Probabilities, pieces: Pieces) -> Counts:
    """The counts of these pieces under `probabilities`, float64 (the E-step).

    Batches of pieces of like length share torch's threads, each on one: products on several round otherwise.
    """
    probabilities = Probabilities(*(part.detach().double() for part in probabilities))
    by_word = probabilities.emission.T.contiguous()  # (V, K)
    vocab_size, num_states = by_word.shape
    total, emission = zeros(num_states, vocab_size, by_word.device), torch.zeros_like(by_word)
    with _one_by_one() as threads, ThreadPoolExecutor(threads) as pool:
        batches = list(_batches(pieces, by_word.device))
        all_found = pool.map(lambda batch: _expected(probabilities, by_word, batch), batches)
        for batch, found in zip(batches, all_found, strict=True):
            emission.index_add_(0, batch.ids, found.posterior)
            is_beginning = batch.is_beginning.double()  # (P,)
            first = found.posterior[: len(is_beginning)]
            total.initial.add_(is_beginning @ first)
            total.inside.add_((1 - is_beginning) @ first)
            total.transition.add_(found.transition)
            total.nats.add_(found.nats)
    total.emission.copy_(emission.T)
    return total._replace(num_tokens=total.num_tokens + len(pieces.ids))


def zeros(num_states: int, vocab_size: int, device: torch.device | str = "cpu") -> Counts:
    """The counts of no text."""
    shapes = ((num_states,), (num_states,), (num_states, num_states), (num_states, vocab_size), (), ())
    return Counts(*(torch.zeros(shape, dtype=torch.float64, device=device) for shape in shapes))


def update(counts: Counts, prior: Prior) -> Probabilities:
    """The parameters that make what was counted, and the prior, most probable (the M-step).

    Where nothing began within a document, the state there is any that tokens have.
    """
    num = len(counts.initial)
    inside = counts.inside if counts.inside.any() else counts.emission.sum(1)
    return Probabilities(
        _normalized(counts.initial + prior.transition / num),
        _normalized(inside + prior.transition / num),
        _normalized(counts.transition + prior.transition / num),
        _normalized(counts.emission + prior.emission / num),
    )


def log_prior(probabilities: Probabilities, counts: Counts, prior: Prior) -> Tensor:
    """What the prior adds to the log-likelihood; their sum never falls from pass to pass. Nats, float64 ().

    It is that of the parameters which `counts` were made by.
    """
    first = [probabilities.initial, probabilities.transition]
    if counts.inside.any():
        first.append(probabilities.inside)
    nats = prior.transition * sum(part.log().sum() for part in first)
    return (nats + prior.emission * probabilities.emission.log().sum()) / len(probabilities.initial)


def used_states(counts: Counts) -> tuple[int, float]:
    """How many states have a token at least; and how many equally common ones would be as uncertain."""
    tokens = counts.emission.sum(1)  # (K,)
    share = tokens / tokens.sum()
    return int((tokens >= 1).sum()), float(torch.special.entr(share).sum().exp())


def _normalized(count: Tensor) -> Tensor:
    return count / count.sum(-1, keepdim=True)


class _Batch(NamedTuple):
    """Packed pieces."""

    ids: Tensor  # int64 (N,)
    widths: list[int]
    is_beginning: Tensor  # bool (P,)


def _batches(pieces: Pieces, device: torch.device) -> Iterator[_Batch]:
    order = np.argsort(-pieces.lengths, kind="stable")
    number = (np.cumsum(pieces.lengths[order]) - 1) // BATCH_TOKENS
    for members in np.split(order, np.flatnonzero(np.diff(number)) + 1):
        if len(members):
            places, widths = packed(pieces.starts[members], pieces.lengths[members])
            ids, is_beginning = pieces.ids[places], pieces.is_beginning[members]
            yield _Batch(torch.from_numpy(ids).to(device), widths, torch.from_numpy(is_beginning).to(device))


@contextmanager
def _one_by_one() -> Iterator[int]:
    """Within, torch computes on one thread; gives how many it had."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield threads
    finally:
        torch.set_num_threads(threads)


class _Expected(NamedTuple):
    posterior: Tensor  # (N, K) of the state at each token of the batch, given its whole piece
    transition: Tensor  # (K, K)
    nats: Tensor  # ()


def _expected(probabilities: Probabilities, by_word: Tensor, batch: _Batch) -> _Expected:
    """Forwards and backwards through a batch; (N, K) arrays have a row a token."""
    transition, widths = probabilities.transition, batch.widths
    starts = np.cumsum([0, *widths]).tolist()
    emitted = by_word[batch.ids]  # (N, K)
    joint, scale = _forwards(probabilities, emitted, batch)
    wide = np.array(widths)
    before = torch.from_numpy(np.arange(widths[0], len(joint)) - np.repeat(wide[:-1], wide[1:]))
    sent = joint[before.to(joint.device)]  # (N - P, K): the states that each transition begins in
    # On the way back `emitted` becomes what a state and its future are worth, `joint` the posterior.
    emitted /= scale
    for time in reversed(range(len(widths) - 1)):
        start, middle, end = starts[time], starts[time + 1], starts[time + 2]
        future = emitted[middle:end] @ transition.T  # (P', K) of the pieces that go on
        joint[start : start + end - middle] *= future
        emitted[start : start + end - middle] *= future
    received = emitted[widths[0] :]
    return _Expected(joint, transition * (sent.T @ received), scale.log().sum())


def _forwards(probabilities: Probabilities, emitted: Tensor, batch: _Batch) -> tuple[Tensor, Tensor]:
    """The state's distribution given the piece up to each token (N, K), and the token's probability (N, 1)."""
    joint, scale = torch.empty_like(emitted), emitted.new_empty(len(emitted), 1)
    ahead = torch.where(batch.is_beginning.unsqueeze(1), probabilities.initial, probabilities.inside)  # (P, K)
    start = 0
    for width in batch.widths:
        now = torch.mul(ahead[:width], emitted[start : start + width], out=joint[start : start + width])
        now /= torch.sum(now, 1, keepdim=True, out=scale[start : start + width])
        ahead = now @ probabilities.transition
        start += width
    return joint, scale
