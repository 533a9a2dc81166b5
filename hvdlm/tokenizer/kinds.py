"""The `tokenizer` section: which of TOKENIZERS, and what it is made from."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from hvdlm.config import Section, choice_of
from hvdlm.tokenizer.bytes_utf8 import ByteTokenizer
from hvdlm.tokenizer.char import count_chars
from hvdlm.tokenizer.file_kinds import HEAD_BYTES, RANKS, kind_of
from hvdlm.tokenizer.interface import Tokenizer
from hvdlm.tokenizer.json_file import load
from hvdlm.tokenizer.published import AUTO, CONFIG, NONE
from hvdlm.tokenizer.sentencepiece_model import read_model
from hvdlm.tokenizer.tiktoken_ranks import read_ranks
from hvdlm.tokenizer.training import train_bpe, train_unigram, train_wordpiece
from hvdlm.tokenizer.word import CUTTERS, WordRule, count_words, cutter, read_vocabulary

MOST_TRAINED = 1 << 24  # ids; the trainers reserve memory for all, and no published vocabulary has a tenth of it
SampleTexts = Callable[[], Iterator[str]]


def _char(config: TokenizerConfig, sample: SampleTexts) -> Tokenizer:
    if config.path:
        return load(config.path, bos=config.bos)
    return count_chars(sample(), config.vocab_size, config.min_frequency)


def _word(config: TokenizerConfig, sample: SampleTexts) -> Tokenizer:
    if config.path:
        return load(config.path, bos=config.bos)
    if config.vocabulary:
        return read_vocabulary(config.vocabulary, config.word_rule)
    return count_words(sample(), config.word_rule, config.vocab_size, config.min_frequency)


def _trained(train: Callable[[Iterator[str], int], Tokenizer]) -> Callable[[TokenizerConfig, SampleTexts], Tokenizer]:
    def make(config: TokenizerConfig, sample: SampleTexts) -> Tokenizer:
        return load(config.path, config.eos, config.bos) if config.path else train(sample(), config.vocab_size)

    return make


def read_any(path: Path, pattern: str | None = None) -> Tokenizer:
    """The vocabulary in a tokenizer.json, a rank file of tiktoken or a .model of sentencepiece, told by its name.

    Llama 3's tokenizer.model is a rank file.
    """
    if path.suffix == ".model" and not pattern and not _begins_as_ranks(path):
        return read_model(path)
    is_ranks = pattern or path.suffix in (".tiktoken", ".model")
    return read_ranks(path, pattern) if is_ranks else load(path, bos=AUTO)


def _begins_as_ranks(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return kind_of(file.read(HEAD_BYTES)) == RANKS
    except OSError:
        return False  # the reader of models says why


def _file_of(config: TokenizerConfig) -> Path:
    assert config.path is not None, "TokenizerConfig checks it"
    return config.path


@dataclass(frozen=True)
class TokenizerKind:
    """How a kind comes to be, given its section and a function that yields sample texts."""

    make: Callable[[TokenizerConfig, SampleTexts], Tokenizer]
    source: Literal["fixed", "counted", "trained", "file"]
    keys: tuple[str, ...] = ()  # of the section, beside those that concern every kind that is learnt
    min_vocab_size: int = 0


ENDS_KEYS = ("eos", "bos")
TOKENIZERS = {
    "byte": TokenizerKind(lambda config, sample: ByteTokenizer(), "fixed"),
    "char": TokenizerKind(_char, "counted", ("min_frequency",)),
    "word": TokenizerKind(_word, "counted", ("min_frequency", "words", "vocabulary", "line_ends", "pattern")),
    "bpe": TokenizerKind(_trained(train_bpe), "trained", ENDS_KEYS, min_vocab_size=257),  # 256 bytes and end of text
    "unigram": TokenizerKind(_trained(train_unigram), "trained", ENDS_KEYS),
    "wordpiece": TokenizerKind(_trained(train_wordpiece), "trained", ENDS_KEYS),
    "tiktoken": TokenizerKind(
        lambda config, sample: read_ranks(_file_of(config), config.pattern, config.bos), "file", ("pattern", "bos")
    ),
    "sentencepiece": TokenizerKind(lambda config, sample: read_model(_file_of(config), config.bos), "file", ("bos",)),
}
OWN_KEYS = dict.fromkeys(key for kind in TOKENIZERS.values() for key in kind.keys)


class TokenizerConfig(Section):
    """The `tokenizer` section: trained on a sample of the input unless `path` or `vocabulary` names a file."""

    kind: Annotated[str, choice_of(TOKENIZERS)] = Field(
        "bpe",
        description="bpe (byte-level), unigram and wordpiece are trained; char and word are counted; byte is fixed; "
        "tiktoken and sentencepiece read the file in path",
    )
    path: Path | None = Field(
        None,
        strict=False,
        description="instead of training: a tokenizer.json (any kind is inside), the rank file of tiktoken, the .model "
        "of sentencepiece",
    )
    vocab_size: int = Field(
        8192, ge=3, description="ids to train, special ones included (bpe: from 257); of char and word at most"
    )
    sample_mb: float = Field(16.0, gt=0, description="text to train on or to count, in MB, spread over the input")
    min_frequency: int = Field(1, ge=1, description="char, word: rarer ones become <unk>")
    words: Annotated[str, choice_of(CUTTERS)] = Field(
        "whitespace", description="word: between spaces, matches of pattern, or Chinese words by jieba"
    )
    pattern: str | None = Field(
        None,
        description="word with words: regex: what a word is; tiktoken: gpt2, cl100k, o200k, llama3, qwen or a regular "
        "expression that cuts the text, by default told from the file's name and size",
    )
    vocabulary: Path | None = Field(
        None,
        strict=False,
        description="word: a file of one word a line, the only words there are; the others are <unk>",
    )
    line_ends: bool = Field(False, description="word: each line end is an <eos>, as in PTB and WikiText")
    eos: str | None = Field(
        None, description="token of the tokenizer.json in path that ends a document; by default a well-known one"
    )
    bos: str = Field(
        AUTO,
        description="token that begins a document: auto as the publisher of the file in path has it, none, or its name",
    )

    @model_validator(mode="after")
    def _check(self) -> TokenizerConfig:
        kind = TOKENIZERS[self.kind]
        for key in OWN_KEYS:
            value = getattr(self, key)
            if key not in kind.keys and value != type(self).model_fields[key].default and (key, value) != ("bos", NONE):
                readers = [name for name, other in TOKENIZERS.items() if key in other.keys]
                told = f"{key} is for kind: {' or '.join(readers)}, not {self.kind}"
                raise ValueError(f"{told}; leave it out, as tokenizer={{kind: {self.kind}}} does")
        if kind.source == "fixed" and self.path is not None:
            raise ValueError(f"the {self.kind} tokenizer has no file; remove path or use kind: bpe")
        if self.path is None and self.vocab_size < kind.min_vocab_size:
            raise ValueError(f"vocab_size: {self.kind} needs {kind.min_vocab_size} ids at least, got {self.vocab_size}")
        if kind.source == "trained" and self.path is None and self.vocab_size > MOST_TRAINED:
            raise ValueError(f"vocab_size: {self.kind} learns {MOST_TRAINED:,} ids at most, got {self.vocab_size:,}")
        if kind.source == "file" and self.path is None:
            raise ValueError(f"kind: {self.kind} reads a file; set path")
        if self.eos is not None and self.path is None:
            raise ValueError(f"eos names a token of the file in path; a trained {self.kind} has its own")
        if self.bos not in (AUTO, NONE) and self.path is None:
            raise ValueError(f"bos names a token of the file in path; a trained {self.kind} has none")
        if self.has_words:
            self._check_word()
        return self

    def _check_word(self) -> None:
        if self.vocabulary is not None and self.path is not None:
            raise ValueError("vocabulary and path both name the words; remove one")
        if self.pattern is not None and self.words != "regex":
            raise ValueError(f"pattern is for words: regex, not {self.words}")
        if self.pattern is None:
            return
        try:
            _ = cutter(self.word_rule)
            is_empty = re.fullmatch(self.pattern, "") is not None
        except (re.error, OverflowError, RecursionError) as error:
            raise ValueError(f"pattern {self.pattern!r} is not a regular expression ({error})") from None
        if is_empty:
            raise ValueError(f"pattern {self.pattern!r} also matches nothing, so words would be empty")

    @property
    def files(self) -> list[Path]:
        """What the vocabulary depends on."""
        beside = None if self.path is None else self.path.parent / CONFIG
        found = [path for path in (self.path, self.vocabulary) if path is not None]
        return [*found, beside] if beside is not None and beside.is_file() else found

    @property
    def has_words(self) -> bool:
        """Whether the vocabulary is one of words, which `word_rule` cuts."""
        return "words" in TOKENIZERS[self.kind].keys

    @property
    def word_rule(self) -> WordRule:
        return WordRule(self.words, self.pattern, self.line_ends)

    @property
    def is_learnt(self) -> bool:
        """Whether the vocabulary comes from a sample of the input."""
        return TOKENIZERS[self.kind].source in ("counted", "trained") and self.path is None and self.vocabulary is None

    @property
    def fills_vocab_size(self) -> bool:
        """Whether it is learnt to have just `vocab_size` ids, not at most so many."""
        return self.is_learnt and TOKENIZERS[self.kind].source == "trained"
