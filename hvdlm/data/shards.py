"""The HDF5 shard format: how a shard is laid out, written and looked into. docs/format.md describes it.

A shard holds one contiguous 1-D dataset `tokens` (uint16 or uint32; each document ends with the eos
id, and begins with the bos id if there is one), `doc_offsets` (int64, one more than documents, in
tokens), `block_crc32` (one for each MiB of tokens), documents' ids and labels where there are any, columns
of labelled records (fields.py), and attributes. Training reads tokens by memory map (stream.py), for which they
lie in one block.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import h5py
import numpy as np

from hvdlm.data.fields import Packed
from hvdlm.data.manifest import FORMAT_VERSION, RECORDS_VERSION, ShardEntry
from hvdlm.errors import UserError
from hvdlm.files import naming, open_regular, replace_durably, reserve, sha256_of
from hvdlm.tokenizer import Tokenizer, digest, dtype_for

BLOCK_BYTES = 1 << 20  # of tokens under one checksum
COLUMNS = ("doc_ids", "doc_labels")
LIBVER = ("v108", "v108")  # readable by every HDF5 since 1.8, and the same bytes from all of them


@dataclass(frozen=True)
class ShardLabels:
    """What a shard says about itself."""

    split: str
    vocab_size: int
    eos_id: int
    tokenizer_digest: str
    bos_id: int | None = None

    @classmethod
    def of(cls, split: str, tokenizer: Tokenizer) -> ShardLabels:
        return cls(split, tokenizer.vocab_size, tokenizer.eos_id, digest(tokenizer), tokenizer.bos_id)


def write_shard(
    path: Path,
    pieces: Iterable[np.ndarray],
    doc_lengths: np.ndarray,
    labels: ShardLabels,
    columns: Mapping[str, Packed] | None = None,
) -> ShardEntry:
    """Write one shard aside, then rename it into place.

    `pieces` are 1-D id arrays whose lengths add up to the sum of `doc_lengths` (tokens a document, eos
    included); `columns` are what documents have beside, such as strings under names of COLUMNS. An id outside the
    vocabulary is a ValueError: it would be read as another token.
    """
    num_tokens = int(doc_lengths.sum())
    packed = columns or {}
    with aside_of(path) as aside:
        with h5py.File(aside, "w", libver=LIBVER) as file:
            sizes = {name: (data.dtype, len(data)) for name, (data, _) in packed.items()}
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
    columns: Mapping[str, tuple[np.dtype, int]],
) -> h5py.Dataset:
    """Create all datasets and attributes; returns `tokens`, one block that is never pre-filled with zeros.

    `columns` tell the type and length of each.
    """
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
    for name, (kind, length) in columns.items():
        create(name, length, kind)
        create(f"{name}_offsets", num_documents + 1, "<i8")
    file.attrs["format_version"] = RECORDS_VERSION if columns.keys() - set(COLUMNS) else FORMAT_VERSION
    for name, value in asdict(labels).items():
        if value is not None:
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


def pack_strings(values: Sequence[str]) -> Packed:
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


@contextmanager
def opened(path: Path) -> Iterator[h5py.File]:
    """A shard for reading; UserError for whatever HDF5 finds wrong with it there and in the body."""
    try:
        open_regular(path).close()
        with h5py.File(path, "r", locking=False) as file:
            yield file
    except UserError:
        raise
    except (OSError, KeyError, ValueError, TypeError, RuntimeError) as error:  # by what is damaged
        found = str(error.args[0] if isinstance(error, KeyError) and error.args else error).partition("\n")[0]
        raise UserError(
            f"{path}: cannot read this shard ({found}); copy it again or rerun `hvdlm preprocess`"
        ) from None


def doc_offsets(folder: Path, entry: ShardEntry) -> np.ndarray:
    """Where each document of a shard starts, and the end: int64, num_documents + 1."""
    with opened(folder / entry.file) as file:
        offsets = file["doc_offsets"][:]
        fits = offsets.shape == (entry.num_documents + 1,) and not (np.diff(offsets) < 0).any()
        if not fits or (offsets[0], offsets[-1]) != (0, entry.num_tokens):
            raise ValueError("doc_offsets are not those of its documents")
        return offsets


def doc_column(folder: Path, entry: ShardEntry, name: str) -> list[str] | None:
    """The `doc_ids` or `doc_labels` of a shard, one string a document; None where it has none."""
    with opened(folder / entry.file) as file:
        return unpack_strings(file[name][:], file[f"{name}_offsets"][:]) if name in file else None
