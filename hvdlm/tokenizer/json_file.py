"""Every tokenizer is saved as one `tokenizer.json`.

Its digest travels with the shards, so that no consumer can pair shards with another vocabulary.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hvdlm.errors import UserError
from hvdlm.files import read_text
from hvdlm.tokenizer.backend import BackendTokenizer, is_of_library, reason_of
from hvdlm.tokenizer.bytes_utf8 import ByteTokenizer
from hvdlm.tokenizer.char import CharTokenizer
from hvdlm.tokenizer.interface import MAX_BYTES, Tokenizer
from hvdlm.tokenizer.sentencepiece_model import SentencePieceTokenizer
from hvdlm.tokenizer.tiktoken_ranks import TiktokenTokenizer
from hvdlm.tokenizer.word import WordRule, WordTokenizer

# "hvdlm" in a tokenizer.json -> the tokenizer of its content; a file of the tokenizers library has no such key.
FORMATS: dict[str, Callable[[dict[str, Any], str], Tokenizer]] = {
    "byte": lambda content, origin: ByteTokenizer(),
    "char": lambda content, origin: CharTokenizer(content["characters"], origin),
    "word": lambda content, origin: WordTokenizer(
        content["vocabulary"], WordRule(content["words"], content["pattern"], content["line_ends"]), origin
    ),
    "tiktoken": lambda content, origin: TiktokenTokenizer(
        content["ranks"], content["pattern"], origin, content.get("eos_id"), content.get("vocab_size")
    ),
    "sentencepiece": lambda content, origin: SentencePieceTokenizer(base64.b64decode(content["model"]), origin),
    "tokenizers": lambda content, origin: BackendTokenizer(content["tokenizer_json"], origin, content["eos"]),
}


def from_json(text: str, origin: str = "tokenizer.json") -> Tokenizer:
    """The tokenizer that `to_json` wrote (how ranks hand it on), or any of the `tokenizers` library."""
    try:
        content = json.loads(text)
        name = content.get("hvdlm")
    except (ValueError, AttributeError, RecursionError):
        raise UserError(f"{origin}: not a tokenizer.json") from None
    if name is None:
        return BackendTokenizer(text, origin)
    if not isinstance(name, str) or name not in FORMATS:
        raise UserError(f"{origin}: holds a tokenizer of kind {name!r}, this version reads {', '.join(FORMATS)}")
    try:
        return FORMATS[name](content, origin)
    except UserError:
        raise
    except BaseException as error:  # a content of any shape meets any library
        if not is_of_library(error):
            raise
        raise UserError(f"{origin}: not a tokenizer.json of kind {name} ({reason_of(error)})") from None


def load(path: Path, eos: str | None = None) -> Tokenizer:
    """The tokenizer in a `tokenizer.json`; `eos` names the end of text of a file that has no well-known one."""
    try:
        text = read_text(path, limit=MAX_BYTES)
    except OSError as error:
        raise UserError(f"{path}: cannot read this tokenizer ({error.strerror})") from None
    except ValueError:
        raise UserError(
            f"{path}: not a tokenizer.json (kind: sentencepiece reads a .model, tiktoken a rank file)"
        ) from None
    return from_json(text, str(path)) if eos is None else BackendTokenizer(text, str(path), eos)


def digest(tokenizer: Tokenizer) -> str:
    """16 hex digits that name a vocabulary; stored in every shard."""
    return hashlib.sha256(tokenizer.to_json().encode()).hexdigest()[:16]
