"""What a rank writes of a state, and the files that it writes; nothing here talks to another rank.

A part is a file of safetensors, hashed from memory while it is written.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hvdlm.checkpoint.boxes import Box, Piece, boxes_of_range, whole
from hvdlm.errors import UserError
from hvdlm.files import sync_folder

PART_BYTES = 64 << 20  # of what many ranks hold alike each that writes has so much: a file system has few large files
FILE_BYTES = 512 << 20  # several are hashed side by side, and none is too much for a file system
BLOCK_BYTES = 16 << 20  # written at once
PRIME = (1 << 61) - 1
DTYPES = {  # as safetensors names them
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.complex64: "C64",
}


class Share(NamedTuple):
    """A box of a tensor of the state, which one rank writes."""

    key: str
    shape: tuple[int, ...]  # of the whole tensor
    box: Box
    tensor: Tensor  # of the box's shape


class Row(NamedTuple):
    """What a part has of one tensor, as the record tells it."""

    key: str
    dtype: str
    shape: tuple[int, ...]
    box: Box


@dataclass(frozen=True)
class PartFacts:
    """A file that was written."""

    name: str
    bytes: int
    sha256: str


def part_name(number: int) -> str:
    return f"part-{number:04d}.safetensors"


def shares_of(pieces: Sequence[Piece]) -> list[Share]:
    """What this rank writes of the pieces that it holds.

    Of those that n ranks hold alike it is a range of their bytes, so that all write as much; ranks that hold the same
    have the same pieces in the same order. Where that is little, the first of them writes all.
    """
    found: list[Share] = []
    ordered = sorted(pieces, key=lambda piece: (piece.share, piece.key, piece.box.offset))  # whoever restored the state
    for (number, size), group in groupby(ordered, lambda piece: piece.share):
        alike = list(group)
        total = sum(piece.tensor.nbytes for piece in alike)
        writers = min(size, max(1, total // PART_BYTES))
        first, end = (total * place // writers for place in (number, number + 1)) if number < writers else (0, 0)
        begin = 0
        for piece in alike:
            item, numel = piece.tensor.element_size(), piece.tensor.numel()
            mine = range(*(max(0, min(numel, -(-(place - begin) // item))) for place in (first, end)))
            begin += piece.tensor.nbytes
            if not numel:
                mine = range(0)
                if number == 0:
                    found.append(Share(piece.key, piece.shape, piece.box, piece.tensor))
            for box in boxes_of_range(piece.box.shape, mine):
                place = tuple(slice(o, o + n) for o, n in zip(*box, strict=True))
                offset = tuple(map(sum, zip(box.offset, piece.box.offset, strict=True)))
                found.append(Share(piece.key, piece.shape, Box(offset, box.shape), piece.tensor[place]))
    return found


class Kept:
    """Copies of shares, in buffers that are used again for those of the same shapes."""

    def __init__(self) -> None:
        self._buffers: list[Tensor] = []
        self.shares: list[Share] = []
        self.nbytes = 0

    @torch.no_grad()
    def take(self, shares: Sequence[Share]) -> None:
        """Copy them: from here on nothing that happens to the tensors changes what is kept."""
        alike = [(b.shape, b.dtype) for b in self._buffers] == [(s.tensor.shape, s.tensor.dtype) for s in shares]
        if not alike:
            self._buffers, self.shares = [], []  # first, so that there is never more than one
            self._buffers = [torch.empty(s.tensor.shape, dtype=s.tensor.dtype) for s in shares]
        for buffer, share in zip(self._buffers, shares, strict=True):
            buffer.copy_(share.tensor)
        self.shares = [s._replace(tensor=b) for s, b in zip(shares, self._buffers, strict=True)]
        self.nbytes = sum(buffer.nbytes for buffer in self._buffers)


def table_of(shares: Sequence[Share]) -> list[Row]:
    """What a checkpoint's record has to know of a part's boxes, in the part's order; UserError for an odd type."""
    for share in shares:
        if share.tensor.dtype not in DTYPES:
            raise UserError(
                f"{share.key} is of {share.tensor.dtype}, which no checkpoint holds; give it another type, or register"
                " that buffer with persistent=False"
            )
    return [Row(share.key, DTYPES[share.tensor.dtype], share.shape, share.box) for share in shares]


def tensors_of(tables: Mapping[int, Sequence[Row]]) -> dict[str, Any]:
    """The `tensors` of a record, from the tables of its parts; ValueError unless boxes fill each tensor exactly."""
    found: dict[str, Any] = {}
    for number, rows in sorted(tables.items()):
        for place, (key, dtype, shape, box) in enumerate(rows):
            entry = found.setdefault(key, {"shape": list(shape), "dtype": dtype, "boxes": []})
            if (entry["shape"], entry["dtype"]) != (list(shape), dtype):
                raise ValueError(
                    f"{key} is {entry['dtype']} {entry['shape']} on one rank, {dtype} {list(shape)} on another"
                )
            entry["boxes"].append([number, place, list(box.offset), list(box.shape)])
    for key, entry in found.items():
        check_cover(key, tuple(entry["shape"]), [Box(tuple(o), tuple(n)) for _, _, o, n in entry["boxes"]])
    return dict(sorted(found.items()))


def check_cover(key: str, shape: tuple[int, ...], boxes: Sequence[Box]) -> None:
    """ValueError unless the boxes hold each element of a tensor once.

    Boxes that lie within and have the right number of elements leave a gap only where two overlap. Whether two do is
    found in one pass, for a record from anywhere may have a million: each border of a dimension gets a random number,
    and a box the product of its borders' differences. Of boxes that fill the tensor these add up to the tensor's own,
    of others with a chance of at most dimensions / PRIME (Schwartz 1980, Zippel 1979).
    """
    limits = whole(shape)
    for box in boxes:
        if len(box.offset) != len(shape) or (box.numel and box.meeting(limits) != box):
            raise ValueError(f"{key}: a box at {list(box.offset)} of {list(box.shape)} leaves its shape {list(shape)}")
    if sum(box.numel for box in boxes) != limits.numel:
        raise ValueError(f"{key}: its boxes hold {sum(box.numel for box in boxes)} of {limits.numel} elements")
    drawn: dict[tuple[int, int], int] = {}

    def at(dim: int, place: int) -> int:
        return drawn.setdefault((dim, place), secrets.randbelow(PRIME))

    def product(box: Box) -> int:
        ends = enumerate(zip(*box, strict=True))
        return math.prod(at(dim, first + size) - at(dim, first) for dim, (first, size) in ends)

    if sum(map(product, boxes)) % PRIME != product(limits) % PRIME:
        raise ValueError(f"{key}: two boxes hold the same element")


def files_of(shares: Sequence[Share], number: int = 0, size: int = 1) -> dict[int, list[Share]]:
    """What goes into which part, of about FILE_BYTES each; of `size` ranks no other has one of the same number."""
    total = sum(share.tensor.nbytes for share in shares)
    num, begin = max(1, -(-total // FILE_BYTES)), 0
    found: dict[int, list[Share]] = {}
    for share in shares:
        place = min(num - 1, begin * num // max(1, total))
        found.setdefault(number + place * size, []).append(share)
        begin += share.tensor.nbytes
    return found


def write_parts(folder: Path, files: Mapping[int, Sequence[Share]]) -> list[PartFacts]:
    """Write parts durably. Files of which one could not be flushed are removed, and not tried again."""
    if not files:
        return []
    paths = {number: folder / part_name(number) for number in files}
    # Hashed apart from the write, and side by side: it goes on while the disk is flushed. At the end of the pool all
    # is hashed, and the tensors may be overwritten.
    with (
        ThreadPoolExecutor(min(len(files), os.cpu_count() or 1), "hvdlm-hash", step_back) as hashing,
        ExitStack() as opened,
    ):
        digests = {number: hashing.submit(_digest, shares) for number, shares in files.items()}
        try:
            written = {}
            for number, shares in files.items():
                file = opened.enter_context(paths[number].open("xb", buffering=0))
                written[file] = sum(_write_all(file, block) for block in _blocks(shares))
            for file in written:
                os.fsync(file.fileno())
            sync_folder(folder)
            facts = zip(files, written.values(), strict=True)
            return [PartFacts(part_name(number), num, digests[number].result()) for number, num in facts]
        except BaseException:
            for path in paths.values():
                path.unlink(missing_ok=True)
            raise


def step_back() -> None:
    """Let other threads go first: on Linux a thread has a priority of its own."""
    os.nice(19)


def _digest(shares: Sequence[Share]) -> str:
    digest = hashlib.sha256()
    for block in _blocks(shares):
        digest.update(block)  # hashlib lets other threads run
    return digest.hexdigest()


def _write_all(file: Any, block: memoryview | bytes) -> int:
    rest = memoryview(block)
    while rest:
        done = file.write(rest)
        if not done:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        rest = rest[done:]
    return len(block)


def _blocks(shares: Sequence[Share]) -> Iterator[memoryview | bytes]:
    """A file of safetensors, piece by piece: the header's length, the header as JSON, the tensors' bytes."""
    header: dict[str, Any] = {}
    begin = 0
    for number, share in enumerate(shares):
        end = begin + share.tensor.nbytes
        header[str(number)] = {
            "dtype": DTYPES[share.tensor.dtype],
            "shape": list(share.tensor.shape),
            "data_offsets": [begin, end],
        }
        begin = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    yield from _joined(memoryview(_bytes_of(share.tensor)) for share in shares)


def _joined(parts: Iterable[memoryview]) -> Iterator[memoryview | bytes]:
    """The same bytes in blocks that are worth a system call."""
    small = bytearray()
    for part in parts:
        if len(part) < BLOCK_BYTES // 16:
            small += part
            if len(small) >= BLOCK_BYTES:
                yield bytes(small)
                small.clear()
            continue
        if small:
            yield bytes(small)
            small.clear()
        for start in range(0, len(part), BLOCK_BYTES):
            yield part[start : start + BLOCK_BYTES]
    if small:
        yield bytes(small)


def _bytes_of(tensor: Tensor) -> Any:
    return tensor.contiguous().view(-1).view(torch.uint8).numpy() if tensor.numel() else b""
