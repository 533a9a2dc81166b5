"""From what each rank has counted in its part of the text to the n-grams of all of it, the same on every rank.

An n-gram belongs to the rank that a hash of its last two words names: all that stands before these two is counted
there, so that counts of different words before need no second exchange. What is exchanged are whole numbers; neither
their sums nor the sorted tables depend on who counted what.
"""

from __future__ import annotations

import numpy as np
import torch

from hvdlm.models.ngram.counts import NgramTable, adjusted_counts, merge, sorting
from hvdlm.partition import mix
from hvdlm.world.interface import World


def share_counts(table: NgramTable, world: World) -> tuple[list[NgramTable], int]:
    """From each rank's counts to the `adjusted_counts` of all ranks' text; and what this one sent. Collective.

    What a rank has counted it sends once, then what it owns of the whole: bytes. In the end it holds all n-grams.
    """
    owner = _owner_of(table.words, world.size)
    parts = [NgramTable(table.words[owner == rank], table.counts[owner == rank]) for rank in range(world.size)]
    levels = [_in_reading_order(level) for level in adjusted_counts(merge(*_exchange(parts, world)))]
    is_alone = world.size == 1
    sent = 0 if is_alone else sum(part.words.nbytes + part.counts.nbytes for part in (table, *levels))
    return [_gather(level, world) for level in levels], sent


def _owner_of(words: np.ndarray, size: int) -> np.ndarray:
    last_two = np.zeros(len(words), np.uint64)
    for column in words.T[-2:]:
        last_two = last_two << np.uint64(32) | column
    return (mix(last_two) % np.uint64(size)).astype(np.int64)


def _in_reading_order(level: NgramTable) -> NgramTable:
    """Sorted by the first word: looked up in this order, a trie is read once from end to end."""
    place = sorting(level.words)
    return NgramTable(level.words[place], level.counts[place])


def _exchange(parts: list[NgramTable], world: World) -> list[NgramTable]:
    """`parts[r]` goes to rank r; what each rank sent to this one."""
    order = parts[0].words.shape[1]
    lengths = world.gather([len(part.counts) for part in parts])  # [from][to]
    rows = torch.stack([_packed(part, max(map(max, lengths))) for part in parts])
    received = world.exchange_rows(rows)
    return [_unpacked(row, lengths[rank][world.rank], order) for rank, row in enumerate(received)]


def _gather(table: NgramTable, world: World) -> NgramTable:
    """The tables of all ranks, one behind the other."""
    order = table.words.shape[1]
    lengths = world.gather(len(table.counts))
    rows = world.gather_rows(_packed(table, max(lengths)))
    parts = [_unpacked(row, length, order) for row, length in zip(rows, lengths, strict=True)]
    return NgramTable(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def _packed(table: NgramTable, length: int) -> torch.Tensor:
    """A table's bytes, with room for `length` n-grams, since rows of a collective are equally long."""
    order = table.words.shape[1]
    row = np.zeros(length * (8 + 4 * order), np.uint8)
    num = len(table.counts)
    row[: 8 * num].view(np.int64)[:] = table.counts
    row[8 * num : num * (8 + 4 * order)].view(np.uint32)[:] = table.words.reshape(-1)
    return torch.from_numpy(row)


def _unpacked(row: torch.Tensor, num: int, order: int) -> NgramTable:
    data = row.cpu().numpy()
    words = data[8 * num : num * (8 + 4 * order)].view(np.uint32)
    return NgramTable(words.reshape(num, order), data[: 8 * num].view(np.int64))
