"""What is in a data folder, for people: counts, document lengths, a sample of text."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hvdlm.shards import TOKENIZER, TokenStream, doc_offsets, read_manifest
from hvdlm.tokenizer import load

SAMPLE_TOKENS = 60


def inspect(folder: Path) -> dict:
    """Facts of a data folder; every shard is opened and so checked against the manifest's counts."""
    manifest = read_manifest(folder)
    tokenizer = load(folder / TOKENIZER)
    splits = {}
    for name, entry in manifest.splits.items():
        if not entry.num_tokens:
            continue
        stream = TokenStream(folder, name, manifest)
        lengths = np.concatenate([np.diff(doc_offsets(folder, shard)) for shard in entry.shards])
        sample = tokenizer.decode(stream.read(0, min(SAMPLE_TOKENS, int(lengths[0]))))
        splits[name] = {
            "num_tokens": entry.num_tokens,
            "num_documents": entry.num_documents,
            "num_shards": len(entry.shards),
            "bytes_per_token": entry.text_bytes / entry.num_tokens,
            "tokens_per_document": {f"p{p}": int(np.percentile(lengths, p)) for p in (0, 25, 50, 75, 100)},
            "unigram_loss": entry.unigram_loss,
            "sample": sample,
        }
    return {
        "folder": str(folder), "tokenizer": manifest.tokenizer_kind, "tokenizer_digest": manifest.tokenizer_digest,
        "vocab_size": manifest.vocab_size, "dtype": manifest.dtype, "statistics": manifest.statistics, "splits": splits,
    }  # fmt: skip


def to_text(facts: dict) -> str:
    lines = [
        f"{facts['folder']}: {facts['tokenizer']} tokenizer {facts['tokenizer_digest']}, "
        f"{facts['vocab_size']:,} ids as {facts['dtype']}",
        "  ".join(f"{name} {count:,}" for name, count in facts["statistics"].items()),
    ]
    for name, split in facts["splits"].items():
        lengths = "  ".join(f"{key} {value:,}" for key, value in split["tokens_per_document"].items())
        lines += [
            f"{name}: {split['num_tokens']:,} tokens, {split['num_documents']:,} documents, "
            f"{split['num_shards']} shards, {split['bytes_per_token']:.2f} bytes a token, "
            f"unigram loss {split['unigram_loss']:.4f}",
            f"  tokens a document: {lengths}",
            f"  begins: {split['sample']!r}",
        ]
    return "\n".join(lines)
