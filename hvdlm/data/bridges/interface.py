"""A split as every format gives it and takes it: documents' lengths, and tokens in pieces of bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np

from hvdlm.data.manifest import SPLITS
from hvdlm.errors import UserError
from hvdlm.tokenizer import Tokenizer

PIECE_TOKENS = 4 << 20  # 32 MiB of the widest dtype
ENDINGS = (".bin", ".idx", ".jsonl")  # of files that are known by their names


@dataclass(frozen=True)
class TokenSplit:
    """One split of a source. `read(start, stop)` gives its tokens [start, stop) in the source's dtype."""

    file: Path  # named in messages
    lengths: np.ndarray  # int64: tokens a document
    read: Callable[[int, int], np.ndarray]
    dtype: str
    vocab_size: int
    text_bytes: int | None = None  # UTF-8 bytes of the documents, where the source knows
    columns: dict[str, list[str]] = field(default_factory=dict)  # strings by document, names of shards.COLUMNS
    foreign_dtype: str | None = None  # of the foreign file that the tokens came from, for the way back

    @property
    def num_tokens(self) -> int:
        return int(self.lengths.sum())

    def offsets(self) -> np.ndarray:
        """Where each document starts, and the end: int64, one more than documents."""
        return np.concatenate([[0], np.cumsum(self.lengths, dtype=np.int64)])

    def pieces(self, start: int = 0, stop: int | None = None) -> Iterator[np.ndarray]:
        """Tokens [start, stop) piece by piece; UserError for an id that is not in the vocabulary."""
        stop = self.num_tokens if stop is None else stop
        for first in range(start, stop, PIECE_TOKENS):
            piece = self.read(first, min(first + PIECE_TOKENS, stop))
            if int(piece.max()) >= self.vocab_size or int(piece.min()) < 0:
                wrong = int(np.argmax((piece >= self.vocab_size) | (piece < 0)))
                raise UserError(
                    f"{self.file}: token {first + wrong} is id {int(piece[wrong])}, the tokenizer has "
                    f"{self.vocab_size} ids; give the tokenizer.json that made this file"
                )
            yield piece


@dataclass(frozen=True)
class ConvertOptions:
    """What a conversion was asked for beside source and destination."""

    shard_tokens: int = 64_000_000  # tokens after which the next shard of a data folder begins
    is_lossy: bool = False  # write even what cannot come back as it was


@dataclass(frozen=True)
class SourceCorpus:
    """A whole source: its splits and the vocabulary they are in."""

    source: Path
    format: str
    tokenizer: Tokenizer
    splits: dict[str, TokenSplit]


class Bridge(Protocol):
    """What a module of a format has; FORMATS lists them."""

    KEEPS_COLUMNS: bool  # has a place for ids and labels of documents
    SUFFIX: str | None  # of the files of its splits; None where a manifest lists them

    def is_there(self, source: Path) -> bool:
        """Whether `source` is in this format."""

    def read(self, source: Path, tokenizer: Tokenizer, work: Path, options: ConvertOptions) -> dict[str, TokenSplit]:
        """The splits of a source; `work` is a folder for what must be spooled until they are written."""

    def write(self, folder: Path, corpus: SourceCorpus, options: ConvertOptions) -> None:
        """Write all splits into `folder`, in which tokenizer.json is already."""

    def totals(self, folder: Path, tokenizer: Tokenizer) -> dict[str, tuple[int, int | None]]:
        """Documents and tokens (None: it has none) that the files of each split in `folder` hold."""


def split_files(source: Path, suffix: str) -> dict[str, Path]:
    """The files of a source by split: FOLDER/train.bin …, PREFIX-train.bin …, or PREFIX.bin, which is train.

    A file that is there is itself, or the .idx of its .bin.
    """
    if source.is_dir():
        found = {split: source / f"{split}{suffix}" for split in SPLITS}
    elif source.suffix in ENDINGS and source.is_file():
        is_of_it = source.suffix == suffix or {source.suffix, suffix} == {".bin", ".idx"}
        found = {"train": source.with_suffix(suffix)} if is_of_it else {}
    else:
        prefix = str(source)
        for ending in ENDINGS:
            prefix = prefix.removesuffix(ending)
        found = {split: Path(f"{prefix}-{split}{suffix}") for split in SPLITS}
        if not any(path.is_file() for path in found.values()):
            found = {"train": Path(f"{prefix}{suffix}")}
    return {split: path for split, path in found.items() if path.is_file()}


def reader_of(path: Path, dtype: np.dtype, start_byte: int = 0) -> Callable[[int, int], np.ndarray]:
    """`TokenSplit.read` of a file of bare numbers from `start_byte`, by memory map; there may be none."""
    is_empty = path.stat().st_size == start_byte
    tokens = np.empty(0, dtype) if is_empty else np.memmap(path, dtype=dtype, mode="r", offset=start_byte)
    return lambda start, stop: tokens[start:stop]


def write_array(file: BinaryIO, values: np.ndarray, dtype: np.dtype | str) -> None:
    """The bare numbers, 1-D, in another type where need be."""
    file.write(np.ascontiguousarray(values, dtype).data)
