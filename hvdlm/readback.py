"""What only finished shards tell: the digests of their tokens, and how often each token occurs."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hvdlm.manifest import SPLITS, Manifest
from hvdlm.shards import TokenStream, block_digest, digest_blocks, join_digests
from hvdlm.world.interface import World

COUNT_TOKENS = 1 << 20  # np.bincount makes int64 of what it counts


def read_back(folder: Path, manifest: Manifest, world: World) -> Manifest:
    """The manifest with digests and unigram losses filled in; ranks share the blocks. Collective."""
    counts = np.zeros((len(SPLITS), manifest.vocab_size), dtype=np.int64)
    mine: list[tuple[str, int, bytes]] = []
    with world.together():
        for row, split in enumerate(SPLITS):
            if not manifest.splits[split].num_tokens:
                continue
            stream = TokenStream(folder, split, manifest)
            for block in digest_blocks(stream)[world.rank :: world.size]:
                tokens, digest = block_digest(stream, block)
                mine.append((split, block, digest))
                for start in range(0, len(tokens), COUNT_TOKENS):
                    counts[row] += np.bincount(tokens[start : start + COUNT_TOKENS], minlength=manifest.vocab_size)
                stream.forget()
    world.sum_(counts)
    found = sorted(triple for triples in world.gather(mine) for triple in triples)
    splits = {
        split: manifest.splits[split].model_copy(
            update={
                "digest": join_digests(digest for name, _, digest in found if name == split),
                "unigram_loss": unigram_loss(counts[0], counts[row]),
            }
        )
        for row, split in enumerate(SPLITS)
    }
    return manifest.model_copy(update={"splits": splits})


def unigram_loss(train_counts: np.ndarray, counts: np.ndarray) -> float | None:
    """Nats per token of `counts` (vocab_size,) under the train frequencies with add-one smoothing.

    What a model without any context would reach: the bar that training has to clear.
    """
    if not counts.sum():
        return None
    log_p = np.log(train_counts + 1.0) - np.log(train_counts.sum() + len(train_counts))
    return float(-(counts * log_p).sum() / counts.sum())
