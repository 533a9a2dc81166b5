"""Duplicates across all ranks: exact by a digest, near by MinHash. The first in input order stays.

A document's number is its spool file's and its place in it, so who finds a duplicate changes nothing. Keys travel to
the rank that owns them, one kind at a time: a rank holds some 200 bytes for each document of its share.

Predefined val and test splits are benchmarks, which lose nothing: their spool files come first, and what they hold is
kept, also twice; documents of train give way to them.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from hvdlm.errors import UserError
from hvdlm.partition import mix
from hvdlm.tokenizer.interface import require
from hvdlm.world.interface import World

from .plan import DedupConfig
from .spool import Spool, duplicates_of, mark

EXACT_BYTES = 16
SHINGLE_WORDS = 5
ODD_NUMBER = 0x9E3779B97F4A7C15  # 2^64 over the golden ratio: neighbours differ in all their bits
BATCH_SHINGLES = 8192  # each is met by num_hashes numbers of 8 bytes
MINHASH_SEED = 1
# A character of a script that is written without blanks is a word.
ALONE = r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
WORD = re.compile(rf"[{ALONE}]|[^\W{ALONE}]+")


class Signer:
    """What dedup compares of a text: its digest, and for near-duplicates a key for each band of its MinHash.

    Two documents are near when they share a band's key (Broder, 1997; bands as in Leskovec, Rajaraman and
    Ullman, Mining of Massive Datasets, 3.4); the number of bands follows from the threshold.
    """

    def __init__(self, config: DedupConfig, is_on: bool = True) -> None:
        self._config, self._is_on = config, is_on

    @cached_property
    def _fresh(self) -> Any:
        min_hash = require("datasketch", "dedup.near").MinHash
        return min_hash(num_perm=self._config.num_hashes, seed=MINHASH_SEED, hashfunc=lambda number: number)

    @cached_property
    def bands(self) -> tuple[int, int]:
        """(bands, rows a band) that separate best at the threshold, none without near-dedup."""
        if not self._config.near:
            return 0, 0
        from datasketch import MinHashLSH

        try:
            index = MinHashLSH(threshold=self._config.threshold, num_perm=self._config.num_hashes)
        except ValueError:
            raise UserError(
                f"dedup.threshold {self._config.threshold}: too high for {self._config.num_hashes} hashes; lower it"
            ) from None
        return index.b, index.r

    def sign(self, text: str, data: bytes) -> bytes:
        """EXACT_BYTES and 8 a band; `data` is the text's UTF-8. Nothing where no documents are compared."""
        if not self._is_on:
            return b""
        exact = xxhash.xxh3_128_digest(data)
        num_bands, rows = self.bands
        if not num_bands:
            return exact
        minhash, numbers = self._fresh.copy(), shingles(text)
        for start in range(0, len(numbers), BATCH_SHINGLES):
            minhash.update_batch(numbers[start : start + BATCH_SHINGLES].tolist())
        keys = (
            hashlib.blake2b(
                band.to_bytes(2, "little") + minhash.hashvalues[band * rows : (band + 1) * rows].tobytes(),
                digest_size=8,
            ).digest()
            for band in range(num_bands)
        )
        return exact + b"".join(keys)


def shingles(text: str) -> np.ndarray:
    """32-bit numbers (as uint64) of the runs of SHINGLE_WORDS words; a shorter text is one run."""
    words = WORD.findall(text.lower()) or text.split()  # of signs alone, those between blanks
    codes = np.fromiter((zlib.crc32(word.encode()) for word in words), dtype=np.uint64, count=len(words))
    width = min(SHINGLE_WORDS, len(words))
    runs = np.zeros(max(1, len(words) - width + 1), dtype=np.uint64)
    for place in range(width):
        runs = runs * np.uint64(ODD_NUMBER) + codes[place : place + len(runs)]
    return mix(runs) >> np.uint64(32)


def find_duplicates(config: DedupConfig, spools: Sequence[Path], world: World, num_held_out: int = 0) -> dict[str, int]:
    """Mark duplicates beside their spool files; returns how many there are, by kind. Collective.

    The first `num_held_out` spool files are of predefined val and test splits.
    """
    if not config.is_on:
        return {}
    mine = range(world.rank, len(spools), world.size)
    with world.together():
        numbers, exact = _column(spools, mine, 0, EXACT_BYTES)
    later = later_of_equal(*to_owners(exact, numbers, world))
    found = {"duplicate_documents": _to_readers(later[later >> 32 >= num_held_out], world)}
    if config.near:
        later = _near_duplicates(config, spools, mine, found["duplicate_documents"], world)
        found["near_duplicate_documents"] = _to_readers(later[later >> 32 >= num_held_out], world)
    with world.together():
        for spool in mine:
            _mark(spools[spool], [numbers[numbers >> 32 == spool] & 0xFFFFFFFF for numbers in found.values()])
    counts = world.gather([len(numbers) for numbers in found.values()])
    return {kind: sum(count[n] for count in counts) for n, kind in enumerate(found)}


def _column(spools: Sequence[Path], mine: range, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
    """(numbers of all documents of these spool files, bytes [start, stop) of their signatures as rows)."""
    numbers, values = [np.empty(0, np.int64)], [np.empty((0, stop - start), np.uint8)]
    for number in mine:
        with Spool(spools[number]) as spool:
            numbers.append((number << 32) + spool["order"])
            values.append(spool["signatures"][:, start:stop] if len(spool["order"]) else values[0])
    return np.concatenate(numbers), np.ascontiguousarray(np.concatenate(values))


def to_owners(values: np.ndarray, numbers: np.ndarray, world: World) -> tuple[np.ndarray, np.ndarray]:
    """Send each (value, number) to the rank that owns the value; returns what this rank was sent."""
    width = values.shape[1]
    owner = values[:, :8].copy().view(np.uint64)[:, 0] % np.uint64(world.size)
    rows = np.concatenate([values, numbers[:, None].view(np.uint8)], axis=1)
    received = world.exchange_bytes([rows[owner == rank].tobytes() for rank in range(world.size)])
    joined = np.frombuffer(b"".join(received), np.uint8).reshape(-1, width + 8)
    return joined[:, :width], np.ascontiguousarray(joined[:, width:]).view(np.int64)[:, 0]


def _groups(values: np.ndarray, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(number, first number of the same value) of all documents, sorted by value and number."""
    if not len(numbers):
        return numbers, numbers
    _, key = np.unique(keys_of(values), return_inverse=True)
    order = np.lexsort((numbers, key))
    numbers, key = numbers[order], key[order]
    is_first = np.concatenate([[True], key[1:] != key[:-1]])
    return numbers, numbers[is_first][np.cumsum(is_first) - 1]


def keys_of(values: np.ndarray) -> np.ndarray:
    """Rows of bytes, a multiple of 8, as one array of what can be compared."""
    return np.ascontiguousarray(values).view([("", np.uint64)] * (values.shape[1] // 8))[:, 0]


def later_of_equal(values: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    numbers, first = _groups(values, numbers)
    return numbers[numbers != first]


def _to_readers(numbers: np.ndarray, world: World) -> np.ndarray:
    """Send document numbers to the ranks that look after their spool files."""
    owner = (numbers >> 32) % world.size
    received = world.exchange_bytes([numbers[owner == rank].tobytes() for rank in range(world.size)])
    return np.frombuffer(b"".join(received), np.int64)


def _near_duplicates(
    config: DedupConfig, spools: Sequence[Path], mine: range, dropped: np.ndarray, world: World
) -> np.ndarray:
    """Numbers of near-duplicates, all but the first of each connected group; on rank 0."""
    edges = [np.empty((0, 2), np.int64)]
    num_bands, _ = Signer(config).bands
    for band in range(num_bands):
        start = EXACT_BYTES + 8 * band
        with world.together():
            numbers, keys = _column(spools, mine, start, start + 8)
        stays = ~np.isin(numbers, dropped)
        numbers, first = _groups(*to_owners(keys[stays], numbers[stays], world))
        is_later = numbers != first
        edges.append(np.stack([first[is_later], numbers[is_later]], axis=1))
    pairs = np.unique(np.concatenate(edges), axis=0)
    received = world.exchange_bytes([pairs.tobytes(), *[b""] * (world.size - 1)])
    later = np.empty(0, np.int64)
    if world.rank == 0:
        later = all_but_first(np.frombuffer(b"".join(received), np.int64).reshape(-1, 2))
    return later


def all_but_first(edges: np.ndarray) -> np.ndarray:
    """Numbers in `edges` (n, 2) that are not the smallest of their connected component."""
    if not len(edges):
        return np.empty(0, np.int64)
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    numbers, index = np.unique(edges, return_inverse=True)
    index = index.reshape(edges.shape)
    graph = coo_array((np.ones(len(edges), np.int8), (index[:, 0], index[:, 1])), shape=(len(numbers),) * 2)
    _, component = connected_components(graph, directed=False)
    _, first = np.unique(component, return_index=True)  # numbers are sorted: the first one met is the smallest
    return np.delete(numbers, first)


def _mark(path: Path, orders: list[np.ndarray]) -> None:
    """Mark a spool file's duplicates, kinds in the order of `orders`."""
    duplicates_of(path).unlink(missing_ok=True)  # of a run that died on the way
    if any(order.size for order in orders):
        with Spool(path) as spool:
            rows = [np.flatnonzero(np.isin(spool["order"], order)) for order in orders]
        for kind, found in enumerate(rows):
            mark(path, found, kind)
