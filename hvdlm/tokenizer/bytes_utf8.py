"""Bytes as tokens: no vocabulary to train, nothing unknown."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from hvdlm.errors import UserError
from hvdlm.tokenizer.interface import dtype_for
from hvdlm.tokenizer.word_starts import of_bytes

NEVER_IN_UTF8 = b"\xff"  # so it can stand for eos until the bytes are widened


class ByteTokenizer:
    """The 256 bytes of UTF-8, and 256 for end of text.

    >>> ByteTokenizer().encode("hé").tolist()
    [104, 195, 169]
    >>> ids, counts = ByteTokenizer().encode_documents(["hé", "", "a"])
    >>> ids.tolist(), counts.tolist()
    ([104, 195, 169, 256, 256, 97, 256], [4, 1, 2])
    """

    kind = "byte"
    vocab_size = 257
    eos_id = 256
    bos_id: int | None = None
    unk_id: int | None = None

    @classmethod
    def of(cls, content: dict[str, Any], origin: str) -> ByteTokenizer:
        """The one there is; UserError for a file that tells of another."""
        for name in ("vocab_size", "eos_id"):
            if content.get(name) != getattr(cls, name):
                raise UserError(
                    f"{origin}: has {name} {content.get(name)!r}, the byte tokenizer {getattr(cls, name)}; "
                    "copy the file again, or set kind: byte without a path"
                )
        return cls()

    def encode_documents(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        parts = [text.encode() for text in texts]
        counts = np.fromiter(map(len, parts), dtype=np.int64, count=len(parts)) + 1
        parts.append(b"")  # so that the last text too is followed by the separator
        flat = np.frombuffer(NEVER_IN_UTF8.join(parts), dtype=np.uint8).astype(dtype_for(self.vocab_size))
        flat[np.cumsum(counts) - 1] = self.eos_id
        return flat, counts

    def encode(self, text: str) -> np.ndarray:
        return np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int64)

    def decode(self, ids: np.ndarray) -> str:
        ids = np.asarray(ids)
        return ids[ids < 256].astype(np.uint8).tobytes().decode(errors="replace")

    def word_starts(self) -> np.ndarray | None:
        return of_bytes(bytes([byte]) for byte in range(256))

    def to_json(self) -> str:
        return json.dumps({"hvdlm": "byte", "vocab_size": self.vocab_size, "eos_id": self.eos_id}) + "\n"
