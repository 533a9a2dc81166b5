"""Files that are something else than their names say, told by their first bytes; and ids that are hardly a text's."""

from __future__ import annotations

import codecs
import logging
import re
from pathlib import Path

import numpy as np

from hvdlm.data.bridges.interface import TokenSplit
from hvdlm.data.bridges.number_types import FEWEST_NUMBERS, refuse_surely_other
from hvdlm.errors import UserError
from hvdlm.first_bytes import is_zlib

log = logging.getLogger("hvdlm")

HEAD_BYTES = 1 << 16
FEWEST_CHARS = 16  # that show that they are text
LAST_VERSION = 99
HEADER_BYTES, USED_BYTES = 1024, 64  # of headers as llm.c has them: 256 int32, the rest of which is empty

UNPACK, BARE = "unpack it", "write its ids alone (array.tofile)"
TABLE = f"preprocess it, or {BARE}"
LFS = "fetch the file itself (git lfs pull)"
# How files begin that hold neither bare ids nor lines: what they are, and what to do where ids were expected.
FOREIGN = {
    rb"\x93NUMPY": ("an array saved by numpy.save", "write its ids alone (numpy.load(...).tofile)"),
    rb"\x89HDF\r\n\x1a\n": ("HDF5", BARE),
    rb"PAR1": ("Parquet", TABLE),
    rb"ARROW1\0\0": ("an Arrow file", TABLE),
    rb"\xff{4}.{3}\0\x10\0\0\0": ("an Arrow stream", TABLE),
    rb"\x80\x02\x8a\x0a\x6c\xfc\x9c": ("saved by torch.save", "write its ids alone (tensor.numpy().tofile)"),
    rb"\x80[\x04\x05]\x95.{4}\0{4}": ("a pickle", BARE),
    rb"PK\x03\x04": ("a zip archive, or saved by torch.save or numpy.savez", BARE),
    rb".{6}\0\0\{\"": ("safetensors", BARE),
    rb"GGUF": ("a model (GGUF)", "give the file of ids"),
    rb"MMIDIDX\0": ("an index of Megatron", "name it .idx, beside its .bin"),
    rb"\x1f\x8b\x08[\0-\x1f]": ("compressed by gzip", UNPACK),
    rb"\x28\xb5\x2f\xfd": ("compressed by zstd", UNPACK),
    rb"\xfd7zXZ\0": ("compressed by xz", UNPACK),
    rb"\x5d\0\0.{2}\xff{8}": ("compressed by lzma", UNPACK),
    rb"BZh[1-9]1AY&SY": ("compressed by bzip2", UNPACK),
    rb"\x04\x22\x4d\x18": ("compressed by lz4", UNPACK),
    rb"7z\xbc\xaf\x27\x1c": ("a 7z archive", UNPACK),
    rb".{257}ustar": ("a tar archive", UNPACK),
    rb"SQLite format 3\0": ("an SQLite database", BARE),
    rb"version https://git-lfs": ("a pointer of Git LFS", LFS),
}
# The same for texts that are no lines of JSON.
NO_LINES = {
    rb"\0+\Z": ("nothing but zeros", "copy it again"),
    rb"\xff\xfe|\xfe\xff|[{\[]\0|\0+[{\[]": ("UTF-16 or UTF-32", "save it as UTF-8"),
    rb"\s*<(?i:!doctype|html|\?xml)": ("a web page or XML", "download the file itself"),
}
WEB_PAGE = re.compile(rb"\s*<(?i:!doctype\s+html|html[\s>])")


def refuse_foreign(path: Path, vocab_size: int) -> None:
    """UserError for a file that is, beyond reasonable doubt, no bare little-endian ids."""
    head = _head(path)
    if known := _known(head):
        raise UserError(f"{path}: is {known[0]}, not bare ids; {known[1]}")
    if len(head) >= FEWEST_CHARS and _is_text(head):
        is_page = WEB_PAGE.match(head)
        remedy = "download the file itself" if is_page else "preprocess it, or name it .jsonl if that is what it is"
        raise UserError(f"{path}: is text, not bare ids; {remedy}")
    if (magic := _magic_of_header(head, path.stat().st_size)) is not None:
        raise UserError(
            f"{path}: begins with a header that is not known (its first number is {magic}); write its ids alone"
        )
    refuse_surely_other(path, vocab_size)


def _magic_of_header(head: bytes, size: int) -> int | None:
    """The first number of a header such as llm.c's: magic, version, number of ids; None for what may be padded text."""
    if len(head) < HEADER_BYTES or not any(head[:USED_BYTES]) or any(head[USED_BYTES:HEADER_BYTES]):
        return None
    magic, version, num_ids = np.frombuffer(head, "<i4", 3).tolist()
    has_count = num_ids in {(size - HEADER_BYTES) // width for width in (1, 2, 4, 8)}
    return magic if has_count or 0 < version <= LAST_VERSION else None


def refuse_no_lines(path: Path) -> None:
    """UserError for a file that is, by its first bytes, something else than lines of JSON in UTF-8."""
    head = _head(path)
    for start, (kind, remedy) in NO_LINES.items():
        if re.match(start, head):
            raise UserError(f"{path}: is {kind}, not lines of JSON; {remedy}")
    if known := _known(head):
        kind, remedy = known
        if remedy not in (UNPACK, LFS):
            remedy = "preprocess it" if remedy == TABLE else "write its texts as JSON lines"
        raise UserError(f"{path}: is {kind}, not lines of JSON; {remedy}")


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(HEAD_BYTES)


def _known(head: bytes) -> tuple[str, str] | None:
    """What a file is that begins so, and the remedy, if that is known."""
    found = next((known for start, known in FOREIGN.items() if re.match(start, head, re.DOTALL)), None)
    return ("compressed by zlib", UNPACK) if found is None and is_zlib(head) else found


def _is_text(head: bytes) -> bool:
    """Whether these are characters of UTF-8 (the last may be cut), none of them a control character."""
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return False
    return not re.search("[\0-\x08\x0e-\x1f\x7f]", text)


def remark_ids(split: TokenSplit, eos_id: int) -> None:
    """Tell of ids that are in the vocabulary, but hardly a text's."""
    if not split.num_tokens:
        log.warning("%s: is empty", split.file)
        return
    smallest, largest, num_ends, total, swapped_total, swapped_largest = split.vocab_size, 0, 0, 0, 0, 0
    for piece in split.pieces():
        smallest, largest = min(smallest, int(piece.min())), max(largest, int(piece.max()))
        num_ends += int(np.count_nonzero(piece == eos_id))
        swapped = piece.view(f"u{piece.itemsize}").byteswap()
        total, swapped_total = total + int(piece.sum(dtype=np.int64)), swapped_total + int(swapped.sum(dtype=np.int64))
        swapped_largest = max(swapped_largest, int(swapped.max()))
    if split.num_tokens < FEWEST_NUMBERS:
        return
    if smallest == largest:
        log.warning("%s: all its %d tokens are id %d; was it copied whole?", split.file, split.num_tokens, smallest)
    elif 2 * num_ends > split.num_tokens:
        log.warning(
            "%s: %d of its %d tokens are the end-of-text id %d; is it this tokenizer's, and of ids?",
            *(split.file, num_ends, split.num_tokens, eos_id),
        )
    elif swapped_largest < split.vocab_size and 2 * swapped_total < total:
        log.warning("%s: its ids are smaller the other way round; is it big-endian?", split.file)
