"""The sample that a vocabulary is learnt from: drawn in pieces that cut no word."""

import json
import random

import pytest
from harness import preprocess

from hvdlm.preprocessing.vocabulary import SAMPLE_PIECE, pieces_of
from hvdlm.tokenizer.word import WordRule, cutter, parts_finder

ONE_LINE = " ".join(f"word{n:05d}" for n in range(9_000))
TEXTS = {
    "one line": ONE_LINE,
    "lines": ONE_LINE.replace(" ", "\n", 7_000).replace("\n", " ", 6_900),
    "carriage returns": ONE_LINE.replace(" ", " \r\n"),
    "runs of blanks": ONE_LINE.replace(" ", " \t  \n\n   "),
    "ideographic spaces": ONE_LINE.replace(" ", "\u3000"),
    "one long word": "x" * 50_000,
    "as long as a piece": "x" * SAMPLE_PIECE,
}


@pytest.mark.parametrize("name", TEXTS)
def test_pieces_are_the_text_and_cut_no_word(name):
    text = TEXTS[name]
    pieces = list(pieces_of(text))
    assert "".join(pieces) == text
    assert all(0 < len(piece) <= 2 * SAMPLE_PIECE for piece in pieces)
    if "long" not in name:
        assert len(pieces) > 3
        assert [word for piece in pieces for word in piece.split()] == text.split()
        assert all(not piece[-1].isspace() and piece[0].isspace() for piece in pieces[1:-1])


def test_a_line_is_not_cut_where_there_are_line_ends():
    text = "\n".join(f"line {n} of some words" for n in range(3_000))
    assert [line for piece in pieces_of(text) for line in piece.split("\n") if line] == text.split("\n")


def test_text_without_spaces_is_cut_behind_punctuation_or_between_characters():
    source = random.Random(1)
    sentence = "".join(chr(source.randrange(0x4E00, 0x9000)) for _ in range(30))
    assert all(piece.endswith("。") for piece in pieces_of(f"{sentence}。" * 2_000))
    thai = "ก\u0e33\u0e37\u0e48" * 20_000  # a vowel and a tone stand on the letter before them
    assert not any(piece[0] in "\u0e37\u0e48" for piece in pieces_of(thai))


WORDS_OF = {
    "a word of many pieces": (WordRule(), "word " * 2_000 + '{"k":1},' * 5_000 + " word" * 9_000),
    "a word to the end": (WordRule(), "word " * 2_000 + "x" * 40_000),
    "words with blanks": (WordRule("regex", "[^|]+"), " | ".join(f"alpha beta {n} gamma" for n in range(4_000))),
    "words with line ends": (WordRule("regex", "[^|]+"), "|".join(f"alpha\nbeta {n}" for n in range(4_000))),
    "words with hyphens": (WordRule("regex", "[^,]+"), ",".join(f"foo-bar{n}" for n in range(9_000))),
    "a pattern that finds nothing": (WordRule("regex", "[0-9]"), "x" * 40_000),
    "words before a mark": (WordRule("regex", r"\w+(?=-)"), "-".join(f"foo{n}" for n in range(9_000))),
    "words behind a mark": (WordRule("regex", r"(?<=-)\w+|^\w+"), "-".join(f"foo{n}" for n in range(9_000))),
    "the first words of lines": (WordRule("regex", r"(?m)^\w+"), "\n".join(f"foo{n} bar baz" for n in range(9_000))),
    "words at the very start": (WordRule("regex", r"\A\w+|\.\w+"), ".".join(f"foo{n}" for n in range(9_000))),
    "words of so many letters": (WordRule("regex", r"[a-z]{4}"), "etaoinshrdlu" * 5_000),
    "words as the ones before": (WordRule("regex", r"(\w)\1|\w"), "aabcc deeff" * 5_000),
    "lines": (WordRule(line_ends=True), "\n".join(f"foo{n} bar" for n in range(9_000))),
    "words with the line's end": (WordRule("regex", r"\w+$", True), "\n".join(f"bar foo{n}" for n in range(9_000))),
    "spaces": (WordRule(), "\u3000".join(f"foo{n}" for n in range(9_000))),
    "Chinese lines": (WordRule("jieba", None, True), "研究生命的起源\n" * 9_000),
    "Chinese with numbers": (WordRule("jieba"), "圆周率3.14159约为3.5%，" * 5_000),
    "Chinese with others' words": (WordRule("jieba"), "用C++和foo-bar及a_b.c发user@x.com与A&B、#1<unk>\r\n" * 2_000),
    "Chinese with numbers alone": (WordRule("jieba"), "圆周率3.14159约为3.5%_" * 5_000),
    "Chinese of single characters": (
        WordRule("jieba"),
        "".join(random.Random(3).choices("的一是在不了有和人", k=60_000)),
    ),
    "Chinese without punctuation": (WordRule("jieba"), "研究生命的起源是一个非常重要的科学问题" * 3_000),
    "Chinese with some": (WordRule("jieba"), ("研究生命的起源" * 700 + "。") * 9),
}


@pytest.mark.parametrize("case", WORDS_OF)
def test_pieces_have_the_words_of_the_text(case):
    rule, text = WORDS_OF[case]
    if rule.words == "jieba":
        pytest.importorskip("jieba")
    parts, cut = list(parts_finder(rule)(text, SAMPLE_PIECE)), cutter(rule)
    assert "".join(part.text for part in parts) == text
    lines = text.split("\n") if rule.line_ends else [text]
    assert [word for part in parts for word in part.words()] == [word for line in lines for word in cut(line)]
    assert all(len(part.text) >= SAMPLE_PIECE for part in parts[:-1])
    assert len(parts) > 1 or "nothing" in case


@pytest.mark.parametrize(
    ("separator", "settings"),
    [
        (" ", {}),
        ("\n", {"line_ends": True}),
        (" ", {"words": "regex"}),
        (" + ", {"words": "regex", "pattern": r"\w+(?= \+|$)"}),
    ],
)
def test_a_counted_vocabulary_has_the_words_of_the_text_and_no_others(separator, settings, tmp_path):
    words = [f"word{n:04d}" for n in range(3_000)]
    (tmp_path / "in.txt").write_text(separator.join(random.Random(5).sample(words * 3, k=9_000)))
    preprocess(tmp_path / "in.txt", tmp_path / "out", tokenizer={"kind": "word", "vocab_size": 4_000, **settings})
    found = json.loads((tmp_path / "out" / "tokenizer.json").read_text())["vocabulary"]
    assert sorted(set(found) - {"<unk>", "<eos>"}) == words
