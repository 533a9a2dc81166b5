"""What a vocabulary does to a text is told: how much is lost, and one example."""

import json

import pytest

from hvdlm.tokenizer import ByteTokenizer, CharTokenizer, Loss, from_json, loss_of, train_bpe
from hvdlm.tokenizer.training import train_unigram, train_wordpiece
from hvdlm.tokenizer.word import WordRule, WordTokenizer
from tests.test_tokenizer import TEXTS

WORDS = ["<unk>", "<eos>", "a", "b", "don", "t"]


@pytest.mark.parametrize(
    ("tokenizer", "text", "expected"),
    [
        (CharTokenizer("caf"), "café", Loss(1, 3, "'é' came back as '\ufffd'", False)),
        (WordTokenizer(WORDS, WordRule()), "a  b", Loss(1, 2, "' ' did not come back", True)),
        (WordTokenizer(WORDS, WordRule()), "a\nb", Loss(1, 1, "'\\n' came back as ' '", True)),
        (WordTokenizer(WORDS, WordRule()), "a\nc", Loss(2, 2, "'c' came back as '<unk>'", False)),
        (WordTokenizer(WORDS, WordRule("regex", "[a-z]+")), "don't", Loss(1, 3, '"\'" did not come back', False)),
        (WordTokenizer([*WORDS, "'"], WordRule("regex")), "don't", Loss(0, 3, "'n' came back as 'n '", True)),
        (WordTokenizer(WORDS, WordRule(line_ends=True)), "a b\nb\n", None),
        (ByteTokenizer(), "\x00é\U0010ffff", None),
    ],
)
def test_loss_tells_how_much_and_what(tokenizer, text, expected):
    assert loss_of(tokenizer, text) == expected


def test_what_comes_back_as_it_was_is_no_loss():
    for tokenizer in (train_bpe(iter(TEXTS), 300), ByteTokenizer()):
        assert [loss_of(tokenizer, text) for text in TEXTS] == [None] * len(TEXTS)


def test_a_space_put_before_a_text_is_no_loss():
    content = json.loads(train_bpe(iter(TEXTS), 300).to_json())
    content["pre_tokenizer"]["add_prefix_space"] = True
    prefixed = from_json(json.dumps(content))
    assert prefixed.decode(prefixed.encode("a b")) == " a b"
    assert loss_of(prefixed, "a b") is None


def test_loss_of_unknown_pieces_and_characters():
    texts = ["hello world, hello", "don't stop"] * 3
    assert loss_of(train_wordpiece(iter(texts), 100), "hello \x00 world") is not None
    loss = loss_of(train_wordpiece(iter(texts), 100), "hello é")
    assert loss is not None and loss.example == "'é' came back as '[UNK]'"
    loss = loss_of(train_unigram(iter(texts), 40), "hello é")
    assert loss is not None and loss.place == 6
