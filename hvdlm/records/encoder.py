"""Typed records to ids and columns: texts by the tokenizer, labels by the place of their first occurrence.

Which labels there are is known when all units are done; until then a spool file has numbers of its own and the list
that they belong to.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from hvdlm.data.fields import PLACES, RAW, WORDS, Column, FieldEntry, Packed, columns_of, joined, offsets_of
from hvdlm.data.records import TEXT_SEPARATOR
from hvdlm.data.shards import pack_strings
from hvdlm.errors import UserError
from hvdlm.records.fields import FieldReader, Place, Record
from hvdlm.tokenizer import Tokenizer
from hvdlm.tokenizer.interface import dtype_for, insert_ends, num_ends

MOST_WORDS = 1 << 20  # whose ids are remembered


class Typed(Protocol):
    """A text and what stands beside it."""

    @property
    def text(self) -> str: ...

    @property
    def record(self) -> Record | None: ...


class Encoded(NamedTuple):
    """Documents as shards have them."""

    ids: np.ndarray  # of all texts, flat
    lengths: np.ndarray  # tokens of each, int64
    columns: dict[str, Packed] = {}  # noqa: RUF012 - of a tuple


class RecordEncoder:
    """Labelled records of a rank to ids and columns; its label lists only grow."""

    def __init__(self, fields: FieldReader, tokenizer: Tokenizer) -> None:
        self._fields, self._tokenizer = fields, tokenizer
        self._ids_of_word: dict[str, np.ndarray] = {}
        self.labels: dict[str, dict[str, int]] = {
            name: {} for name, field in fields.entries.items() if field.type in ("label", "labels")
        }

    @property
    def entries(self) -> dict[str, FieldEntry]:
        return self._fields.entries

    @property
    def is_by_word(self) -> bool:
        return self._fields.entries[self._fields.text].words

    def encode(self, documents: Sequence[Typed]) -> Encoded:
        """UserError for one that the vocabulary cannot spell."""
        columns: dict[str, Packed] = {}
        if self.is_by_word:
            ids, lengths, word_lengths = self._by_word(documents)
            counts = [len(_words_of(document)) for document in documents]
            columns[self._fields.text + WORDS] = word_lengths, offsets_of(counts)
        else:
            ids, lengths = self._tokenizer.encode_documents([document.text for document in documents])
        for name, field in self._fields.entries.items():
            columns |= self._columns(name, field, documents)
        return Encoded(ids, lengths, columns)

    def _by_word(self, documents: Sequence[Typed]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Flat ids with their ends, tokens a document, and of each word (uint32), with the blanks before it."""
        words = [word for document in documents for word in pieces_of(document)]
        self._learn(words)
        parts = [self._ids_of_word[word] for word in words]
        of_words = np.fromiter(map(len, parts), dtype=np.int64, count=len(parts))
        ends = offsets_of([len(_words_of(document)) for document in documents])
        before = offsets_of(of_words)
        lengths = np.diff(before[ends])
        ids = np.concatenate([np.empty(0, dtype_for(self._tokenizer.vocab_size)), *parts])
        return *insert_ends(ids, lengths, self._tokenizer), of_words.astype("<u4")

    def _learn(self, words: Iterable[str]) -> None:
        """Ids of words that are not known yet; a word without any has the unknown one."""
        if len(self._ids_of_word) > MOST_WORDS:
            self._ids_of_word.clear()
        new = [word for word in dict.fromkeys(words) if word not in self._ids_of_word]
        ids, lengths = self._tokenizer.encode_documents(new)
        has_bos = num_ends(self._tokenizer) > 1
        for word, start, length in zip(new, offsets_of(lengths).tolist(), lengths.tolist(), strict=False):
            own = ids[start + has_bos : start + length - 1]
            if not len(own):
                if self._tokenizer.unk_id is None:
                    raise UserError(f"the word {word.strip()!r} has no token; take another tokenizer, or mend it")
                own = np.array([self._tokenizer.unk_id], dtype=ids.dtype)
            self._ids_of_word[word] = own.copy()

    def _columns(self, name: str, field: FieldEntry, documents: Sequence[Typed]) -> dict[str, Packed]:
        """Those of a field, but for the numbers of tokens of words."""
        found: dict[str, Packed] = {}
        if field.type == "text":
            if field.raw:
                found[name + RAW] = _packed_texts([[document.text] for document in documents])
            if field.places:
                found[name + PLACES] = _packed([_words_of(document) for document in documents], "<i4")
            return found
        values = [document.record.values[name] for document in documents if document.record]
        if field.type == "pair":
            ids, lengths = self._tokenizer.encode_documents([texts[0] for texts in values])
            found[name] = ids, offsets_of(lengths)
            return found | ({name + RAW: _packed_texts(values)} if field.raw else {})
        if field.type == "number":
            return {name: (np.array(values, dtype="<f8"), np.arange(len(values) + 1, dtype=np.int64))}
        if field.type == "span":
            return {name: _packed(values, "<i4")}
        numbers = self.labels[name]
        return {name: _packed([[numbers.setdefault(one, len(numbers)) for one in labels] for labels in values], "<i4")}


def pieces_of(document: Typed) -> list[str]:
    """Its words, each with the white space before it: the first one's is left out.

    Encoded one by one they are what vocabularies make of the text, most of which part it before white space.
    """
    words = _words_of(document)
    stops = [words[0][0] if words else 0, *(stop for _, stop in words[:-1])]
    return [document.text[before:stop] for before, (_, stop) in zip(stops, words, strict=True)]


def _words_of(document: Typed) -> list[Place]:
    assert document.record is not None and document.record.words is not None
    return document.record.words


def _packed(values: Sequence[Sequence[Any]], dtype: str) -> Packed:
    """Numbers, or pairs of them, by document."""
    flat = np.array([one for row in values for one in row], dtype=dtype).reshape(-1)
    width = 2 if values and any(row and isinstance(row[0], tuple) for row in values) else 1
    return flat, offsets_of([width * len(row) for row in values])


def _packed_texts(values: Sequence[Sequence[str]]) -> Packed:
    return pack_strings([TEXT_SEPARATOR.join(texts) for texts in values])


class ColumnParts:
    """The columns of a spool file, batch by batch."""

    def __init__(self, fields: dict[str, FieldEntry], dtype: np.dtype) -> None:
        self._columns: list[Column] = [column for name, field in fields.items() for column in columns_of(name, field)]
        self._dtype = dtype
        self._parts: dict[str, list[Packed]] = {column.name: [] for column in self._columns}

    def add(self, columns: dict[str, Packed]) -> None:
        for name, part in columns.items():
            self._parts[name].append(part)

    def arrays(self) -> dict[str, Packed]:
        """All of each column, in input order."""
        return {
            column.name: joined(self._parts[column.name], np.dtype(column.dtype or self._dtype))
            for column in self._columns
        }
