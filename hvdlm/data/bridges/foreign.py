"""Files that are no bare little-endian ids: told by their first bytes, or by numbers that are hardly ids."""

from __future__ import annotations

import codecs
import logging
import re
from pathlib import Path

import numpy as np

from hvdlm.data.bridges.interface import PIECE_TOKENS, TokenSplit
from hvdlm.errors import UserError

log = logging.getLogger("hvdlm")

HEAD_BYTES = 1 << 16
FEWEST_NUMBERS = 16  # that show of which type they are
FEWEST_CHARS = 16  # that show that they are text
HEADER_BYTES, USED_BYTES = 1024, 64  # of headers as llm.c has them: 256 int32, the rest of which is empty

UNPACK = "unpack it"
# How files begin that hold no bare ids: what they are, and what to do.
FOREIGN = {
    rb"\x93NUMPY": ("an array saved by numpy.save", "write its ids alone (numpy.load(...).tofile)"),
    rb"\x89HDF\r\n\x1a\n": ("HDF5", "write its ids alone (array.tofile)"),
    rb"PAR1": ("Parquet", "preprocess it, or write its ids alone (array.tofile)"),
    rb"ARROW1": ("an Arrow file", "preprocess it, or write its ids alone (array.tofile)"),
    rb"\x80\x02\x8a\x0a\x6c\xfc\x9c": ("saved by torch.save", "write its ids alone (tensor.numpy().tofile)"),
    rb"\x80[\x04\x05]\x95.{4}\0{4}": ("a pickle", "write its ids alone (array.tofile)"),
    rb"PK\x03\x04": ("a zip archive, or saved by torch.save or numpy.savez", "write its ids alone (array.tofile)"),
    rb".{6}\0\0\{\"": ("safetensors", "write its ids alone (array.tofile)"),
    rb"GGUF": ("a model (GGUF)", "give the file of ids"),
    rb"MMIDIDX\0": ("an index of Megatron", "name it .idx, beside its .bin"),
    rb"\x1f\x8b\x08[\0-\x1f]": ("compressed by gzip", UNPACK),
    rb"\x28\xb5\x2f\xfd": ("compressed by zstd", UNPACK),
    rb"\xfd7zXZ\0": ("compressed by xz", UNPACK),
    rb"BZh[1-9]1AY&SY": ("compressed by bzip2", UNPACK),
    rb"\x04\x22\x4d\x18": ("compressed by lz4", UNPACK),
    rb"7z\xbc\xaf\x27\x1c": ("a 7z archive", UNPACK),
    rb".{257}ustar": ("a tar archive", UNPACK),
    rb"SQLite format 3\0": ("an SQLite database", "write its ids alone (array.tofile)"),
    rb"version https://git-lfs": ("a pointer of Git LFS", "fetch the file itself (git lfs pull)"),
}


def refuse_foreign(path: Path, vocab_size: int) -> None:
    """UserError for a file that is, beyond reasonable doubt, no bare little-endian ids."""
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    for start, (kind, remedy) in FOREIGN.items():
        if re.match(start, head, re.DOTALL):
            raise UserError(f"{path}: is {kind}, not bare ids; {remedy}")
    if len(head) >= FEWEST_CHARS and _is_text(head):
        raise UserError(f"{path}: is text, not bare ids; preprocess it, or name it .jsonl if that is what it is")
    if len(head) >= HEADER_BYTES and any(head[:USED_BYTES]) and not any(head[USED_BYTES:HEADER_BYTES]):
        magic = int(np.frombuffer(head, "<i4", 1)[0])
        raise UserError(
            f"{path}: begins with a header that is not known (its first number is {magic}); write its ids alone"
        )
    if numbers := _other_numbers(path, vocab_size):
        raise UserError(f"{path}: its numbers are {numbers}, not little-endian ids; write them as uint16 or uint32")


def _is_text(head: bytes) -> bool:
    """Whether these are characters of UTF-8 (the last may be cut), none of them a control character."""
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return False
    return not re.search("[\0-\x08\x0e-\x1f\x7f]", text)


def _other_numbers(path: Path, vocab_size: int) -> str | None:
    """Of which other type all numbers are ids; two types at once are hardly met by chance."""
    for dtype in (">u4", ">i8", "<f2", "<f4", "<f8"):
        kind = np.dtype(dtype)
        if path.stat().st_size % kind.itemsize or path.stat().st_size < FEWEST_NUMBERS * kind.itemsize:
            continue
        numbers = np.memmap(path, dtype=kind, mode="r")
        pieces = (numbers[first : first + PIECE_TOKENS] for first in range(0, len(numbers), PIECE_TOKENS))
        if all(_are_ids(piece, vocab_size) for piece in pieces) and 2 * np.count_nonzero(numbers) > len(numbers):
            return f"{'big-endian ' if dtype[0] == '>' else ''}{kind.name}"
    return None


def _are_ids(numbers: np.ndarray, vocab_size: int) -> bool:
    with np.errstate(invalid="ignore"):  # of bytes that are no numbers
        return bool(((numbers >= 0) & (numbers < vocab_size) & (numbers == np.floor(numbers))).all())


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
