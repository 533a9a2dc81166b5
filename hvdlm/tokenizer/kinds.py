"""Text to token ids and back; TOKENIZERS names the kinds.

Every tokenizer is saved as one `tokenizer.json`, and its digest travels with the shards, so that no
consumer can pair shards with another vocabulary.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hvdlm.errors import UserError
from hvdlm.tokenizer.backend import BackendTokenizer
from hvdlm.tokenizer.bytes_utf8 import ByteTokenizer
from hvdlm.tokenizer.char import CharTokenizer, count_chars
from hvdlm.tokenizer.config import TokenizerConfig
from hvdlm.tokenizer.fast import FastTokenizer, make_fast, may_be_fast
from hvdlm.tokenizer.interface import END_OF_TEXT, Tokenizer, dtype_for
from hvdlm.tokenizer.sentencepiece_model import SentencePieceTokenizer, read_model
from hvdlm.tokenizer.tiktoken_ranks import TiktokenTokenizer, read_ranks
from hvdlm.tokenizer.training import train_bpe, train_unigram, train_wordpiece
from hvdlm.tokenizer.word import WordRule, WordTokenizer, count_words, read_vocabulary

__all__ = [
    "END_OF_TEXT",
    "TOKENIZERS",
    "BackendTokenizer",
    "ByteTokenizer",
    "CharTokenizer",
    "FastTokenizer",
    "SentencePieceTokenizer",
    "TiktokenTokenizer",
    "Tokenizer",
    "TokenizerConfig",
    "WordRule",
    "WordTokenizer",
    "digest",
    "dtype_for",
    "from_json",
    "load",
    "make_fast",
    "may_be_fast",
    "train_bpe",
    "train_unigram",
    "train_wordpiece",
]

# "hvdlm" in a tokenizer.json -> the tokenizer of its content; a file of the tokenizers library has no such key.
FORMATS: dict[str, Callable[[dict[str, Any], str], Tokenizer]] = {
    "byte": lambda content, origin: ByteTokenizer(),
    "char": lambda content, origin: CharTokenizer(content["characters"], origin),
    "word": lambda content, origin: WordTokenizer(
        content["vocabulary"], WordRule(content["words"], content["pattern"], content["line_ends"]), origin
    ),
    "tiktoken": lambda content, origin: TiktokenTokenizer(content["ranks"], content["pattern"], origin),
    "sentencepiece": lambda content, origin: SentencePieceTokenizer(base64.b64decode(content["model"]), origin),
    "tokenizers": lambda content, origin: BackendTokenizer(content["tokenizer_json"], origin, content["eos"]),
}


def from_json(text: str, origin: str = "tokenizer.json") -> Tokenizer:
    """The tokenizer that `to_json` wrote (how ranks hand it on), or any of the `tokenizers` library."""
    try:
        content = json.loads(text)
        name = content.get("hvdlm")
    except (ValueError, AttributeError):
        raise UserError(f"{origin}: not a tokenizer.json") from None
    if name is None:
        return BackendTokenizer(text, origin)
    if name not in FORMATS:
        raise UserError(f"{origin}: holds a tokenizer of kind {name!r}, this version reads {', '.join(FORMATS)}")
    try:
        return FORMATS[name](content, origin)
    except (KeyError, TypeError) as error:
        raise UserError(f"{origin}: not a tokenizer.json of kind {name} ({error})") from None


def load(path: Path, eos: str | None = None) -> Tokenizer:
    """The tokenizer in a `tokenizer.json`; `eos` names the end of text of a file that has no well-known one."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot read this tokenizer ({error.strerror})") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a tokenizer.json (a .model needs kind: sentencepiece)") from None
    return from_json(text, str(path)) if eos is None else BackendTokenizer(text, str(path), eos)


def digest(tokenizer: Tokenizer) -> str:
    """16 hex digits that name a vocabulary; stored in every shard."""
    return hashlib.sha256(tokenizer.to_json().encode()).hexdigest()[:16]


Sample = Callable[[], Iterator[str]]


def _char(config: TokenizerConfig, sample: Sample) -> Tokenizer:
    return load(config.path) if config.path else count_chars(sample(), config.vocab_size, config.min_frequency)


def _word(config: TokenizerConfig, sample: Sample) -> Tokenizer:
    rule = WordRule(config.words, config.pattern, config.line_ends)
    if config.path:
        return load(config.path)
    if config.vocabulary:
        return read_vocabulary(config.vocabulary, rule)
    return count_words(sample(), rule, config.vocab_size, config.min_frequency)


def _trained(train: Callable[[Iterator[str], int], Tokenizer]) -> Callable[[TokenizerConfig, Sample], Tokenizer]:
    def make(config: TokenizerConfig, sample: Sample) -> Tokenizer:
        return load(config.path, config.eos) if config.path else train(sample(), config.vocab_size)

    return make


def _file_of(config: TokenizerConfig) -> Path:
    assert config.path is not None, "TokenizerConfig checks it"
    return config.path


# How each kind comes to be, given its config and a function that yields sample texts.
TOKENIZERS: dict[str, Callable[[TokenizerConfig, Sample], Tokenizer]] = {
    "byte": lambda config, sample: ByteTokenizer(),
    "char": _char,
    "word": _word,
    "bpe": _trained(train_bpe),
    "unigram": _trained(train_unigram),
    "wordpiece": _trained(train_wordpiece),
    "tiktoken": lambda config, sample: read_ranks(_file_of(config), config.pattern),
    "sentencepiece": lambda config, sample: read_model(_file_of(config)),
}
