"""nanoGPT's train.bin and val.bin: raw little-endian ids, uint16 or, for more than 65536 of them, uint32.

There is nothing else in these files: a document ends where the end-of-text id stands.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from hvdlm.data.bridges.interface import ConvertOptions, SourceCorpus, TokenSplit, reader_of, split_files, write_array
from hvdlm.errors import UserError
from hvdlm.tokenizer import Tokenizer
from hvdlm.tokenizer.interface import dtype_for

KEEPS_COLUMNS = False


def is_there(source: Path) -> bool:
    return bool(split_files(source, ".bin"))


def read(source: Path, tokenizer: Tokenizer, work: Path, options: ConvertOptions) -> dict[str, TokenSplit]:
    return {split: _read_split(path, tokenizer) for split, path in split_files(source, ".bin").items()}


def _read_split(path: Path, tokenizer: Tokenizer) -> TokenSplit:
    dtype = dtype_for(tokenizer.vocab_size)
    num_bytes = path.stat().st_size
    if num_bytes % dtype.itemsize:
        raise UserError(
            f"{path}: has {num_bytes} bytes, no whole number of {dtype.name} for {tokenizer.vocab_size} ids; "
            "copy it again, or give the tokenizer.json that made it"
        )
    num_tokens = num_bytes // dtype.itemsize
    whole = TokenSplit(path, np.array([num_tokens]), reader_of(path, dtype), dtype.name, tokenizer.vocab_size)
    ends = [ends + 1 for ends in _places(whole, tokenizer.eos_id)]
    offsets = np.concatenate([[0], *ends])
    if offsets[-1] != num_tokens:  # the last document has no end: it is one all the same
        offsets = np.append(offsets, num_tokens)
    return dataclasses.replace(whole, lengths=np.diff(offsets))


def _places(split: TokenSplit, token: int) -> list[np.ndarray]:
    """Where `token` stands, int64, a piece at a time."""
    places, start = [], 0
    for piece in split.pieces():
        places.append(np.flatnonzero(piece == token) + start)
        start += len(piece)
    return places


def write(folder: Path, corpus: SourceCorpus, options: ConvertOptions) -> None:
    dtype, eos_id = dtype_for(corpus.tokenizer.vocab_size), corpus.tokenizer.eos_id
    for name, split in corpus.splits.items():
        if not options.is_lossy:
            _check_ends(split, eos_id)
        with (folder / f"{name}.bin").open("wb") as file:
            for piece in split.pieces():
                write_array(file, piece, dtype)


def _check_ends(split: TokenSplit, eos_id: int) -> None:
    """UserError unless the documents are found again by their end-of-text ids; the last may have none."""
    ends = split.offsets()[1:] - 1
    found = np.concatenate([ends[:0], *_places(split, eos_id)])
    if split.num_tokens and split.lengths[-1] and (not found.size or found[-1] != ends[-1]):
        found = np.append(found, ends[-1])
    if not np.array_equal(ends, found):
        same = min(len(ends), len(found))
        document = int(np.argmin(np.append(ends[:same] == found[:same], False)))
        raise UserError(
            f"{split.file}: document {document} does not end with its one end-of-text id {eos_id}, which alone "
            "marks documents in nanoGPT's files; convert to megatron, or pass --lossy"
        )
