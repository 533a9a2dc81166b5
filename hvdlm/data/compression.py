"""Compressed files as streams: what a file is follows from its first bytes, then from its name.

The readers of Python's own modules are not used: they take what follows a stream for the end of the file
(bz2, lzma), or lose what was sound before a break (gzip).
"""

from __future__ import annotations

import bz2
import io
import lzma
import zlib
from collections import deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from hvdlm.data.stream_faults import (
    BLOCK_BYTES,
    MAX_XZ_CHUNK_BYTES,
    PIECE_BYTES,
    Fault,
    HeldBack,
    bz2_is_all_given,
    gz_is_all_given,
    sound_bz2_pieces,
    whole_xz_chunks,
    xz_is_all_given,
    zstd_is_all_given,
)
from hvdlm.tokenizer.interface import require

LOOKED_THROUGH_BYTES = 256 << 20  # of content, in seconds, to see whether a break is the cause of other errors
SCRAP_BYTES = 8  # the shortest stream, of zstd, has 9
HEAD_BYTES = 64  # that tell what a file is
SHOWN_BYTES = 24
LFS_POINTER = b"version https://git-lfs.github.com/spec/v1"
LFS_REMEDY = "the pointer of git-LFS to its content; fetch that by git lfs pull"
ZSTD_MAX_WINDOW = 1 << 31  # of zstd --long=31: as much memory, where the content is as long


class BrokenStream(Exception):
    """A compressed file that cannot be read beyond a place; the message names the place and the remedy.

    `is_all_given`: whether all content stands before it, where a checksum or a trailer alone is wrong or missing.
    """

    def __init__(self, message: str, *, is_all_given: bool = False) -> None:
        super().__init__(message)
        self.is_all_given = is_all_given


class ChunkStream(io.RawIOBase):
    """A stream of the bytes that an iterator gives piece by piece; an empty piece is not the end.

    `starts`: where streams of a compressed file begin in its content, as far as was read; not all that were long ago.
    """

    def __init__(self, chunks: Generator[bytes, None, None], starts: deque[int] | None = None) -> None:
        self._chunks, self._ready = chunks, b""
        self.starts = deque[int]() if starts is None else starts

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


def _zlib_pieces(decoder: Any, block: bytes, size: int) -> Iterator[bytes]:
    while not decoder.eof:
        yield (piece := decoder.decompress(block, size))
        block = decoder.unconsumed_tail
        if not block and len(piece) < size:
            return


def _pieces(decoder: Any, block: bytes, size: int) -> Iterator[bytes]:
    yield decoder.decompress(block, size)
    while not decoder.eof and not decoder.needs_input:
        yield decoder.decompress(b"", size)


def _zstd_pieces(decoder: Any, block: bytes, _size: int) -> Iterator[bytes]:
    yield decoder.decompress(block)


def _zstd_decoder() -> Any:
    zstandard = require("zstandard", "reading .zst")
    return zstandard.ZstdDecompressor(max_window_size=ZSTD_MAX_WINDOW).decompressobj()


@dataclass(frozen=True)
class Compression:
    """One kind of compressed file: streams (members, frames) one behind the other."""

    decoder: Callable[[], Any]  # for one stream
    pieces: Callable[[Any, bytes, int], Iterator[bytes]]  # what a block of it expands to, in pieces of a size
    is_all_given: Callable[[Fault], bool]  # whether nothing but a checksum or a trailer is broken
    magics: tuple[bytes, ...]  # how such a file begins, and no text does
    has_padding: bool = True  # zero bytes may stand behind a stream
    num_held: int = 0  # bytes before the decoder's place that a fault found there may have spoilt
    # Bytes of content before a fault that it cannot have spoilt, by file, start of the stream and place of the fault.
    num_sound: Callable[[BinaryIO, int, int], int] | None = None
    is_checked_late: bool = True  # its checksum comes behind what may be the whole content


COMPRESSIONS = {
    ".gz": Compression(lambda: zlib.decompressobj(31), _zlib_pieces, gz_is_all_given, (b"\x1f\x8b\x08",)),
    ".bz2": Compression(
        bz2.BZ2Decompressor,
        sound_bz2_pieces,
        bz2_is_all_given,
        tuple(b"BZh%d" % n + block for n in range(1, 10) for block in (b"1AY&SY", b"\x17rE8P\x90")),
        is_checked_late=False,
    ),
    ".xz": Compression(
        lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ),
        _pieces,
        xz_is_all_given,
        (b"\xfd7zXZ\0",),
        num_held=MAX_XZ_CHUNK_BYTES,
        num_sound=whole_xz_chunks,
    ),
    ".lzma": Compression(  # of old, or of xz --format=lzma: it knows no padding
        lambda: lzma.LZMADecompressor(lzma.FORMAT_ALONE),
        _pieces,
        lambda _fault: False,  # it has no trailer that could be told
        # Its usual settings, and a dictionary of 2^n or 2^n + 2^(n - 1) bytes: UTF-16 may begin by less.
        tuple(b"\x5d" + (half << n).to_bytes(4, "little") for n in range(15, 30) for half in (2, 3)),
        has_padding=False,
    ),
    ".zst": Compression(
        _zstd_decoder,
        _zstd_pieces,
        zstd_is_all_given,
        (b"\x28\xb5\x2f\xfd", *(bytes([n]) + b"\x2a\x4d\x18" for n in range(0x50, 0x60))),  # and skippable frames
        has_padding=False,
    ),
}
MAGICS = {magic: suffix for suffix, kind in COMPRESSIONS.items() for magic in kind.magics}


def compression_of(path: str) -> str | None:
    """The suffix of COMPRESSIONS for a file, by its first bytes whatever it is called, else by its name."""
    try:
        with Path(path).open("rb") as file:
            start = file.read(max(map(len, MAGICS)))
    except OSError:  # told by who reads it
        start = b""
    named = Path(path).suffix.lower()
    found = next((suffix for magic, suffix in MAGICS.items() if start.startswith(magic)), None)
    return found or (named if named in COMPRESSIONS else None)


def is_compressed(path: str) -> bool:
    return compression_of(path) is not None


def plain_suffix(path: str) -> str:
    """The suffix in lower case, before that of a compression: `.jsonl` for `a.jsonl.gz` and `A.JSONL`."""
    is_packed = Path(path).suffix.lower() in COMPRESSIONS
    return (Path(path).with_suffix("") if is_packed else Path(path)).suffix.lower()


def open_plain(path: str) -> BinaryIO:
    """The uncompressed bytes of a file, buffered; a break in them is BrokenStream."""
    suffix = compression_of(path)
    if suffix is None:
        return Path(path).open("rb")
    starts: deque[int] = deque(maxlen=1 << 17)  # no more than a buffer holds bytes
    return cast(BinaryIO, io.BufferedReader(ChunkStream(_content(path, suffix, starts), starts), 1 << 17))


def read_before_break(file: BinaryIO, size: int) -> tuple[bytes, BrokenStream | None]:
    """Up to `size` bytes; fewer at the end, or at a break, which comes with what is sound before it.

    The `read` of a buffered file loses what it has read when a break follows.
    """
    pieces: list[bytes] = []
    try:
        while size > 0 and (piece := file.read1(size)):  # type: ignore[attr-defined]
            pieces.append(piece)
            size -= len(piece)
    except BrokenStream as error:
        return b"".join(pieces), error
    return b"".join(pieces), None


def break_of(path: str) -> BrokenStream | None:
    """The break of a compressed file, if it has one in its first LOOKED_THROUGH_BYTES of content."""
    num_bytes = 0
    try:
        if not is_compressed(path):
            return None
        with open_plain(path) as file:
            while (block := file.read(1 << 20)) and num_bytes < LOOKED_THROUGH_BYTES:
                num_bytes += len(block)
    except BrokenStream as error:
        return error
    except OSError:  # told by who reads it
        return None
    return None


class BeforeBreak:
    """A file that ends where it breaks; `end` then raises the break, when all that is sound has been used.

    `is_cut`: whether content may be missing there.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._broken: BrokenStream | None = None

    @property
    def is_cut(self) -> bool:
        return self._broken is not None and not self._broken.is_all_given

    def read(self, size: int) -> bytes:
        if self._broken:
            return b""
        data, self._broken = read_before_break(self._file, size)
        return data

    def read_some(self, size: int) -> bytes:
        """At least one byte, unless it is at the end."""
        try:
            return b"" if self._broken else self._file.read1(size)  # type: ignore[attr-defined]
        except BrokenStream as error:
            self._broken = error
            return b""

    def peek(self) -> bytes:
        """The next bytes, at least one unless it is at the end; they stay to be read."""
        try:
            return b"" if self._broken else self._file.peek()  # type: ignore[attr-defined]
        except BrokenStream as error:
            self._broken = error
            return b""

    def readline(self, size: int) -> bytes:
        """Up to a line end; nothing of a line that the break is in."""
        try:
            return b"" if self._broken else self._file.readline(size)
        except BrokenStream as error:
            self._broken = error
            return b""

    def end(self) -> None:
        if self._broken:
            raise self._broken


def _content(path: str, suffix: str, starts: deque[int]) -> Generator[bytes, None, None]:
    """What a file expands to; anything in it that is neither a stream nor padding is BrokenStream."""
    kind = COMPRESSIONS[suffix]
    decoder, num_streams, start, num_given, num_before = None, 0, 0, 0, 0  # of the stream: its start, what is before it
    held = HeldBack(kind.num_held)
    with Path(path).open("rb") as file:
        block = b""
        while block or (block := file.read(BLOCK_BYTES)):
            if decoder is None:
                block = block.lstrip(b"\0") if num_streams and kind.has_padding else block
                decoder = kind.decoder() if block else None
                start, num_before = file.tell() - len(block), num_given
                starts.append(num_given)
            place = file.tell() - len(block)
            try:
                for piece in held.behind(kind.pieces(decoder, block, PIECE_BYTES)) if block else ():
                    num_given += len(piece)
                    yield piece
            except Exception as error:
                if not _is_of_library(error):
                    raise
                rest, place = _before_fault(kind, file, start, place, num_given - num_before)
                num_given += len(rest)
                yield from (rest[at : at + PIECE_BYTES] for at in range(0, len(rest), PIECE_BYTES))
                place = place if num_given > num_before else start
                fault = Fault(path, start, place, num_given - num_before, str(error))
                raise _broken(suffix, fault, num_given) from None
            block = b""
            if decoder is not None and decoder.eof:
                for piece in held.rest():
                    num_given += len(piece)
                    yield piece
                block, decoder, num_streams = decoder.unused_data, None, num_streams + 1
        for piece in held.rest():
            num_given += len(piece)
            yield piece
        if decoder is not None or not num_streams:
            raise _broken(suffix, Fault(path, start, file.tell(), num_given - num_before, decoder=decoder), num_given)


def _before_fault(kind: Compression, file: BinaryIO, start: int, place: int, num_given: int) -> tuple[bytes, int]:
    """What the stream from byte `start` on gives before its fault, beyond `num_given` bytes, and where the fault is.

    A decoder keeps what it had expanded when it meets a fault (such as a checksum that is wrong) in the same call. So
    the stream is expanded again: in blocks up to byte `place`, which is before the fault, then byte by byte.
    """
    decoder, given, num_seen = kind.decoder(), bytearray(), 0
    file.seek(start)
    try:
        while True:
            is_near = file.tell() >= place
            block = file.read(1 if is_near else min(BLOCK_BYTES, place - file.tell()))
            for piece in kind.pieces(decoder, block, 1 if is_near else PIECE_BYTES):
                given += piece[max(0, num_given - num_seen) :]
                num_seen += len(piece)
            if not block or decoder.eof:  # no fault this time
                return bytes(given), place
    except Exception as error:
        if not _is_of_library(error):
            raise
    place = file.tell() - 1
    num_sound = num_given + len(given) if kind.num_sound is None else kind.num_sound(file, start, place)
    return bytes(given[: max(0, num_sound - num_given)]), place


def _is_of_library(error: Exception) -> bool:
    """Whether a library says that the content is wrong (bz2 by OSError; zstandard is optional)."""
    return isinstance(error, zlib.error | lzma.LZMAError | OSError | EOFError) or type(error).__name__ == "ZstdError"


def _is_scrap(kind: Compression, fault: Fault) -> bool:
    """Whether what stands behind the last stream begins none, and is too short for one, such as a line end."""
    with Path(fault.path).open("rb") as file:
        file.seek(fault.start)
        rest = file.read(SCRAP_BYTES + 1)
    is_stream = any(magic.startswith(rest) or rest.startswith(magic) for magic in kind.magics)
    return fault.start > 0 and len(rest) <= SCRAP_BYTES and not is_stream


def _broken(suffix: str, fault: Fault, num_given: int) -> BrokenStream:
    """What is told of a fault, behind so many bytes of content of the whole file."""
    with Path(fault.path).open("rb") as file:
        head = file.read(HEAD_BYTES)
    kind, name = COMPRESSIONS[suffix], suffix[1:]
    if head.startswith(LFS_POINTER):
        return BrokenStream(f"is not {name} but {LFS_REMEDY}")
    if head and not num_given and not any(head.startswith(magic[: len(head)]) for magic in kind.magics):
        return BrokenStream(
            f"is not {name}, whatever its name says (it begins with {head[:SHOWN_BYTES]!r}); fetch it again, or rename "
            f"it without {suffix} if that is its content"
        )
    if "ictionary" in fault.why:
        return BrokenStream(f"is {name} that needs a dictionary ({fault.why}); compress it again without one")
    is_all_given = _is_scrap(kind, fault) or (bool(fault.decoder or fault.why) and kind.is_all_given(fault))
    why = fault.why or ("it ends there, inside a stream" if fault.place else "it is empty")
    what = "content, all of that stream" if is_all_given else "content"
    what += ", wrong ones perhaps among them" if fault.why and num_given and kind.is_checked_late else ""
    return BrokenStream(
        f"broken {name} (at byte {fault.place} of the compressed file, behind {num_given} bytes of {what}: {why}); "
        "fetch or compress it again",
        is_all_given=is_all_given,
    )
