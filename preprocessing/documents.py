"""Files to documents. Each format is one generator over a byte range of a file; FORMATS names them.

A document belongs to the range in which it starts, so ranges can be given to different ranks.
"""

from __future__ import annotations

import glob
import gzip
import itertools
import json
import sysconfig
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

from hvdlm.errors import UserError

FormatName = Literal["auto", "txt", "paragraphs", "jsonl"]
ErrorPolicy = Literal["strict", "replace"]

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


@dataclass(frozen=True)
class ReadOptions:
    """How files become documents."""

    format: FormatName
    text_key: str
    errors: ErrorPolicy


def find_files(sources: list[str]) -> list[tuple[str, int]]:
    """(path, size in bytes) of every input file, sorted by path within a source, each file once.

    A source is a file, a folder (all files below it), a glob, or the name of a built-in corpus.
    """
    found: dict[str, int] = {}
    for source in sources:
        paths = _expand(source)
        if not paths:
            raise UserError(f"input {source!r}: no such file, folder or match")
        for path in paths:
            found.setdefault(path, Path(path).stat().st_size)
    return list(found.items())


def _expand(source: str) -> list[str]:
    if source in BUILTIN_CORPORA and not Path(source).exists():
        pattern, excluded = BUILTIN_CORPORA[source]
        root = Path(sysconfig.get_path("stdlib"))
        return sorted(
            str(p) for p in root.glob(pattern) if p.is_file() and not set(p.relative_to(root).parts) & set(excluded)
        )
    if Path(source).is_dir():
        folder = Path(source)
        files = (path for path in folder.rglob("*") if path.is_file())
        return sorted(str(path) for path in files if not _is_hidden(path.relative_to(folder)))
    if Path(source).is_file():
        return [source]
    return sorted(p for p in glob.glob(source, recursive=True) if Path(p).is_file())  # noqa: PTH207 - any pattern


def _is_hidden(path: Path) -> bool:
    """Whether a file or a folder above it begins with a dot, such as .git."""
    return any(part.startswith(".") for part in path.parts)


def format_of(path: str, asked: FormatName) -> str:
    """The format of a file: as asked, else by its suffix before `.gz`."""
    if asked != "auto":
        return asked
    suffix = Path(path.removesuffix(".gz")).suffix
    if suffix not in SUFFIXES:
        raise UserError(
            f"{path}: cannot tell its format from {suffix or 'no suffix'!r}; set format: {' or '.join(FORMATS)}"
        )
    return SUFFIXES[suffix]


def can_split(path: str, asked: FormatName) -> bool:
    """Whether byte ranges of this file can be read apart."""
    return not path.endswith(".gz") and format_of(path, asked) in SPLITTABLE


def read_documents(part: Part, options: ReadOptions) -> Iterator[str]:
    """The documents that start in a part, in file order; UserError names file and place of a fault."""
    opener: Callable[[str, Any], Any] = gzip.open if part.path.endswith(".gz") else open
    try:
        with opener(part.path, "rb") as file:
            yield from FORMATS[format_of(part.path, options.format)](file, part, options)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{part.path}: broken gzip ({error}); fetch or compress it again") from None
    except OSError as error:
        raise UserError(f"{part.path}: cannot read it ({error.strerror or error})") from None


def _whole_file(file: BinaryIO, part: Part, options: ReadOptions) -> Iterator[str]:
    yield _decode(file.read(), options, part.path, 0)


def _paragraphs(file: BinaryIO, part: Part, options: ReadOptions) -> Iterator[str]:
    lines: list[bytes] = []
    start = position = 0
    for line in itertools.chain(file, [b"\n"]):
        if line.strip():
            lines.append(line)
        elif lines:
            yield _decode(b"".join(lines), options, part.path, start)
            lines = []
        position += len(line)
        if not lines:
            start = position


def _json_lines(file: BinaryIO, part: Part, options: ReadOptions) -> Iterator[str]:
    position = part.start
    if part.start:
        file.seek(part.start - 1)
        position += len(file.readline()) - 1  # the line under way belongs to the range before
    while part.stop is None or position < part.stop:
        line = file.readline()
        if not line:
            return
        if line.strip():
            yield _text_of(line, part, position, options)
        position += len(line)


def _text_of(line: bytes, part: Part, position: int, options: ReadOptions) -> str:
    try:
        record = json.loads(_decode(line, options, part.path, position))
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{_line_of(part.path, position)}: not valid JSON ({error})") from None
    if not isinstance(record, dict) or options.text_key not in record:
        keys = ", ".join(sorted(map(str, record))) if isinstance(record, dict) else type(record).__name__
        raise UserError(f"{_line_of(part.path, position)}: no key {options.text_key!r} (it has: {keys}); set text_key")
    text = record[options.text_key]
    if not isinstance(text, str):
        raise UserError(f"{_line_of(part.path, position)}: {options.text_key!r} is {type(text).__name__}, not text")
    # JSON can spell half of a surrogate pair, which is no character and has no UTF-8.
    return text.encode("utf-8", "replace").decode() if any("\ud800" <= c <= "\udfff" for c in text) else text


def _decode(data: bytes, options: ReadOptions, path: str, position: int) -> str:
    try:
        return data.decode("utf-8", errors=options.errors)
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: byte {position + error.start} is not UTF-8; convert the file, or set errors: replace"
        ) from None


def _line_of(path: str, position: int) -> str:
    """`PATH:LINE` of an uncompressed byte position; counted only when something is wrong there."""
    opener: Callable[[str, Any], Any] = gzip.open if path.endswith(".gz") else open
    with opener(path, "rb") as file:
        return f"{path}:{file.read(position).count(10) + 1}"


FORMATS: dict[str, Callable[[BinaryIO, Part, ReadOptions], Iterator[str]]] = {
    "txt": _whole_file,  # a document a file
    "paragraphs": _paragraphs,  # a document a block between blank lines
    "jsonl": _json_lines,  # a document a line
}
SUFFIXES = {".txt": "txt", ".jsonl": "jsonl"}
SPLITTABLE = {"jsonl"}
