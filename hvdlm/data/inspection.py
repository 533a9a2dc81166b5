"""`hvdlm data inspect`: what a data folder holds, in numbers, as a histogram, and as text."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hvdlm.data.manifest import Manifest, SplitEntry, read_manifest, tokenizer_of
from hvdlm.data.shards import doc_column, doc_offsets
from hvdlm.data.stream import TokenStream
from hvdlm.errors import UserError
from hvdlm.partition import spread
from hvdlm.tables import counted
from hvdlm.tokenizer import Tokenizer

SAMPLE_TOKENS = 60
COUNTED_TOKENS = 4 << 20  # of a split, from everywhere in it: enough for frequencies, soon done
PIECE_TOKENS = 1 << 14
FREQUENT = 8
BAR_WIDTH = 40


def inspect(folder: Path, num_samples: int = 1) -> dict:
    """Facts about a data folder; every shard is opened and so checked against the manifest's counts."""
    manifest = read_manifest(folder)
    tokenizer = tokenizer_of(folder, manifest)
    splits = {
        name: _split(folder, name, entry, manifest, tokenizer, num_samples)
        for name, entry in manifest.splits.items()
        if entry.num_tokens
    }
    facts = {"folder": str(folder), "tokenizer": manifest.tokenizer_kind}
    copied = manifest.model_dump(include={"tokenizer_digest", "vocab_size", "dtype", "statistics"})
    return {**facts, **copied, "splits": splits}


def _split(
    folder: Path, name: str, entry: SplitEntry, manifest: Manifest, tokenizer: Tokenizer, num_samples: int
) -> dict:
    stream = TokenStream(folder, name, manifest)
    lengths = np.concatenate([np.diff(doc_offsets(folder, shard)) for shard in entry.shards])
    counts = _counts(stream, manifest.vocab_size)
    share = counts / counts.sum()
    frequent = np.argsort(-counts, kind="stable")[:FREQUENT]
    chosen = np.unique(np.linspace(0, len(lengths) - 1, num_samples, dtype=np.int64))
    starts = np.cumsum(lengths) - lengths
    ids = doc_column(folder, entry.shards[0], "doc_ids")
    return {
        "num_tokens": entry.num_tokens,
        "num_documents": entry.num_documents,
        "num_shards": len(entry.shards),
        "digest": entry.digest,
        "bytes_per_token": entry.text_bytes / entry.num_tokens,
        "tokens_per_document": {f"p{p}": int(np.percentile(lengths, p)) for p in (0, 25, 50, 75, 100)},
        "histogram": histogram(lengths),
        "unigram_loss": entry.unigram_loss,
        "counted_tokens": int(counts.sum()),
        "ids_used": int((counts > 0).sum()),
        "unknown": None if tokenizer.unk_id is None else float(share[tokenizer.unk_id]),
        "frequent": [
            {"id": int(id_), "text": tokenizer.decode(np.array([id_])), "share": round(float(share[id_]), 4)}
            for id_ in frequent
        ],
        "first_ids": ids[:3] if ids else None,
        "samples": [tokenizer.decode(stream.read(int(starts[d]), int(min(SAMPLE_TOKENS, lengths[d])))) for d in chosen],
    }


def _counts(stream: TokenStream, vocab_size: int) -> np.ndarray:
    """How often each id (int64 (vocab_size,)) is among COUNTED_TOKENS of the stream, or in all of it."""
    pieces = -(-len(stream) // PIECE_TOKENS)
    chosen = min(pieces, COUNTED_TOKENS // PIECE_TOKENS)
    counts = np.zeros(vocab_size, dtype=np.int64)
    for piece in spread(np.arange(chosen), chosen, pieces).tolist():
        start = piece * PIECE_TOKENS
        counts += np.bincount(stream.read(start, min(PIECE_TOKENS, len(stream) - start)), minlength=vocab_size)
    return counts


def histogram(lengths: np.ndarray) -> list[tuple[int, int]]:
    """(least length, documents) in classes that double: 1, 2 to 3, 4 to 7 …

    >>> histogram(np.array([1, 2, 3, 9]))
    [(1, 1), (2, 2), (4, 0), (8, 1)]
    """
    counts = np.bincount(np.log2(np.maximum(lengths, 1)).astype(np.int64))
    first = int(np.flatnonzero(counts)[0])
    return [(2**power, int(counts[power])) for power in range(first, len(counts))]


def to_text(facts: dict) -> str:
    lines = [
        f"{facts['folder']}: {facts['tokenizer']} tokenizer {facts['tokenizer_digest']}, "
        f"{facts['vocab_size']:,} ids as {facts['dtype']}",
        "  ".join(f"{name} {count:,}" for name, count in facts["statistics"].items()),
    ]
    for name, split in facts["splits"].items():
        lengths = "  ".join(f"{key} {value:,}" for key, value in split["tokens_per_document"].items())
        part = split["counted_tokens"]
        seen = "" if part == split["num_tokens"] else f" in a sample of {part:,} tokens"
        unknown = "" if split["unknown"] is None else f", {split['unknown']:.2%} unknown"
        lines += [
            f"{name}: {split['num_tokens']:,} tokens, {counted(split['num_documents'], 'document')}, "
            f"{counted(split['num_shards'], 'shard')}, {split['bytes_per_token']:.2f} bytes a token, "
            f"unigram loss {split['unigram_loss']:.4f}, {counted(split['ids_used'], 'id')} used{unknown}{seen}",
            f"  digest {split['digest']}",
            "  frequent: "
            + "  ".join(f"{one['text']!r} ({one['id']}) {one['share']:.1%}" for one in split["frequent"]),
            f"  tokens a document: {lengths}",
        ]
        most = max(count for _, count in split["histogram"])
        lines += [
            f"  {start:>12,} {'█' * round(count / most * BAR_WIDTH)} {count:,}" for start, count in split["histogram"]
        ]
        lines += [f"  begins: {sample!r}" for sample in split["samples"]]
    return "\n".join(lines)


def draw(facts: dict, path: Path) -> None:
    """The histograms of all splits as a picture (PNG, PDF or SVG by suffix)."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(4.0 * len(facts["splits"]), 3.2), layout="constrained")
    for place, (name, split) in enumerate(facts["splits"].items(), 1):
        axes = figure.add_subplot(1, len(facts["splits"]), place)
        starts, counts = zip(*split["histogram"], strict=True)
        axes.bar([f"{start:,}" for start in starts], counts, color="tab:blue")
        axes.set_title(f"{name}: {counted(split['num_documents'], 'document')}")
        axes.set_xlabel("tokens a document, from")
        axes.set_ylabel("documents")
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        axes.tick_params(axis="x", rotation=60, labelsize=8)
    try:
        figure.savefig(path, dpi=150)
    except ValueError as error:  # a suffix that matplotlib does not know
        raise UserError(f"{path}: {str(error).splitlines()[0]}") from None
