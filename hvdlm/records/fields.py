"""The `fields` section: what a labelled record holds, and how its raw values become typed ones.

A field is declared once. What a format gives under its key is checked here, record by record, before any rank
tokenizes it: a value that is not of its type is a bad record, with its place.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

from pydantic import Field

from hvdlm.config import Section
from hvdlm.data.fields import ENDINGS, FIELD_NAME, RESERVED, FieldEntry, FieldType, Scheme
from hvdlm.numerals import number

Place = tuple[int, int]  # characters [start, stop) of a text

NAMED = re.compile(FIELD_NAME)
# A character of a script that is written without blanks is a word; others are runs of letters, or a sign.
SPACELESS = r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff"
SPAN_WORD = re.compile(rf"[{SPACELESS}]|[^\W_{SPACELESS}]+|[^\w\s]|_")
BETWEEN_BLANKS = re.compile(r"\S+")


class FieldConfig(Section):
    """A field of a record: `NAME: {type: …}`."""

    short: ClassVar[str] = "type"

    type: FieldType = Field(
        description="text: what is read; pair: a second text; label: a class; labels: one of each word of the text;"
        " span: characters of the text; number"
    )
    key: str | None = Field(None, description="key, column, column's number or file's ending; null: the field's name")
    labels: list[str] | None = Field(
        None, description="of label and labels: all there are, in order; null: those of train, sorted"
    )
    several: bool = Field(False, description="of label: a list of any number of them, in tables parted by `separator`")
    separator: str = Field(";", min_length=1, description="between several labels of a cell")
    scheme: Scheme | None = Field(None, description="of labels: how spans are written; checked where it is given")
    join: str = Field(" ", description='of text: what stands between words that come one by one; "" for Chinese')
    raw: bool = Field(False, description="of text and pair: keep the characters too, as references of BLEU or answers")


Fields = Mapping[str, FieldConfig]  # by name


def check(fields: Fields) -> None:
    """ValueError for what does not go together."""
    by_type: dict[str, list[str]] = {}
    for name, field in fields.items():
        by_type.setdefault(field.type, []).append(name)
        if not NAMED.fullmatch(name) or name in RESERVED or name.endswith(ENDINGS):
            ends = ", ".join(ENDINGS)
            raise ValueError(f"fields.{name}: a name has small letters, digits and _, and does not end with {ends}")
        for key, types in (("labels", ("label", "labels")), ("several", ("label",)), ("scheme", ("labels",))):
            if getattr(field, key) and field.type not in types:
                raise ValueError(
                    f"fields.{name}.{key}: is of type {' and '.join(types)}, not {field.type}; leave it out"
                )
        _check_labels(name, field)
        if field.raw and field.type not in ("text", "pair"):
            raise ValueError(f"fields.{name}.raw: is of type text and pair, not {field.type}; leave it out")
    for kind in ("text", "labels", "span"):
        if len(found := by_type.get(kind, [])) > 1:
            raise ValueError(f"fields: {' and '.join(found)} are both of type {kind}; a record has one")
    if fields and "text" not in by_type:
        raise ValueError("fields: none is of type text, whose ids are the tokens; declare one, such as text: text")


def _check_labels(name: str, field: FieldConfig) -> None:
    labels = field.labels
    if labels is not None and (not labels or len(set(labels)) < len(labels)):
        raise ValueError(f"fields.{name}.labels: {labels} is empty, or has a label twice")
    if any(label != label.strip() or not label for label in labels or ()):
        raise ValueError(f"fields.{name}.labels: {labels} has a label that is empty, or white space around one")


def entries(fields: Fields) -> dict[str, FieldEntry]:
    """As the manifest tells of them, but for label lists that are still to be found."""
    types = {field.type for field in fields.values()}
    text = next((name for name, field in fields.items() if field.type == "text"), "")
    found = {}
    for name, field in fields.items():
        is_text = field.type == "text"
        found[name] = FieldEntry(
            type=field.type,
            labels=tuple(field.labels or ()),
            several=field.several,
            scheme=field.scheme,
            of=text if field.type == "span" else "",
            raw=field.raw or (is_text and "span" in types),
            join=field.join if is_text else " ",
            words=is_text and bool(types & {"labels", "span"}),
            places=is_text and "span" in types,
        )
    return found


class Record(NamedTuple):
    """What a document has beside its text."""

    values: dict[str, Any]  # pair: texts; label and labels: strings; span: places; number: float
    words: list[Place] | None = None  # where the words of the text are, if it is encoded word by word


def texts_of(record: Record) -> list[str]:
    """All strings of a record, beside its text."""
    return [one for value in record.values.values() if isinstance(value, list) for one in value if isinstance(one, str)]


class Refused(ValueError):
    """What is wrong with a record, and the remedy."""


class FieldReader:
    """Raw values, as formats give them, to the text and the record of a document."""

    def __init__(self, fields: Fields, known: Mapping[str, FieldEntry] | None = None) -> None:
        """`known` tells of the fields where data were made of them before, else these are all that a record has."""
        self._fields, self.entries = fields, entries(fields) if known is None else dict(known)
        self.names = tuple(fields)
        self.keys = tuple(field.key or name for name, field in fields.items())
        self.asked = {f"fields.{name}.key": key for name, key in zip(fields, self.keys, strict=True)}
        self._known = {name: set(field.labels) for name, field in fields.items() if field.labels}
        self.text = next(name for name, field in fields.items() if field.type == "text")
        self._key_of = dict(zip(self.names, self.keys, strict=True))

    def read(self, raw: Sequence[Any]) -> tuple[str, Record]:
        """The values of a record in the order of `keys`; Refused with a reason."""
        given = dict(zip(self.names, raw, strict=True))
        for name, value in given.items():
            if value == "" and self._fields[name].several:
                given[name] = []  # of a table's cell
            elif value is None or value == "":
                raise Refused(f"{self._key_of[name]!r} is empty; fill it, or leave the record out")
        text, words = self._text_of(given.pop(self.text))
        values = {name: self._value(name, value, text) for name, value in given.items()}
        for name, value in values.items():
            if self._fields[name].type == "labels":
                self._check_words(name, value, words or [])
        return text, Record(values, words)

    def _text_of(self, value: Any) -> tuple[str, list[Place] | None]:
        entry, key = self.entries[self.text], self._key_of[self.text]
        if isinstance(value, list | tuple) and entry.words:
            words = [_string(word, key) for word in value]
            if not words:
                raise Refused(f"{key!r} holds no word; fill it, or leave the record out")
            for number_, word in enumerate(words):
                if not BETWEEN_BLANKS.fullmatch(word):
                    raise Refused(f"{key!r}: word {number_ + 1} is {word!r}: empty, or with white space in it")
            join = self._fields[self.text].join
            ends = list(itertools.accumulate(len(word) + len(join) for word in words))
            starts = [0, *ends[:-1]]
            return join.join(words), [(start, start + len(word)) for start, word in zip(starts, words, strict=True)]
        text = _string(value, key)
        if not text.strip():
            raise Refused(f"{key!r} holds nothing but white space; fill it, or leave the record out")
        if not entry.words:
            return text, None
        pattern = SPAN_WORD if entry.places else BETWEEN_BLANKS
        return text, [found.span() for found in pattern.finditer(text)]

    def _value(self, name: str, value: Any, text: str) -> Any:
        field, key = self._fields[name], self._key_of[name]
        if field.type == "pair":
            texts = [_string(one, key) for one in (value if isinstance(value, list | tuple) else [value])]
            if any("\0" in one for one in texts):
                raise Refused(f"{key!r} holds the character NUL, which stands between texts; remove it")
            if not texts or not all(one.strip() for one in texts):
                raise Refused(f"{key!r} is empty; fill it, or leave the record out")
            if len(texts) > 1 and not field.raw:
                raise Refused(f"{key!r} is {len(texts)} texts; set fields.{name}.raw: true to keep all of them")
            return texts
        if field.type == "number":
            return _number(value, key)
        if field.type == "span":
            return _places(value, key, text)
        return self._labels(name, value, key)

    def _labels(self, name: str, value: Any, key: str) -> list[str]:
        field = self._fields[name]
        if field.type == "label" and not field.several:
            found = [_label(value, key)]
        elif isinstance(value, list | tuple):
            found = [_label(one, key) for one in value]
        else:
            parts = _string(value, key).split(field.separator if field.type == "label" else None)
            found = [part.strip() for part in parts if part.strip()]
        known = self._known.get(name, set(found))
        for label in found:
            if label not in known:
                raise Refused(f"{key!r}: {label!r} is none of fields.{name}.labels ({_listed(field.labels or [])})")
        return list(dict.fromkeys(found)) if field.type == "label" else found

    def _check_words(self, name: str, labels: list[str], words: list[Place]) -> None:
        field, key = self._fields[name], self._key_of[name]
        if len(labels) != len(words):
            raise Refused(f"{key!r} has {len(labels)} labels for {len(words)} words; each word has one")
        if field.scheme:
            from hvdlm.scoring.spans import validate  # where schemes are known

            if (fault := validate(labels, field.scheme)) is not None:
                raise Refused(
                    f"{key!r}: word {fault.place + 1}: {fault.reason}; mend it, or set fields.{name}.scheme to the one"
                    " that the labels are written in"
                )


def _string(value: Any, key: str) -> str:
    if not isinstance(value, str):
        raise Refused(f"{key!r} is {type(value).__name__}, not text")
    return value


def _label(value: Any, key: str) -> str:
    """A label as it is written: 1 and "1" are the same."""
    if isinstance(value, str) and (text := value.strip()):
        return text
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float) and value.is_integer():  # as a column of integers with gaps comes out of a table
        return str(int(value))
    raise Refused(f"{key!r} is {value!r}, not a label")


def _number(value: Any, key: str) -> float:
    found = number(value.strip()) if isinstance(value, str) else value
    if isinstance(found, bool) or not isinstance(found, int | float) or not math.isfinite(found):
        raise Refused(f"{key!r} is {value!r}, not a number")
    return float(found)


def _places(value: Any, key: str, text: str) -> list[Place]:
    """Of answers as SQuAD has them ({text, answer_start}, one or a list, or lists inside one), or of [start, stop].

    An empty list says that there is none.
    """
    if isinstance(value, Mapping):
        if not {"text", "answer_start"} <= value.keys():
            raise Refused(f"{key!r} has the keys {', '.join(map(str, value)) or 'none'}, not text and answer_start")
        texts, starts = value["text"], value["answer_start"]
        if not isinstance(texts, str) and not (isinstance(texts, list) and isinstance(starts, list)):
            raise Refused(f"{key!r}: an answer is {texts!r} at {starts!r}, not a text and a place")
        pairs = [(texts, starts)] if isinstance(texts, str) else list(zip(texts, starts, strict=False))
        if not isinstance(texts, str) and len(texts) != len(starts):
            raise Refused(f"{key!r} has {len(texts)} texts and {len(starts)} starts of answers")
        answers = [_answer(part, start, key, text) for part, start in pairs]
    elif isinstance(value, list | tuple) and value and all(map(_is_place, value)):
        answers = [_checked(value, key, text)]
    elif isinstance(value, list | tuple):
        answers = [
            _answer(one.get("text"), one.get("answer_start"), key, text)
            if isinstance(one, Mapping)
            else _checked(one, key, text)
            for one in value
        ]
    else:
        raise Refused(f"{key!r} is {type(value).__name__}, not [start, stop] nor {{text, answer_start}}")
    return list(dict.fromkeys(answers))


def _is_place(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _answer(part: Any, start: Any, key: str, text: str) -> Place:
    if not isinstance(part, str) or not part or not _is_place(start):
        raise Refused(f"{key!r}: an answer is {part!r} at {start!r}, not a text and a place")
    place = _checked((start, start + len(part)), key, text)
    if text[place[0] : place[1]] != part:
        raise Refused(f"{key!r}: at {start} of the text is {text[start : start + len(part)]!r}, not {part!r}")
    return place


def _checked(place: Any, key: str, text: str) -> Place:
    if not (isinstance(place, list | tuple) and len(place) == 2 and all(map(_is_place, place))):
        raise Refused(f"{key!r}: {place!r} is not [start, stop]")
    start, stop = place
    if start == stop:
        raise Refused(f"{key!r}: [{start}, {stop}) is empty; an empty list says that there is no answer")
    if not 0 <= start < stop <= len(text):
        raise Refused(f"{key!r}: [{start}, {stop}) is outside the text, which has {len(text)} characters")
    return start, stop


def _listed(labels: Sequence[str]) -> str:
    return ", ".join(labels[:8]) + (", …" if len(labels) > 8 else "")
