"""Texts that stand in several predefined splits: what a model has learnt by heart is no test of it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hvdlm.data.manifest import SPLITS
from hvdlm.world.interface import World

from .dedup import EXACT_BYTES, keys_of, to_owners
from .spool import Spool


def count_overlap(spools: Sequence[Path], world: World) -> dict[str, int]:
    """How many documents of a split stand in one before it too, by a digest of their cleaned texts. Collective.

    As `test_documents_in_train`, for each two splits that have documents; those that dedup dropped are in none.
    """
    digests, splits = [np.empty((0, EXACT_BYTES), np.uint8)], [np.empty(0, np.int64)]
    with world.together():
        for path in spools[world.rank :: world.size]:
            with Spool(path) as spool:
                for number, rows in enumerate(map(spool.kept, SPLITS)):
                    if rows.size:
                        digests.append(spool["signatures"][rows, :EXACT_BYTES])
                        splits.append(np.full(len(rows), number))
    counts = overlap_of(*to_owners(np.concatenate(digests), np.concatenate(splits), world))
    world.sum_(counts)
    return {
        key_of(SPLITS[later], SPLITS[earlier]): int(counts[later, earlier])
        for earlier, later in itertools.combinations(range(len(SPLITS)), 2)
        if counts[earlier, earlier] and counts[later, later]
    }


def key_of(later: str, earlier: str) -> str:
    """Of `statistics`."""
    return f"{later}_documents_in_{earlier}"


def overlap_of(digests: np.ndarray, splits: np.ndarray) -> np.ndarray:
    """Documents of split i whose text is in split j too, int64 (splits, splits).

    From digests, uint8 (n, EXACT_BYTES), and numbers of splits, int64 (n,).
    """
    counts = np.zeros((len(SPLITS), len(SPLITS)), np.int64)
    if len(splits):
        _, text = np.unique(keys_of(digests), return_inverse=True)
        holds = np.zeros((int(text.max()) + 1, len(SPLITS)), bool)
        holds[text, splits] = True
        for number in range(len(SPLITS)):
            counts[number] = holds[text[splits == number]].sum(0)
    return counts
