"""The HDF5 shard format: its only writer and its only reader.

A shard holds one contiguous 1-D dataset `tokens` (uint16 or uint32; each document ends with the eos
id), `doc_offsets` (int64, one more than documents, in tokens) and attributes. `manifest.json` beside
the shards lists them with counts and checksums; it is written last, so a folder without one is not
a data set. Training reads windows by memory map at the dataset's offset in the file: HDF5 is
touched once a shard (a random batch in 10 us instead of 100).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import h5py
import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from hvdlm.durable import replace_durably, sha256_of, write_text_durably
from hvdlm.errors import UserError

FORMAT_VERSION: Literal[1] = 1
MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.json"
SPLITS = ("train", "val", "test")


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True)


class ShardEntry(_Entry):
    """A shard as the manifest knows it."""

    file: str
    num_tokens: int
    num_documents: int
    num_bytes: int  # size of the file
    checksum: str  # sha256 of the file


class SplitEntry(_Entry):
    """A split: its shards in reading order, and totals."""

    shards: tuple[ShardEntry, ...]
    num_tokens: int
    num_documents: int
    text_bytes: int  # UTF-8 bytes of the documents, for bits per byte
    unigram_loss: float | None  # nats per token under the train split's smoothed token frequencies


class Manifest(_Entry):
    """What a data folder contains."""

    format_version: Literal[1]
    tokenizer_digest: str
    tokenizer_kind: str
    vocab_size: int
    eos_id: int
    dtype: Literal["uint16", "uint32"]
    splits: dict[str, SplitEntry]
    num_tokens: int
    num_documents: int
    statistics: dict[str, int]
    plan: str  # digest of input and config: the same plan gives the same bytes

    @property
    def train_digest(self) -> str:
        """Names the training tokens: the same for the same shards, wherever and from whatever they were made."""
        checksums = "".join(shard.checksum for shard in self.splits["train"].shards)
        return hashlib.sha256(checksums.encode()).hexdigest()[:16]


def dtype_for(vocab_size: int) -> np.dtype:
    """The smallest of uint16 and uint32 that holds ids 0 .. vocab_size - 1."""
    if vocab_size > 2**32:
        raise ValueError(f"vocabulary of {vocab_size} ids does not fit uint32")
    return np.dtype("<u2") if vocab_size <= 2**16 else np.dtype("<u4")


@dataclass(frozen=True)
class ShardLabels:
    """What a shard says about itself."""

    split: str
    vocab_size: int
    eos_id: int
    tokenizer_digest: str


def write_shard(path: Path, pieces: Iterable[np.ndarray], doc_lengths: np.ndarray, labels: ShardLabels) -> ShardEntry:
    """Write one shard aside, then rename it into place.

    `pieces` are 1-D id arrays whose lengths add up to the sum of `doc_lengths` (tokens a document, eos
    included). An id outside the vocabulary is a ValueError: it would be read as another token.
    """
    dtype = dtype_for(labels.vocab_size)
    num_tokens = int(doc_lengths.sum())
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    with h5py.File(aside, "w", libver=("v108", "v108")) as file:
        # One contiguous block, allocated at once and never pre-filled with zeros.
        space = h5py.h5s.create_simple((num_tokens,))
        plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plist.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        plist.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        plist.set_obj_track_times(False)
        tokens = h5py.Dataset(h5py.h5d.create(file.id, b"tokens", h5py.h5t.py_create(dtype), space, plist))
        start = 0
        for piece in pieces:
            if piece.size and int(piece.max()) >= labels.vocab_size:
                raise ValueError(f"{path}: id {int(piece.max())} is not in a vocabulary of {labels.vocab_size}")
            tokens[start : start + piece.size] = piece.astype(dtype, copy=False)
            start += piece.size
        if start != num_tokens:
            raise ValueError(f"{path}: {start} tokens were given, the documents have {num_tokens}")
        file["doc_offsets"] = np.concatenate([[0], np.cumsum(doc_lengths)]).astype("<i8")
        file.attrs["format_version"] = FORMAT_VERSION
        for name, value in asdict(labels).items():
            file.attrs[name] = value
        file.attrs["num_documents"] = len(doc_lengths)
    checksum, num_bytes = sha256_of(aside), aside.stat().st_size
    replace_durably(aside, path)
    return ShardEntry(
        file=path.name, num_tokens=num_tokens, num_documents=len(doc_lengths), num_bytes=num_bytes, checksum=checksum
    )


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Declare a folder complete; nothing may be written after this."""
    write_text_durably(folder / MANIFEST, json.dumps(manifest.model_dump(mode="json"), indent=1) + "\n")


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a data folder; UserError if there is none or it is not one of ours."""
    path = folder / MANIFEST
    try:
        return Manifest.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: there is none, so this is no finished data set; run `hvdlm preprocess`") from None
    except OSError as error:
        raise UserError(f"{path}: cannot read it ({error.strerror})") from None
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(
            f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}; made by another version?"
        ) from None


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
            offset = tokens.id.get_offset()
            if offset is None:  # empty, or chunked by a foreign tool: no map, read it
                return tokens[:]
            return np.memmap(path, dtype=tokens.dtype, mode="r", offset=offset, shape=tokens.shape)
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

    def read_windows(self, starts: np.ndarray, length: int) -> np.ndarray:
        """Windows (len(starts), length) of int64 tokens; one gather for all that lie in one shard."""
        windows = self._views(length)
        shards = np.searchsorted(self._starts, starts, side="right") - 1
        inside = starts + length <= self._starts[shards + 1]
        if inside.all() and (shards == shards[0]).all():
            view = windows[shards[0]]
            assert view is not None
            return view[starts - self._starts[shards[0]]].astype(np.int64)
        return np.stack([self.read(int(start), length) for start in starts])

    def _views(self, length: int) -> list[np.ndarray | None]:
        if length not in self._windows:
            self._windows[length] = [
                np.lib.stride_tricks.sliding_window_view(tokens, length) if len(tokens) >= length else None
                for tokens in self._maps
            ]
        return self._windows[length]


def verify(folder: Path) -> list[str]:
    """Compare every shard with the manifest's checksum; one line for each that differs."""
    manifest = read_manifest(folder)
    faults = []
    for entry in (shard for split in manifest.splits.values() for shard in split.shards):
        path = folder / entry.file
        if not path.exists():
            faults.append(f"{path}: is missing")
        elif (size := path.stat().st_size) != entry.num_bytes:
            faults.append(f"{path}: has {size} bytes, the manifest says {entry.num_bytes}")
        elif sha256_of(path) != entry.checksum:
            faults.append(f"{path}: its checksum differs from the manifest's")
    return faults


def doc_offsets(folder: Path, entry: ShardEntry) -> np.ndarray:
    """Where each document of a shard starts, and the end: int64, num_documents + 1."""
    with h5py.File(folder / entry.file, "r", locking=False) as file:
        return file["doc_offsets"][:]
