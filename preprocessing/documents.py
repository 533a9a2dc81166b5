"""What the stages hand on: files, parts of files, documents. Readers turn parts into documents."""

from __future__ import annotations

import bz2
import glob
import gzip
import io
import lzma
import os
import sysconfig
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple, cast

from pydantic import Field, model_validator

from hvdlm.config import Section
from hvdlm.errors import UserError
from hvdlm.tokenizer.interface import require

ErrorPolicy = Literal["strict", "replace"]
NOT_UTF8 = "is not UTF-8; set encoding, or errors: replace"

# A longer document is cut into several, so that memory is bounded whatever the input holds; so is what a
# page, a cell or a record of an archive may expand to.
MAX_DOCUMENT_BYTES = 4 << 20

ZSTD_BLOCK_BYTES = 2048  # at once: 4 bytes can stand for 128 KiB, so this for 64 MiB

# The sources of the running interpreter: tens of MB of real text on every machine, nothing to download.
BUILTIN_CORPORA: dict[str, tuple[str, tuple[str, ...]]] = {
    "python-stdlib": ("**/*.py", ("site-packages", "__pycache__"))
}


@dataclass(frozen=True)
class Part:
    """Bytes [start, stop) of a file; `stop` is None for all of one that cannot be split."""

    path: str
    start: int
    stop: int | None


class TableConfig(Section):
    """The `table` section: how rows of csv and tsv are written."""

    delimiter: str | None = Field(None, description="character between cells; default: a comma in csv, a tab in tsv")
    quote: str | None = Field(
        "auto", description='character around cells, or none where quotes are text; auto: " in csv, none in tsv'
    )
    escape: str | None = Field(None, description="character that makes the next one text, such as a backslash")
    header: list[str] | None = Field(None, description="names of the columns in files whose first row is data")

    @model_validator(mode="after")
    def _check(self) -> TableConfig:
        quote = None if self.quote in ("auto", "none", None) else self.quote
        given = [value for value in (self.delimiter, quote, self.escape) if value is not None]
        if any(len(value) != 1 or value in "\r\n\0" for value in given) or len(set(given)) < len(given):
            raise ValueError(f"delimiter, quote and escape are different single characters, not {given}")
        return self


@dataclass(frozen=True)
class ReadOptions:
    """How files become documents."""

    format: str = "auto"
    text_key: str = "text"
    id_key: str | None = None
    label_key: str | None = None
    separator: str | None = None
    encoding: str = "utf-8"
    errors: ErrorPolicy = "strict"
    table: TableConfig = field(default_factory=TableConfig)


class Document(NamedTuple):
    """A text and where it came from."""

    text: str
    position: int  # of its first byte in the uncompressed file, or its number from 0 in a table or archive
    id: str | None = None
    label: str | None = None
    part: int = 0  # number of its part in the unit


class BadRecord(NamedTuple):
    """Something in the input that is no document: reported, counted, skipped or fatal by `on_error`."""

    place: str  # PATH, PATH: byte N, PATH: row N
    reason: str  # what is wrong, and the remedy if there is one
    position: int | None = None  # of its first byte in the uncompressed file, where a line number would help


def find_files(sources: list[str]) -> list[tuple[str, int]]:
    """(path, size in bytes) of every input file, sorted by path within a source, each file once.

    A source is a file, a folder (all files below it), a glob, or the name of a built-in corpus.
    """
    found: dict[str, tuple[str, int]] = {}
    for source in sources:
        paths = _expand(source)
        if not paths:
            raise UserError(f"input {source!r}: no such file, folder or match")
        for path in paths:  # by their real paths: links and other spellings lead to the same files
            found.setdefault(os.path.realpath(path), (path, Path(path).stat().st_size))
    return list(found.values())


def _expand(source: str) -> list[str]:
    if source in BUILTIN_CORPORA and not Path(source).exists():
        pattern, excluded = BUILTIN_CORPORA[source]
        root = Path(sysconfig.get_path("stdlib"))
        return sorted(
            str(p) for p in root.glob(pattern) if p.is_file() and not set(p.relative_to(root).parts) & set(excluded)
        )
    if Path(source).is_dir():
        folder = Path(source)
        return sorted(str(path) for path in _files_below(folder) if not _is_hidden(path.relative_to(folder)))
    if Path(source).is_file():
        return [source]
    return sorted(p for p in glob.glob(source, recursive=True) if Path(p).is_file())  # noqa: PTH207 - any pattern


def _files_below(folder: Path) -> Iterator[Path]:
    """All files; a folder that may not be read is an error, since its files would be missing without a word."""

    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename}: cannot read this folder ({error.strerror})")

    for root, _, names in os.walk(folder, onerror=refuse):
        for name in names:
            path = Path(root) / name
            if path.is_symlink() and not path.exists():
                raise UserError(f"{path}: is a link that leads nowhere; remove it")
            if path.is_file():
                yield path


def _is_hidden(path: Path) -> bool:
    """Whether a file or a folder above it begins with a dot, such as .git."""
    return any(part.startswith(".") for part in path.parts)


class ChunkStream(io.RawIOBase):
    """A stream of the bytes that an iterator gives piece by piece; an empty piece is not the end."""

    def __init__(self, chunks: Generator[bytes, None, None]) -> None:
        self._chunks, self._ready = chunks, b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while not self._ready:
            chunk = next(self._chunks, None)
            if chunk is None:
                return 0
            self._ready = chunk
        taken = self._ready[: len(buffer)]
        buffer[: len(taken)] = taken
        self._ready = self._ready[len(taken) :]
        return len(taken)

    def close(self) -> None:
        self._chunks.close()  # and the file that it reads
        super().close()


def _zstd_chunks(path: str) -> Generator[bytes, None, None]:
    """The content of a .zst file. zstandard's own reader takes a truncated file for a complete one."""
    fresh = require("zstandard", f"{path}: reading .zst").ZstdDecompressor().decompressobj
    frame, is_inside = fresh(), False
    with Path(path).open("rb") as file:
        while block := frame.unused_data or file.read(ZSTD_BLOCK_BYTES):
            if not is_inside:
                frame = fresh()
            yield frame.decompress(block)
            is_inside = not frame.eof
    if is_inside:
        raise EOFError("it ends inside a frame")


# suffix -> how to open it. Decompression is streamed; nothing is expanded as a whole.
COMPRESSIONS: dict[str, Callable[[str], BinaryIO]] = {
    ".gz": lambda path: cast(BinaryIO, gzip.open(path, "rb")),  # noqa: SIM115 - the caller closes
    ".bz2": lambda path: cast(BinaryIO, bz2.open(path, "rb")),  # noqa: SIM115
    ".xz": lambda path: cast(BinaryIO, lzma.open(path, "rb")),  # noqa: SIM115
    ".zst": lambda path: cast(BinaryIO, io.BufferedReader(ChunkStream(_zstd_chunks(path)), 1 << 17)),
}


def is_compressed(path: str) -> bool:
    return Path(path).suffix in COMPRESSIONS


def plain_suffix(path: str) -> str:
    """The suffix before that of the compression: `.jsonl` for `a.jsonl.gz`."""
    return Path(path).with_suffix("").suffix if is_compressed(path) else Path(path).suffix


def open_plain(path: str) -> BinaryIO:
    """The uncompressed bytes of a file, buffered."""
    opener = COMPRESSIONS.get(Path(path).suffix)
    return opener(path) if opener else Path(path).open("rb")
