"""Megatron-Core's indexed dataset: raw tokens in .bin, lengths and offsets in .idx.

.idx, little endian: b"MMIDIDX\\0\\0", uint64 version 1, uint8 dtype code, uint64 sequences, uint64 document
indices (one more than documents), then int32 tokens a sequence, int64 byte offsets of sequences in .bin, int64
number of the sequence that begins each document, and the end (megatron/core/datasets/indexed_dataset.py). A
document of ours is one sequence, as preprocess_data.py writes it; its tokens stand as they are, with or without
an end-of-text id. A document without any sequence, which preprocess_data.py makes of an empty text, is an empty one.
"""

from __future__ import annotations

import logging
import struct
from pathlib import Path
from typing import BinaryIO

import numpy as np

from hvdlm.data.bridges.interface import ConvertOptions, SourceCorpus, TokenSplit, reader_of, split_files, write_array
from hvdlm.errors import UserError
from hvdlm.files import open_regular
from hvdlm.tokenizer import Tokenizer

log = logging.getLogger("hvdlm")

KEEPS_COLUMNS = False
SUFFIX: str | None = ".bin"
MAGIC = b"MMIDIDX\x00\x00"
HEADER = struct.Struct("<9sQBQQ")
DTYPES = {1: "uint8", 2: "int8", 3: "int16", 4: "int32", 5: "int64", 8: "uint16"}
_AGAIN = "copy .bin and .idx again, or make them again"


def is_there(source: Path) -> bool:
    return bool(split_files(source, ".idx"))


def read(source: Path, tokenizer: Tokenizer, work: Path, options: ConvertOptions) -> dict[str, TokenSplit]:
    indices = split_files(source, ".idx")
    for split, path in split_files(source, ".bin").items():
        if split not in indices:
            raise UserError(f"{path.with_suffix('.idx')}: is missing beside {path.name}; {_AGAIN}")
    return {split: _read_split(path, tokenizer.vocab_size, options) for split, path in indices.items()}


def _read_split(path: Path, vocab_size: int, options: ConvertOptions) -> TokenSplit:
    dtype, sizes, documents = _read_index(path)
    if np.diff(documents).max(initial=0) > 1:  # none: preprocess_data.py met an empty text
        joined = f"{len(sizes)} sequences in {len(documents) - 1} documents"
        if not options.is_lossy:
            raise UserError(
                f"{path}: has {joined}, and sequences would be joined; make it again without --split-sentences, or "
                "pass --lossy"
            )
        log.warning("%s: has %s; those of a document are joined", path, joined)
    data = path.with_suffix(".bin")
    num_bytes = int(sizes.sum()) * dtype.itemsize
    if not data.is_file():
        raise UserError(f"{data}: is missing beside {path.name}; {_AGAIN}")
    if data.stat().st_size != num_bytes:
        raise UserError(f"{data}: has {data.stat().st_size} bytes, {path.name} says {num_bytes}; {_AGAIN}")
    lengths = np.diff(np.concatenate([[0], np.cumsum(sizes)])[documents])
    return TokenSplit(data, lengths, reader_of(data, dtype), dtype.name, vocab_size, foreign_dtype=dtype.name)


def _read_index(path: Path) -> tuple[np.dtype, np.ndarray, np.ndarray]:
    """(dtype of the tokens, tokens a sequence, first sequence of each document and the end), both int64."""
    with open_regular(path) as file:
        head = file.read(HEADER.size)
        if not head.startswith(MAGIC):
            raise UserError(f"{path}: begins with {head[:9]!r}, a Megatron index with {MAGIC!r}; is it another file?")
        if len(head) < HEADER.size:
            raise UserError(f"{path}: is cut short after {len(head)} bytes; {_AGAIN}")
        _, version, code, num_sequences, num_indices = HEADER.unpack(head)
        if version != 1 or code not in DTYPES:
            raise UserError(
                f"{path}: is version {version} with dtype code {code}; this reads version 1 with whole numbers "
                f"({', '.join(map(str, DTYPES))})"
            )
        expected, found = HEADER.size + 12 * num_sequences + 8 * num_indices, path.stat().st_size
        if found == expected + num_sequences != expected:
            raise UserError(f"{path}: has a mode for each sequence, so it is multimodal; only text can be converted")
        if found != expected:
            raise UserError(f"{path}: has {found} bytes, its header says {expected}; {_AGAIN}")
        sizes, pointers = _take(file, num_sequences, "<i4"), _take(file, num_sequences, "<i8")
        documents = _take(file, num_indices, "<i8")
    dtype = np.dtype(DTYPES[code]).newbyteorder("<")
    if (sizes < 0).any() or not np.array_equal(pointers, (np.cumsum(sizes) - sizes) * dtype.itemsize):
        raise UserError(f"{path}: its sequences do not stand one behind the other in .bin; {_AGAIN}")
    if not num_indices or documents[0] or documents[-1] != num_sequences or (np.diff(documents) < 0).any():
        raise UserError(f"{path}: its document indices do not go from 0 to {num_sequences}; {_AGAIN}")
    return dtype, sizes, documents


def _take(file: BinaryIO, count: int, kind: str) -> np.ndarray:
    return np.frombuffer(file.read(count * np.dtype(kind).itemsize), kind).astype(np.int64)


def write(folder: Path, corpus: SourceCorpus, options: ConvertOptions) -> None:
    for name, split in corpus.splits.items():
        dtype = _dtype_for(corpus, split)
        if split.lengths.max(initial=0) >= 2**31:
            raise UserError(f"{split.file}: has a document of {split.lengths.max()} tokens; Megatron takes 2^31 - 1")
        with (folder / f"{name}.bin").open("wb") as file:
            for piece in split.pieces():
                write_array(file, piece, dtype)
        with (folder / f"{name}.idx").open("wb") as file:
            num = len(split.lengths)
            code = next(code for code, known in DTYPES.items() if known == dtype.name)
            file.write(HEADER.pack(MAGIC, 1, code, num, num + 1))
            write_array(file, split.lengths, "<i4")
            write_array(file, split.offsets()[:-1] * dtype.itemsize, "<i8")
            write_array(file, np.arange(num + 1), "<i8")


def totals(folder: Path, tokenizer: Tokenizer) -> dict[str, tuple[int, int | None]]:
    """As they are read again."""
    found = read(folder, tokenizer, folder, ConvertOptions())
    return {name: (len(split.lengths), split.num_tokens) for name, split in found.items()}


def _dtype_for(corpus: SourceCorpus, split: TokenSplit) -> np.dtype:
    """What the tokens were in when they came from Megatron, else what Megatron chooses for the vocabulary."""
    vocab_size = corpus.tokenizer.vocab_size
    if vocab_size > 2**31:
        raise UserError(f"{corpus.source}: has {vocab_size} ids, Megatron's files hold at most 2^31")
    chosen = split.foreign_dtype or ("uint16" if vocab_size < 65500 else "int32")
    return np.dtype(chosen).newbyteorder("<")
