"""The `tokenizer` section of a preprocess config."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from hvdlm.config import Section

Kind = Literal["byte", "char", "word", "bpe", "unigram", "wordpiece", "tiktoken", "sentencepiece"]

# key -> the kinds that read it; the other keys concern every kind that is trained
KINDS_OF = {
    "min_frequency": ("char", "word"),
    "words": ("word",),
    "vocabulary": ("word",),
    "line_ends": ("word",),
    "pattern": ("word", "tiktoken"),
    "eos": ("bpe", "unigram", "wordpiece"),
}
MIN_BPE = 257  # 256 bytes and end of text


class TokenizerConfig(Section):
    """The `tokenizer` section: trained on a sample of the input unless `path` or `vocabulary` names a file."""

    kind: Kind = Field(
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
    words: Literal["whitespace", "regex", "jieba"] = Field(
        "whitespace", description="word: between spaces, matches of pattern, or Chinese words by jieba"
    )
    pattern: str | None = Field(
        None,
        description="word with words: regex: what a word is; tiktoken: gpt2, cl100k, o200k or a regular expression "
        "that cuts the text, by default told from the file's name",
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

    @model_validator(mode="after")
    def _check(self) -> TokenizerConfig:
        for key, kinds in KINDS_OF.items():
            if self.kind not in kinds and getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"{key} is for kind: {' or '.join(kinds)}, not {self.kind}")
        if self.kind == "byte" and self.path is not None:
            raise ValueError("the byte tokenizer has no file; remove path or use kind: bpe")
        if self.kind == "bpe" and self.path is None and self.vocab_size < MIN_BPE:
            raise ValueError(f"vocab_size: bpe needs {MIN_BPE} ids at least, got {self.vocab_size}")
        if self.kind in ("tiktoken", "sentencepiece") and self.path is None:
            raise ValueError(f"kind: {self.kind} reads a file; set path")
        if self.eos is not None and self.path is None:
            raise ValueError(f"eos names a token of the file in path; a trained {self.kind} has its own")
        if self.kind == "word":
            self._check_word()
        return self

    def _check_word(self) -> None:
        if self.vocabulary is not None and self.path is not None:
            raise ValueError("vocabulary and path both name the words; remove one")
        if self.pattern is not None and self.words != "regex":
            raise ValueError(f"pattern is for words: regex, not {self.words}")
        try:
            if self.pattern is not None and re.compile(self.pattern).fullmatch(""):
                raise ValueError(f"pattern {self.pattern!r} also matches nothing, so words would be empty")
        except re.error as error:
            raise ValueError(f"pattern {self.pattern!r} is not a regular expression ({error})") from None
