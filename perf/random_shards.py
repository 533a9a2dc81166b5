"""A data folder of random ids, of any vocabulary: what a measurement of training or reading needs of its data."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hvdlm.data.manifest import MANIFEST, TOKENIZER, manifest_of, write_manifest
from hvdlm.data.shards import ShardLabels, write_shard
from hvdlm.tokenizer import CharTokenizer, dtype_for

FIRST_CHARACTER = 0x10000  # from here on every code point is a character


def write_random_shards(folder: Path, vocab_size: int, num_tokens: int) -> None:
    """A train split of uniform ids under a char tokenizer of exactly `vocab_size`; one that is there is kept."""
    if (folder / MANIFEST).exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = CharTokenizer("".join(chr(FIRST_CHARACTER + number) for number in range(vocab_size - 2)))
    (folder / TOKENIZER).write_text(tokenizer.to_json())
    ids = np.random.default_rng(0).integers(0, vocab_size, num_tokens).astype(dtype_for(vocab_size))
    labels = ShardLabels.of("train", tokenizer)
    entry = write_shard(folder / "train-00000.h5", [ids], np.array([num_tokens]), labels)
    write_manifest(folder, manifest_of(tokenizer, {"train": [entry]}))
