"""What only finished shards tell: their tokens' digests and frequencies, and whether they are still as written."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import h5py
import numpy as np
import xxhash

from hvdlm.data.fields import OFFSETS, all_columns
from hvdlm.data.manifest import SPLITS, TOKENIZER, Manifest, read_manifest
from hvdlm.data.shards import BLOCK_BYTES, block_checksums, map_tokens, opened
from hvdlm.data.stream import TokenStream
from hvdlm.files import sha256_of
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
    splits_of_fields = world.on_root(lambda: {split: columns_digest(folder, manifest, split) for split in SPLITS})
    found = sorted(triple for triples in world.gather(mine) for triple in triples)
    splits = {
        split: manifest.splits[split].model_copy(
            update={
                "digest": join_digests(digest for name, _, digest in found if name == split),
                "fields_digest": splits_of_fields[split],
                "unigram_loss": unigram_loss(counts[0], counts[row]),
            }
        )
        for row, split in enumerate(SPLITS)
    }
    return manifest.model_copy(update={"splits": splits})


def columns_digest(folder: Path, manifest: Manifest, split: str) -> str:
    """The 32 hex digits that name all that the records of a split hold beside their tokens; "" where they hold nothing.

    XXH3 over each column's name, its values one behind the other and how many each record has, whatever the shards.
    """
    if not manifest.fields or not manifest.splits[split].num_tokens:
        return ""
    lists = {name: list(field.labels) for name, field in manifest.fields.items()}
    whole = xxhash.xxh3_128(json.dumps(lists).encode())
    for column in all_columns(manifest.fields):
        values, lengths = xxhash.xxh3_128(), xxhash.xxh3_128()
        for entry in manifest.splits[split].shards:
            with opened(folder / entry.file) as file:
                values.update(np.ascontiguousarray(file[column.name][:]).data)
                lengths.update(np.diff(file[column.name + OFFSETS][:]).astype("<i8").data)
        whole.update(column.name.encode() + values.digest() + lengths.digest())
    return whole.hexdigest()


def unigram_loss(train_counts: np.ndarray, counts: np.ndarray) -> float | None:
    """Nats per token of `counts` (vocab_size,) under the train frequencies with add-one smoothing.

    What a model without any context would reach: the bar that training has to clear. None where either has no token.
    """
    if not (counts.sum() and train_counts.sum()):
        return None
    log_p = np.log(train_counts + 1.0) - np.log(train_counts.sum() + len(train_counts))
    return float(-(counts * log_p).sum() / counts.sum())


DIGEST_TOKENS = 1 << 22  # of a split under one digest, wherever its shards begin


def digest_blocks(stream: TokenStream) -> range:
    """Numbers of the blocks that `block_digest` knows, for ranks to share."""
    return range(-(-len(stream) // DIGEST_TOKENS))


def block_digest(stream: TokenStream, block: int) -> tuple[np.ndarray, bytes]:
    """(tokens, XXH3 of 128 bits) of a block of the stream."""
    tokens = stream.raw(block * DIGEST_TOKENS, DIGEST_TOKENS)
    return tokens, xxhash.xxh3_128_digest(np.ascontiguousarray(tokens).data)


def join_digests(digests: Iterable[bytes]) -> str:
    """The 32 hex digits that name a split's tokens, from its blocks' digests in order.

    They say nothing of shards: the same tokens in one file and in many have the same name.
    """
    return xxhash.xxh3_128_hexdigest(b"".join(digests))


def stream_digest(stream: TokenStream | None) -> str:
    """The name of a split's tokens; None stands for a split without any."""
    return join_digests([block_digest(stream, block)[1] for block in digest_blocks(stream)] if stream else [])


def verify(folder: Path) -> list[str]:
    """Compare every shard with its checksums; one line for each that differs, naming shard and block."""
    manifest = read_manifest(folder)
    faults = []
    try:
        found = sha256_of(folder / TOKENIZER)[:16]
    except OSError as error:
        found = str(error.strerror)
    if found != manifest.tokenizer_digest:
        faults.append(f"{folder / TOKENIZER}: is {found}, the manifest says {manifest.tokenizer_digest}")
    for entry in (shard for split in manifest.splits.values() for shard in split.shards):
        path = folder / entry.file
        if not path.exists():
            faults.append(f"{path}: is missing")
        elif (size := path.stat().st_size) != entry.num_bytes:
            faults.append(f"{path}: has {size} bytes, the manifest says {entry.num_bytes}")
        elif sha256_of(path) != entry.checksum:
            faults.append(f"{path}: {_what_differs(path)}")
    return faults


def _what_differs(path: Path) -> str:
    try:
        with h5py.File(path, "r", locking=False) as file:
            kept = file["block_crc32"][:]
            tokens = map_tokens(path, file["tokens"])
    except (OSError, KeyError, ValueError, RuntimeError) as error:
        return f"its HDF5 structure is damaged ({error})"
    found = np.fromiter(block_checksums(tokens), dtype=np.uint32)
    if found.shape != kept.shape:
        return "its HDF5 structure is damaged"
    blocks = np.flatnonzero(found != kept)
    if not blocks.size:
        return "its tokens are as written, its header, document offsets or checksums are not"
    first, per_block = int(blocks[0]), BLOCK_BYTES // tokens.itemsize
    return (
        f"{blocks.size} of {kept.size} blocks differ, the first is block {first} "
        f"(tokens {first * per_block:,} to {min((first + 1) * per_block, len(tokens)):,})"
    )
