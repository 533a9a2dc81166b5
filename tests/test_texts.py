"""Pieces of a text as it is written: together they are the whole, with no half character and no stop string."""

import random

import numpy as np
import pytest
from tokenizers import Tokenizer as Library
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from hvdlm.inference.texts import TextWriter
from hvdlm.tokenizer import ByteTokenizer, from_json
from hvdlm.tokenizer.char import CharTokenizer
from hvdlm.tokenizer.word import WordRule, WordTokenizer

TEXTS = [
    "the cat sat on the mat. It wasn't there!",
    "你好,世界。我们用中文写作",
    "👨‍👩‍👧‍👦 🏳️‍🌈 👍🏽 🇩🇪 done",
    "한국어 텍스트 와 日本語",
    "e\u0301 naïve café\n\n  indented\ttab",
    "",
    " leading space",
]


def trained(model, trainer, pre, decoder, normalizer=None):
    library = Library(model)
    library.pre_tokenizer, library.decoder = pre, decoder
    if normalizer is not None:
        library.normalizer = normalizer
    library.train_from_iterator(TEXTS * 3, trainer)
    return from_json(library.to_str(), "tokenizer.json")


ENDS = ["<|endoftext|>"]
UNKNOWNS = [*ENDS, "<unk>"]
LETTERS = pre_tokenizers.ByteLevel.alphabet()


def tokenizers():
    bytes_bpe = trained(
        models.BPE(),
        trainers.BpeTrainer(
            vocab_size=300,
            special_tokens=ENDS,
            initial_alphabet=LETTERS,
            show_progress=False,
        ),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoders.ByteLevel(),
    )
    unigram = trained(
        models.Unigram(),
        trainers.UnigramTrainer(vocab_size=200, special_tokens=UNKNOWNS, unk_token="<unk>", show_progress=False),
        pre_tokenizers.Metaspace(),
        decoders.Metaspace(),
    )
    wordpiece = trained(
        models.WordPiece(unk_token="[UNK]"),
        trainers.WordPieceTrainer(vocab_size=150, special_tokens=[*ENDS, "[UNK]"], show_progress=False),
        pre_tokenizers.BertPreTokenizer(),
        decoders.WordPiece(cleanup=False),
        normalizers.BertNormalizer(lowercase=False),
    )
    return {
        "bytes": ByteTokenizer(),
        "bpe": bytes_bpe,
        "unigram": unigram,
        "wordpiece": wordpiece,
        "char": CharTokenizer("".join(sorted(set("".join(TEXTS))))),
        "word": WordTokenizer(["<unk>", "<eos>", "the", "cat", "sat", "."], WordRule()),
    }


TOKENIZERS = tokenizers()


def pieces_of(tokenizer, prompt, ids, stops=()):
    writer, pieces = TextWriter(tokenizer, prompt, stops), []
    for token in ids:
        pieces.append(writer.take(int(token)))
    return [*pieces, writer.finish()], writer


@pytest.mark.parametrize("name", TOKENIZERS)
def test_pieces_together_are_what_the_whole_adds_to_the_prompt(name):
    tokenizer = TOKENIZERS[name]
    for text in TEXTS:
        ids = tokenizer.encode(text)
        for cut in range(0, len(ids) + 1, 2):
            before = tokenizer.decode(ids[:cut])
            if "\ufffd" in before:  # no prompt ends within a character
                continue
            pieces, _ = pieces_of(tokenizer, ids[:cut].tolist(), ids[cut:])
            assert before + "".join(pieces) == tokenizer.decode(ids), (text, cut)
            assert not any("\ufffd" in piece for piece in pieces)


@pytest.mark.parametrize("name", ["bytes", "bpe"])
def test_random_ids_lose_nothing_and_stall_nowhere(name):
    """Broken bytes become what the whole makes of them, and are given while others follow."""
    tokenizer, draw = TOKENIZERS[name], random.Random(0)
    for _ in range(300):
        ids = [draw.randrange(256) for _ in range(draw.randrange(40))]
        pieces, _ = pieces_of(tokenizer, [], ids)
        assert "".join(pieces) == tokenizer.decode(np.array(ids, dtype=np.int64))
    writer = TextWriter(ByteTokenizer(), [])
    pieces = [writer.take(0xFF) for _ in range(2000)]
    assert len("".join(pieces)) >= 1990 and len("".join(pieces) + writer.finish()) == 2000
    assert len(writer._window) < 100  # what is kept does not grow


def test_a_character_comes_when_its_last_byte_does():
    pieces, _ = pieces_of(ByteTokenizer(), [], "é中👍".encode())
    assert pieces == ["", "é", "", "", "中", "", "", "", "👍", ""]


@pytest.mark.parametrize(
    ("stops", "expected"),
    [
        (["sat"], "the cat "),
        (["cat", "the"], ""),
        (["xyz"], "the cat sat on"),
        (["on the"], "the cat sat on"),  # its beginning alone is text
        (["t s", "at"], "the c"),
        (["", "n"], "the cat sat o"),
        (["the cat sat on"], ""),
    ],
)
def test_a_text_ends_before_the_first_stop_string(stops, expected):
    for tokenizer in (ByteTokenizer(), TOKENIZERS["bpe"]):
        pieces, writer = pieces_of(tokenizer, [], tokenizer.encode("the cat sat on"), stops)
        assert "".join(pieces) == expected
        assert writer.is_stopped == (expected != "the cat sat on")


def test_the_beginning_of_a_stop_string_is_held_back_and_nothing_else():
    writer = TextWriter(ByteTokenizer(), [], ["\nUser:"])
    pieces = [writer.take(byte) for byte in b"Hi\nUs all\nUser: x"]
    assert pieces[:2] == ["H", "i"] and pieces[2:5] == ["", "", ""]
    assert "".join(pieces) + writer.finish() == "Hi\nUs all"
    assert writer.is_stopped


def test_a_stop_string_that_the_prompt_ends_with_does_not_count():
    pieces, writer = pieces_of(ByteTokenizer(), list(b"stop"), b"ped", ["stop"])
    assert "".join(pieces) == "ped" and not writer.is_stopped


@pytest.mark.parametrize(
    ("name", "prompt", "text"), [("word", "the cat", " sat the"), ("word", "", "sat the"), ("bytes", "cafè", "é")]
)
def test_a_continuation_joins_the_prompt_as_the_vocabulary_writes_it(name, prompt, text):
    tokenizer = TOKENIZERS[name]
    pieces, _ = pieces_of(tokenizer, tokenizer.encode(prompt).tolist(), tokenizer.encode(text))
    assert "".join(pieces) == text
