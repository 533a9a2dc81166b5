"""Interpolated modified Kneser-Ney estimates (Chen and Goodman 1999, section 5.4) from adjusted counts a.

    p(w | h) = (a(h w) - D(a(h w))) / a(h) + g(h) p(w | h'),    a(h) = sum over w of a(h w)
    g(h) = (D1 N1(h) + D2 N2(h) + D3 N3(h)) / a(h)

h' is h without its first word; N1, N2 and N3 are the numbers of words that follow h once, twice and more often.
Single words are interpolated with 1 / V, so that every id of the vocabulary has a probability.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from hvdlm.models.ngram.counts import NgramTable

log = logging.getLogger("hvdlm")

# Of n-grams that were seen once, twice and more often, where the text gives none.
FALLBACK = (0.5, 1.0, 1.5)


class BackoffTable(NamedTuple):
    """The n-grams of one order as a level of a trie, and their probabilities in nats.

    `keys` int64 (n,), ascending: (place of the n-gram without its last word in the order below) x V + last id; of order
    1 all V ids. `log_probs` float64 (n,) of the last word after the others. `log_backoffs` float64 (n,) of words that
    never follow this n-gram: log p(w | h) = log_backoff(h) + log p(w | h').
    """

    keys: np.ndarray
    log_probs: np.ndarray
    log_backoffs: np.ndarray


def find(keys: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The places of `wanted` in ascending `keys`, -1 where there is none."""
    if not len(keys):
        return np.full(wanted.shape, -1)
    place = np.searchsorted(keys, wanted).clip(max=len(keys) - 1)
    return np.where(keys[place] == wanted, place, -1)


def estimate(levels: Sequence[NgramTable], vocab_size: int) -> list[BackoffTable]:
    """The model of the whole text's `adjusted_counts`, whatever the order of their rows.

    Rows of single words may be repeated, their counts are added. ValueError where an n-gram's beginning is missing.
    """
    unigrams, *others = levels
    if not len(unigrams.words):
        return nothing_counted(len(levels), vocab_size)
    adjusted = np.zeros(vocab_size, np.int64)
    np.add.at(adjusted, unigrams.words[:, 0].astype(np.int64) - 1, unigrams.counts)
    tables = [_unigrams(adjusted)]
    suffix_of = np.arange(vocab_size)  # of an n-gram its place in this order; of one without its first word below it
    for size, level in enumerate(others, 2):
        keys, adjusted = _trie_level(level, tables, vocab_size)
        parent, word = np.divmod(keys, vocab_size)
        suffix = word if size == 2 else find(tables[-1].keys, suffix_of[parent] * vocab_size + word)
        discounted, saved = _discounted(adjusted, parent, len(tables[-1].keys), size)
        probs = discounted + saved[parent] * np.exp(tables[-1].log_probs)[suffix]
        has_followers = np.zeros(len(saved), bool)
        has_followers[parent] = True
        tables[-1].log_backoffs[has_followers] = np.log(saved[has_followers])
        tables.append(BackoffTable(keys, np.log(probs), np.zeros(len(keys))))
        suffix_of = suffix
    return tables


def nothing_counted(order: int, vocab_size: int) -> list[BackoffTable]:
    """The model of no text: all ids are equally likely."""
    unigrams = BackoffTable(np.arange(vocab_size), np.full(vocab_size, -np.log(vocab_size)), np.zeros(vocab_size))
    return [unigrams, *(BackoffTable(np.empty(0, np.int64), np.empty(0), np.empty(0)) for _ in range(order - 1))]


def _unigrams(adjusted: np.ndarray) -> BackoffTable:
    vocab_size = len(adjusted)
    seen = np.flatnonzero(adjusted)
    discounted, saved = _discounted(adjusted[seen], np.zeros(len(seen), np.int64), 1, 1)
    probs = np.full(vocab_size, saved[0] / vocab_size)
    probs[seen] += discounted
    return BackoffTable(np.arange(vocab_size), np.log(probs), np.zeros(vocab_size))


def _trie_level(level: NgramTable, tables: list[BackoffTable], vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Keys of a level's n-grams in ascending order, and their adjusted counts."""
    ids = level.words.astype(np.int64) - 1
    place = ids[:, 0]
    for table, column in zip(tables[1:], ids.T[1:], strict=False):
        place = find(table.keys, place * vocab_size + column)
        if (place < 0).any():
            raise ValueError("an n-gram without its last word was never counted: the text has gaps")
    keys = place * vocab_size + ids[:, -1]
    ascending = np.argsort(keys, kind="stable")
    return keys[ascending], level.counts[ascending]


def _discounted(
    adjusted: np.ndarray, parent: np.ndarray, num_parents: int, order: int
) -> tuple[np.ndarray, np.ndarray]:
    """What is left of each n-gram's share (n,), and what each history (num_parents,) has saved of its followers."""
    discounts = np.array((0.0, *discounts_of(adjusted, order)))
    kind = adjusted.clip(max=3)
    total = np.bincount(parent, weights=adjusted, minlength=num_parents)  # exact: whole numbers below 2^53
    saved = np.zeros(num_parents)
    for number in (1, 2, 3):
        saved += discounts[number] * np.bincount(parent[kind == number], minlength=num_parents)
    return (adjusted - discounts[kind]) / total[parent], saved / np.maximum(total, 1)


def discounts_of(adjusted: np.ndarray, order: int) -> tuple[float, float, float]:
    """D1, D2 and D3 from how many n-grams count 1, 2, 3 and 4; FALLBACK, and a warning, where these give none.

    D_i = i - (i + 1) Y n_(i+1) / n_i with Y = n1 / (n1 + 2 n2). Small and closed vocabularies (characters) have too few
    rare n-grams of low order for that: one of the numbers is 0, or the discount would be negative. None is larger than
    the count that it is taken from.
    """
    numbers = np.bincount(adjusted.clip(max=5), minlength=6)[1:5].tolist()
    y = numbers[0] / max(1, numbers[0] + 2 * numbers[1])
    found = list(FALLBACK)
    missing = []
    for i, (n, next_n) in enumerate(itertools.pairwise(numbers)):
        discount = i + 1 - (i + 2) * y * next_n / n if n and next_n and y else 0.0
        if discount > 0:
            found[i] = discount
        else:
            missing.append(f"D{i + 1}{'+' * (i == 2)} = {FALLBACK[i]}")
    if missing:
        log.warning(
            "%d-grams: %d count once, %d twice, %d three and %d four times, which do not give all discounts; uses %s",
            *(order, *numbers, ", ".join(missing)),
        )
    return found[0], found[1], found[2]
