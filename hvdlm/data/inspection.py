"""`hvdlm data inspect`: what a data folder holds, in numbers, as a histogram, and as text."""

from __future__ import annotations

import textwrap
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from hvdlm.data.field_facts import field_facts, in_words
from hvdlm.data.manifest import Count, Manifest, SplitEntry, read_manifest, tokenizer_of
from hvdlm.data.shards import doc_column, doc_offsets
from hvdlm.data.stream import TokenStream
from hvdlm.errors import UserError
from hvdlm.files import read_json
from hvdlm.partition import spread
from hvdlm.tables import counted, table
from hvdlm.tokenizer import Tokenizer
from hvdlm.tokenizer.interface import shown

SAMPLE_TOKENS = 60
COUNTED_TOKENS = 4 << 20  # of a split, from everywhere in it: enough for frequencies, soon done
PIECE_TOKENS = 1 << 14
FREQUENT, LEAST_SHARE = 8, 0.0005  # tokens that are shown as frequent: 0.1 % or more, rounded
BAR_WIDTH = 40
LINE_WIDTH = 80
MOST_SOURCES = 5  # that are named of a split
MOST_DAMAGED = 5  # files that are named with their bad records
SUMMARY = "preprocess.json"


class RoundTrip(BaseModel):
    """Of excerpts of the texts how many were decoded from their ids again, and how many came back changed."""

    model_config = ConfigDict(frozen=True, strict=True)
    excerpts: Count
    changed: Count
    white_space: Count  # changed in nothing else
    example: str | None = None
    place: str | None = None


class BadRecords(BaseModel):
    """Of a file."""

    model_config = ConfigDict(frozen=True, strict=True)
    bad_records: Count
    of: Count
    first: str


class Balance(BaseModel):
    """What became of the documents, as `hvdlm preprocess` left it in preprocess.json."""

    model_config = ConfigDict(frozen=True, strict=True)
    files: Count
    bytes: Count
    documents_read: Count
    documents_kept: Count
    documents_lost: dict[str, Count]
    files_without_documents: Count
    files_with_bad_records: Count = 0
    first_files_with_bad_records: dict[str, BadRecords] = {}
    files_with_suspect_text: Count = 0
    round_trip: RoundTrip | None = None


def read_balance(folder: Path) -> Balance | None:
    """None where the folder has none, as one that was converted; UserError for what is none."""
    path = folder / SUMMARY
    try:
        balance = read_json(path).get("balance")
        return None if balance is None else Balance.model_validate(balance)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, AttributeError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
        raise UserError(f"{path}: holds no balance ({reason}); remove it, the data does not need it") from None


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
    balance = read_balance(folder)
    told = None if balance is None else balance.model_dump(exclude_none=True)
    splitting = None if manifest.splitting is None else manifest.splitting.model_dump(mode="json")
    return {**facts, **copied, "balance": told, "splitting": splitting, "splits": splits}


def _split(
    folder: Path, name: str, entry: SplitEntry, manifest: Manifest, tokenizer: Tokenizer, num_samples: int
) -> dict:
    stream = TokenStream(folder, name, manifest)
    lengths = np.concatenate([np.diff(doc_offsets(folder, shard)) for shard in entry.shards])
    counts = _counts(stream, manifest.vocab_size)
    share = counts / counts.sum()
    frequent = np.argsort(-counts, kind="stable")[:FREQUENT]
    frequent = frequent[(share[frequent] >= LEAST_SHARE) | (np.arange(len(frequent)) == 0)]
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
            {"id": int(id_), "text": shown(tokenizer, int(id_)), "share": round(float(share[id_]), 4)}
            for id_ in frequent
        ],
        "first_ids": ids[:3] if ids else None,
        **({"fields": field_facts(folder, name, manifest)} if manifest.fields else {}),
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
    """(least length, documents) in classes that double: 1, 2 to 3, 4 to 7 …; before them 0, if any has no token.

    >>> histogram(np.array([1, 2, 3, 9])), histogram(np.array([0, 2])), histogram(np.array([0, 0]))
    ([(1, 1), (2, 2), (4, 0), (8, 1)], [(0, 1), (2, 1)], [(0, 2)])
    """
    num_empty = int(np.count_nonzero(lengths == 0))
    empty = [(0, num_empty)] if num_empty else []
    if num_empty == len(lengths):
        return empty
    counts = np.bincount(np.log2(lengths[lengths > 0]).astype(np.int64))
    first = int(np.flatnonzero(counts)[0])
    return empty + [(2**power, int(counts[power])) for power in range(first, len(counts))]


def to_text(facts: dict) -> str:
    lines = [
        f"{facts['folder']}: {facts['tokenizer']} tokenizer {facts['tokenizer_digest']}, "
        f"{facts['vocab_size']:,} ids as {facts['dtype']}",
        *_origin(facts["balance"], facts["statistics"]),
        *_splitting(facts["splitting"]),
    ]
    for name, split in facts["splits"].items():
        lengths = "  ".join(f"{key} {value:,}" for key, value in split["tokens_per_document"].items())
        part = split["counted_tokens"]
        seen = "" if part == split["num_tokens"] else f" in a sample of {part:,} tokens"
        unknown = "" if split["unknown"] is None else f", {split['unknown']:.2%} unknown"
        bar = "" if split["unigram_loss"] is None else f"unigram loss {split['unigram_loss']:.4f}, "
        frequent = "  ".join(f"{one['text']!r} ({one['id']}) {one['share']:.1%}" for one in split["frequent"])
        lines += _wrapped(
            f"{name}: {split['num_tokens']:,} tokens, {counted(split['num_documents'], 'document')}, "
            f"{counted(split['num_shards'], 'shard')}, {split['bytes_per_token']:.2f} bytes a token, "
            f"{bar}{counted(split['ids_used'], 'id')} used{unknown}{seen}"
        )
        lines.append(f"  digest {split['digest']}")
        lines += _wrapped(f"  frequent: {frequent}")
        lines.append(f"  tokens a document: {lengths}")
        most = max(count for _, count in split["histogram"])
        lines += [
            f"  {start:>12,} {'█' * round(count / most * BAR_WIDTH)} {count:,}" for start, count in split["histogram"]
        ]
        lines += [part for line in in_words(split.get("fields", {})) for part in _wrapped(line)]
        lines += [line for sample in split["samples"] for line in _wrapped(f"  begins: {sample!r}")]
    return "\n".join(lines)


def _origin(balance: dict | None, statistics: dict[str, int]) -> list[str]:
    """What was read and what became of it, and what else was counted."""
    if balance is None:
        return _columns(statistics)
    lost = balance["documents_lost"]
    rest = {name: count for name, count in statistics.items() if name not in lost and name != "documents"}
    lines = [f"made from {counted(balance['files'], 'file')} of {balance['bytes']:,} bytes"]
    odd = {
        "files_without_documents": "without a document",
        "files_with_bad_records": "with bad records",
        "files_with_suspect_text": "of what may be no text",
    }
    lines += [f"  {counted(balance[key], 'file')} {what}: see {SUMMARY}" for key, what in odd.items() if balance[key]]
    for path, bad in list(balance["first_files_with_bad_records"].items())[:MOST_DAMAGED]:
        lines += _wrapped(f"    {path}: {bad['bad_records']:,} of {bad['of']:,}, first {bad['first']}")
    fates = {"documents read": balance["documents_read"], "documents kept": balance["documents_kept"]}
    lines += _columns({**fates, **lost, **rest})
    if trip := balance.get("round_trip"):
        changed = f"{trip['changed']:,} changed, {trip['white_space']:,} in white space alone"
        lines.append(f"  {counted(trip['excerpts'], 'excerpt')} decoded from ids: {changed}")
        if "example" in trip:
            lines += _wrapped(f"    {trip.get('place')}: {trip['example']}")
    return lines


def _splitting(splitting: dict | None) -> list[str]:
    """How documents came to their splits; nothing of folders that do not tell."""
    if splitting is None:
        return []
    named = [f"{split} is {_some(sources)}" for split, sources in splitting["inputs"].items()]
    cut = [f"{split} {share:g}" for split, share in splitting["fractions"].items() if share]
    by_hash = [f"by a hash of the text {', '.join(cut)}"] if cut else []
    return _wrapped(f"splits: {'; '.join([*named, *by_hash]) or 'all is train'}")


def _some(sources: list[str]) -> str:
    more = f" and {len(sources) - MOST_SOURCES:,} more" if len(sources) > MOST_SOURCES else ""
    return ", ".join(sources[:MOST_SOURCES]) + more


def _columns(counts: dict[str, int]) -> list[str]:
    rows = [[f"  {name}", f"{count:,}"] for name, count in counts.items()]
    return table([], rows).splitlines()


def _wrapped(line: str) -> list[str]:
    """A long line in several, the others farther in; nothing in it is changed but where it is broken."""
    indent = " " * (len(line) - len(line.lstrip()) + 2)
    return textwrap.wrap(
        line, LINE_WIDTH, subsequent_indent=indent, replace_whitespace=False, break_on_hyphens=False
    ) or [line]


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
