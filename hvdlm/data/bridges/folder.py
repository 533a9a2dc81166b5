"""Our own data folder as one of the formats: shards, tokenizer.json, manifest.json."""

from __future__ import annotations

import hashlib
import itertools
import json
from pathlib import Path

import numpy as np

from hvdlm.data.bridges.interface import ConvertOptions, SourceCorpus, TokenSplit
from hvdlm.data.manifest import MANIFEST, Manifest, ShardEntry, manifest_of, read_manifest, write_manifest
from hvdlm.data.shards import COLUMNS, ShardLabels, doc_column, doc_offsets, pack_strings, write_shard
from hvdlm.data.stream import TokenStream
from hvdlm.data.verify import read_back
from hvdlm.errors import UserError
from hvdlm.files import read_json, write_text_durably
from hvdlm.tokenizer import Tokenizer, digest
from hvdlm.world.serial import SerialWorld

CONVERTED = "converted.json"  # where the tokens came from; their dtype there makes the way back exact
KEEPS_COLUMNS = True
SUFFIX: str | None = None
TEXT_TOKENS = 1 << 16


def is_there(source: Path) -> bool:
    return (source / MANIFEST).is_file()


def read(source: Path, tokenizer: Tokenizer, work: Path, options: ConvertOptions) -> dict[str, TokenSplit]:
    """Splits that have shards; one that came from an empty file has a shard without tokens."""
    manifest = read_manifest(source)
    if manifest.tokenizer_digest != digest(tokenizer):
        raise UserError(
            f"{source}: was made with tokenizer {manifest.tokenizer_digest}, the given one is {digest(tokenizer)}; "
            "leave it out, the folder has its own"
        )
    if manifest.fields:
        raise UserError(
            f"{source}: holds labelled records, and a conversion would lose its fields ({', '.join(manifest.fields)});"
            " convert the files that it was made of"
        )
    noted = source / CONVERTED
    dtypes = _dtypes_in(noted) if noted.exists() else {}
    splits = [name for name, entry in manifest.splits.items() if entry.shards]
    return {name: _read_split(source, name, manifest, dtypes.get(name)) for name in splits}


def _dtypes_in(noted: Path) -> dict[str, str]:
    """By split the numpy type that `converted.json` notes of the foreign file; UserError if it is not ours."""
    try:
        found = read_json(noted)
        dtypes = {name: np.dtype(found["dtypes"][name]) for name in found["dtypes"]}
        if any(dtype.kind not in "iuf" for dtype in dtypes.values()):
            raise ValueError("dtypes: are no numbers'")
        return {name: dtype.name for name, dtype in dtypes.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{noted}: does not say what the tokens were converted from ({error}); copy it again, or remove it"
        ) from None


def _read_split(source: Path, name: str, manifest: Manifest, foreign_dtype: str | None) -> TokenSplit:
    entry = manifest.splits[name]
    stream = TokenStream(source, name, manifest) if entry.num_tokens else None
    lengths = np.concatenate([np.diff(doc_offsets(source, shard)) for shard in entry.shards])

    def read_tokens(start: int, stop: int) -> np.ndarray:
        assert stream is not None
        return stream.raw(start, stop - start)

    columns = {}
    for column in COLUMNS:
        parts = [doc_column(source, shard, column) for shard in entry.shards]
        if any(part is not None for part in parts):
            columns[column] = [
                string
                for part, shard in zip(parts, entry.shards, strict=True)
                for string in part or [""] * shard.num_documents
            ]
    of_manifest = source / MANIFEST, lengths, read_tokens, manifest.dtype, manifest.vocab_size
    return TokenSplit(*of_manifest, entry.text_bytes, columns, foreign_dtype)


def write(folder: Path, corpus: SourceCorpus, options: ConvertOptions) -> None:
    """The manifest comes last; tokenizer.json is there before."""
    shards = {name: _write_shards(folder, name, corpus, options) for name in corpus.splits}
    dtypes = {name: split.foreign_dtype for name, split in corpus.splits.items() if split.foreign_dtype}
    note = {"format": corpus.format, "source": str(corpus.source), "dtypes": dtypes}
    write_text_durably(folder / CONVERTED, json.dumps(note, indent=1) + "\n")
    write_manifest(folder, _describe(folder, corpus, shards))


def totals(folder: Path, tokenizer: Tokenizer) -> dict[str, tuple[int, int | None]]:
    """As the shards have them, which the manifest was made of."""
    splits = read_manifest(folder).splits
    return {name: (entry.num_documents, entry.num_tokens) for name, entry in splits.items()}


def _write_shards(folder: Path, name: str, corpus: SourceCorpus, options: ConvertOptions) -> tuple[ShardEntry, ...]:
    """Documents whose first tokens are in the same `shard_tokens` share a shard, as `hvdlm preprocess` has it."""
    split, labels = corpus.splits[name], ShardLabels.of(name, corpus.tokenizer)
    offsets = split.offsets()
    windows = offsets[:-1] // options.shard_tokens
    cuts = [0, *(np.flatnonzero(np.diff(windows)) + 1).tolist(), len(windows)]
    return tuple(
        write_shard(
            folder / f"{name}-{number:05d}.h5",
            split.pieces(int(offsets[first]), int(offsets[last])),
            split.lengths[first:last],
            labels,
            {column: pack_strings(values[first:last]) for column, values in split.columns.items()},
        )
        for number, (first, last) in enumerate(itertools.pairwise(cuts))
    )


def _describe(folder: Path, corpus: SourceCorpus, shards: dict[str, tuple[ShardEntry, ...]]) -> Manifest:
    """The manifest of the shards written."""
    tokenizer = corpus.tokenizer
    text_bytes = {name: _text_bytes(corpus.splits[name], tokenizer) for name in shards}
    manifest = manifest_of(tokenizer, shards, text_bytes=text_bytes)
    manifest = read_back(folder, manifest, SerialWorld())
    digests = [entry.digest for entry in manifest.splits.values()]
    plan = hashlib.sha256(json.dumps([corpus.format, digest(tokenizer), digests]).encode()).hexdigest()[:16]
    return manifest.model_copy(update={"plan": plan})


def _text_bytes(split: TokenSplit, tokenizer: Tokenizer) -> int:
    """UTF-8 bytes of the documents: told by the source, or counted in what the ids decode to."""
    if split.text_bytes is not None:
        return split.text_bytes
    total = 0
    for start, stop in itertools.pairwise(split.offsets().tolist()):
        while start < stop:
            ids = np.concatenate(list(split.pieces(start, min(start + TEXT_TOKENS, stop)))).astype(np.int64)
            if start + len(ids) < stop:
                ids = ids[: len(ids) - _torn(ids, tokenizer)]
            start += len(ids)
            ended = start == stop and ids[-1] == tokenizer.eos_id
            total += len(tokenizer.decode(ids[:-1] if ended else ids).encode())
    return total


def _torn(ids: np.ndarray, tokenizer: Tokenizer) -> int:
    """How many ids at the end begin a character that they do not finish: a long document is cut before them."""
    for back in range(8):
        if not tokenizer.decode(ids[len(ids) - back - 8 : len(ids) - back]).endswith("\ufffd"):
            return back
    return 0
