"""Ids as pieces of text that a person can read: whole characters, though several tokens may spell one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from hvdlm.tokenizer import Tokenizer
from hvdlm.tokenizer.interface import shown

BROKEN = "\ufffd"  # what half a character is decoded to
MOST_HELD = 4  # tokens that wait for the rest of a character: UTF-8 has no longer ones


class Piece(NamedTuple):
    """Tokens [first, stop) that are whole characters together: one, or the several that spell one character."""

    first: int
    stop: int
    text: str


def pieces_of(tokenizer: Tokenizer, ids: Sequence[int]) -> list[Piece]:
    """All ids in order, each in one piece; the ends of a text, which have no characters, by what they are.

    A piece is decoded behind the one before it, for vocabularies of words put the blank between two.
    """
    found: list[Piece] = []
    context = first = 0
    ends = (tokenizer.bos_id, tokenizer.eos_id)
    for place, number in enumerate(ids):
        if number in ends or number >= tokenizer.vocab_size:
            if first < place:
                found.append(Piece(first, place, text_of(tokenizer, ids[first:place], ids[context:first])))
            found.append(Piece(place, place + 1, name_of(tokenizer, number)))
            context = first = place + 1
            continue
        text = text_of(tokenizer, ids[first : place + 1], ids[context:first])
        if (text and not text.endswith(BROKEN)) or place + 1 - first >= MOST_HELD:
            found.append(Piece(first, place + 1, text))
            context, first = first, place + 1
    if first < len(ids):
        found.append(Piece(first, len(ids), text_of(tokenizer, ids[first:], ids[context:first])))
    return found


def text_of(tokenizer: Tokenizer, ids: Sequence[int], before: Sequence[int]) -> str:
    """What ids add to the text of those before them."""
    read, whole = (tokenizer.decode(np.array(part, dtype=np.int64)) for part in (before, [*before, *ids]))
    return whole[len(read) :] if whole.startswith(read) else tokenizer.decode(np.array(ids, dtype=np.int64))


def name_of(tokenizer: Tokenizer, number: int, before: Sequence[int] = ()) -> str:
    """One id as lists show it, behind those `before` it that began its character."""
    if number >= tokenizer.vocab_size:
        return f"<{number}>"  # a task's own, such as a mask
    if number in (tokenizer.bos_id, tokenizer.eos_id):
        return shown(tokenizer, number)
    alone, text = (tokenizer.decode(np.array(ids, dtype=np.int64)) for ids in ([number], [*before, number]))
    if alone and BROKEN not in alone:
        return alone  # no part of a character, so that one which was begun stays broken
    return f"{BROKEN}#{number}" if BROKEN in text or not text else text
