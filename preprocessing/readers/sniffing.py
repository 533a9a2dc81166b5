"""What the first bytes of a file say: that it is no text, or in which encoding or line ends it was written."""

from __future__ import annotations

import codecs
import io
import re
from collections.abc import Generator
from typing import BinaryIO, cast

from hvdlm.data.compression import LFS_POINTER, LFS_REMEDY, MAGICS, ChunkStream, read_before_break
from hvdlm.first_bytes import is_zlib

HEAD_BYTES = 1 << 16

# How files begin that are no text, what they are called, and what to do.
FOREIGN = {
    b"PK\x03\x04": "a zip archive (or an office document); unpack it",
    b"\x04\x22\x4d\x18": "lz4; unpack it, or compress it by zstd",
    b"LZIP\x01": "lzip; unpack it, or compress it by xz",
    b"\x1f\x9d": "compressed by compress (.Z); unpack it",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive; unpack it",
    b"Rar!\x1a\x07": "a rar archive; unpack it",
    b"ARROW1\0\0": "an Arrow file; set format: arrow, or name it .arrow",
    b"\xff\xff\xff\xff": "an Arrow stream (set format: arrow, or name it .arrow), or other binary data",
    b"FEA1": "Feather version 1; write it again as version 2",
    b"\x89HDF\r\n\x1a\n": "HDF5; write its text as jsonl",
    b"\x93NUMPY": "a numpy array; write its text as jsonl",
    b"SQLite format 3\0": "an SQLite database; write its text as jsonl",
    b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": "an office document; save it as text",
    b"\x7fELF": "a program (ELF)",
    b"\xff\x06\0\0sNaPpY": "compressed by snappy; unpack it, or compress it by zstd",
    b"\x89PNG\r\n": "a picture (PNG)",
    b"\xff\xd8\xff": "a picture (JPEG)",
}
# A text might begin so: only with a NUL close behind.
FOREIGN_WITH_NUL = {
    b"ORC": "an ORC table; write it as Parquet",
    b"GIF8": "a picture (GIF)",
    b"RIFF": "a sound, a picture or a film (RIFF)",
    b"OggS": "sound (Ogg)",
    b"SEQ\x06": "a Hadoop sequence file; write its text as jsonl",
}
# What is known by more than a few fixed bytes: a text may be about it, or begin with U+8004, which is a character.
PATTERNS = {
    re.compile(rb"\x80[\4\5]\x95.{4}\0{4}|\x80[\2\3](?:[]})(]+q\0|c[\w.]+\n|X..\0\0)", re.DOTALL): (
        "a pickle, which may run code; write its text as jsonl"
    ),
    re.compile(rb"PAR1[\0-\x08\x0e-\x1f]"): "Parquet; set format: parquet, or name it .parquet",
    re.compile(rb"Obj\x01"): "an Avro table; write it as Parquet",
    re.compile(LFS_POINTER + rb"\r?\n(?:ext-[^\n]*\n)*oid "): LFS_REMEDY,
    re.compile(
        rb"%PDF-\d\.\d\s*[\r\n](?:%[^\r\n]*[\r\n]+)*(?:\d+ \d+ obj\b|%[^\r\n]{0,3}[\x80-\xff]{2})"
    ): "a PDF; extract its text first",
    re.compile(rb"\{\\rtf1?\s*\\"): "RTF; save it as plain text",
    re.compile(rb"%!PS(?:-Adobe-[\d.]+[^\r\n]*)?\s*[\r\n]%%"): "PostScript; extract its text first",
}
CLOSE_BYTES = 64
MARKUP = re.compile(rb"(?:\xef\xbb\xbf)?\s*<(?:!doctype\s+html\b|html[\s>]|(?P<xml>\?xml\s))", re.I)
ASCII_SAMPLE = "The end. 0"
SURELY_UTF8_BYTES = 24  # without a blank or a line end
LONG_CHARACTER, SURELY_UTF8_CHARACTERS = re.compile(rb"[\xc2-\xf4][\x80-\xbf]+"), 16
MOST_CONTROL = 0.1  # of the bytes of a text, such as a log with colours
CONTROL = re.compile(rb"[\x01-\x08\x0b\x0e-\x1f\x7f]")
TAR, TAR_PLACE = b"ustar", 257
TAR_BYTES, TAR_SUM = 512, slice(148, 156)  # of the first header, and where its checksum is
FEWEST_ZEROS = 16  # that are no text in any encoding
ZEROS = "zeros alone by its first bytes, as of a download that was cut; fetch it again"
JSON = re.compile(rb'(?:\xef\xbb\xbf)?[\s\x1e]*(?P<array>\[?)\s*\{\s*(?:"(?:[^"\\]|\\.){0,512}"\s*:|\})', re.DOTALL)
ARCHIVE = re.compile(rb"\s*WARC/\d")
# How the formats begin that are not made of characters; html and warc by what they cannot be.
OWN_STARTS = {"parquet": re.compile(rb"PAR[1E]"), "arrow": re.compile(rb"ARROW1|\xff{4}|FEA1")}
SHOWN_BYTES = 24
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
    asked = codecs.lookup(encoding).name
    if kind := next((kind for pattern, kind in PATTERNS.items() if pattern.match(head)), None):
        return f"is no text but {kind}"
    found: str | None = "utf-8"
    if not _is_utf8(head):
        if reason := _binary(head):
            return reason
        found = _wide_encoding(head)
        if found is None and head.startswith(codecs.BOM_UTF8):
            found = "utf-8"
    is_fit = found is None or (_may_be_in(asked, head) if found == "utf-8" else _is_same_order(asked, found, head))
    return None if is_fit else f"is not {encoding} but, by its first bytes, {found}; set encoding: {found}"


def _binary(head: bytes) -> str | None:
    """What a file is that is no text in any encoding, by how it begins, and the remedy."""
    for start, suffix in MAGICS.items():
        if head.startswith(start):
            return f"is compressed twice (inside it is {suffix}); unpack it once"
    for start, kind in (FOREIGN | FOREIGN_WITH_NUL if b"\0" in head[:CLOSE_BYTES] else FOREIGN).items():
        if head.startswith(start):
            return f"is no text but {kind}"
    if _is_tar(head):
        return "is no text but a tar archive; unpack it"
    if is_zlib(head):
        return "is no text but compressed by zlib; unpack it, or compress it by gzip"
    return f"is no text but {ZEROS}" if len(head) >= FEWEST_ZEROS and not any(head) else None


def other_kind(name: str, head: bytes) -> str | None:
    """Why a file that begins so is not of a format of no characters, and the remedy; None for what may be."""
    own = OWN_STARTS.get(name)
    if not head or (own and own.match(head)):
        return None
    if head.startswith(LFS_POINTER):
        return f"is not {name} but {LFS_REMEDY}"
    kind = next((kind for pattern, kind in PATTERNS.items() if pattern.match(head)), None)
    found = f"is no text but {kind}" if kind else _binary(head)
    if found:
        return found.replace("is no text but", f"is not {name} but")
    if ARCHIVE.match(head):
        return None if name in ("warc", "wet") else f"is not {name} but WARC; set format: warc, or wet for its texts"
    if name in ("warc", "wet") and b"WARC/" in head:  # a damaged first record
        return None
    if json_ := JSON.match(head):
        return f"is not {name} but JSON; set format: {'json' if json_['array'] else 'jsonl, or json'}"
    if name == "html":
        return None
    if page := MARKUP.match(head):
        what = "XML" if page["xml"] else "an HTML page"
        return f"is not {name} but {what}, perhaps an error message; fetch it again, or set its format"
    is_text = own is not None and _is_utf8(head) and not CONTROL.search(head)
    return f"is not {name} but text ({head[:SHOWN_BYTES]!r}); fetch it again, or set its format" if is_text else None


def looks_like_utf8(head: bytes, encoding: str) -> bool:
    """Whether text to be read in another encoding has many characters of several bytes, all of them valid UTF-8."""
    is_other = codecs.lookup(encoding).name not in ("utf-8", "utf-8-sig")
    return is_other and _is_utf8(head) and len(LONG_CHARACTER.findall(head)) >= SURELY_UTF8_CHARACTERS


def markup(head: bytes) -> str | None:
    """Why a file that begins so holds no records of JSON or rows of a table, and the remedy."""
    kind = MARKUP.match(head)
    if kind is None:
        return None
    return f"is no table but {'XML' if kind['xml'] else 'an HTML page'}, perhaps an error message; fetch it again"


def _may_be_in(asked: str, head: bytes) -> bool:
    """Whether text of UTF-8 may all the same be in the encoding that was asked for.

    By a mark it is not. Without one it may be where ASCII is spelt as in UTF-8; elsewhere (UTF-16, EBCDIC) it is
    noise, unless it is so short that it may look like UTF-8 by chance, as a Chinese character of UTF-16 does.
    """
    if asked in ("utf-8", "utf-8-sig"):
        return True
    if head.startswith(codecs.BOM_UTF8):
        return False
    if ASCII_SAMPLE.encode(asked, "replace") == ASCII_SAMPLE.encode():
        return True
    return not _is_surely_utf8(head, asked)


def _is_surely_utf8(head: bytes, asked: str) -> bool:
    """Whether valid UTF-8 is so not by chance: by its length, or its blanks, which in UTF-16 are seldom upper bytes."""
    if len(head) < 4 or len(CONTROL.findall(head)) > len(head) * MOST_CONTROL:
        return False
    if len(head) >= SURELY_UTF8_BYTES or asked.startswith("utf-32"):
        return True
    blanks = [blank.start() for blank in re.finditer(rb"\s", head)]
    upper = 0 if asked.endswith("be") else 1
    return len(blanks) > 1 or any(at % 2 == upper or not asked.startswith("utf-16") for at in blanks)


def _is_tar(head: bytes) -> bool:
    """Whether this is a header of tar: by its mark, or by its checksum, as the oldest kind has no mark."""
    if head[TAR_PLACE:].startswith(TAR):
        return True
    header = head[:TAR_BYTES]
    checksum = header[TAR_SUM].strip(b" \0")
    if len(header) < TAR_BYTES or not re.fullmatch(rb"[0-7]{1,7}", checksum):
        return False
    return int(checksum, 8) == sum(header) - sum(header[TAR_SUM]) + (TAR_SUM.stop - TAR_SUM.start) * ord(" ")


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
