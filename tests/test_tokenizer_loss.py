"""What a vocabulary does to a text is told: how much is lost, and one example."""

import json

import pytest
from test_tokenizer import TEXTS, train_sentencepiece, write_ranks

from hvdlm.errors import UserError
from hvdlm.tokenizer import ByteTokenizer, CharTokenizer, Loss, from_json, loss_of, train_bpe
from hvdlm.tokenizer.dropped import byte_alphabet
from hvdlm.tokenizer.loss import num_lost
from hvdlm.tokenizer.sentencepiece_model import read_model
from hvdlm.tokenizer.tiktoken_ranks import PATTERNS, read_ranks
from hvdlm.tokenizer.training import train_unigram, train_wordpiece
from hvdlm.tokenizer.word import WordRule, WordTokenizer

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


def test_an_added_token_and_what_looks_like_a_marked_name_come_back_as_they_were():
    content = json.loads(train_bpe(iter(TEXTS), 300).to_json())
    names = ["\u00e9\u00e9", "\u0120\u00ea", "\u4e2d\u6587", "a b", "xyz"]  # the first two are how bytes are written
    first = len(content["model"]["vocab"])
    content["added_tokens"] += [{**added(name), "id": first + number} for number, name in enumerate(names)]
    found = from_json(json.dumps(content))
    for text in (
        "x\u00e9 y\u00e9\u00e9\u4e2d\u6587z\u4e2d a bxyz",
        "\u0120\u00ea",
        "\U0010ffff\x00 \U0010ffff\x00<|endoftext|>",
        "",
    ):
        assert found.decode(found.encode(text)) == text and loss_of(found, text) is None
    assert found.encode("y\u00e9\u00e9")[-1] == first


def test_loss_of_unknown_pieces_and_characters():
    texts = ["hello world, hello", "don't stop"] * 3
    assert loss_of(train_wordpiece(iter(texts), 100), "hello \x00 world") is not None
    loss = loss_of(train_wordpiece(iter(texts), 100), "hello é")
    assert loss is not None and loss.example == "'é' came back as '[UNK]'"
    loss = loss_of(train_unigram(iter(texts), 40), "hello é")
    assert loss is not None and loss.place == 6


ALPHABET = {character: number for number, character in enumerate("abcdefghijklmnopqrstuvwxyz0123456789.,?", 1)}
BYTES = {f"<0x{byte:02X}>": 100 + byte for byte in range(256)}
NO_BYTE = {name: number for name, number in BYTES.items() if name != "<0xA9>"}  # the end of "é", not of "è"


def bpe(vocab=None, **changes):
    """A BPE of some characters, without merges; `changes` are of the whole file, `model` of its model."""
    model = {"type": "BPE", "vocab": {"</s>": 0, **ALPHABET, **(vocab or {})}, "merges": [], "unk_token": None}
    model |= changes.pop("model", {})
    if isinstance(rules := changes.get("normalizer"), list):
        changes["normalizer"] = {"type": "Sequence", "normalizers": rules}
    parts = {"normalizer": None, "pre_tokenizer": {"type": "WhitespaceSplit"}, "decoder": DECODER, **changes}
    return from_json(json.dumps({"version": "1.0", "added_tokens": [], **parts, "model": model}))


def added(content):
    token = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    return {"id": len(ALPHABET) + 1, "content": content, **token}


def removing(kind, **values):
    return {"type": kind, "behavior": "Removed", "invert": False, **values}


DECODER = {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]}
DIGITS = {"Regex": "[0-9]"}
UNKNOWN = {"unk_token": "?"}
BYTE_ALPHABET = {token: 100 + number for number, token in enumerate(byte_alphabet()) if token not in ALPHABET}
NO_DIGITS = {"type": "Replace", "pattern": DIGITS, "content": ""}
BERT = {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": None}
BERT["lowercase"] = True
METASPACE = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": True}
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True, "trim_offsets": True}


NO_HYPHEN = removing("Split", pattern={"String": "-"})
IN_PIECES = {"type": "Sequence", "pretokenizers": [NO_HYPHEN, BYTE_LEVEL, {"type": "FixedLength", "length": 4}]}


@pytest.mark.parametrize(
    ("tokenizer", "text", "lost"),
    [
        (bpe(), "abé x\x00\n汉字 z", 4),
        (bpe(), "abc 12", 0),
        (bpe(model=UNKNOWN), "abé 汉", 0),  # unk stands for them
        (bpe(BYTES, model={"byte_fallback": True}), "abé 汉", 0),
        (bpe(NO_BYTE, model={"byte_fallback": True}), "éabè é", 2),  # the library drops the whole character
        (bpe(pre_tokenizer=BYTE_LEVEL), "aé b", 1),  # a ByteLevel without most bytes
        (bpe(normalizer={"type": "Lowercase"}), "ABC É", 1),
        (bpe(model=UNKNOWN, pre_tokenizer=removing("Split", pattern=DIGITS)), "a1b2 3é", 3),
        (bpe(model=UNKNOWN, pre_tokenizer=removing("Split", pattern={"Regex": "[a-z]+"}, invert=True)), "a1b2 é", 3),
        (bpe(model=UNKNOWN, pre_tokenizer=removing("Split", pattern={"String": " "}, invert=True)), "ab c", 3),
        (bpe(model=UNKNOWN, pre_tokenizer=removing("Punctuation")), "a.b, c", 2),
        (bpe(BYTE_ALPHABET, model=UNKNOWN, pre_tokenizer=IN_PIECES, decoder=BYTE_LEVEL), "-a\u6c49b-\u6c49", 2),
        (bpe(model=UNKNOWN, normalizer={"type": "Nmt"}), "a\x01b\x7f \u200bc", 3),
        (bpe(model=UNKNOWN, normalizer=BERT), "\x01a\ufffdb \u00e9e\u0301\u064b", 4),  # a composed letter stays
        (bpe(model=UNKNOWN, normalizer=[{"type": "NFD"}, {"type": "StripAccents"}]), "\u00e9 a\u0301b", 1),
        (bpe(model=UNKNOWN, normalizer=[NO_DIGITS, {"type": "Nmt"}]), "a1\x01b", 2),
        (train_wordpiece(iter(["plain words"] * 9), 60), "a\x01b plain \x08\x7fwords \x00", 4),
        (train_wordpiece(iter(["plain words"] * 9), 60), "strange words", 0),
        (bpe(model=UNKNOWN, pre_tokenizer={"type": "CharDelimiterSplit", "delimiter": "a"}), "banana", 3),
        (bpe(model=UNKNOWN, normalizer={"type": "Replace", "pattern": DIGITS, "content": ""}), "a1b2 34", 4),
        (bpe(model=UNKNOWN, pre_tokenizer=removing("Split", pattern={"String": " "})), "a b", 0),
        (bpe(model=UNKNOWN, normalizer={"type": "Replace", "pattern": DIGITS, "content": " \n"}), "a1b2 34", 4),
        (bpe(model=UNKNOWN, normalizer={"type": "Replace", "pattern": {"String": " "}, "content": "\n"}), "a b", 0),
        (bpe(added_tokens=[added("\u00c9\u00e9")]), "a\u00c9\u00e9b \u00c9", 1),
        (bpe(added_tokens=[added("a1")], normalizer=NO_DIGITS), "a1b1", 1),
        (bpe(added_tokens=[added("a1")], model=UNKNOWN, pre_tokenizer=removing("Split", pattern=DIGITS)), "a1b1", 1),
        (bpe(), "a\u2581b", 1),
        (bpe(pre_tokenizer=METASPACE), "a b \u00e9a", 1),
        (WordTokenizer(WORDS, WordRule("regex", "[a-z]+")), "don't 12 <unk>\n", 3),
        (WordTokenizer(WORDS, WordRule("regex", "[a-z]+", line_ends=True)), "a,\nb.\n", 2),
        (WordTokenizer(WORDS, WordRule("regex")), "don't 12 <unk>\n", 0),
        (WordTokenizer(WORDS, WordRule()), "what ever", 0),  # unknown words are <unk>
        (CharTokenizer("a"), "b", 0),
    ],
)
def test_characters_without_any_token_are_counted(tokenizer, text, lost):
    assert num_lost(tokenizer, [text, "", text]) == 2 * lost
    back = tokenizer.decode(tokenizer.encode(text))
    if lost:
        assert len("".join(back.split())) < len("".join(text.split()))


@pytest.mark.parametrize(
    ("tokenizer", "text", "lost"),
    [
        (bpe(model={"continuing_subword_prefix": "##"}), "aa", 1),  # within a word the second one is "##a"
        (bpe({"##z": 40}, model={"continuing_subword_prefix": "##"}), "zz az za", 1),
        (bpe({"z</w>": 40}, model={"end_of_word_suffix": "</w>"}), "zz az zzz a", 1),
        (bpe(BYTE_ALPHABET, model={"end_of_word_suffix": "</w>"}, pre_tokenizer=BYTE_LEVEL), "ab é", 2),
        (bpe({"ab": 40}, model={"end_of_word_suffix": "</w>", "ignore_merges": True}), "ab é", 1),
        (bpe(model=UNKNOWN, normalizer=[{"type": "NFKC"}, NO_DIGITS]), "\ufb03 1", 1),  # NFKC makes three of the first
        (bpe(normalizer={"type": "NFD"}), "a\u00e9", 1),  # its letter stays
    ],
)
def test_a_character_is_known_in_the_form_that_its_place_asks_for(tokenizer, text, lost):
    assert num_lost(tokenizer, [text, "", text]) == 2 * lost


def test_what_is_counted_is_not_hidden_by_an_unknown_or_a_mark_that_a_normalizer_puts_there():
    assert (
        num_lost(bpe(model=UNKNOWN, normalizer=[{"type": "Prepend", "prepend": "\u2581"}, {"type": "Nmt"}]), ["a\x01"])
        == 1
    )
    added_unknown = bpe(model=UNKNOWN, normalizer={"type": "Nmt"}, added_tokens=[{**added("?"), "id": 39}])
    assert num_lost(added_unknown, ["\u6c49\x01\u6c49"]) == 1


@pytest.mark.parametrize("mark", ["continuing_subword_prefix", "end_of_word_suffix"])
@pytest.mark.parametrize("missing", ["<0x3F>", "<0x23>"])
def test_places_that_a_spelt_prefix_moves_do_not_end_the_count(mark, missing):
    vocab = {name: number for name, number in BYTES.items() if name != missing}
    found = bpe(vocab, model={"byte_fallback": True, mark: "##"})
    for text in ("a?x", "what?", "??", "a \u00e9?\u00e9"):
        assert 0 <= num_lost(found, [text]) <= len(text)
    if missing == "<0x23>":  # so nothing that has the mark can be spelt
        assert num_lost(found, ["a?x", "what?"]) == (2 + 4 if mark.startswith("continuing") else 1 + 1)


OWN = r" ?\p{L}+|\s+"


def test_what_lies_between_the_matches_of_a_pattern_of_ones_own_is_counted(tmp_path):
    path = write_ranks(tmp_path / "a.tiktoken")
    text = "C++ & #1: $5! \u00e9\n"
    texts = [text, "plain words", text]
    found = read_ranks(path, OWN)
    assert found.decode(found.encode(text)) == "C    \u00e9\n"
    for restored in (found, from_json(found.to_json())):
        assert num_lost(restored, texts) == num_lost(restored, texts, restored.encode_documents(texts)[0]) == 18
        assert num_lost(restored, texts[1:2], restored.encode_documents(texts[1:2])[0]) == 0
    for name, pattern in PATTERNS.items():
        for known in (read_ranks(path, name), read_ranks(path, pattern)):
            assert num_lost(known, texts) == 0 and known.decode(known.encode(text)) == text


@pytest.mark.parametrize("pattern", ["", "x*", "$", r"\b", "(?=a)", r"\p{L}*", r"\w+|"])
def test_a_pattern_that_matches_nothing_is_refused(pattern, tmp_path):
    with pytest.raises(UserError, match=r"a.tiktoken: pattern .* also matches nothing"):
        read_ranks(write_ranks(tmp_path / "a.tiktoken"), pattern)


def test_a_run_that_is_too_long_for_a_pattern_is_said_with_a_remedy(tmp_path):
    found = read_ranks(write_ranks(tmp_path / "cl100k_base.tiktoken"), None)
    with pytest.raises(UserError, match="pattern 'cl100k' cannot cut a text .*shorten its longest run"):
        found.encode(" " * 3_000_000 + "a")


def test_what_a_sentencepiece_model_takes_away_is_counted(tmp_path):
    rules = tmp_path / "rules.tsv"
    rules.write_text("23\t\n40\t20\n")  # nothing for #, a blank for @
    own = read_model(train_sentencepiece(tmp_path / "own.model", normalization_rule_tsv=rules))
    assert num_lost(own, ["# a#b @", "a b"]) == 3
    usual = read_model(train_sentencepiece(tmp_path / "usual.model"))
    assert num_lost(usual, ["a\x01b \x7f # @", "\ufb01 \u00e9 \u3000\t\n"]) == 2
    kept = read_model(train_sentencepiece(tmp_path / "kept.model", normalization_rule_name="identity"))
    assert num_lost(kept, ["a\x01b \x7f"]) == 0


MODELS = {
    "BPE": {"vocab": {"</s>": 0, "a": 1}, "merges": []},
    "Unigram": {"vocab": [["</s>", 0.0], ["a", -1.0], ["<unk>", -2.0]], "unk_id": 2},
    "WordLevel": {"vocab": {"</s>": 0, "a": 1, "<unk>": 2}, "unk_token": "<unk>"},
    "WordPiece": {
        "vocab": {"</s>": 0, "a": 1, "<unk>": 2},
        "unk_token": "<unk>",
        "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 9,
    },
}
CUTS = {"none": None, "ByteLevel": BYTE_LEVEL, "Metaspace": METASPACE, "WhitespaceSplit": {"type": "WhitespaceSplit"}}


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("byte_fallback", [True, False, None])
@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("is_nested", [False, True])
def test_every_file_that_the_library_loads_is_loaded(kind, byte_fallback, cut, is_nested):
    rule = {"type": "Sequence", "pretokenizers": [CUTS[cut]]} if is_nested and CUTS[cut] else CUTS[cut]
    model = {"type": kind, **MODELS[kind]}
    if byte_fallback is not None and kind in ("BPE", "Unigram"):
        model["byte_fallback"] = byte_fallback
    content = json.dumps({"version": "1.0", "added_tokens": [], "pre_tokenizer": rule, "model": model})
    found = from_json(content)
    assert len(found.encode("a")) and num_lost(found, ["a a"]) == 0
