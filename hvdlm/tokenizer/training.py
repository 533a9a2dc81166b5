"""Vocabularies learnt from texts by the `tokenizers` library."""

from __future__ import annotations

from collections.abc import Iterator

from .backend import BackendTokenizer
from .interface import END_OF_TEXT, UNKNOWN


def train_bpe(texts: Iterator[str], vocab_size: int) -> BackendTokenizer:
    """Byte-level BPE (Radford et al., 2019): nothing is unknown, every text comes back as it was."""
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
    return BackendTokenizer(backend.to_str(pretty=True))


def train_unigram(texts: Iterator[str], vocab_size: int) -> BackendTokenizer:
    """Unigram pieces (Kudo, 2018), "▁" for a space as SentencePiece has it; characters not met are unknown.

    No space is put before a text and other white space is kept, so a text of known characters comes back
    as it was (but for "▁" itself).
    """
    from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
    from tokenizers import Tokenizer as Backend

    backend = Backend(models.Unigram())
    lines = pre_tokenizers.Split(Regex(r"[^\S ]+"), behavior="isolated")  # no piece spans a line end
    backend.pre_tokenizer = pre_tokenizers.Sequence([lines, pre_tokenizers.Metaspace(prepend_scheme="never")])
    backend.decoder = decoders.Metaspace(prepend_scheme="never")
    trainer = trainers.UnigramTrainer(
        vocab_size=vocab_size, special_tokens=[UNKNOWN, END_OF_TEXT], unk_token=UNKNOWN, show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    return BackendTokenizer(backend.to_str(pretty=True))


def train_wordpiece(texts: Iterator[str], vocab_size: int) -> BackendTokenizer:
    """WordPiece with BERT's (cased) rules: white space is not kept, Chinese is cut into characters."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

    backend = Backend(models.WordPiece(unk_token="[UNK]"))  # noqa: S106 - a token of text
    backend.normalizer = normalizers.BertNormalizer(lowercase=False, strip_accents=False)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        special_tokens=["[UNK]", END_OF_TEXT],
        limit_alphabet=max(1000, vocab_size // 2),  # the default of 1000 leaves most of Chinese unknown
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return BackendTokenizer(backend.to_str(pretty=True))
