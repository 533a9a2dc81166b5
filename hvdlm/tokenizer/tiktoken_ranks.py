"""Rank files of tiktoken: the vocabularies of GPT-2 to GPT-4o."""

from __future__ import annotations

import base64
import binascii
import json
from pathlib import Path

import numpy as np

from hvdlm.errors import UserError
from hvdlm.files import read_text
from hvdlm.tokenizer.interface import END_OF_TEXT, join_documents, require

# How a text is cut before its pieces are merged (tiktoken_ext/openai_public.py, MIT).
PATTERNS = {
    "gpt2": r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s""",
    "cl100k": r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$"
    r"|\s*[\r\n]|\s+(?!\S)|\s",
    "o200k": r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
}
PATTERN_OF_FILE = {"r50k_base": "gpt2", "p50k_base": "gpt2", "cl100k_base": "cl100k", "o200k_base": "o200k"}


class TiktokenTokenizer:
    """`ranks` is the content of a rank file (a token in base64 and its rank, a line); eos is the next id."""

    kind = "tiktoken"
    unk_id: int | None = None

    def __init__(self, ranks: str, pattern: str, origin: str = "tokenizer.json") -> None:
        tiktoken = require("tiktoken", f"{origin}: kind: tiktoken")
        self._ranks, self._pattern = ranks, pattern
        rank_of = _parse(ranks, origin)
        self._bytes_of = {rank: token for token, rank in rank_of.items()}
        self.eos_id = max(self._bytes_of) + 1
        self.vocab_size = self.eos_id + 1
        try:
            self._encoding = tiktoken.Encoding(
                "hvdlm",
                pat_str=PATTERNS.get(pattern, pattern),
                mergeable_ranks=rank_of,
                special_tokens={END_OF_TEXT: self.eos_id},
            )
        except ValueError as error:
            raise UserError(f"{origin}: pattern {pattern!r} is not a regular expression ({error})") from None

    def encode_documents(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        return join_documents(map(self._encode, texts), self)

    def encode(self, text: str) -> np.ndarray:
        return self._encode(text).astype(np.int64)

    def _encode(self, text: str) -> np.ndarray:
        return self._encoding.encode_to_numpy(text, allowed_special=set(), disallowed_special=())

    def decode(self, ids: np.ndarray) -> str:
        tokens = (self._bytes_of.get(token, b"") for token in np.asarray(ids).tolist())  # eos has no bytes
        return b"".join(tokens).decode(errors="replace")

    def to_json(self) -> str:
        return json.dumps({"hvdlm": "tiktoken", "pattern": self._pattern, "ranks": self._ranks}) + "\n"


def _parse(ranks: str, origin: str) -> dict[bytes, int]:
    rank_of: dict[bytes, int] = {}
    for number, line in enumerate(ranks.splitlines(), 1):
        try:
            token, rank = line.split()
            rank_of[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error):
            raise UserError(
                f"{origin}:{number}: not a rank file of tiktoken (a token in base64 and its rank)"
            ) from None
    missing = sum(bytes([byte]) not in rank_of for byte in range(256))
    if missing or len(set(rank_of.values())) != len(rank_of) or min(rank_of.values()) < 0:
        raise UserError(f"{origin}: not a rank file of tiktoken ({missing} bytes have no token, or ranks repeat)")
    return rank_of


def read_ranks(path: Path, pattern: str | None) -> TiktokenTokenizer:
    """A rank file; the cutting pattern is not in it, so it is given or told from the file's name."""
    pattern = pattern or PATTERN_OF_FILE.get(path.name.split(".")[0])
    if pattern is None:
        raise UserError(
            f"{path}: does not say how it cuts text; set tokenizer.pattern to {', '.join(PATTERNS)} or a regex"
        )
    try:
        ranks = read_text(path)
        ranks.encode("ascii")
    except OSError as error:
        raise UserError(f"{path}: cannot read this rank file ({error.strerror})") from None
    except ValueError:
        raise UserError(f"{path}: not a rank file of tiktoken (a token in base64 and its rank)") from None
    return TiktokenTokenizer(ranks, pattern, str(path))
