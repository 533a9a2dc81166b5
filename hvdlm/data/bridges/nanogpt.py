"""nanoGPT's train.bin and val.bin: raw little-endian ids, uint16 or, for more than 65536 of them, uint32.

There is nothing else in these files: a document ends where the end-of-text id stands. Read are also ids that are wider
than they need be, and the files of llm.c (dev/data/data_common.py: 256 int32, of which magic, version and number of
tokens are used, then the ids), in which the end-of-text id stands before each document: the tokens are the same, the
first document is that id alone. With Llama 3 that id is its beginning of text, where documents begin then.
"""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import numpy as np

from hvdlm.data.bridges.foreign import refuse_foreign, remark_ids
from hvdlm.data.bridges.interface import (
    PIECE_TOKENS,
    ConvertOptions,
    SourceCorpus,
    TokenSplit,
    reader_of,
    split_files,
    write_array,
)
from hvdlm.data.bridges.number_types import refuse_other
from hvdlm.errors import UserError
from hvdlm.tokenizer import Tokenizer
from hvdlm.tokenizer.interface import dtype_for

log = logging.getLogger("hvdlm")

KEEPS_COLUMNS = False
SUFFIX: str | None = ".bin"
LLM_C_BYTES = 1024  # of the header
LLM_C_DTYPES = {20240520: "<u2", 20240801: "<u4"}  # by magic: for GPT-2 and for Llama 3
FEWEST_WIDE = 4  # ids that prove by their empty upper halves how wide they are


def is_there(source: Path) -> bool:
    return bool(split_files(source, ".bin"))


def read(source: Path, tokenizer: Tokenizer, work: Path, options: ConvertOptions) -> dict[str, TokenSplit]:
    return {split: _read_split(path, tokenizer) for split, path in split_files(source, ".bin").items()}


def _read_split(path: Path, tokenizer: Tokenizer) -> TokenSplit:
    whole = _whole(path, tokenizer)
    try:
        remark_ids(whole, tokenizer.eos_id)
    except UserError:  # an id that is none
        if not _is_of_llm_c(path):
            refuse_other(path, tokenizer.vocab_size)
        raise
    _remark_width(path, np.dtype(whole.dtype))
    lengths = _lengths(whole, tokenizer)
    if len(lengths) == 1 and whole.read(whole.num_tokens - 1, whole.num_tokens)[0] != tokenizer.eos_id:
        log.warning(
            "%s: its %d tokens hold no end-of-text id %d, so they are one document; is it this tokenizer's, "
            "little-endian, without a header?",
            *(path, whole.num_tokens, tokenizer.eos_id),
        )
    return dataclasses.replace(whole, lengths=lengths)


def _whole(path: Path, tokenizer: Tokenizer) -> TokenSplit:
    """All tokens of a file as one document."""
    dtype, start = _layout(path, tokenizer.vocab_size)
    num_bytes = path.stat().st_size - start
    if num_bytes % dtype.itemsize:
        refuse_other(path, tokenizer.vocab_size)
        raise UserError(
            f"{path}: has {num_bytes} bytes, no whole number of {dtype.name} for {tokenizer.vocab_size} ids; "
            "copy it again, or give the tokenizer.json that made it"
        )
    num_tokens = num_bytes // dtype.itemsize
    return TokenSplit(path, np.array([num_tokens]), reader_of(path, dtype, start), dtype.name, tokenizer.vocab_size)


def _lengths(whole: TokenSplit, tokenizer: Tokenizer) -> np.ndarray:
    """Tokens of each document, int64: each ends with the end of text; the last may have none."""
    ends = [ends + 1 for ends in _places(whole, tokenizer.eos_id)]
    if not any(map(len, ends)) and tokenizer.bos_id is not None:  # as llm.c writes Llama 3's: beginnings alone
        ends = [starts[starts > 0] for starts in _places(whole, tokenizer.bos_id)]
    offsets = np.concatenate([[0], *ends])
    return np.diff(offsets if offsets[-1] == whole.num_tokens else np.append(offsets, whole.num_tokens))


def _layout(path: Path, vocab_size: int) -> tuple[np.dtype, int]:
    """(type of the ids, byte at which they begin); UserError for a file of something else."""
    with path.open("rb") as file:
        head = file.read(LLM_C_BYTES)
    if len(head) >= 12:
        magic, version, num_tokens = np.frombuffer(head, "<i4", 3).tolist()
        swapped = int(np.frombuffer(head, ">i4", 1)[0])
        if magic in LLM_C_DTYPES:
            return _llm_c_layout(path, np.dtype(LLM_C_DTYPES[magic]), version, num_tokens)
        if swapped in LLM_C_DTYPES:
            raise UserError(f"{path}: has a big-endian header of llm.c; write it little-endian")
    refuse_foreign(path, vocab_size)
    dtype = dtype_for(vocab_size)
    found = _widest(path, dtype, FEWEST_WIDE)
    if found != dtype:
        log.warning("%s: its ids are %s, though %d ids need only %s", path, found.name, vocab_size, dtype.name)
    return found, 0


def _is_of_llm_c(path: Path) -> bool:
    with path.open("rb") as file:
        return int.from_bytes(file.read(4), "little") in LLM_C_DTYPES


def _remark_width(path: Path, dtype: np.dtype) -> None:
    """Of numbers that are too few to tell how wide they are."""
    wide = _widest(path, dtype, 1)
    if wide != dtype:
        num_bytes = path.stat().st_size
        told = path, num_bytes // dtype.itemsize, dtype.name, num_bytes // wide.itemsize, wide.name
        log.warning("%s: is read as %d ids of %s; if it holds %d of %s, write these as the former", *told)


def _llm_c_layout(path: Path, dtype: np.dtype, version: int, num_tokens: int) -> tuple[np.dtype, int]:
    expected, found = LLM_C_BYTES + num_tokens * dtype.itemsize, path.stat().st_size
    if version != 1:
        raise UserError(f"{path}: has a header of llm.c of version {version}; this reads version 1")
    if found != expected:
        raise UserError(f"{path}: has {found} bytes, its header of llm.c says {expected}; copy it again")
    return dtype, LLM_C_BYTES


def _widest(path: Path, dtype: np.dtype, fewest: int) -> np.dtype:
    """int64 or uint32 where the upper half of every number is empty and the lower one mostly not, else `dtype`."""
    num_bytes = path.stat().st_size
    for wide in (np.dtype("<i8"), np.dtype("<u4")):
        if wide.itemsize <= dtype.itemsize or num_bytes % wide.itemsize or num_bytes < fewest * wide.itemsize:
            continue
        halves = np.memmap(path, dtype=f"<u{wide.itemsize // 2}", mode="r").reshape(-1, 2)  # lower, upper
        pieces = (halves[first : first + PIECE_TOKENS] for first in range(0, len(halves), PIECE_TOKENS))
        if all(not piece[:, 1].any() and np.count_nonzero(piece[:, 0]) * 2 > len(piece) for piece in pieces):
            return wide
    return dtype


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
        _check_ends(split, eos_id, options)
        with (folder / f"{name}.bin").open("wb") as file:
            for piece in split.pieces():
                write_array(file, piece, dtype)


def totals(folder: Path, tokenizer: Tokenizer) -> dict[str, tuple[int, int | None]]:
    """As they are read again."""
    found = {name: _whole(path, tokenizer) for name, path in split_files(folder, ".bin").items()}
    return {name: (len(_lengths(whole, tokenizer)), whole.num_tokens) for name, whole in found.items()}


def _check_ends(split: TokenSplit, eos_id: int, options: ConvertOptions) -> None:
    """UserError unless the documents are found again by their end-of-text ids; the last may have none.

    Where losses are allowed they are said.
    """
    ends = split.offsets()[1:] - 1
    found = np.concatenate([ends[:0], *_places(split, eos_id)])
    if split.num_tokens and split.lengths[-1] and (not found.size or found[-1] != ends[-1]):
        found = np.append(found, ends[-1])
    if not np.array_equal(ends, found) and options.is_lossy:
        kept = len(np.intersect1d(ends, found))
        log.warning(
            "%s: of %d documents %d do not end with their one end-of-text id %d; there are %d now",
            *(split.file, len(ends), len(ends) - kept, eos_id, len(found)),
        )
    elif not np.array_equal(ends, found):
        same = min(len(ends), len(found))
        document = int(np.argmin(np.append(ends[:same] == found[:same], False)))
        raise UserError(
            f"{split.file}: document {document} does not end with its one end-of-text id {eos_id}, which alone "
            "marks documents in nanoGPT's files; convert to megatron, or pass --lossy"
        )
