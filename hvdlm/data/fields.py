"""Typed fields of labelled records: what the manifest tells of each, and the columns that hold it in a shard.

A column is a flat 1-D dataset NAME of all records' values, and NAME_offsets (int64, one more than records), so that
a record may have any number of them. `tokens` and `doc_offsets` are the ids of the one field of type text.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict

FieldType = Literal["text", "pair", "label", "labels", "span", "number"]
Scheme = Literal["BIO", "IOB1", "BIOES", "BMES"]
FIELD_NAME = r"^[a-z][a-z0-9_]{0,63}$"
# Of the format itself, or endings of columns that a field may have beside its own.
RESERVED = ("tokens", "doc_offsets", "block_crc32", "doc_ids", "doc_labels")
RAW, WORDS, PLACES, OFFSETS = "_raw", "_words", "_places", "_offsets"
ENDINGS = (RAW, WORDS, PLACES, OFFSETS)


class FieldEntry(BaseModel):
    """A field as the manifest knows it."""

    model_config = ConfigDict(frozen=True, strict=True)

    type: FieldType
    labels: tuple[str, ...] = ()  # of label and labels: what their numbers stand for
    labels_digest: str = ""  # of that list: the same numbers mean the same only where it is the same
    several: bool = False  # of label: a record may have any number of them
    scheme: Scheme | None = None  # of labels: how spans of words are written
    of: str = ""  # of span: the field whose characters it counts
    raw: bool = False  # of text and pair: the characters are kept too
    join: str = " "  # of text: what stands between words that come one by one
    words: bool = False  # of text: it was encoded word by word, and how many tokens each has is kept
    places: bool = False  # of text: and between which characters each word stands


class Column(NamedTuple):
    """A flat dataset of a shard; of `dtype` None it holds ids, in the dtype of the tokens."""

    name: str
    dtype: str | None


Packed = tuple[np.ndarray, np.ndarray]  # flat values, and offsets: int64, one more than records


# Of the column that has a field's own name; None is that of the tokens.
COLUMN_DTYPES: dict[str, str | None] = {"label": "<i4", "labels": "<i4", "span": "<i4", "number": "<f8", "pair": None}


def columns_of(name: str, field: FieldEntry) -> list[Column]:
    """What a field is kept in, beside `tokens`."""
    found = [Column(name, COLUMN_DTYPES[field.type])] if field.type in COLUMN_DTYPES else []
    found += [Column(name + RAW, "u1")] if field.raw else []
    found += [Column(name + WORDS, "<u4")] if field.words else []
    return found + ([Column(name + PLACES, "<i4")] if field.places else [])


def all_columns(fields: Mapping[str, FieldEntry]) -> list[Column]:
    """Those of all fields, in their order."""
    return [column for name, field in fields.items() for column in columns_of(name, field)]


def labels_digest(labels: Sequence[str]) -> str:
    """What names a list of labels in its order.

    >>> labels_digest(["neg", "pos"]) == labels_digest(["pos", "neg"])
    False
    """
    return hashlib.sha256(json.dumps(list(labels), ensure_ascii=False).encode()).hexdigest()[:16]


def offsets_of(lengths: Sequence[int] | np.ndarray) -> np.ndarray:
    """Where each of so many values begins, and the end: int64."""
    return np.concatenate([[0], np.cumsum(np.asarray(lengths, dtype=np.int64))]).astype(np.int64)


def rows_of(packed: Packed, rows: np.ndarray) -> Packed:
    """Some rows of a column, in that order.

    >>> values, offsets = rows_of((np.array([1, 2, 3, 4]), np.array([0, 1, 1, 4])), np.array([2, 0]))
    >>> values.tolist(), offsets.tolist()
    ([2, 3, 4, 1], [0, 3, 4])
    """
    values, offsets = packed
    lengths = np.diff(offsets)[rows]
    after = offsets_of(lengths)
    places = np.arange(after[-1]) - np.repeat(after[:-1], lengths) + np.repeat(offsets[:-1][rows], lengths)
    return values[places], after


def joined(parts: Sequence[Packed], dtype: np.dtype) -> Packed:
    """Columns one behind the other."""
    values = np.concatenate([np.empty(0, dtype), *(np.asarray(part[0], dtype) for part in parts)])
    lengths = np.concatenate([np.empty(0, np.int64), *(np.diff(part[1]) for part in parts)])
    return values, offsets_of(lengths)
