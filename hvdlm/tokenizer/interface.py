"""What every stage needs of a vocabulary, and the rules that all kinds share."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from typing import Any, Protocol

import numpy as np

from hvdlm.errors import UserError

MAX_BYTES = 1 << 30  # of a file; the largest vocabularies take 40 MB
END_OF_TEXT = "<|endoftext|>"
UNKNOWN = "<unk>"  # of the closed vocabularies, as PTB and WikiText write them
END = "<eos>"
MOST_IDS = 1 << 32  # of a vocabulary: the widest dtype's


class Tokenizer(Protocol):
    """Text to ids and back. A special token's name inside a text is text: it never becomes the special id."""

    kind: str
    vocab_size: int  # largest id + 1, added tokens included
    eos_id: int
    bos_id: int | None  # None: a document begins with its text
    unk_id: int | None  # None: every text has an exact encoding

    def encode_documents(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Ids of all texts in one array of `dtype_for(vocab_size)`, bos before and eos after each; tokens of each.

        The tokens (int64) include bos, where there is one, and eos.
        """

    def encode(self, text: str) -> np.ndarray:
        """Ids (int64, 1-D) of one text without bos and eos: a prompt."""

    def decode(self, ids: np.ndarray) -> str:
        """The text of these ids; bos and eos are dropped and invalid UTF-8 becomes U+FFFD."""

    def word_starts(self) -> np.ndarray | None:
        """Which ids begin a word, bool (V or fewer,), the last ones may be missing; None where ids do not tell."""

    def to_json(self) -> str:
        """All there is to know, as one text: `from_json` needs no other file."""


def dtype_for(vocab_size: int) -> np.dtype:
    """The smallest type of the format that holds every id.

    >>> dtype_for(65536).name, dtype_for(65537).name
    ('uint16', 'uint32')
    """
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


def insert_ends(ids: np.ndarray, lengths: np.ndarray, tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray]:
    """The documents in `ids`, one after the other, each between bos, if any, and eos: as `encode_documents` returns.

    One mask over the array, 0.4 ns a token, instead of a slice copied for each document.
    """
    counts = np.asarray(lengths, dtype=np.int64) + num_ends(tokenizer)
    ends = np.cumsum(counts) - 1
    flat = np.empty(int(counts.sum()), dtype=dtype_for(tokenizer.vocab_size))
    is_text = np.ones(len(flat), dtype=bool)
    is_text[ends] = False
    if tokenizer.bos_id is not None:
        starts = ends - counts + 1
        is_text[starts] = False
        flat[starts] = tokenizer.bos_id
    flat[is_text] = ids
    flat[ends] = tokenizer.eos_id
    return flat, counts


def num_ends(tokenizer: Tokenizer) -> int:
    """Tokens of each document that are not of its text."""
    return 1 if tokenizer.bos_id is None else 2


def join_documents(parts: Iterable[np.ndarray], tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray]:
    """`encode_documents` for a kind that encodes text by text."""
    dtype = dtype_for(tokenizer.vocab_size)
    narrow = [part.astype(dtype) for part in parts]
    lengths = np.fromiter(map(len, narrow), dtype=np.int64, count=len(narrow))
    return insert_ends(np.concatenate([np.empty(0, dtype), *narrow]), lengths, tokenizer)


def shown(tokenizer: Tokenizer, token: int) -> str:
    """The text of one id as lists show it; those that have none by what they are."""
    ends = {tokenizer.bos_id: "<beginning of text>", tokenizer.eos_id: "<end of text>"}
    return ends.get(token) or tokenizer.decode(np.array([token]))


def code_points(text: str) -> np.ndarray:
    """The characters of a text as numbers (uint32, 1-D).

    >>> code_points("a中").tolist()
    [97, 20013]
    """
    return np.frombuffer(text.encode("utf-32-le", errors="surrogatepass"), dtype="<u4")


def num_letters(text: str) -> int:
    """Characters but for white space.

    >>> num_letters(" a b\\n")
    2
    """
    return len("".join(text.split()))


def require(library: str, purpose: str) -> Any:
    """An optional library, imported where it is used."""
    try:
        return importlib.import_module(library)
    except ImportError:
        raise UserError(f"{purpose} needs {library}; pip install 'hvdlm[text]'") from None
