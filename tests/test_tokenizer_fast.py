"""The fast encoder gives the ids of the exact one, or is not used."""

import json
import logging
import sys

import numpy as np
import pytest
from harness import make_text
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hvdlm.tokenizer import ByteTokenizer, FastTokenizer, digest, from_json, make_fast, train_bpe
from hvdlm.tokenizer.fast import NASTY

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
