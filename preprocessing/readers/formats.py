"""Parts of files to documents: FORMATS is the one list of what can be read."""

from __future__ import annotations

import codecs
import io
import lzma
import zlib
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO, cast

from hvdlm.errors import UserError

from ..documents import BadRecord, ChunkStream, Document, Part, ReadOptions, is_compressed, open_plain, plain_suffix
from . import columnar, delimited, json_values, jsonl, text, web

Reader = Callable[[BinaryIO, Part, ReadOptions], Iterator[Document | BadRecord]]


@dataclass(frozen=True)
class Format:
    """One way that documents lie in a file."""

    read: Reader
    suffixes: tuple[str, ...] = ()
    splittable: bool = False  # byte ranges can be read apart
    is_text: bool = True  # made of characters in `encoding`, not of a binary layout of its own


FORMATS: dict[str, Format] = {
    "txt": Format(text.read_file, (".txt",), splittable=True),
    "paragraphs": Format(partial(text.read_between, boundary=text.BLANK_LINES), splittable=True),
    "separated": Format(text.read_separated, splittable=True),
    "wikitext": Format(partial(text.read_between, boundary=text.ARTICLES), (".tokens",), splittable=True),
    "md": Format(text.read_file, (".md", ".markdown"), splittable=True),
    "jsonl": Format(jsonl.read_json_lines, (".jsonl", ".ndjson"), splittable=True),
    "json": Format(json_values.read_json, (".json",)),
    "csv": Format(partial(delimited.read_rows, dialect=delimited.CSV), (".csv",)),
    "tsv": Format(partial(delimited.read_rows, dialect=delimited.TSV), (".tsv",)),
    "parquet": Format(columnar.read_parquet, (".parquet",), is_text=False),
    "arrow": Format(columnar.read_arrow, (".arrow", ".feather", ".ipc"), is_text=False),
    "html": Format(web.read_html, (".html", ".htm", ".xhtml"), is_text=False),
    "warc": Format(web.read_warc, (".warc",), is_text=False),
    "wet": Format(web.read_wet, (".wet",), is_text=False),
}
OTHER_TABLES = {
    ".orc": "an ORC table; write it as parquet",
    ".avro": "an Avro table; write it as parquet",
    **dict.fromkeys((".xlsx", ".xls", ".ods"), "a spreadsheet; save it as csv"),
    **dict.fromkeys((".sqlite", ".sqlite3", ".db"), "a database; export its table as csv"),
    **dict.fromkeys((".pkl", ".pickle"), "a pickle, which may run code; write it as parquet or jsonl"),
}  # what is met in folders of data and not read
SUFFIXES = {suffix: name for name, format_ in FORMATS.items() for suffix in format_.suffixes}


def format_of(path: str, asked: str) -> str:
    """The format of a file: as asked, else by its suffix before that of a compression."""
    if asked != "auto":
        return asked
    suffix = plain_suffix(path)
    if suffix in OTHER_TABLES:
        raise UserError(f"{path}: is {OTHER_TABLES[suffix]}, or name the files you mean by a glob")
    if suffix not in SUFFIXES:
        raise UserError(
            f"{path}: cannot tell its format from {suffix or 'no suffix'!r}; set format: {', '.join(FORMATS)}; "
            "or name the files you mean by a glob"
        )
    return SUFFIXES[suffix]


def can_split(path: str, options: ReadOptions) -> bool:
    """Whether byte ranges of this file can be read apart."""
    return (
        not is_compressed(path)
        and FORMATS[format_of(path, options.format)].splittable
        and codecs.lookup(options.encoding).name == "utf-8"
    )


def read_documents(part: Part, options: ReadOptions) -> Iterator[Document | BadRecord]:
    """The documents that start in a part, in file order, and what is none of them.

    A UserError is a mistake in the settings or a file that cannot be opened; bad content never is one.
    """
    format_ = FORMATS[format_of(part.path, options.format)]
    try:
        with open_plain(part.path) as file:
            if format_.is_text and codecs.lookup(options.encoding).name != "utf-8":
                file = cast(BinaryIO, io.BufferedReader(ChunkStream(_utf8_chunks(file, options))))
            yield from format_.read(file, part, options)
    except UnicodeError as error:  # of another encoding: what follows cannot be read
        place = f"{part.path}: byte {error.start}" if isinstance(error, UnicodeDecodeError) else part.path
        yield BadRecord(place, f"is not {options.encoding}; set another encoding, or errors: replace")
    except OSError as error:
        if error.errno is not None:
            raise UserError(f"{part.path}: cannot read it ({error.strerror})") from None
        yield _broken(part, error)
    except (EOFError, zlib.error, lzma.LZMAError) as error:
        yield _broken(part, error)
    except Exception as error:
        if type(error).__name__ != "ZstdError":  # zstandard is optional
            raise
        yield _broken(part, error)


def _broken(part: Part, error: Exception) -> BadRecord:
    kind = Path(part.path).suffix.removeprefix(".")
    return BadRecord(part.path, f"broken {kind} ({error}); fetch or compress it again")


def _utf8_chunks(file: BinaryIO, options: ReadOptions) -> Generator[bytes, None, None]:
    """A stream in another encoding, as UTF-8. A wrong byte is UnicodeDecodeError with its place in the stream."""
    decoder = codecs.getincrementaldecoder(options.encoding)(options.errors)
    position, is_last = 0, False
    while not is_last:
        block = file.read(1 << 16)
        is_last, num_pending = not block, len(decoder.getstate()[0])
        try:
            yield decoder.decode(block, final=is_last).encode("utf-8", "replace")
        except UnicodeDecodeError as error:
            error.start += position - num_pending
            raise
        position += len(block)
