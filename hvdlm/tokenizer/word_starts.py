"""Which ids begin a word, where that follows from the id alone: for masks over whole words.

A word is what stands between white space, which counts to the word behind it; and each Chinese or Japanese character is
one, as BERT's tokenizer cuts them. Words that jieba or a pattern cuts are words where they are the vocabulary.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import numpy as np

from hvdlm.tokenizer.dropped import AFFIXES, SPACE_MARK, byte_alphabet, steps
from hvdlm.tokenizer.interface import Tokenizer

# First bytes of UTF-8: white space of ASCII; U+3000 to U+9FFF; characters beyond U+FFFF, rare ideographs among them.
FIRST_BYTES = frozenset(b"\t\n\v\f\r ") | frozenset(range(0xE3, 0xEA)) | {0xF0}
BYTE_PIECE = re.compile("<0x([0-9A-F]{2})>")


def word_starts(tokenizer: Tokenizer) -> np.ndarray | None:
    """bool (V,): the ids before which a word ends; None where ids do not tell.

    Ends and beginnings of texts, and ids that nothing is known of, begin one.
    """
    found = tokenizer.word_starts()
    if found is None or not found.any():
        return None
    table = np.ones(tokenizer.vocab_size, dtype=bool)
    table[: len(found)] = found
    table[[number for number in (tokenizer.eos_id, tokenizer.bos_id) if number is not None]] = True
    return table


def of_bytes(tokens: Iterable[bytes]) -> np.ndarray:
    """Of tokens as they stand in a text, in the order of their ids, white space included.

    >>> of_bytes([b" the", b"re", "中".encode(), b""]).tolist()
    [True, False, True, False]
    """
    return np.array([token[:1] != b"" and token[0] in FIRST_BYTES for token in tokens], dtype=bool)


def of_pieces(pieces: Iterable[str]) -> np.ndarray:
    """Of pieces that write a space as "▁" and lone bytes as <0x0A>."""
    return of_bytes(
        bytes([int(byte[1], 16)]) if (byte := BYTE_PIECE.fullmatch(piece)) else piece.replace(SPACE_MARK, " ").encode()
        for piece in pieces
    )


def of_library(content: dict[str, Any], ids: dict[str, int]) -> np.ndarray | None:
    """Of the tokens of a tokenizer.json, `ids` by token, before specials have another name."""
    model, num = content["model"], max(ids.values()) + 1
    tokens = [""] * num
    for token, number in ids.items():
        tokens[number] = token
    kind = str(model.get("type", "BPE")).lower()
    if kind == "wordlevel":
        return np.ones(num, dtype=bool)
    continuing, ending = (model.get(key) for key in AFFIXES)
    rules = [rule.get("type") for part in ("normalizer", "pre_tokenizer", "decoder") for rule in steps(content, part)]
    if continuing or kind == "wordpiece":
        found = np.array([not token.startswith(continuing or "##") for token in tokens])
    elif "ByteLevel" in rules:
        byte_of = {character: byte for byte, character in enumerate(byte_alphabet())}
        found = of_bytes(bytes(byte_of.get(character, 0) for character in token) for token in tokens)
    elif ending or not any(token.startswith(SPACE_MARK) for token in tokens):
        return None
    else:
        found = of_pieces(tokens)
    special = [entry["id"] for entry in content.get("added_tokens") or [] if entry["special"]]
    found[special] = True
    return found
