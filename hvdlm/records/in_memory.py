"""Labelled records that were never on disk: what a task asks of a split, of records whose answers nobody knows yet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hvdlm.data.fields import RAW, WORDS, FieldEntry, Packed, offsets_of
from hvdlm.data.records import Records
from hvdlm.records.encoder import RecordEncoder, Typed
from hvdlm.records.fields import FieldConfig, FieldReader
from hvdlm.tokenizer import Tokenizer


def input_reader(fields: Mapping[str, FieldEntry], inputs: Sequence[str]) -> FieldReader:
    """Reads what is known of a record before it is answered, as data of these fields were read."""
    known = {name: fields[name] for name in inputs}
    configs = {name: FieldConfig(type=one.type, join=one.join, raw=one.raw) for name, one in known.items()}
    return FieldReader(configs, known)


def words_of(text: Any, field: FieldEntry) -> Any:
    """A text as the reader of its field takes it: of words written without blanks each letter is one.

    Unless blanks part them; what is no text is left as it is.
    """
    if not isinstance(text, str) or not field.words or field.places or field.join:
        return text
    return text.split() if len(text.split()) > 1 else list(text.strip())


class RecordsInMemory(Records):
    """Records with the inputs that an encoder's reader reads; the other `fields` hold what stands for no answer.

    `source` is the file that they came from, and `place` which of its records they are, for messages.
    """

    def __init__(
        self,
        given: Sequence[Typed],
        encoder: RecordEncoder,
        fields: Mapping[str, FieldEntry],
        tokenizer: Tokenizer,
        *,
        source: Path,
        place: str,
    ) -> None:
        encoded = encoder.encode(given)
        self.given = given
        self.fields, self.split, self.folder, self.vocab_size = fields, place, source, tokenizer.vocab_size
        self._first = np.array([0, len(given)])
        self._ids, self._tokens = encoded.ids, offsets_of(encoded.lengths)
        columns = dict(encoded.columns)
        text = next(name for name, field in fields.items() if field.type == "text")
        num_words = np.diff(columns[text + WORDS][1]) if text + WORDS in columns else np.zeros(len(given), np.int64)
        for name, field in fields.items():
            if name not in encoder.entries:
                columns |= _unanswered(name, field, num_words, tokenizer)
        self._columns = {name: [column] for name, column in columns.items()}

    def tokens(self, record: int) -> np.ndarray:
        start, stop = self._tokens[record : record + 2].tolist()
        return self._ids[start:stop].astype(np.int64)

    def names(self) -> list[str] | None:
        return None

    def words(self, record: int) -> list[str]:
        """Those of a text that was encoded word by word."""
        given = self.given[record]
        assert given.record is not None and given.record.words is not None
        return [given.text[start:stop] for start, stop in given.record.words]


def _unanswered(name: str, field: FieldEntry, num_words: np.ndarray, tokenizer: Tokenizer) -> dict[str, Packed]:
    """A label 0, the number 0, no span, an empty text: whatever a layout may look at and a prediction does not."""
    num = len(num_words)
    if field.type == "pair":
        ids, lengths = tokenizer.encode_documents([""] * num)
        raw: dict[str, Packed] = {name + RAW: (np.empty(0, np.uint8), np.zeros(num + 1, np.int64))} if field.raw else {}
        return {name: (ids, offsets_of(lengths)), **raw}
    counts = num_words if field.type == "labels" else np.full(num, 0 if field.several or field.type == "span" else 1)
    dtype = "<f8" if field.type == "number" else "<i4"
    return {name: (np.zeros(int(counts.sum()), dtype), offsets_of(counts))}
