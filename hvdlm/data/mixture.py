"""Which corpus each sample of a mixture comes from: exact shares in O(1) memory. Pure integers, no rank state.

The infinite order of samples is cut into blocks. How many samples of a block belong to each corpus follows
from the largest remainders of the *totals* so far, so remainders carry over: before any block, every corpus
has its share of all samples but for less than one. Inside a block the order is a permutation keyed by
(seed, block), and a corpus's own samples keep their order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from hvdlm.partition import permute

MIN_BLOCK, MAX_BLOCK = 1 << 10, 1 << 16


class Mixture:
    """The order of the corpora for weights of any positive sum.

    Weights count as the decimals they are written as: 0.7 is 7/10. A block has 1024 samples, or the next
    power of two in which the rarest corpus has one; ValueError if that takes more than 65536.

    >>> Mixture([0.7, 0.2, 0.1], seed=0).totals(block=3)  # 2150.4, 614.4, 307.2
    [2151, 614, 307]
    """

    def __init__(self, weights: Sequence[float], *, seed: int) -> None:
        exact = [Fraction(str(float(weight))) for weight in weights]
        if not exact or min(exact) <= 0:
            raise ValueError(f"weights {weights} are not all positive")
        self.shares = [weight / sum(exact) for weight in exact]
        self._whole = math.lcm(*(share.denominator for share in self.shares))
        self._parts = [int(share * self._whole) for share in self.shares]
        self.block = max(MIN_BLOCK, 1 << (math.ceil(1 / min(self.shares)) - 1).bit_length())
        if self.block > MAX_BLOCK:
            raise ValueError(f"a share of {float(min(self.shares)):.2g} is less than 1 in {MAX_BLOCK} samples")
        self._seed = seed
        self._table: tuple[int, np.ndarray, np.ndarray] | None = None

    def totals(self, block: int) -> list[int]:
        """How many samples of each corpus come before a block: their sum is block * self.block."""
        samples = block * self.block
        quotas = [divmod(samples * part, self._whole) for part in self._parts]
        missing = samples - sum(count for count, _ in quotas)
        by_remainder = sorted(range(len(quotas)), key=lambda corpus: -quotas[corpus][1])  # stable: ties to the first
        extra = set(by_remainder[:missing])
        return [count + (corpus in extra) for corpus, (count, _) in enumerate(quotas)]

    def locate(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(corpus, number) of ascending positions: the sample is the corpus's number-th. All int64 (n,)."""
        blocks, slots = np.divmod(positions, self.block)
        corpora, numbers = np.empty_like(positions), np.empty_like(positions)
        for block in range(int(blocks[0]), int(blocks[-1]) + 1):
            corpus_of, number_of = self._of_block(block)
            chosen = blocks == block
            corpora[chosen], numbers[chosen] = corpus_of[slots[chosen]], number_of[slots[chosen]]
        return corpora, numbers

    def _of_block(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """Corpus and number of every sample of a block; the last block is kept, for steps are smaller."""
        if self._table is None or self._table[0] != block:
            before, after = self.totals(block), self.totals(block + 1)
            counts = [stop - start for start, stop in zip(before, after, strict=True)]
            order = permute(np.arange(self.block), self.block, f"mixture {self._seed} {block}")
            corpora = np.repeat(np.arange(len(counts)), counts)[order]
            numbers = np.empty(self.block, dtype=np.int64)
            for corpus, start in enumerate(before):
                numbers[corpora == corpus] = np.arange(start, start + counts[corpus])
            self._table = block, corpora, numbers
        return self._table[1:]
