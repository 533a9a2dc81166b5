"""Text to token ids and back; TOKENIZERS names the kinds.

Every tokenizer is saved as one `tokenizer.json`, and its digest travels with the shards, so that no
consumer can pair shards with another vocabulary.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from pydantic import Field, model_validator

from hvdlm.config import Section
from hvdlm.errors import UserError

END_OF_TEXT = "<|endoftext|>"


class TokenizerConfig(Section):
    """The `tokenizer` section: `bpe` trains on a sample of the input unless `path` names a file."""

    kind: Literal["byte", "bpe"] = "bpe"
    path: Path | None = Field(None, strict=False, description="a tokenizer.json to load instead of training one")
    vocab_size: int = Field(8192, ge=257, description="ids to train, 256 bytes and end of text included")
    sample_mb: float = Field(16.0, gt=0, description="training text, in MB, spread evenly over the input")

    @model_validator(mode="after")
    def _check(self) -> TokenizerConfig:
        if self.kind == "byte" and self.path is not None:
            raise ValueError("the byte tokenizer has no file; remove path or use kind: bpe")
        return self


class Tokenizer(Protocol):
    """What the stages need of a vocabulary."""

    kind: str
    vocab_size: int  # largest id + 1, added tokens included
    eos_id: int

    def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
        """Ids (int64, 1-D) of each text, without an end-of-text id."""

    def decode(self, ids: np.ndarray) -> str:
        """The text of these ids; invalid UTF-8 becomes U+FFFD."""

    def to_json(self) -> str:
        """The content of tokenizer.json."""


class ByteTokenizer:
    """The 256 bytes of UTF-8, and 256 for end of text.

    >>> ByteTokenizer().encode_batch(["hé"])[0].tolist()
    [104, 195, 169]
    """

    kind = "byte"
    vocab_size = 257
    eos_id = 256

    def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
        return [np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int64) for text in texts]

    def decode(self, ids: np.ndarray) -> str:
        ids = np.asarray(ids)
        return ids[ids < 256].astype(np.uint8).tobytes().decode(errors="replace")

    def to_json(self) -> str:
        return json.dumps({"hvdlm": "byte", "vocab_size": self.vocab_size, "eos_id": self.eos_id}) + "\n"


class BpeTokenizer:
    """Byte-level BPE (Radford et al., 2019) through the `tokenizers` library."""

    kind = "bpe"

    def __init__(self, text: str, origin: str = "tokenizer.json") -> None:
        from tokenizers import Tokenizer as Backend

        try:
            self._backend = Backend.from_str(text)
        except Exception as error:  # the library raises bare Exception
            raise UserError(f"{origin}: not a tokenizer.json ({error})") from None
        self._backend.no_truncation()  # a document is never cut or padded, whatever the file asks for
        self._backend.no_padding()
        self._backend.encode_special_tokens = True  # "<|endoftext|>" inside a text is text
        eos = self._backend.token_to_id(END_OF_TEXT)
        if eos is None:
            raise UserError(
                f"{origin}: has no token {END_OF_TEXT}, which ends each document; add it as a special token"
            )
        self._text = text
        self.eos_id: int = eos
        self.vocab_size: int = max(self._backend.get_vocab(with_added_tokens=True).values()) + 1

    def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
        encodings = self._backend.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(encoding.ids, dtype=np.int64) for encoding in encodings]

    def decode(self, ids: np.ndarray) -> str:
        return self._backend.decode(np.asarray(ids).tolist(), skip_special_tokens=True)

    def to_json(self) -> str:
        return self._text


def train_bpe(texts: Iterator[str], vocab_size: int) -> BpeTokenizer:
    """Learn a byte-level BPE of `vocab_size` ids; the same texts give the same vocabulary."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers, trainers

    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return BpeTokenizer(backend.to_str(pretty=True))


def _load_json(text: str, origin: str) -> Tokenizer:
    try:
        is_byte = json.loads(text).get("hvdlm") == "byte"
    except (ValueError, AttributeError):
        raise UserError(f"{origin}: not a tokenizer.json") from None
    return ByteTokenizer() if is_byte else BpeTokenizer(text, origin)


def load(path: Path) -> Tokenizer:
    """The tokenizer in a `tokenizer.json`, one of ours or any of the `tokenizers` library."""
    try:
        return _load_json(path.read_text(encoding="utf-8"), str(path))
    except OSError as error:
        raise UserError(f"{path}: cannot read this tokenizer ({error.strerror})") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a tokenizer.json") from None


def digest(tokenizer: Tokenizer) -> str:
    """16 hex digits that name a vocabulary; stored in every shard."""
    return hashlib.sha256(tokenizer.to_json().encode()).hexdigest()[:16]


def from_json(text: str) -> Tokenizer:
    """The tokenizer that `to_json` wrote (how ranks hand it on)."""
    return _load_json(text, "tokenizer.json")


# How each kind comes to be, given its config and a function that yields sample texts.
TOKENIZERS: dict[str, Callable[[TokenizerConfig, Callable[[], Iterator[str]]], Tokenizer]] = {
    "byte": lambda config, sample: ByteTokenizer(),
    "bpe": lambda config, sample: load(config.path) if config.path else train_bpe(sample(), config.vocab_size),
}
