"""A data folder of random ids, of any vocabulary: what a measurement of training needs of its data."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hvdlm.data.manifest import FORMAT_VERSION, SPLITS, TOKENIZER, Manifest, SplitEntry, write_manifest
from hvdlm.data.shards import ShardLabels, write_shard
from hvdlm.tokenizer import CharTokenizer, digest, dtype_for

FIRST_CHARACTER = 0x10000  # from here on every code point is a character


def write_random_shards(folder: Path, vocab_size: int, num_tokens: int) -> None:
    """A train split of uniform ids under a char tokenizer of exactly `vocab_size`; one that is there is kept."""
    if (folder / "manifest.json").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = CharTokenizer("".join(chr(FIRST_CHARACTER + number) for number in range(vocab_size - 2)))
    (folder / TOKENIZER).write_text(tokenizer.to_json())
    ids = np.random.default_rng(0).integers(0, vocab_size, num_tokens).astype(dtype_for(vocab_size))
    labels = ShardLabels("train", vocab_size, tokenizer.eos_id, digest(tokenizer))
    entry = write_shard(folder / "train-00000.h5", [ids], np.array([num_tokens]), labels)
    empty = SplitEntry(shards=(), num_tokens=0, num_documents=0, text_bytes=0, unigram_loss=None, digest="")
    train = empty.model_copy(update={"shards": (entry,), "num_tokens": num_tokens, "num_documents": 1})
    write_manifest(
        folder,
        Manifest(
            format_version=FORMAT_VERSION, tokenizer_digest=labels.tokenizer_digest, tokenizer_kind="char",
            vocab_size=vocab_size, eos_id=tokenizer.eos_id, dtype=dtype_for(vocab_size).name,
            splits=dict.fromkeys(SPLITS, empty) | {"train": train}, num_tokens=num_tokens, num_documents=1,
            statistics={}, plan="",
        ),
    )  # fmt: skip
