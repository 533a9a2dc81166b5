"""Who does what: ranges, a permutation in O(1) memory, a rank's slice, a sample. Pure integers, no rank state.

Three facts hold for every world size, and tests check them over grids:
the ranges of all ranks tile the whole; an epoch visits each sample once; which sample stands at a
place of the order depends on (seed, place) alone.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence

import numpy as np
import xxhash

_ROUNDS = 6


def slice_of(rank: int, size: int, total: int) -> range:
    """The contiguous part of range(total) that belongs to `rank`; parts differ by at most one.

    >>> [list(slice_of(r, 3, 7)) for r in range(3)]
    [[0, 1], [2, 3], [4, 5, 6]]
    """
    return range(rank * total // size, (rank + 1) * total // size)


def spread(places: np.ndarray, chosen: int, total: int) -> np.ndarray:
    """The items at ascending `places` (int64 (n,), below `chosen`) of `chosen` ones spread over range(total).

    Each lies in its own of `chosen` equal parts, at a place that is drawn for ever (a stratified sample): of
    a sorted whole it takes from everywhere, of a periodic one it does not keep step. All of them are all, in order.

    >>> spread(np.arange(4), 4, 100), spread(np.arange(4), 4, 4)
    (array([10, 25, 54, 94]), array([0, 1, 2, 3]))
    """
    first, end = places * total // chosen, (places + 1) * total // chosen
    drawn = mix((places.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15))
    return first + (drawn % (end - first).astype(np.uint64)).astype(np.int64)


def permute(index: np.ndarray, total: int, key: str) -> np.ndarray:
    """Images of `index` (int64, any shape) under a pseudo-random permutation of range(total).

    A balanced Feistel network over the smallest even number of bits that holds `total`, with cycle
    walking (Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002): no table is built, so
    an epoch of 10^12 samples opens at once. The same (total, key) is the same permutation for ever.
    """
    half_bits, round_keys = _network(total, key)
    image = np.array(index, dtype=np.uint64)
    if image.size and int(image.max()) >= total:
        raise ValueError(f"index {int(image.max())} is outside range({total})")
    shift, mask = np.uint64(half_bits), np.uint64((1 << half_bits) - 1)
    image = _feistel(image, shift, mask, round_keys)
    outside = image >= total
    while outside.any():  # under four rounds on average, since 2^bits < 4 * total
        image[outside] = _feistel(image[outside], shift, mask, round_keys)
        outside = image >= total
    return image.astype(np.int64)


def permute_each(index: np.ndarray, group: np.ndarray, totals: Sequence[int], keys: Sequence[str]) -> np.ndarray:
    """`permute(index[i], totals[group[i]], keys[group[i]])` for every i of 1-D int64 arrays, in one pass.

    >>> permute_each(np.array([0, 0]), np.array([0, 1]), [10, 10], ["epoch 0 0", "other"])[0]
    np.int64(3)
    """
    networks = [_network(total, key) for total, key in zip(totals, keys, strict=True)]
    limit = np.array(totals, dtype=np.uint64)[group]
    shift = np.array([half_bits for half_bits, _ in networks], dtype=np.uint64)[group]
    round_keys = np.stack([of_group for _, of_group in networks], axis=1)[:, group]  # (rounds, n)
    mask = (np.uint64(1) << shift) - np.uint64(1)
    image = index.astype(np.uint64)
    if (image >= limit).any():
        raise ValueError("an index is outside its range")
    image = _feistel(image, shift, mask, round_keys)
    outside = np.flatnonzero(image >= limit)
    while outside.size:
        image[outside] = _feistel(image[outside], shift[outside], mask[outside], round_keys[:, outside])
        outside = outside[image[outside] >= limit[outside]]
    return image.astype(np.int64)


@functools.lru_cache(maxsize=64)
def _network(total: int, key: str) -> tuple[int, np.ndarray]:
    """Bits of a half and round keys of the Feistel network that permutes range(total)."""
    if total < 1:
        raise ValueError(f"cannot permute {total} items")
    half_bits = max(1, (int(total - 1).bit_length() + 1) // 2)
    round_keys = np.frombuffer(hashlib.blake2b(key.encode(), digest_size=8 * _ROUNDS).digest(), "<u8")
    return half_bits, round_keys


def _feistel(
    value: np.ndarray, shift: np.ndarray | np.uint64, mask: np.ndarray | np.uint64, round_keys: np.ndarray
) -> np.ndarray:
    left, right = value >> shift, value & mask
    for round_key in round_keys:
        left, right = right, left ^ (mix(right ^ round_key) & mask)
    return (left << shift) | right


def mix(value: np.ndarray) -> np.ndarray:
    """The finalizer of SplitMix64 (Steele, Lea and Flood, 2014): every input bit moves every output bit."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def samples_at(positions: np.ndarray, *, num_samples: int, seed: int) -> np.ndarray:
    """Sample numbers (int64 (n,)) at places (int64 (n,)) of the infinite order.

    The order is epoch after epoch, each a permutation keyed by (seed, epoch); a step takes the places after those of
    the steps before it and a rank its contiguous slice of them. So a batch may span two epochs, no sample is dropped,
    the batch may grow, and resuming takes one integer.
    """
    epoch, within = np.divmod(positions, num_samples)
    samples = np.empty_like(within)
    for number in np.unique(epoch):
        chosen = epoch == number
        samples[chosen] = permute(within[chosen], num_samples, f"epoch {seed} {number}")
    return samples


def micro_batches_per_rank(global_batch: int, micro_batch: int, size: int, sharers: str = "ranks") -> int:
    """How many micro-batches each of `size` ranks, or what `sharers` says, has in a step; ValueError if not whole."""
    if global_batch % (micro_batch * size):
        raise ValueError(
            f"global_batch {global_batch} is not a multiple of micro_batch {micro_batch} x {size} {sharers}"
            f" = {micro_batch * size}"
        )
    return global_batch // (micro_batch * size)


def fraction_of(text: bytes, seed: int) -> float:
    """A number in [0, 1) that depends on (text, seed) alone; decides a document's split. XXH3 runs at memory speed."""
    return (xxhash.xxh3_64_intdigest(text, seed=seed % 2**64) >> 11) / 2**53  # 53 bits: exact, and never 1.0
