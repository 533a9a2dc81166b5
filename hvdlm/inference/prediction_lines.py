"""The lines of `hvdlm eval --predictions`: which record, what was given, what is right and what was predicted."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from hvdlm.data.fields import WORDS
from hvdlm.data.manifest import TOKENIZER
from hvdlm.data.records import Records
from hvdlm.tokenizer import Tokenizer, load


def lines_of(
    records: Records, inputs: Sequence[str], judged: Sequence[Mapping[str, Any]], num_begins: int
) -> Iterator[str]:
    """A line of JSON for each record, in the order of the input, from what a task has `judged` of it.

    A record is counted from 0, and has its `id` where the data keep one. What is not kept as it was written is as the
    tokenizer spells it, of words each for itself; `num_begins` ids of a text stand before the first.
    """
    tokenizer, names = load(records.folder / TOKENIZER), records.names()
    for number, line in enumerate(judged):
        which = {"record": number} | ({"id": names[number]} if names and names[number] else {})
        given = {name: _given(records, name, number, tokenizer, num_begins) for name in inputs}
        yield json.dumps({**which, **given, **line}, ensure_ascii=False) + "\n"


def _given(records: Records, name: str, record: int, tokenizer: Tokenizer, num_begins: int) -> Any:
    field = records.fields[name]
    if field.type == "number":
        value = float(records.values(name, record)[0])
        return int(value) if value.is_integer() else value
    if field.raw:
        return records.texts(name, record)[0]
    ids = records.ids(name, record)
    if not field.words:
        return tokenizer.decode(ids).strip()
    counts = records.values(name + WORDS, record).astype(np.int64)
    words = np.split(ids, num_begins + np.concatenate([[0], np.cumsum(counts)]))[1:-1]
    return [tokenizer.decode(word).strip() for word in words]
