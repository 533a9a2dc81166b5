"""How often each n-gram stands in a text, and what it counts for in models of lower order (Kneser and Ney 1995).

The text is one stream of documents. Each token is the last word of exactly one n-gram, of `order` words or of as many
as stand between the border of its document and it. The border is the end of text of the document before (written
<s> elsewhere): it begins n-grams, and nothing reaches across it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

NOTHING = 0  # in a place before the border; a word is its id + 1


class NgramTable(NamedTuple):
    """Distinct n-grams and how often each occurs, sorted by the last word, then the one before, and so on.

    `words` is uint32 (n, order), each an id + 1 and NOTHING before a border; `counts` is int64 (n,).
    """

    words: np.ndarray
    counts: np.ndarray


def empty_table(order: int) -> NgramTable:
    return NgramTable(np.empty((0, order), np.uint32), np.empty(0, np.int64))


def count_ngrams(
    ids: np.ndarray, history: np.ndarray, *, order: int, eos_id: int, across_documents: bool = False
) -> NgramTable:
    """The n-grams that end in each of `ids` (n,), after the ids of `history` (at least one).

    `history` is what stands before in the stream: order - 1 ids, or all there are and the end of text before the
    first document. With `across_documents` an end of text is a word as any other.

    >>> table = count_ngrams(np.array([5, 6, 0, 5]), np.array([0]), order=2, eos_id=0)
    >>> (table.words.astype(int) - 1).tolist(), table.counts.tolist()
    ([[6, 0], [0, 5], [5, 6]], [1, 2, 1])
    """
    assert len(history), "an end of text stands before the first document"
    padding = np.full(max(0, order - 1 - len(history)), -1)
    stream = np.concatenate((padding, history[len(history) - min(len(history), order - 1) :], ids))
    words = np.empty((len(ids), order), np.uint32)
    is_cut = np.zeros(len(ids), bool)
    for back in range(order):
        column = stream[order - 1 - back : len(stream) - back]
        words[:, order - 1 - back] = np.where(is_cut, NOTHING, column + 1)
        if back and not across_documents:
            is_cut |= column == eos_id
    return distinct(words, np.ones(len(ids), np.int64))


def merge(*tables: NgramTable) -> NgramTable:
    """The table of several texts together, whatever the order of them."""
    words, counts = (np.concatenate(parts) for parts in zip(*tables, strict=True))
    return distinct(words, counts)


def distinct(words: np.ndarray, counts: np.ndarray) -> NgramTable:
    """The table of n-grams that may be repeated: (n, order) and (n,)."""
    if not len(words):
        return NgramTable(words, counts)
    place = sorting(words[:, ::-1])
    words = words[place]
    first = np.flatnonzero(np.concatenate(([True], (words[1:] != words[:-1]).any(1))))
    return NgramTable(words[first], np.add.reduceat(counts[place], first))


def sorting(words: np.ndarray) -> np.ndarray:
    """What sorts rows of words (n, k) by their first column, then the second, and so on.

    As many columns as 64 bits hold are compared at once.
    """
    bits = max(1, int(words.max(initial=0)).bit_length())
    at_once = 64 // bits
    keys = []
    for start in range(0, words.shape[1], at_once):
        key = np.zeros(len(words), np.uint64)
        for column in words[:, start : start + at_once].T:
            key = key << np.uint64(bits) | column
        keys.append(key)
    return np.lexsort(keys[::-1])


def adjusted_counts(table: NgramTable) -> list[NgramTable]:
    """The n-grams of 1, 2, … order words, (n, k), and what they count for in the model of their order.

    With the most words it is how often they occur. With fewer it is how many different words stand before them, the
    border being one of them; where nothing but the border ever does, how often they occur (Heafield et al. 2013).
    The rows of one last word may be spread over several tables, and those of two last words may not: so what is
    found for single words is to be added up over the tables.
    """
    words, counts = table
    order = words.shape[1]
    if not len(words):
        return [empty_table(size) for size in range(1, order + 1)]
    is_first = _first_of_suffixes(words)
    levels = []
    for size in range(1, order):
        first = np.flatnonzero(is_first[size - 1])
        last = np.append(first[1:], len(words)) - 1
        only_border = words[last, order - size - 1] == NOTHING  # which is sorted to the front
        num_before = np.add.reduceat(is_first[size].astype(np.int64), first)
        adjusted = np.where(only_border, np.add.reduceat(counts, first), num_before)
        is_whole = words[first, order - size] != NOTHING
        levels.append(NgramTable(words[first[is_whole], order - size :], adjusted[is_whole]))
    is_whole = words[:, 0] != NOTHING
    return [*levels, NgramTable(words[is_whole], counts[is_whole])]


def _first_of_suffixes(words: np.ndarray) -> list[np.ndarray]:
    """For 1, 2, … last words, bool (n,): whether a row is the first with these."""
    is_first = np.zeros(len(words), bool)
    is_first[:1] = True
    found = []
    for column in words.T[::-1]:
        is_first = is_first.copy()
        is_first[1:] |= column[1:] != column[:-1]
        found.append(is_first)
    return found
