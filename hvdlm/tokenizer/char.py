"""Characters (Unicode code points) as tokens: a small vocabulary, also for Chinese."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable

import numpy as np

from hvdlm.errors import UserError
from hvdlm.tokenizer.interface import END, UNKNOWN, code_points, join_documents
from hvdlm.tokenizer.word_starts import of_bytes

NUM_CODE_POINTS = 0x110000
SPECIALS = (UNKNOWN, END)


class CharTokenizer:
    """<unk> is 0, <eos> is 1, then the characters; an unknown one comes back as U+FFFD.

    >>> tokenizer = CharTokenizer("abc")
    >>> tokenizer.encode("cab!").tolist(), tokenizer.decode([4, 2, 3, 0])
    ([4, 2, 3, 0], 'cab\ufffd')
    """

    kind = "char"
    unk_id: int | None = 0
    eos_id = 1
    bos_id: int | None = None

    def __init__(self, characters: str, origin: str = "tokenizer.json") -> None:
        if len(set(characters)) != len(characters):
            raise UserError(f"{origin}: lists a character twice")
        self._characters = characters
        codes = code_points(characters)
        self.vocab_size = len(SPECIALS) + len(codes)
        self._id_of = np.zeros(NUM_CODE_POINTS, dtype=np.int64)  # a table of 9 MB: one gather encodes a text
        self._id_of[codes] = np.arange(len(SPECIALS), self.vocab_size)
        self._code_of = np.concatenate([[0xFFFD, 0xFFFD], codes]).astype("<u4")

    def encode_documents(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        return join_documents(map(self.encode, texts), self)

    def encode(self, text: str) -> np.ndarray:
        return self._id_of[code_points(text)]

    def decode(self, ids: np.ndarray) -> str:
        ids = np.asarray(ids, dtype=np.int64)
        return self._code_of[ids[ids != self.eos_id]].tobytes().decode("utf-32-le", errors="surrogatepass")

    def word_starts(self) -> np.ndarray | None:
        unknown_and_end = [b""] * len(SPECIALS)
        return of_bytes([*unknown_and_end, *(character.encode(errors="replace") for character in self._characters)])

    def to_json(self) -> str:
        return json.dumps({"hvdlm": "char", "characters": self._characters}, ensure_ascii=False) + "\n"


def count_chars(texts: Iterable[str], vocab_size: int, min_frequency: int) -> CharTokenizer:
    """The most frequent characters of the texts, in order of frequency."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text)
    return CharTokenizer("".join(most_frequent(counts, vocab_size - len(SPECIALS), min_frequency)))


def most_frequent(counts: Counter[str], limit: int, min_frequency: int) -> list[str]:
    """At most `limit` keys that occur often enough; ties go by code point, so the order of texts does not matter.

    >>> most_frequent(Counter("abbcc"), 2, 1)
    ['b', 'c']
    """
    kept = sorted((-count, key) for key, count in counts.items() if count >= min_frequency)
    return [key for _, key in kept[:limit]]
