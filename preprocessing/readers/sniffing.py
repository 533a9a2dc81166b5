"""What the first bytes of a file say: that it is no text, or in which encoding or line ends it was written."""

from __future__ import annotations

import codecs
import io
from collections.abc import Generator
from typing import BinaryIO, cast

from ..compression import MAGICS, ChunkStream, read_before_break

HEAD_BYTES = 1 << 16

# How files begin that are no text, what they are called, and what to do.
FOREIGN = {
    b"PK\x03\x04": "a zip archive (or an office document); unpack it",
    b"\x04\x22\x4d\x18": "lz4; unpack it, or compress it by zstd",
    b"LZIP\x01": "lzip; unpack it, or compress it by xz",
    b"\x1f\x9d": "compressed by compress (.Z); unpack it",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive; unpack it",
    b"Rar!\x1a\x07": "a rar archive; unpack it",
    b"PAR1": "Parquet; set format: parquet, or name it .parquet",
    b"ARROW1\0\0": "an Arrow file; set format: arrow, or name it .arrow",
    b"\xff\xff\xff\xff": "an Arrow stream, or other binary data; write it as Parquet",
    b"\x89HDF\r\n\x1a\n": "HDF5; write its text as jsonl",
    b"\x93NUMPY": "a numpy array; write its text as jsonl",
    b"SQLite format 3\0": "an SQLite database; write its text as jsonl",
    b"%PDF-": "a PDF; extract its text first",
    b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": "an office document; save it as text",
    b"\x89PNG\r\n": "a picture (PNG)",
    b"\xff\xd8\xff": "a picture (JPEG)",
}
TAR, TAR_PLACE = b"ustar", 257
BOMS = {  # the longer first: UTF-32's begins like UTF-16's
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def head_of(file: BinaryIO) -> bytes:
    """The first bytes of a file just opened, which stay to be read."""
    if not file.seekable():
        return cast(io.BufferedReader, file).peek(HEAD_BYTES)[:HEAD_BYTES]
    head = file.read(HEAD_BYTES)
    file.seek(0)
    return head


def foreign(head: bytes, encoding: str) -> str | None:
    """Why a file that begins so is no text in this encoding, and the remedy; None for what may be text."""
    if _is_utf8(head):
        return None
    for start, suffix in MAGICS.items():
        if head.startswith(start):
            return f"is compressed twice (inside it is {suffix}); unpack it once"
    for start, kind in FOREIGN.items():
        if head.startswith(start):
            return f"is no text but {kind}"
    if head[TAR_PLACE:].startswith(TAR):
        return "is no text but a tar archive; unpack it"
    wide, asked = _wide_encoding(head), codecs.lookup(encoding).name
    if wide is None or _is_same_order(asked, wide, head):
        return None
    return f"is not {encoding} but, by its first bytes, {wide}; set encoding: {wide}"


def _is_same_order(asked: str, wide: str, head: bytes) -> bool:
    """Whether what is asked for reads a file that is `wide`: with a mark by any name of the kind that fits it."""
    if asked == wide:
        return True
    mark = next((mark for mark in BOMS if head.startswith(mark)), None)
    is_fit = mark is not None and BOMS[mark] == wide
    return is_fit and asked.startswith(wide) and "\ufeff".encode(asked) == mark


def _is_utf8(head: bytes) -> bool:
    """Whether this is text beyond doubt: characters of UTF-8 (the last may be cut), and no NUL among them."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return False
    return b"\0" not in head


def _wide_encoding(head: bytes) -> str | None:
    """UTF-16 or UTF-32, by a byte order mark, or by where the NUL bytes of Western text lie."""
    if b"\0" not in head and not head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return None
    for bom, name in BOMS.items():
        if head.startswith(bom) and not _is_utf8(head[len(bom) :]):
            return name
    shares = [head[n::4].count(0) / max(1, len(head[n::4])) for n in range(4)]
    zeros = "".join("0" if share > 0.9 else "x" if share < 0.1 else "?" for share in shares)
    patterns = {"x000": "utf-32-le", "000x": "utf-32-be", "x0x0": "utf-16-le", "0x0x": "utf-16-be"}
    return patterns.get(zeros) if len(head) >= 8 else None


def has_old_line_ends(head: bytes) -> bool:
    r"""Whether a file that begins so ends its lines by \r alone, as before Mac OS X."""
    return b"\r" in head[:-1] and b"\n" not in head


def with_new_line_ends(file: BinaryIO) -> BinaryIO:
    r"""A file with \n for each \r, up to the first \n that it has itself."""
    return cast(BinaryIO, io.BufferedReader(ChunkStream(_new_line_ends(file))))


def _new_line_ends(file: BinaryIO) -> Generator[bytes, None, None]:
    is_old = True
    while True:
        block, broken = read_before_break(file, HEAD_BYTES)
        if is_old:
            first = block.find(b"\n")
            is_old = first < 0
            stop = len(block) if is_old else first - (block[first - 1 : first] == b"\r")
            block = block[:stop].replace(b"\r", b"\n") + block[stop:]
        yield block
        if broken:
            raise broken
        if not block:
            return
