"""What a fault in a compressed stream has spoilt: whether content is missing, and how much before it is wrong.

Each `*_is_all_given` tells whether all content of the stream stands before the fault, where that can be known.
"""

from __future__ import annotations

import bz2
import contextlib
import io
import zlib
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

# How compressed files are read, by preprocessing/compression.py too.
BLOCK_BYTES = 2048  # read at once: a break loses what one block expands to; 4 bytes of zstd can stand for 128 KiB
PIECE_BYTES = 1 << 16  # expanded at once, where the library can be told
MAX_BZ2_BLOCK_BYTES = 900_000 // 5 * 259  # of runs: 4 equal bytes and their further number, up to 255, stand for 259
GZ_CHECKS, GZ_TRAILER_BYTES = ("incorrect data check", "incorrect length check"), 8  # zlib's words
BZ2_TRAILER_START, BZ2_TRAILER_BYTES = 0x177245385090, 10
ZSTD_CHECK, ZSTD_TRAILER_BYTES = "checksum", 4
XZ_HEADER_BYTES, XZ_FOOTER_BYTES = 12, 12
XZ_CHECK_BYTES = (0, 4, 4, 4, 8, 8, 8, 16, 16, 16, 32, 32, 32, 64, 64, 64)  # by the number of their kind
MAX_XZ_CHUNK_BYTES = 2 << 20  # of content
MOST_XZ_INDEX_BYTES = 1 << 20  # that are looked for


class HeldBack:
    """The last bytes of a stream, so many that a fault that is found behind them may have spoilt them."""

    def __init__(self, num_bytes: int) -> None:
        self._num_bytes, self._pieces, self._num_held = num_bytes, deque[bytes](), 0

    def behind(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        """The pieces that are held no longer, as these come in."""
        for piece in pieces:
            self._pieces.append(piece)
            self._num_held += len(piece)
            while self._pieces and self._num_held - len(self._pieces[0]) >= self._num_bytes:
                self._num_held -= len(self._pieces[0])
                yield self._pieces.popleft()

    def rest(self) -> Iterator[bytes]:
        """All that is held, at the end of the stream."""
        self._num_held = 0
        while self._pieces:
            yield self._pieces.popleft()


def sound_bz2_pieces(decoder: Any, block: bytes, _size: int) -> Iterator[bytes]:
    """What is held back is of a block whose checksum was not compared yet: libbz2 gives a block out before.

    It has done so when it has nothing more to give, or when it is further than the largest block behind a byte.
    """
    held = HeldBack(MAX_BZ2_BLOCK_BYTES)
    yield from held.behind(_drained(decoder, block))
    yield from held.rest()


def _drained(decoder: Any, block: bytes) -> Iterator[bytes]:
    piece = decoder.decompress(block, PIECE_BYTES)
    while piece or not (decoder.eof or decoder.needs_input):
        yield piece
        piece = b"" if decoder.eof else decoder.decompress(b"", PIECE_BYTES)


@dataclass(frozen=True)
class Fault:
    """Where the stream from byte `start` of a file on breaks: at byte `place`, behind `num_given` bytes of content."""

    path: str
    start: int
    place: int
    num_given: int
    why: str = ""  # a library's words; none where the file ends inside the stream
    decoder: Any = None  # of a stream that the file ends in

    def num_behind(self) -> int:
        """Bytes of the file behind the place."""
        return Path(self.path).stat().st_size - self.place - 1


def gz_is_all_given(fault: Fault) -> bool:
    """Where a checksum or length is missing or wrong, and no other member follows."""
    if fault.why:
        is_trailer = fault.why.endswith(GZ_CHECKS) and fault.num_behind() < GZ_TRAILER_BYTES
        return is_trailer and (
            fault.why.endswith(GZ_CHECKS[1]) or _gz_length(fault.path) == fault.num_given % (1 << 32)
        )
    # No code of deflate can be complete by zeros and by ones alike: these are read as a checksum, or give a byte.
    return all(_is_wrong_trailer(fault.decoder.copy(), byte) for byte in (b"\0", b"\xff"))


def _gz_length(path: str) -> int:
    """What the last bytes of a file say of its content: where the checksum is wrong too, some may be missing."""
    with Path(path).open("rb") as file:
        file.seek(-4, io.SEEK_END)
        return int.from_bytes(file.read(4), "little")


def _is_wrong_trailer(decoder: Any, byte: bytes) -> bool:
    try:
        for _ in range(GZ_TRAILER_BYTES):
            if decoder.decompress(byte):
                return False
    except zlib.error as error:
        return str(error).endswith(GZ_CHECKS)
    return bool(decoder.eof)


def bz2_is_all_given(fault: Fault) -> bool:
    """Where a block has ended so close before that no other one has room, or that what follows is the trailer's."""
    if fault.why and fault.num_behind() >= BZ2_TRAILER_BYTES:
        return False
    decoder, near = bz2.BZ2Decompressor(), max(fault.start, fault.place - BZ2_TRAILER_BYTES)
    num_given = 0  # by the last bytes
    with Path(fault.path).open("rb") as file:
        file.seek(fault.start)
        while size := min(BLOCK_BYTES, near - file.tell()):
            deque(sound_bz2_pieces(decoder, file.read(size), PIECE_BYTES), maxlen=0)
        with contextlib.suppress(OSError):
            while byte := file.read(1):
                num_given += sum(map(len, sound_bz2_pieces(decoder, byte, PIECE_BYTES)))
        file.seek(near)
        bits = int.from_bytes(file.read(), "big")
    is_trailer = bool(fault.why)  # as no block has room
    return num_given > 0 and (is_trailer or any(bits >> n & (1 << 48) - 1 == BZ2_TRAILER_START for n in range(32)))


def zstd_is_all_given(fault: Fault) -> bool:
    """Where a checksum is missing or wrong, and no other frame follows."""
    if fault.why:
        return ZSTD_CHECK in fault.why and fault.num_behind() < ZSTD_TRAILER_BYTES
    try:  # zeros are a wrong checksum, or else a block that gives something or is empty
        for _ in range(ZSTD_TRAILER_BYTES):
            if fault.decoder.eof or fault.decoder.decompress(b"\0"):
                return False
    except Exception as error:
        return ZSTD_CHECK in str(error)
    return bool(fault.decoder.eof)


def xz_is_all_given(fault: Fault) -> bool:
    """By the index behind the blocks: it tells how long they are, so where it is itself."""
    with Path(fault.path).open("rb") as file:
        file.seek(fault.start)
        size = file.seek(0, io.SEEK_END) - fault.start
        first = max(XZ_HEADER_BYTES, size - MOST_XZ_INDEX_BYTES & ~3)
        file.seek(fault.start + first)
        tail = memoryview(file.read())  # of which no slice is a copy: there may be many zeros
    for at in range(first, size, 4):
        found = _xz_index(tail[at - first :], at) if not tail[at - first] else None
        if found is not None:
            num_content, num_index = found
            return num_content == fault.num_given and not any(tail[at - first + num_index + XZ_FOOTER_BYTES :])
    return False


def _xz_index(data: memoryview, place: int) -> tuple[int, int] | None:
    """Bytes of content by the index that stands so far behind the start of its stream, and its own; None if it is none.

    https://tukaani.org/xz/xz-file-format.txt, section 4.
    """
    numbers: list[int] = []
    at = 1
    while len(numbers) < 1 or len(numbers) < 1 + 2 * numbers[0]:
        end = at
        while data[end : end + 1] and data[end] & 0x80:
            end += 1
        if end >= len(data) or end - at > 8:
            return None
        numbers.append(sum((byte & 0x7F) << 7 * n for n, byte in enumerate(data[at : end + 1])))
        at = end + 1
    if XZ_HEADER_BYTES + sum(number + 3 & ~3 for number in numbers[1::2]) != place:
        return None
    return sum(numbers[2::2]), (at + 3 & ~3) + 4


def whole_xz_chunks(file: BinaryIO, start: int, place: int) -> int:
    """Bytes of content in the chunks of LZMA2 that end before a place, in the stream from byte `start` on.

    A chunk is short (64 KiB, of 2 MiB of content), and a wrong one is found at its end at the latest, but for stored
    ones. Their sizes stand before them: https://tukaani.org/xz/xz-file-format.txt, section 3, and liblzma.
    """

    def number(at: int, size: int) -> int:
        file.seek(at)
        return int.from_bytes(file.read(size), "big") if at + size <= place else 0

    num_check = XZ_CHECK_BYTES[number(start + 7, 1) & 15]
    at, num_content = start + XZ_HEADER_BYTES, 0
    while at < place and (size := number(at, 1)):  # else the index
        at += 4 * (size + 1)
        while control := number(at, 1):
            is_stored = control < 0x80
            high = 0 if is_stored else (control & 0x1F) << 16
            num_bytes = high + number(at + 1, 2) + 1
            at += 3 + num_bytes if is_stored else (6 if control >= 0xC0 else 5) + number(at + 3, 2) + 1
            if at >= place:
                return num_content
            num_content += num_bytes
        at += 1
        at += -(at - start) % 4 + num_check
    return num_content
