"""Questions about paragraphs, as SQuAD, CMRC and DRCD have them (Rajpurkar et al. 2016): one JSON object a file."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, BinaryIO

import orjson

from hvdlm.data.compression import is_compressed
from hvdlm.errors import UserError

from ..documents import BadRecord, Document, Part, ReadOptions, record_limit
from .jsonl import whole_value
from .tables import larger_than_limit

OWN = {"text": "context", "pair": "question", "span": "answers"}  # a type's key where none is said


def read_squad(file: BinaryIO, part: Part, options: ReadOptions) -> Iterator[Document | BadRecord]:
    """A record a question."""
    if options.fields is None:
        raise UserError(f"{part.path}: questions are labelled records; set `fields` of type text, pair and span")
    data = file.read(record_limit() + 1) if is_compressed(part.path) else file.read()
    if is_compressed(part.path) and len(data) > record_limit():
        yield BadRecord(part.path, f"{larger_than_limit()} inside a compression; decompress it first")
        return
    try:
        content = orjson.loads(data)
        paragraphs = [one for article in content["data"] for one in article["paragraphs"]]
    except (ValueError, KeyError, TypeError) as error:
        told = f"no key {error}" if isinstance(error, KeyError) else str(error)
        yield BadRecord(part.path, f"is not SQuAD's JSON, an object with data, paragraphs, qas ({told})")
        return
    number = 0
    for paragraph in paragraphs:
        questions = paragraph.get("qas") if isinstance(paragraph, dict) else None
        if not isinstance(questions, list):
            yield BadRecord(f"{part.path}: question {number}", "its paragraph has no list of questions under qas")
            continue
        for question in questions:
            yield _record(paragraph, question, number, part, options)
            number += 1


def _record(
    paragraph: dict[str, Any], question: Any, number: int, part: Part, options: ReadOptions
) -> Document | BadRecord:
    assert options.fields is not None
    place = f"{part.path}: question {number}"
    if not isinstance(question, dict):
        return BadRecord(place, f"is {type(question).__name__}, not an object")
    given = {"context": paragraph.get("context"), **question}
    if given.get("is_impossible"):
        given["answers"] = []
    raw = []
    for name, key in zip(options.fields.names, options.fields.keys, strict=True):
        wanted = OWN.get(options.fields.entries[name].type, key) if key == name and key not in given else key
        if wanted not in given:
            have = ", ".join(map(str, given))
            return BadRecord(place, f"no key {wanted!r} (it has: {have}); set fields.{name}.key")
        raw.append(whole_value(given[wanted]))
    id_ = given.get(options.id_key or "")
    return Document("", number, None if id_ is None else str(id_), raw=tuple(raw))
