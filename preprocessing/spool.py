"""A unit's results between the two passes: its documents' ids by split, and what is known of each document.

A spool file appears by rename when it is complete and flushed: those in the folder are the journal of finished
units. It begins with the plain ids, which are read by memory map; an npz archive of all else follows (a zip may
stand behind other bytes; inside it ids would be summed by CRC at the cost of their writing). Documents stand by
split, within a split in input order.
"""

from __future__ import annotations

import errno
import json
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from hvdlm.data.fields import OFFSETS, Packed, offsets_of, rows_of
from hvdlm.data.manifest import SPLITS
from hvdlm.data.shards import COLUMNS, pack_strings, unpack_strings
from hvdlm.files import naming, replace_durably
from hvdlm.records.encoder import ColumnParts, Encoded
from hvdlm.records.fields import texts_of

from .documents import Document

BYTES_PER_DOCUMENT = 512  # of memory for what is known of a document, beside its text
COLUMN = "column:"  # before the names of what documents have beside their ids
BYTES_PER_CHARACTER = 4  # about, of what a record has beside its text
BYTES_PER_LINE = 512  # of memory for a line of dropped.jsonl


class Batch:
    """Documents that go to the tokenizer together, and what is known of each."""

    def __init__(self) -> None:
        self.documents: list[Document] = []
        self.splits: list[int] = []  # numbers in SPLITS
        self.text_bytes: list[int] = []
        self.has_nul = False
        self.signatures: list[bytes] = []  # what dedup compares
        self.num_bytes = 0  # of memory, about

    def __len__(self) -> int:
        return len(self.documents)

    def append(self, document: Document, split: int, data: bytes, signature: bytes) -> None:
        """`data` is the document's text as UTF-8."""
        self.documents.append(document)
        self.splits.append(split)
        self.text_bytes.append(len(data))
        if 0 in data:  # now that it is in the processor's cache
            self.has_nul = True
        self.signatures.append(signature)
        self.num_bytes += len(data) + BYTES_PER_DOCUMENT
        if document.record is not None:
            self.num_bytes += BYTES_PER_CHARACTER * sum(map(len, texts_of(document.record)))

    def rows(self) -> Iterator[tuple[Document, int, bytes, bytes]]:
        """What `append` takes, document by document."""
        data = (document.text.encode() for document in self.documents)
        return zip(self.documents, self.splits, data, self.signatures, strict=True)


class UnitResult:
    """What a rank collects of one unit, batch by batch."""

    def __init__(self, columns: ColumnParts | None = None) -> None:
        self.labels: dict[str, list[str]] = {}  # of labelled records, what the numbers in their columns stand for
        self._columns = columns
        self.statistics: Counter[str] = Counter()
        self.num_bytes = 0  # of memory, about
        self.dropped: list[dict[str, Any]] = []  # lines of dropped.jsonl
        self.inputs: list[dict[str, Any]] = []  # what was read, with digests
        self.reads: list[dict[str, Any]] = []  # how much that was, for the balance
        self.round_trip: dict[str, Any] = {}  # what became of the excerpts
        self.num_segments = 0  # of the unit, before this one
        self._tokens: dict[int, list[np.ndarray]] = {number: [] for number in range(len(SPLITS))}
        self._splits: list[int] = []
        self._lengths: list[np.ndarray] = []
        self._text_bytes: list[int] = []
        self._signatures: list[bytes] = []
        self._places: list[tuple[int, int]] = []
        self._names: list[tuple[str | None, str | None]] = []

    def add(self, batch: Batch, encoded: Encoded) -> None:
        """A batch in input order, and what it was encoded to; texts are not kept."""
        ids, lengths = encoded.ids, encoded.lengths
        if self._columns is not None:
            self._columns.add(encoded.columns)
        ends = [0, *np.cumsum(lengths).tolist()]
        first = 0
        for last in range(1, len(batch) + 1):  # a run of documents of one split is one slice
            if last == len(batch) or batch.splits[last] != batch.splits[first]:
                self._tokens[batch.splits[first]].append(ids[ends[first] : ends[last]])
                first = last
        self._splits += batch.splits
        self._lengths.append(lengths)
        self._text_bytes += batch.text_bytes
        self._signatures += batch.signatures
        self._places += [(document.position, document.part) for document in batch.documents]
        self._names += [(document.id, document.label) for document in batch.documents]
        self.num_bytes += batch.num_bytes

    def drop(self, line: dict[str, Any]) -> None:
        """A line of dropped.jsonl."""
        self.dropped.append(line)
        self.num_bytes += BYTES_PER_LINE

    def save(self, path: Path, dtype: np.dtype) -> None:
        """Write the spool file aside, flush it, rename it."""
        order = np.argsort(np.array(self._splits, dtype=np.int8), kind="stable")
        width = len(self._signatures[0]) if self._signatures else 0
        arrays = {
            "dtype": np.array(dtype.str),
            "lengths": np.concatenate([np.empty(0, np.int64), *self._lengths])[order],
            "splits": np.array(self._splits, dtype=np.int8)[order],
            "text_bytes": np.array(self._text_bytes, dtype=np.int64)[order],
            "order": order,
            "places": np.array(self._places, dtype=np.int64).reshape(-1, 2)[order],
            "signatures": np.frombuffer(b"".join(self._signatures), np.uint8).reshape(len(order), width)[order],
            "statistics": np.frombuffer(json.dumps(self.statistics).encode(), np.uint8),
            "dropped": np.frombuffer(lines_of(self.dropped), np.uint8),
            "inputs": np.frombuffer(json.dumps(self.inputs).encode(), np.uint8),
            "reads": np.frombuffer(json.dumps(self.reads).encode(), np.uint8),
            "round_trip": np.frombuffer(json.dumps(self.round_trip).encode(), np.uint8),
            "num_segments": np.array(self.num_segments),
            "labels": np.frombuffer(json.dumps(self.labels).encode(), np.uint8),
        }
        columns = self._columns.arrays() if self._columns else {}
        for name, values in zip(COLUMNS, zip(*self._names, strict=True), strict=False):
            if any(value is not None for value in values):
                columns[name] = pack_strings([value or "" for value in values])
        for name, packed in columns.items():
            arrays[f"{COLUMN}{name}"], arrays[f"{COLUMN}{name}{OFFSETS}"] = rows_of(packed, order)
        aside = path.with_name(f".{path.name}")
        digest = xxhash.xxh3_128()
        with naming(path), aside.open("wb") as file:
            for number in range(len(SPLITS)):
                for piece in self._tokens[number]:
                    data = piece.astype(dtype, copy=False).data
                    digest.update(data)
                    file.write(data)
            arrays["tokens_digest"] = np.array(digest.hexdigest())
            np.savez(file, **arrays)  # type: ignore[arg-type]
        with naming(path):
            replace_durably(aside, path)


def lines_of(records: Sequence[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode("utf-8", "replace")


class Spool:
    """A finished unit, read array by array; documents that dedup marked are passed over."""

    def __init__(self, path: Path) -> None:
        self._path, self._file = path, np.lib.npyio.NpzFile(path.open("rb"), own_fid=True)
        self._arrays: dict[str, np.ndarray] = {}  # those that were asked for
        marks = duplicates_of(path)
        self.duplicates = np.load(marks) if marks.exists() else np.empty((0, 2), np.int64)  # (row, kind)
        self._number_of: dict[str, np.ndarray] = {}
        self._kept = np.ones(len(self["splits"]), dtype=bool)
        self._kept[self.duplicates[:, 0]] = False

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def __getitem__(self, name: str) -> np.ndarray:
        """An array of all documents, as it was saved."""
        if name not in self._arrays:
            self._arrays[name] = self._file[name]
        return self._arrays[name]

    def facts(self, name: str) -> Any:
        """What was saved as JSON: `statistics`, `inputs`, `reads` or `round_trip`."""
        return json.loads(self[name].tobytes())

    def kept(self, split: str) -> np.ndarray:
        """Rows of a split's documents (int64), in input order."""
        return np.flatnonzero(self._kept & (self["splits"] == SPLITS.index(split)))

    def of_split(self, name: str, split: str) -> np.ndarray:
        """An array with a row a document, for the documents of a split."""
        return self[name][self.kept(split)]

    def tokens(self, split: str, first: int, last: int) -> np.ndarray:
        """Ids of a split's documents [first, last), one behind the other."""
        rows = self.kept(split)[first:last]
        dtype, lengths = np.dtype(str(self["dtype"])), self["lengths"]
        if not rows.size:
            return np.empty(0, dtype)
        ends = np.concatenate([[0], np.cumsum(lengths)])
        all_tokens = np.memmap(self._path, dtype=dtype, mode="r", shape=(int(ends[-1]),))
        tokens = all_tokens[ends[rows[0]] : ends[rows[-1] + 1]]
        kept = self._kept[rows[0] : rows[-1] + 1]
        return tokens if kept.all() else tokens[np.repeat(kept, lengths[rows[0] : rows[-1] + 1])]

    def has_its_tokens(self) -> bool:
        """Whether all ids are those that were saved."""
        num_tokens, digest = int(self["lengths"].sum()), xxhash.xxh3_128()
        if num_tokens:
            digest.update(np.memmap(self._path, np.dtype(str(self["dtype"])), "r", shape=(num_tokens,)).data)
        return digest.hexdigest() == str(self["tokens_digest"])

    def number_labels(self, lists: Mapping[str, Sequence[str]]) -> None:
        """From here on `column` gives the labels of these fields by their places in these lists."""
        for name, labels in lists.items():
            places = {label: place for place, label in enumerate(labels)}
            self._number_of[name] = np.array([places.get(one, -1) for one in self.facts("labels")[name]], dtype="<i4")

    def has_column(self, name: str) -> bool:
        """Whether any document has such a thing."""
        return f"{COLUMN}{name}" in self._file.files

    def strings(self, name: str) -> list[str]:
        """A column of strings, of all documents."""
        return unpack_strings(self[f"{COLUMN}{name}"], self[f"{COLUMN}{name}{OFFSETS}"])

    def column(self, name: str, split: str, first: int = 0, last: int | None = None) -> Packed:
        """What a split's documents [first, last) have under a name; nothing each where the input gave none."""
        rows = self.kept(split)[first:last]
        if not self.has_column(name):
            return np.empty(0, np.uint8), offsets_of(np.zeros(len(rows)))
        values, offsets = rows_of((self[f"{COLUMN}{name}"], self[f"{COLUMN}{name}{OFFSETS}"]), rows)
        return (self._number_of[name][values] if name in self._number_of else values), offsets


def is_as_saved(path: Path) -> bool:
    """Whether nothing has changed a spool file since it was written, and its marks of dedup can be read.

    OSError and MemoryError where that cannot be told.
    """
    try:
        with zipfile.ZipFile(path) as arrays:
            if arrays.testzip() is not None:  # the checksums, before a length among them is believed
                return False
        with Spool(path) as spool:
            return spool.has_its_tokens()
    except MemoryError:
        raise
    except OSError as error:
        if error.errno != errno.EINVAL:  # as of a place before the file's start, which a damaged zip names
            raise
        return False
    except Exception:  # what a damaged zip makes libraries raise has many types
        return False


def num_segments_of(path: Path) -> int:
    """Spool files of a unit before its last one."""
    with Spool(path) as spool:
        return int(spool["num_segments"])


def mark(path: Path, rows: Sequence[int] | np.ndarray, kind: int) -> None:
    """Pass over these documents of a spool file as of a `kind`; earlier marks of that kind are gone."""
    marks = duplicates_of(path)
    with Spool(path) as spool:
        others = spool.duplicates[spool.duplicates[:, 1] != kind]
    new = np.stack([np.asarray(rows, dtype=np.int64), np.full(len(rows), kind)], axis=1)
    pairs = np.concatenate([others, new])
    if not len(pairs):
        marks.unlink(missing_ok=True)
        return
    aside = marks.with_name(f".{marks.name}")
    with aside.open("wb") as file:
        np.save(file, pairs)
    aside.replace(marks)


def duplicates_of(spool: Path) -> Path:
    """Where the marks of dedup are kept: a file of its own, so that a spool file is written once."""
    return spool.with_suffix(".duplicates.npy")
