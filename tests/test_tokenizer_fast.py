"""The fast encoder gives the ids of the exact one, or is not used."""

import json
import logging
import random
import sys
import unicodedata

import numpy as np
import pytest
from harness import make_text
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers, trainers

from hvdlm.tokenizer import ByteTokenizer, FastTokenizer, digest, from_json, make_fast, train_bpe
from hvdlm.tokenizer.fast import APART, CUT, KNOWN_PATTERNS, NASTY, PROVEN, Characters, _cuts_around, is_settled

pytest.importorskip("gigatoken")

SAMPLE = [make_text(number, 200) for number in range(5)]
any_text = st.text(st.characters(exclude_categories=["Cs"]))
# Pieces on which the cutting rules turn: arbitrary characters alone rarely make two of them neighbours.
PIECES = [*" \t\n\r\u00a0\u3000é1٣½你🙂\u200d_!aİſ\x00\u2028\ufeff", "'s", "'LL", "  ", "e\u0301", "<|endoftext|>"]
hard_text = st.lists(st.sampled_from(PIECES)).map("".join)


@pytest.fixture(scope="module")
def exact():
    return train_bpe((make_text(number, 400) for number in range(20)), 600)


@pytest.fixture(scope="module")
def fast(exact):
    fast = make_fast(exact, SAMPLE)
    assert isinstance(fast, FastTokenizer)
    return fast


def assert_same(exact, fast, texts):
    for ours, its in zip(exact.encode_documents(texts), fast.encode_documents(texts), strict=True):
        assert ours.dtype == its.dtype
        assert ours.tolist() == its.tolist()


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(any_text | hard_text))
def test_fast_ids_are_exact_ids(exact, fast, texts):
    assert_same(exact, fast, texts)


def test_long_and_nasty_texts_too(exact, fast):
    assert_same(exact, fast, [*NASTY, *SAMPLE, "".join(NASTY) * 20, "a" * 100_000])


def test_all_else_is_the_exact_tokenizers(exact, fast):
    assert digest(fast) == digest(exact)
    assert (fast.kind, fast.vocab_size, fast.eos_id, fast.unk_id) == ("bpe", exact.vocab_size, exact.eos_id, None)
    assert fast.decode(fast.encode("a <|endoftext|> é")) == "a <|endoftext|> é"


def test_special_names_in_texts_are_text(fast):
    ids, counts = fast.encode_documents(["a<|endoftext|>b", "<|endoftext|>"])
    assert np.flatnonzero(ids == fast.eos_id).tolist() == (np.cumsum(counts) - 1).tolist()


def test_several_threads_give_the_same_ids(exact):
    assert_same(exact, make_fast(exact, SAMPLE, threads=2), SAMPLE * 5)


BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


@pytest.mark.parametrize(
    "content",
    [
        {"normalizer": {"type": "NFKC"}},
        {"normalizer": {"type": "Lowercase"}},
        {"pre_tokenizer": {**BYTE_LEVEL, "add_prefix_space": True}},
        {"pre_tokenizer": {**BYTE_LEVEL, "use_regex": False}},
    ],
)
def test_other_rules_are_followed_or_refused(exact, content, caplog):
    other = from_json(json.dumps({**json.loads(exact.to_json()), **content}))
    found = make_fast(other, SAMPLE)
    assert_same(other, found, [*NASTY, *SAMPLE, "Ünïcode ﬃ A", " b"])
    assert isinstance(found, FastTokenizer) == (not caplog.records)


ADDED = {"id": 600, "single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": False}
SPLIT = {"type": "Split", "behavior": "Isolated", "invert": False}
STRIPS = {"lstrip": True, "rstrip": True}


def with_rules(exact, **rules):
    """The vocabulary with other rules; `model`: keys to change in its model."""
    content = json.loads(exact.to_json())
    model = {**content["model"], **rules.pop("model", {})}
    added = content["added_tokens"] + rules.pop("added_tokens", [])
    return from_json(json.dumps({**content, **rules, "model": model, "added_tokens": added}))


def split_by(pattern):
    steps = [{**SPLIT, "pattern": {"Regex": pattern}}, {**BYTE_LEVEL, "use_regex": False}]
    return {"type": "Sequence", "pretokenizers": steps}


COVERED = {
    "none": {},
    "NFC": {"normalizer": {"type": "NFC"}},
    "a sequence of it": {"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}]}},
    **{f"split {number}": {"pre_tokenizer": split_by(pattern)} for number, pattern in enumerate(KNOWN_PATTERNS)},
    "ignore_merges": {"model": {"ignore_merges": True}},
    "an added token": {"added_tokens": [{**ADDED, "content": "the"}]},
    "a stripping one": {"added_tokens": [{**ADDED, "content": "_!", "lstrip": True, "rstrip": True}]},
    "one of whole words": {"added_tokens": [{**ADDED, "content": "you", "single_word": True}]},
    "runs of spaces": {"added_tokens": [{**ADDED, "id": 598 + n, "content": " " * n} for n in range(2, 25)]},
    "an added token not in NFC": {"normalizer": {"type": "NFC"}, "added_tokens": [{**ADDED, "content": "e\u0301"}]},
    "an added token in NFC": {"normalizer": {"type": "NFC"}, "added_tokens": [{**ADDED, "content": "S\u00e3o P"}]},
    "a stripping one in NFC": {
        "normalizer": {"type": "NFC"},
        "added_tokens": [{**ADDED, "content": "f\u00e9", **STRIPS}],
    },
    "dropout": {"model": {"dropout": 0.5}},  # which is not used
}
# Assigned or of another class since Unicode 15, 16 and 17; marks in an order that is not canonical; unassigned ones.
ODD = ["\u088f", "\u0c5c", "\U000323b0", "\U00033479", "\U00011de0", "\U0001e6c0", "\u1ac5", "\u0898", "\u0c3c"]
ODD += ["a\u0301\u0323", "\u0c3c\u0323", "\u1acb\u0301", "\u0378", "\u1100\u1161", "\u212b", "'\u017f", "\U0010ffff"]


@pytest.mark.parametrize("rules", COVERED.values(), ids=COVERED)
def test_texts_on_which_encoders_part_have_the_exact_ids(exact, rules):
    other = with_rules(exact, **rules)
    fast = make_fast(other, SAMPLE)
    assert isinstance(fast, FastTokenizer)
    texts = [
        *SAMPLE,
        *(f"a{odd}a {odd}1{odd}-{odd}!{odd}{odd} {odd}. the you _! you_" for odd in ODD + PIECES),
        "".join(ODD),
        " and another",
        *(
            f"in {word} and  caf{accented} \n now"
            for word in ("S\u00e3o Paulo", "Sa\u0303o Paulo")
            for accented in ("\u00e9", "e\u0301")
        ),
    ]
    assert_same(other, fast, texts)


WORDS = ["word", "Word", "12", "_", "é", "中文", "don't", "!", "/usr", "。", "'s", "\u0378", "a\u0301\u0323"]
BETWEEN = ["", *" \n" * 3, "  ", "\n\n", " \n", "\n ", "\r\n", *"\t\u00a0\u3000\x0b\u180e"]


@pytest.fixture(scope="module")
def drawn():
    """Texts of all words and what may stand between them, and a vocabulary that joins all of it wherever it may."""
    draw = random.Random(0)
    texts = [
        "".join(word for _ in range(30) for word in (draw.choice(WORDS), draw.choice(BETWEEN))) for _ in range(300)
    ]
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    end = ["<|endoftext|>"]
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=end, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(texts, trainer)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return texts, from_json(backend.to_str())


@pytest.mark.parametrize("rules", COVERED.values(), ids=COVERED)
def test_stretches_of_a_text_have_the_ids_that_they_have_in_it(drawn, rules):
    texts, exact = drawn
    other = with_rules(exact, **rules)
    fast = make_fast(other, SAMPLE)
    assert_same(other, fast, texts)
    parts = [part for text in texts for part in fast._parted(text)]
    num_exact = sum(len(piece) for is_fast, piece in parts if not is_fast)
    assert num_exact < 0.8 * sum(map(len, texts)) or "added_tokens" in rules  # else they are not worth it


def test_the_nearest_cuts_around_a_character_are_found_wherever_it_is(drawn):
    for text in drawn[0]:
        places = [place for place, character in enumerate(text) if character == "\u0378"]
        cuts = [found.start() for found in CUT.finditer(text)]
        expected = {max(cut for cut in [0, *cuts] if cut <= place) for place in places}
        expected |= {min(cut for cut in [*cuts, len(text)] if cut > place) for place in places}
        assert _cuts_around(text, places) == sorted(expected - {0, len(text)})


@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(st.lists(any_text | hard_text | st.sampled_from(ODD)).map("".join)))
def test_fast_ids_are_exact_ids_in_normal_form_too(normalizing, texts):
    assert_same(*normalizing, texts)


@pytest.fixture(scope="module")
def normalizing(exact):
    """A vocabulary with the rules of Qwen's."""
    other = with_rules(exact, normalizer={"type": "NFC"}, pre_tokenizer=split_by(KNOWN_PATTERNS[1]))
    return other, make_fast(other, SAMPLE)


def test_a_character_of_another_class_shows_where_merges_cross_it():
    """Trained without cuts, so that the place of each cut shows in the ids."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    text = "\n".join(f"a{c}a {c}1{c}-{c}!{c}{c} {c}." for c in [*ODD, "é", "你", "\U0001f642"])
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=900, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator([text] * 20, trainer)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    exact = from_json(backend.to_str())
    fast = make_fast(exact, SAMPLE)
    assert isinstance(fast, FastTokenizer)
    assert_same(exact, fast, [*text.split("\n"), text])
    ordinary = ["naïve é 你好 🙂 мир", "plain"]
    assert all(map(fast._is_same, ordinary)) and not fast._is_same("\U000323b0")  # ordinary text stays fast


@pytest.mark.parametrize(
    ("rules", "reason"),
    [
        ({"normalizer": {"type": "NFD"}}, "normalizer NFD"),
        ({"pre_tokenizer": split_by(r"\S+|\s+")}, "pre_tokenizer Split, ByteLevel"),
        ({"pre_tokenizer": {**BYTE_LEVEL, "add_prefix_space": True}}, "pre_tokenizer ByteLevel"),
        ({"model": {"unk_token": "!"}}, "an unk_token"),
        ({"model": {"end_of_word_suffix": "</w>"}}, "end_of_word_suffix '</w>'"),
        ({"added_tokens": [{**ADDED, "id": 600 + n, "content": f"<{n}>"} for n in range(65)]}, "more than 64 added"),
    ],
)
def test_rules_that_were_not_compared_are_named_and_left_to_the_exact_encoder(exact, rules, reason, caplog):
    other = with_rules(exact, **rules)
    assert make_fast(other, SAMPLE) is other
    assert f"the fast encoder is not proven for {reason}" in caplog.text


def test_a_merge_listed_twice_is_left_to_the_exact_encoder(exact, caplog):
    merges = json.loads(exact.to_json())["model"]["merges"]
    other = with_rules(exact, model={"merges": [*merges[:100], merges[3], *merges[100:]]})
    assert make_fast(other, SAMPLE) is other and "a merge listed twice" in caplog.text


def test_of_what_gigatoken_says_the_first_line_is_told(exact, caplog, monkeypatch):
    def refuse(text):
        raise ValueError("unsupported tokenizer\nhere is how\nto do it otherwise")

    monkeypatch.setattr("gigatoken.Tokenizer.from_json", refuse)
    with caplog.at_level(logging.WARNING, "hvdlm"):
        assert make_fast(exact, SAMPLE) is exact
    assert [record.getMessage() for record in caplog.records] == [
        "the slower tokenizers library encodes: gigatoken cannot take this vocabulary (unsupported tokenizer)"
    ]


def test_a_difference_is_one_warning_and_the_exact_encoder(exact, caplog, monkeypatch):
    def wrong(self, texts):
        ids, counts = exact.encode_documents(texts)
        ids[-2] += 1
        return ids, counts

    monkeypatch.setattr(FastTokenizer, "encode_documents", wrong)
    with caplog.at_level(logging.WARNING, "hvdlm"):
        assert make_fast(exact, ["the last text"]) is exact
    assert [record.getMessage() for record in caplog.records] == [
        "the slower tokenizers library encodes: gigatoken encodes 'the last text' differently"
    ]


def test_without_gigatoken_there_is_one_warning(exact, caplog, monkeypatch):
    monkeypatch.setitem(sys.modules, "gigatoken", None)
    assert make_fast(exact, SAMPLE) is exact
    assert len(caplog.records) == 1 and "pip install 'hvdlm[text]'" in caplog.text


def test_a_refused_vocabulary_is_one_warning(exact, caplog, monkeypatch):
    import gigatoken

    def refuse(text):
        raise ValueError("no such rule")

    monkeypatch.setattr(gigatoken.Tokenizer, "from_json", refuse)
    assert make_fast(exact, SAMPLE) is exact
    assert len(caplog.records) == 1 and "no such rule" in caplog.text


def test_kinds_without_a_fast_encoder_stay_without_a_word(caplog):
    tokenizer = ByteTokenizer()
    assert make_fast(tokenizer, SAMPLE) is tokenizer
    assert not caplog.records


@pytest.mark.parametrize("character", ["è", "字", "🙃"])
@pytest.mark.parametrize("text", ["{}", "a{}", "aaaa{}", "é{}", "é{}é", "汉{}", "a🙂{}"])
def test_one_character_that_parts_the_encoders_is_found_in_any_company(text, character, monkeypatch):
    """Latin texts, mostly ASCII texts and others are looked through in three ways."""
    rule = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True, "trim_offsets": True}
    assert Characters(rule).are_same(text.format(character))

    def parts_on_one(self, codes):
        self._state[codes] = np.where(codes == ord(character), APART, PROVEN)
        return []

    monkeypatch.setattr(Characters, "_try", parts_on_one)
    characters = Characters(rule)
    for _ in range(2):  # unseen, and seen
        assert not characters.are_same(text.format(character))
        assert characters.are_same(text.format("a")) and characters.are_same("éaé")


RULES = [BYTE_LEVEL, *map(split_by, KNOWN_PATTERNS)]


@pytest.mark.parametrize("rule", RULES, ids=range(len(RULES)))
def test_every_settled_character_is_cut_alike_by_both(rule):
    settled = [code for code in range(128, 0x110000) if is_settled(chr(code))]
    written = [code for code in settled if unicodedata.category(chr(code)) != "Co"]
    assert len(written) > 90_000
    assert all(Characters(rule).agree(written[:: 1 if rule is BYTE_LEVEL else 7]))
    assert not any(is_settled(character) for character in "\u017f\u212a\u0130\u0378a")
