"""The tokens of a split as one long sequence over its shards.

Windows are read by memory map at the dataset's offset in the file: HDF5 is touched once a shard (a random batch
in 10 us instead of 100).
"""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np

from hvdlm.data.manifest import Manifest, ShardEntry, need_split, read_manifest
from hvdlm.data.shards import doc_offsets, map_tokens, opened
from hvdlm.errors import UserError


def _open_tokens(path: Path, entry: ShardEntry, manifest: Manifest) -> np.ndarray:
    """Memory map (1-D) of a shard's tokens, after checking it against the manifest."""
    if path.is_file() and (size := path.stat().st_size) != entry.num_bytes:
        raise UserError(
            f"{path}: has {size} bytes, the manifest says {entry.num_bytes}; copy it again or rerun `hvdlm preprocess`"
        )
    with opened(path) as file:
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


class TokenStream:
    """The tokens of one split as one long sequence over its shards.

    Example: `TokenStream(folder, "train").read(10, 5)` gives tokens 10 .. 14, int64.
    """

    def __init__(self, folder: Path, split: str, manifest: Manifest | None = None) -> None:
        manifest = manifest or read_manifest(folder)
        entries = need_split(folder, manifest, split).shards
        self._folder, self._vocab_size, self._entries = folder, manifest.vocab_size, entries
        self._maps = [_open_tokens(folder / entry.file, entry, manifest) for entry in entries]
        self._starts = np.cumsum([0] + [len(tokens) for tokens in self._maps])
        self._windows: dict[int, list[np.ndarray | None]] = {}

    def __len__(self) -> int:
        return int(self._starts[-1])

    def document_starts(self) -> np.ndarray:
        """Where each document begins, and the end of the last: int64 (documents + 1,). Empty ones are left out."""
        parts = [
            doc_offsets(self._folder, entry)[:-1] + start
            for entry, start in zip(self._entries, self._starts, strict=False)
        ]
        return np.unique(np.concatenate([*parts, self._starts[-1:]]))

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
        return self._checked(np.concatenate(parts)) if parts else np.empty(0, np.int64)

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
            return self._checked(views[0][starts])
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
            windows[row] = self.raw(int(starts[row]), length)
        return self._checked(windows)

    def _checked(self, tokens: np.ndarray) -> np.ndarray:
        """As int64. UserError for an id that is none, before it reaches a model; what else differs `verify` knows."""
        if tokens.size and int(tokens.max()) >= self._vocab_size:
            raise UserError(
                f"{self._folder}: holds id {int(tokens.max())}, the vocabulary has {self._vocab_size}: a shard is"
                f" damaged; `hvdlm data verify {self._folder}` names it"
            )
        return tokens.astype(np.int64, copy=False)

    def _views(self, length: int) -> list[np.ndarray | None]:
        if length not in self._windows:
            self._windows[length] = [
                np.lib.stride_tricks.sliding_window_view(tokens, length) if len(tokens) >= length else None
                for tokens in self._maps
            ]
        return self._windows[length]
