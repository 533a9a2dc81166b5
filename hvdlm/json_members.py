"""The members of a JSON object as they are written: 1e3, 1.50 and [1e3, 2] keep their spelling."""

from __future__ import annotations

import json
import re

DECODER = json.JSONDecoder(parse_int=str, parse_float=str)
BEFORE_NAME, COLON = re.compile(r'[\s,]*(?=")'), re.compile(r"\s*:\s*")


def written_members(text: str) -> dict[str, str] | None:
    """The members of a valid JSON object, each as the text that spells its value; None for what is no object.

    >>> written_members('{"a": 1e3, "b": [1.50]}')
    {'a': '1e3', 'b': '[1.50]'}
    """
    if not text.startswith("{"):
        return None
    members, end = {}, 1
    while found := BEFORE_NAME.match(text, end):
        name, end = DECODER.raw_decode(text, found.end())
        colon = COLON.match(text, end)
        assert colon, "a valid object"
        start = colon.end()
        _, end = DECODER.raw_decode(text, start)
        members[name] = text[start:end]
    return members
