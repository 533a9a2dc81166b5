"""Numbers of a file that are no little-endian ids: of which other type all of them are ids."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from hvdlm.data.bridges.interface import PIECE_TOKENS
from hvdlm.errors import UserError

BFLOAT16 = "bfloat16"
# Types by the names that messages have for them. Numbers that are all ids as one of SURE_TYPES are of it, as ids of
# another type hardly ever are so by chance; as one of DOUBTFUL_TYPES they may well be.
SURE_TYPES = {
    "big-endian uint32": ">u4",
    "big-endian int64": ">i8",
    "float16": "<f2",
    "float32": "<f4",
    "float64": "<f8",
    "big-endian float32": ">f4",
    "big-endian float64": ">f8",
    BFLOAT16: "<u2",  # numpy has none
}
DOUBTFUL_TYPES = {"big-endian uint16": ">u2", "uint8": "u1"}
WITH_MARKS = {"int64": "<i8", "int32": "<i4", "int16": "<i2"}  # the wider first, since -1 is two of the narrower
KINDS = {name: np.dtype(kind) for name, kind in (SURE_TYPES | DOUBTFUL_TYPES | WITH_MARKS).items()}
FEWEST_NUMBERS = 16  # that show of which type they are
LIKELIHOOD = 1e-6  # of a chance, at which it is no more taken for one
LEAST_MARK = -100  # of numbers in the place of ids that stand for targets which do not count
LARGEST_IDS = 1 << 24  # of any vocabulary; two uint16 in a row are mostly a larger number
AS_IDS = "write them as uint16 or uint32"


def refuse_surely_other(path: Path, vocab_size: int) -> None:
    """UserError for a file whose numbers are all ids as a type as which they would not be so by chance."""
    for kind in SURE_TYPES:
        if path.stat().st_size >= FEWEST_NUMBERS * KINDS[kind].itemsize and _holds(path, kind, vocab_size):
            raise UserError(f"{path}: its numbers are {kind}, not little-endian ids; {AS_IDS}")


def refuse_other(path: Path, vocab_size: int) -> None:
    """For a file some of whose little-endian numbers are no ids: UserError if they are all ids, or marks, otherwise."""
    for kind in WITH_MARKS:
        if (place := _place_of_mark(path, kind, vocab_size)) is not None:
            raise UserError(
                f"{path}: its numbers are {kind}, and number {place} is below 0, as marks of targets that do not count "
                "are (-100); write the ids themselves"
            )
    for kind in DOUBTFUL_TYPES:
        share = vocab_size / 256 ** KINDS[kind].itemsize  # of all numbers that are ids
        num = path.stat().st_size // KINDS[kind].itemsize
        if share < 1 and num * math.log(share) < math.log(LIKELIHOOD) and _holds(path, kind, vocab_size):
            raise UserError(f"{path}: its numbers are {kind}, not little-endian ids; {AS_IDS}")
    if vocab_size > 1 << 16 and not path.stat().st_size % 2 and _are_larger_than_ids(path):
        raise UserError(
            f"{path}: its numbers are no ids as uint32, which {vocab_size} ids take; if they are uint16, a smaller "
            "vocabulary made this file: give its tokenizer.json, or write them as uint32"
        )


def _pieces(path: Path, kind: str) -> Iterator[np.ndarray]:
    """The numbers of a file as those of a type; none where it has no whole number of them."""
    if path.stat().st_size % KINDS[kind].itemsize:
        return
    numbers = np.memmap(path, dtype=KINDS[kind], mode="r")
    for first in range(0, len(numbers), PIECE_TOKENS):
        piece = numbers[first : first + PIECE_TOKENS]
        yield (piece.astype("<u4") << 16).view("<f4") if kind == BFLOAT16 else piece


def _holds(path: Path, kind: str, vocab_size: int) -> bool:
    """Whether all numbers of this type are ids, and most of them not 0."""
    num = num_nonzero = 0
    for piece in _pieces(path, kind):
        if not _are_ids(piece, vocab_size):
            return False
        num, num_nonzero = num + len(piece), num_nonzero + int(np.count_nonzero(piece))
    return 2 * num_nonzero > num


def _are_ids(numbers: np.ndarray, vocab_size: int) -> bool:
    with np.errstate(invalid="ignore", over="ignore"):  # of bytes that are no numbers, of ids that float16 has not
        return bool(((numbers >= 0) & (numbers < vocab_size) & (numbers == np.floor(numbers))).all())


def _place_of_mark(path: Path, kind: str, vocab_size: int) -> int | None:
    """Number of the first mark, if all numbers of this type are ids or marks, and more are ids."""
    place, num, num_marks = None, 0, 0
    for piece in _pieces(path, kind):
        if int(piece.max()) >= vocab_size or int(piece.min()) < LEAST_MARK:
            return None
        marks = np.flatnonzero(piece < 0)
        if place is None and len(marks):
            place = num + int(marks[0])
        num, num_marks = num + len(piece), num_marks + len(marks)
    return place if 2 * num_marks < num else None


def _are_larger_than_ids(path: Path) -> bool:
    """Whether any pair of uint16 is, as uint32, larger than ids ever are."""
    halves = _pieces(path, "int16")
    return any(bool((piece.view("<u2")[1::2] >= LARGEST_IDS >> 16).any()) for piece in halves)
