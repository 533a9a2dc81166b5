"""Vocabularies learnt from texts by the `tokenizers` library."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

from hvdlm.errors import UserError
from hvdlm.tokenizer.backend import BackendTokenizer
from hvdlm.tokenizer.char import most_frequent
from hvdlm.tokenizer.interface import END_OF_TEXT, UNKNOWN


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
    _train(backend, texts, trainer)
    return BackendTokenizer(backend.to_str(pretty=True))


def train_unigram(texts: Iterator[str], vocab_size: int) -> BackendTokenizer:
    """Unigram pieces (Kudo, 2018), "▁" for a space as SentencePiece has it; characters not met are unknown.

    No space is put before a text and other white space is kept, so a text of known characters comes back
    as it was (but for "▁" itself). Scores have four digits, so that the same texts give the same vocabulary.
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
    _train(backend, texts, trainer)
    content = json.loads(backend.to_str())
    vocab = content["model"]["vocab"]
    content["model"]["vocab"] = vocab[:2] + _settled(vocab[2:])  # <unk> and end of text stay first
    return BackendTokenizer(json.dumps(content, ensure_ascii=False, indent=2))


def _settled(pieces: list[tuple[str, float]]) -> list[tuple[str, float]]:
    """Scores and order without the two whims of the trainer: the last digits, and who of the rare comes first.

    Its threads add in any order, which moves the 11th digit. Characters that the training dropped but the
    vocabulary must hold get the lowest score and 0.0001 more for each, in the order of a hash: all get the
    lowest here.
    """
    lowest = min((score for _, score in pieces), default=0.0)
    rare = lowest + 1e-4 * sum(len(piece) == 1 for piece, _ in pieces) + 1e-6
    scores = {piece: round(lowest if len(piece) == 1 and score <= rare else score, 4) for piece, score in pieces}
    return sorted(scores.items(), key=lambda item: (-item[1], item[0]))


def train_wordpiece(texts: Iterator[str], vocab_size: int) -> BackendTokenizer:
    """WordPiece with BERT's (cased) rules: white space is not kept, Chinese is cut into characters."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

    backend = Backend(models.WordPiece(unk_token="[UNK]"))  # noqa: S106 - a token of text
    backend.normalizer = normalizers.BertNormalizer(lowercase=False, strip_accents=False)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    words: Counter[str] = Counter()
    kept = list(texts)
    for text in kept:
        words.update(word for word, _ in backend.pre_tokenizer.pre_tokenize_str(backend.normalizer.normalize_str(text)))
    alphabet, continuing = _alphabet(words, (vocab_size - 2) // 2)
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        # The trainer numbers "##a" by a hash's order, and ties go by number: as specials they have a fixed one.
        special_tokens=["[UNK]", END_OF_TEXT, *continuing],
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    backend.train_from_iterator(kept, trainer)
    content = json.loads(backend.to_str())
    content["added_tokens"] = content["added_tokens"][:2]
    return BackendTokenizer(json.dumps(content, ensure_ascii=False, indent=2))


def _alphabet(words: Counter[str], limit: int) -> tuple[list[str], list[str]]:
    """At most `limit` characters, the most frequent, and those of them that continue a word, as "##a"."""
    counts: Counter[str] = Counter()
    inside: set[str] = set()
    for word, count in words.items():
        inside.update(word[1:])
        for character in word:
            counts[character] += count
    alphabet = most_frequent(counts, max(1, limit), 1)
    return alphabet, sorted(f"##{character}" for character in inside.intersection(alphabet))


def _train(backend: Any, texts: Iterator[str], trainer: Any) -> None:
    try:
        backend.train_from_iterator(texts, trainer)
    except Exception as error:  # the library raises bare Exception
        raise UserError(f"this text gives no vocabulary of that size ({error}); set another vocab_size") from None
