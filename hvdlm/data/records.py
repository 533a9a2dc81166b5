"""The labelled records of a split: each field's values by record, read by memory map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from hvdlm.data.fields import OFFSETS, RAW, FieldEntry, all_columns
from hvdlm.data.manifest import Manifest, need_split
from hvdlm.data.shards import doc_column, doc_offsets, map_tokens, opened
from hvdlm.data.stream import TokenStream
from hvdlm.errors import UserError

TEXT_SEPARATOR = "\0"  # between the texts of a record, where a pair has several


class Records:
    """Random access to the fields of one split.

    Example: `Records(folder, "train", manifest).values("label", 3)` are the labels of record 3, int32.
    """

    def __init__(self, folder: Path, split: str, manifest: Manifest) -> None:
        if not manifest.fields:
            raise UserError(
                f"{folder}: holds texts, not labelled records; preprocess with `fields`, as configs/classify-data.yaml"
            )
        entries = need_split(folder, manifest, split).shards
        self.fields: Mapping[str, FieldEntry] = manifest.fields
        self.split, self.folder, self.vocab_size = split, folder, manifest.vocab_size
        self._entries, self._stream = entries, TokenStream(folder, split, manifest)
        counts = [entry.num_documents for entry in entries]
        self._first = np.concatenate([[0], np.cumsum(counts)])  # record of each shard, and their number
        starts = np.concatenate([[0], np.cumsum([entry.num_tokens for entry in entries])])
        ends = [doc_offsets(folder, entry)[1:] + start for entry, start in zip(entries, starts[:-1], strict=True)]
        self._tokens = np.concatenate([[0], *ends]).astype(np.int64)
        self._columns: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
        for column in all_columns(self.fields):
            self._columns[column.name] = [
                _column(folder / entry.file, column.name, count) for entry, count in zip(entries, counts, strict=True)
            ]

    def __len__(self) -> int:
        return int(self._first[-1])

    def num_tokens(self) -> np.ndarray:
        """Tokens of each record's text, its ends among them: int64 (n,)."""
        return np.diff(self._tokens)

    def num_values(self, column: str) -> np.ndarray:
        """How many values each record has in a column: int64 (n,)."""
        return np.concatenate([np.diff(offsets) for _, offsets in self._columns[column]])

    def tokens(self, record: int) -> np.ndarray:
        """Ids of the text, int64, its ends among them."""
        start, stop = self._tokens[record : record + 2].tolist()
        return self._stream.read(start, stop - start)

    def values(self, column: str, record: int) -> np.ndarray:
        """What a record has in a column, in its own dtype."""
        shard = int(np.searchsorted(self._first, record, side="right")) - 1
        flat, offsets = self._columns[column][shard]
        within = record - int(self._first[shard])
        return np.asarray(flat[int(offsets[within]) : int(offsets[within + 1])])

    def all_values(self, column: str) -> np.ndarray:
        """What all records have in a column, one behind the other."""
        return np.concatenate([flat for flat, _ in self._columns[column]])

    def ids(self, field: str, record: int) -> np.ndarray:
        """Ids of a field of type text or pair, int64."""
        if self.fields[field].type == "text":
            return self.tokens(record)
        found = self.values(field, record).astype(np.int64)
        if found.size and int(found.max()) >= self.vocab_size:
            raise UserError(
                f"{self.folder}: {field} of {self.split} record {record} holds id {int(found.max())}, the vocabulary"
                f" has {self.vocab_size}: a shard is damaged; `hvdlm data verify {self.folder}` names it"
            )
        return found

    def num_ids(self, field: str) -> np.ndarray:
        """Of each record's `ids`: int64 (n,)."""
        return self.num_tokens() if self.fields[field].type == "text" else self.num_values(field)

    def names(self) -> list[str] | None:
        """What the input calls each record, "" where it says nothing; None where no `id_key` has kept it."""
        parts = [doc_column(self.folder, entry, "doc_ids") for entry in self._entries]
        return None if None in parts else [name for part in parts for name in part or ()]

    def texts(self, field: str, record: int) -> list[str]:
        """The characters of a field that was kept raw; a pair may have several texts."""
        return self.values(field + RAW, record).tobytes().decode().split(TEXT_SEPARATOR)


def _column(path: Path, name: str, num_records: int) -> tuple[np.ndarray, np.ndarray]:
    with opened(path) as file:
        offsets = file[name + OFFSETS][:]
        flat = map_tokens(path, file[name]) if file[name].size else np.empty(0, file[name].dtype)
        is_whole = offsets.shape == (num_records + 1,) and (offsets[0], offsets[-1]) == (0, len(flat))
        if not is_whole or (np.diff(offsets) < 0).any():
            raise ValueError(f"{name}{OFFSETS} are not those of its records")
        return flat, offsets


def stacked(rows: Sequence[np.ndarray | Sequence[int]], width: int, filler: int) -> np.ndarray:
    """Rows of any length as int64 (n, width), `filler` behind the end of each."""
    found = np.full((len(rows), width), filler, dtype=np.int64)
    for target, row in zip(found, rows, strict=True):
        target[: len(row)] = row
    return found
