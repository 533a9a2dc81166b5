"""The HDF5 shard format: its only writer and its only reader. docs/format.md describes it.

A shard holds one contiguous 1-D dataset `tokens` (uint16 or uint32; each document ends with the eos
id), `doc_offsets` (int64, one more than documents, in tokens), `block_crc32` (one for each MiB of tokens),
documents' ids and labels where there are any, and attributes. Training reads windows by memory map at the
dataset's offset in the file: HDF5 is touched once a shard (a random batch in 10 us instead of 100).
"""

from __future__ import annotations

import hashlib
import itertools
import mmap
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import h5py
import numpy as np
import xxhash

from hvdlm.durable import naming, replace_durably, reserve, sha256_of
from hvdlm.errors import UserError
from hvdlm.manifest import FORMAT_VERSION, TOKENIZER, Manifest, ShardEntry, read_manifest
from hvdlm.tokenizer.interface import dtype_for

BLOCK_BYTES = 1 << 20  # of tokens under one checksum
DIGEST_TOKENS = 1 << 22  # of a split under one digest, wherever its shards begin
COLUMNS = ("doc_ids", "doc_labels")
LIBVER = ("v108", "v108")  # readable by every HDF5 since 1.8, and the same bytes from all of them


@dataclass(frozen=True)
class ShardLabels:
    """What a shard says about itself."""

    split: str
    vocab_size: int
    eos_id: int
    tokenizer_digest: str


def write_shard(
    path: Path,
    pieces: Iterable[np.ndarray],
    doc_lengths: np.ndarray,
    labels: ShardLabels,
    columns: Mapping[str, Sequence[str]] | None = None,
) -> ShardEntry:
    """Write one shard aside, then rename it into place.

    `pieces` are 1-D id arrays whose lengths add up to the sum of `doc_lengths` (tokens a document, eos
    included); `columns` are strings by document under names of COLUMNS. An id outside the vocabulary is a
    ValueError: it would be read as another token.
    """
    num_tokens = int(doc_lengths.sum())
    packed = {name: pack_strings(strings) for name, strings in (columns or {}).items()}
    with aside_of(path) as aside:
        with h5py.File(aside, "w", libver=LIBVER) as file:
            sizes = {name: len(data) for name, (data, _) in packed.items()}
            tokens = lay_out(file, num_tokens, len(doc_lengths), labels, sizes)
            file.flush()
            reserve(aside, extent(file))
            start = 0
            for piece in pieces:
                check_ids(piece, labels, path)
                if start + piece.size <= num_tokens:
                    tokens[start : start + piece.size] = piece.astype(tokens.dtype, copy=False)
                start += piece.size
            if start != num_tokens:
                raise ValueError(f"{path}: {start} tokens were given, the documents have {num_tokens}")
            file["doc_offsets"][:] = np.concatenate([[0], np.cumsum(doc_lengths)])
            for name, (data, offsets) in packed.items():
                file[name][:], file[f"{name}_offsets"][:] = data, offsets
            file.flush()
            file["block_crc32"][:] = list(block_checksums(map_tokens(aside, tokens)))
        return seal(aside, path, num_tokens, len(doc_lengths))


@contextmanager
def aside_of(path: Path) -> Iterator[Path]:
    """Where a file is written before it is complete; gone afterwards, also if the disk was full."""
    aside = path.with_name(f".{path.name}.aside")
    try:
        yield aside
    finally:
        aside.unlink(missing_ok=True)


def lay_out(
    file: h5py.File,
    num_tokens: int,
    num_documents: int,
    labels: ShardLabels,
    column_bytes: Mapping[str, int],
) -> h5py.Dataset:
    """Create all datasets and attributes; returns `tokens`, one block that is never pre-filled with zeros."""
    dtype = dtype_for(labels.vocab_size)
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    plist.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    plist.set_obj_track_times(False)

    def create(name: str, length: int, kind: str | np.dtype) -> h5py.Dataset:
        space = h5py.h5s.create_simple((length,))
        return h5py.Dataset(h5py.h5d.create(file.id, name.encode(), h5py.h5t.py_create(np.dtype(kind)), space, plist))

    tokens = create("tokens", num_tokens, dtype)
    create("doc_offsets", num_documents + 1, "<i8")
    create("block_crc32", -(-num_tokens * dtype.itemsize // BLOCK_BYTES), "<u4")
    for name, num_bytes in column_bytes.items():
        create(name, num_bytes, "u1")
        create(f"{name}_offsets", num_documents + 1, "<i8")
    file.attrs["format_version"] = FORMAT_VERSION
    for name, value in asdict(labels).items():
        file.attrs[name] = value
    file.attrs["num_documents"] = num_documents
    return tokens


def extent(file: h5py.File) -> int:
    """Bytes up to the end of the last dataset: what the file will need, but for a little structure."""
    return max((data.id.get_offset() + data.nbytes for data in file.values() if data.nbytes), default=0)


def check_ids(piece: np.ndarray, labels: ShardLabels, path: Path) -> None:
    if piece.size and int(piece.max()) >= labels.vocab_size:
        raise ValueError(f"{path}: id {int(piece.max())} is not in a vocabulary of {labels.vocab_size}")


def seal(aside: Path, path: Path, num_tokens: int, num_documents: int) -> ShardEntry:
    checksum, num_bytes = sha256_of(aside), aside.stat().st_size
    with naming(path):
        replace_durably(aside, path)
    return ShardEntry(
        file=path.name, num_tokens=num_tokens, num_documents=num_documents, num_bytes=num_bytes, checksum=checksum
    )


def pack_strings(values: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Strings as (uint8 UTF-8 bytes one behind the other, int64 offsets, one more than strings)."""
    encoded = [value.encode() for value in values]
    offsets = np.cumsum([0, *map(len, encoded)]).astype("<i8")
    return np.frombuffer(b"".join(encoded), dtype=np.uint8), offsets


def unpack_strings(data: np.ndarray, offsets: np.ndarray) -> list[str]:
    """What `pack_strings` packed.

    >>> unpack_strings(*pack_strings(["a", "", "bé"]))
    ['a', '', 'bé']
    """
    joined = np.asarray(data, dtype=np.uint8).tobytes()
    return [joined[start:stop].decode() for start, stop in itertools.pairwise(offsets)]


def block_checksums(tokens: np.ndarray, blocks: Iterable[int] | None = None) -> Iterator[int]:
    """CRC-32 of each MiB of the tokens' bytes, or of those blocks that are asked for."""
    data = tokens.view(np.uint8)
    for block in range(-(-data.size // BLOCK_BYTES)) if blocks is None else blocks:
        yield zlib.crc32(data[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES].data)


def map_tokens(path: Path, tokens: h5py.Dataset) -> np.ndarray:
    """Memory map (1-D) of a contiguous dataset; a copy of one that is empty or chunked by a foreign tool."""
    offset = tokens.id.get_offset()
    if offset is None:
        return tokens[:]
    return np.memmap(path, dtype=tokens.dtype, mode="r", offset=offset, shape=tokens.shape)


def _open_tokens(path: Path, entry: ShardEntry, manifest: Manifest) -> np.ndarray:
    """Memory map (1-D) of a shard's tokens, after checking it against the manifest."""
    try:
        size = path.stat().st_size
        if size != entry.num_bytes:
            raise UserError(
                f"{path}: has {size} bytes, the manifest says {entry.num_bytes}; "
                "copy it again or rerun `hvdlm preprocess`"
            )
        with h5py.File(path, "r", locking=False) as file:
            tokens = file["tokens"]
            found = str(file.attrs["tokenizer_digest"])
            if found != manifest.tokenizer_digest:
                raise UserError(
                    f"{path}: was made with tokenizer {found}, the manifest says {manifest.tokenizer_digest}; "
                    "rerun `hvdlm preprocess`"
                )
            if tokens.shape != (entry.num_tokens,) or str(tokens.dtype) != manifest.dtype:
                raise UserError(f"{path}: holds {tokens.shape} {tokens.dtype}, the manifest says {entry.num_tokens}")
            return map_tokens(path, tokens)
    except (OSError, KeyError) as error:
        raise UserError(f"{path}: cannot read this shard ({error}); rerun `hvdlm preprocess`") from None


class TokenStream:
    """The tokens of one split as one long sequence over its shards.

    Example: `TokenStream(folder, "train").read(10, 5)` gives tokens 10 .. 14, int64.
    """

    def __init__(self, folder: Path, split: str, manifest: Manifest | None = None) -> None:
        manifest = manifest or read_manifest(folder)
        if split not in manifest.splits or not manifest.splits[split].num_tokens:
            have = ", ".join(name for name, entry in manifest.splits.items() if entry.num_tokens)
            raise UserError(
                f"{folder}: has no {split} tokens (it has: {have or 'none'}); see `split` of the preprocess config"
            )
        entries = manifest.splits[split].shards
        self._maps = [_open_tokens(folder / entry.file, entry, manifest) for entry in entries]
        self._starts = np.cumsum([0] + [len(tokens) for tokens in self._maps])
        self._windows: dict[int, list[np.ndarray | None]] = {}

    def __len__(self) -> int:
        return int(self._starts[-1])

    def read(self, start: int, length: int) -> np.ndarray:
        """Tokens [start, start + length) as int64, across shards; IndexError beyond the end."""
        if start < 0 or start + length > len(self):
            raise IndexError(f"tokens [{start}, {start + length}) of {len(self)}")
        parts = []
        shard = int(np.searchsorted(self._starts, start, side="right")) - 1
        while length:
            within = start - int(self._starts[shard])
            part = self._maps[shard][within : within + length]
            parts.append(part)
            start, length, shard = start + len(part), length - len(part), shard + 1
        return np.concatenate(parts).astype(np.int64) if parts else np.empty(0, np.int64)

    def raw(self, start: int, length: int) -> np.ndarray:
        """At most `length` tokens from `start` on, in the shards' own dtype; fewer at the end of the stream."""
        stop = min(start + length, len(self))
        first, last = np.searchsorted(self._starts, [start, stop - 1], side="right") - 1
        spans = [
            self._maps[shard][max(0, start - self._starts[shard]) : stop - self._starts[shard]]
            for shard in range(first, last + 1)
        ]
        return spans[0] if len(spans) == 1 else np.concatenate(spans)

    def forget(self) -> None:
        """Give back the memory of pages that were read: a pass over terabytes shall not count as this process's."""
        for tokens in self._maps:
            pages = getattr(tokens, "base", None)
            if isinstance(pages, mmap.mmap):
                pages.madvise(mmap.MADV_DONTNEED)

    def read_windows(self, starts: np.ndarray, length: int) -> np.ndarray:
        """Windows (len(starts), length) of int64 tokens: one gather from each shard, and across its end one by one."""
        views = self._views(length)
        if len(views) == 1 and views[0] is not None:
            return views[0][starts].astype(np.int64)
        windows = np.empty((len(starts), length), dtype=np.int64)
        shards = np.searchsorted(self._starts, starts, side="right") - 1
        within = starts - self._starts[shards]
        is_inside = starts + length <= self._starts[shards + 1]
        for shard in set(shards.tolist()):
            rows = np.flatnonzero(is_inside & (shards == shard))
            view = views[shard]
            if rows.size and view is not None:
                windows[rows] = view[within[rows]]
        for row in np.flatnonzero(~is_inside):
            windows[row] = self.read(int(starts[row]), length)
        return windows

    def _views(self, length: int) -> list[np.ndarray | None]:
        if length not in self._windows:
            self._windows[length] = [
                np.lib.stride_tricks.sliding_window_view(tokens, length) if len(tokens) >= length else None
                for tokens in self._maps
            ]
        return self._windows[length]


def digest_blocks(stream: TokenStream) -> range:
    """Numbers of the blocks that `block_digest` knows, for ranks to share."""
    return range(-(-len(stream) // DIGEST_TOKENS))


def block_digest(stream: TokenStream, block: int) -> tuple[np.ndarray, bytes]:
    """(tokens, XXH3 of 128 bits) of a block of the stream."""
    tokens = stream.raw(block * DIGEST_TOKENS, DIGEST_TOKENS)
    return tokens, xxhash.xxh3_128_digest(np.ascontiguousarray(tokens).data)


def join_digests(digests: Iterable[bytes]) -> str:
    """The 32 hex digits that name a split's tokens, from its blocks' digests in order.

    They say nothing of shards: the same tokens in one file and in many have the same name.
    """
    return xxhash.xxh3_128_hexdigest(b"".join(digests))


def stream_digest(stream: TokenStream | None) -> str:
    """The name of a split's tokens; None stands for a split without any."""
    return join_digests([block_digest(stream, block)[1] for block in digest_blocks(stream)] if stream else [])


def verify(folder: Path) -> list[str]:
    """Compare every shard with its checksums; one line for each that differs, naming shard and block."""
    manifest = read_manifest(folder)
    faults = []
    try:
        found = hashlib.sha256((folder / TOKENIZER).read_bytes()).hexdigest()[:16]
    except OSError as error:
        found = str(error.strerror)
    if found != manifest.tokenizer_digest:
        faults.append(f"{folder / TOKENIZER}: is {found}, the manifest says {manifest.tokenizer_digest}")
    for entry in (shard for split in manifest.splits.values() for shard in split.shards):
        path = folder / entry.file
        if not path.exists():
            faults.append(f"{path}: is missing")
        elif (size := path.stat().st_size) != entry.num_bytes:
            faults.append(f"{path}: has {size} bytes, the manifest says {entry.num_bytes}")
        elif sha256_of(path) != entry.checksum:
            faults.append(f"{path}: {_what_differs(path)}")
    return faults


def _what_differs(path: Path) -> str:
    try:
        with h5py.File(path, "r", locking=False) as file:
            kept = file["block_crc32"][:]
            tokens = map_tokens(path, file["tokens"])
    except (OSError, KeyError, ValueError, RuntimeError) as error:
        return f"its HDF5 structure is damaged ({error})"
    found = np.fromiter(block_checksums(tokens), dtype=np.uint32)
    if found.shape != kept.shape:
        return "its HDF5 structure is damaged"
    blocks = np.flatnonzero(found != kept)
    if not blocks.size:
        return "its tokens are as written, its header, document offsets or checksums are not"
    first, per_block = int(blocks[0]), BLOCK_BYTES // tokens.itemsize
    return (
        f"{blocks.size} of {kept.size} blocks differ, the first is block {first} "
        f"(tokens {first * per_block:,} to {min((first + 1) * per_block, len(tokens)):,})"
    )


def doc_offsets(folder: Path, entry: ShardEntry) -> np.ndarray:
    """Where each document of a shard starts, and the end: int64, num_documents + 1."""
    with h5py.File(folder / entry.file, "r", locking=False) as file:
        return file["doc_offsets"][:]


def doc_column(folder: Path, entry: ShardEntry, name: str) -> list[str] | None:
    """The `doc_ids` or `doc_labels` of a shard, one string a document; None where it has none."""
    with h5py.File(folder / entry.file, "r", locking=False) as file:
        return unpack_strings(file[name][:], file[f"{name}_offsets"][:]) if name in file else None
