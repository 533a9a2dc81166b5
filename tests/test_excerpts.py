"""Excerpts of a unit hold what is unusual in it; their ids are proven, and what comes back changed is told."""

import json
import random

import numpy as np
import pytest
from harness import files_of, make_text, preprocess

from hvdlm.errors import UserError
from hvdlm.preprocessing import excerpts as module
from hvdlm.preprocessing.documents import Document
from hvdlm.preprocessing.excerpts import Care, Excerpt, Excerpts, OtherIds, around, exactly_encoded, round_trip
from hvdlm.tokenizer import ByteTokenizer, FastTokenizer, train_bpe
from hvdlm.tokenizer.word import WordRule, WordTokenizer

ALL = Care(units=1, groups=1000, rare=4, documents=3, characters=40, names=("<|endoftext|>",))
ORDINARY = [make_text(number, 60) for number in range(100)]


def seen(texts, care=ALL, batch=7):
    """The excerpts of documents that come in batches; their bytes are their ids."""
    found, encoder = Excerpts(care), ByteTokenizer()
    for first in range(0, len(texts), batch):
        some = texts[first : first + batch]
        documents = [Document(text, first + number) for number, text in enumerate(some)]
        found.look(documents, *encoder.encode_documents(some))
    return list(found)


@pytest.fixture(scope="module")
def bpe():
    pytest.importorskip("gigatoken")
    return train_bpe(iter(ORDINARY[:20]), 300)


@pytest.mark.parametrize(
    "rare",
    [
        "\u0967",
        "\u0301",
        "\U0001f600",
        "\ue000",
        "\U000e0fff",
        "\x85",
        "\u2028",
        "\x00",
        "\x1b",
        "\x7f",
        "<|endoftext|>",
    ],
)
@pytest.mark.parametrize("nth", [0, 55, 99])
def test_what_is_unusual_is_among_them_wherever_it_stands(rare, nth):
    texts = ORDINARY.copy()
    texts[nth] = texts[nth][:200] + rare + texts[nth][200:]
    assert [excerpt for excerpt in seen(texts) if rare in excerpt.text and excerpt.position == nth]


def test_what_is_unusual_stays_among_them_when_new_characters_follow():
    texts = ["\U0001f600 e\u0301 \ue000", *(chr(0x4E00 + number) * 3 for number in range(50))]
    found = [excerpt.text for excerpt in seen(texts, ALL)]
    assert sum(texts[0] == text for text in found) >= 3
    assert set(texts[-4:]) <= set(found)


def test_a_common_character_makes_no_excerpt_again():
    texts = [f"{text} \u00f6 \u4f60" for text in ORDINARY]
    assert len(seen(texts)) - len(seen(ORDINARY)) <= 2


def test_a_line_end_or_a_tab_is_nothing_unusual():
    texts = [f"{text}\t{text}\r\n~" for text in ORDINARY]
    assert len(seen(texts)) == len(seen(ORDINARY))


def test_they_do_not_depend_on_how_documents_are_handed_over():
    texts = [text + chr(0x4E00 + number) for number, text in enumerate(ORDINARY)]
    one, other = ([excerpt[:3] for excerpt in seen(texts, batch=batch)] for batch in (1, 64))
    assert one == other


@pytest.mark.parametrize("num_documents", [1, 3, 6, 7, 100])
def test_documents_from_everywhere_are_among_them(num_documents):
    texts = [f"document {number}" for number in range(num_documents)]
    found = seen(texts)
    assert min(num_documents, ALL.documents) <= len(found) <= 2 * ALL.documents
    gaps = np.diff([excerpt.position for excerpt in found])
    assert len(set(gaps.tolist())) <= 1
    assert num_documents - found[-1].position <= max([1, *gaps.tolist()])
    for excerpt in found:  # whole, so that they have the ids they were given
        assert ByteTokenizer().decode(excerpt.ids) == excerpt.text == texts[excerpt.position]


def test_little_is_looked_at_where_encoding_is_fast(bpe):
    fast = module.care_for(ByteTokenizer(), 1000)
    slow = module.care_for(bpe, 1000)
    assert (fast.units, fast.names, slow.units) == (126, (), 1)
    assert fast.groups < slow.groups
    assert "<|endoftext|>" in slow.names


def test_an_excerpt_is_short_holds_its_place_and_cuts_no_word():
    source = random.Random(1)
    for _ in range(300):
        words = ["x" * source.randint(1, 9) for _ in range(source.randint(1, 40))]
        text = "".join(word + source.choice([" ", "\n", "  "]) for word in words)
        place = source.randrange(len(text))
        found = around(text, place, 50)
        assert len(found) <= 50 and found in text
        if not text[place].isspace():
            assert set(found.split()) <= set(words)
            marked = text[:place] + "o" + text[place + 1 :]
            assert "o" in around(marked, place, 50)
    assert around("你" * 500, 250, 50) == "你" * 50


class Wrong(FastTokenizer):
    """Garbles the first id of each text with an ü."""

    def encode_documents(self, texts):
        ids, counts = super().encode_documents(texts)
        starts = np.cumsum(counts) - counts
        ids = ids.copy()
        for start in (start for start, text in zip(starts, texts, strict=True) if "ü" in text):
            ids[start] ^= 1
        return ids, counts


def test_ids_of_the_fast_encoder_that_are_not_the_exact_ones_are_told(bpe):
    right, wrong = FastTokenizer(bpe), Wrong(bpe)
    texts = ["an ordinary text", "\u0967 and \U0001f600", "süß"]
    excerpts = [Excerpt(text, number, 0) for number, text in enumerate(texts)]
    assert [excerpt.ids.tolist() for excerpt in exactly_encoded(excerpts, right)] == [
        [*bpe.encode(text).tolist(), bpe.eos_id] for text in texts
    ]
    with pytest.raises(OtherIds) as caught:
        exactly_encoded(excerpts, wrong)
    assert caught.value.excerpt == excerpts[2]
    excerpts[1] = excerpts[1]._replace(ids=bpe.encode("another text"))  # as of another document
    with pytest.raises(OtherIds) as caught:
        exactly_encoded(excerpts, right)
    assert caught.value.excerpt == excerpts[1]
    assert exactly_encoded(excerpts, bpe) == excerpts  # nothing to compare with


def test_what_comes_back_changed_is_counted_with_an_example():
    words = WordTokenizer(["a", "b"], WordRule())
    excerpts = [Excerpt(text, number, 5) for number, text in enumerate(["a b", "a\nb", "a c", "d"])]
    expected = {"excerpts": 4, "changed": 2, "white_space": 1}
    example = {"example": "'c' came back as '<unk>'", "position": 2, "part": 5}
    assert round_trip(excerpts, words) == expected | example
    assert round_trip(excerpts[:1], words) == {"excerpts": 1, "changed": 0, "white_space": 0}
    assert round_trip(excerpts[:2], words)["example"] == "'\\n' came back as ' '"
    with pytest.raises(OtherIds):
        round_trip([excerpts[0]._replace(ids=words.encode("b b"))], words)


def test_a_part_of_a_text_without_spaces_is_not_judged_by_its_ends():
    pytest.importorskip("jieba")
    words = WordTokenizer(["科学", "开放"], WordRule("jieba"))
    assert round_trip([Excerpt("学开", 0, 0)], words)["excerpts"] == 0
    whole = Excerpt("科学学", 0, 0, words.encode("科学学"))
    assert round_trip([whole], words)["changed"] == 1


@pytest.fixture
def source(tmp_path):
    texts = ORDINARY[:40]
    texts[21] = f"süß {texts[21]}"
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts))
    return path


class WrongInside(FastTokenizer):
    """Garbles the first id of each text with an ü, whatever it is given."""

    def _encode_fast(self, texts):
        ids, counts = super()._encode_fast(texts)
        starts = np.cumsum(counts) - counts
        ids = ids.copy()
        for start in (start for start, text in zip(starts, texts, strict=True) if "ü" in text):
            ids[start] ^= 1
        return ids, counts


def test_every_character_is_proven_where_it_first_stands(bpe):
    texts = [*ORDINARY[:40], "a" * 100_000 + "你好" * 300 + " süß " + "é" * 300]
    right, wrong = FastTokenizer(bpe), WrongInside(bpe)
    for tokenizer in (right, wrong):
        tokenizer.encode_documents(texts)
    assert right.wrong is None
    assert wrong.wrong is not None and "ü" in wrong.wrong and len(wrong.wrong) <= 200


@pytest.mark.parametrize("encoder", [Wrong, WrongInside])
def test_a_job_with_a_wrong_encoder_begins_anew_with_the_exact_one(encoder, source, tmp_path, bpe, monkeypatch, caplog):
    (tmp_path / "t.json").write_text(bpe.to_json())
    settings = {"tokenizer": {"kind": "bpe", "path": str(tmp_path / "t.json")}}
    monkeypatch.setattr("hvdlm.preprocessing.plan.MIN_UNIT_BYTES", 1000)
    preprocess(source, tmp_path / "right", **settings)
    output = tmp_path / "out"
    monkeypatch.setattr("hvdlm.tokenizer.fast.FastTokenizer", encoder)
    monkeypatch.setattr("hvdlm.preprocessing.vocabulary.PROOF_BYTES", 8)  # nothing is found wrong at first
    monkeypatch.setattr("hvdlm.preprocessing.excerpts.MANY_UNITS", 1000)
    place = source.read_bytes().index(b'{"text": "s\xc3\xbc')
    with pytest.raises(
        UserError, match=f"in.jsonl: byte {place}: the job's encoder gives other ids .*please report"
    ) as caught:
        preprocess(source, output, **settings)
    assert "\n" not in str(caught.value)
    assert not (output / "manifest.json").exists()
    preprocess(source, output, **settings)
    assert "begins anew with the exact encoder" in caplog.text
    assert files_of(output) == files_of(tmp_path / "right")
    assert json.loads((output / "preprocess.json").read_text())["num_units_resumed"] == 0


def test_a_job_tells_what_its_vocabulary_does_to_text(source, tmp_path, caplog):
    ends = {"id": 0, "content": "</s>", "special": True, "single_word": False, "lstrip": False, "rstrip": False}
    letters = {letter: number for number, letter in enumerate(sorted({*"".join(ORDINARY), *"süß"} - {"ü"}), 1)}
    content = {
        "version": "1.0",
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "NFD"}, {"type": "StripAccents"}]},
        "added_tokens": [ends | {"normalized": False}],
        "model": {"type": "BPE", "vocab": {"</s>": 0, **letters, "u": len(letters) + 1}, "merges": []},
    }
    (tmp_path / "t.json").write_text(json.dumps(content))
    with caplog.at_level("WARNING", "hvdlm"):
        preprocess(source, tmp_path / "out", tokenizer={"kind": "bpe", "path": str(tmp_path / "t.json")})
    found = json.loads((tmp_path / "out" / "preprocess.json").read_text())["balance"]["round_trip"]
    assert found["changed"] > 0
    assert found["example"] == "'é' came back as 'e'"
    assert f"come back from their ids changed, such as {found['place']}: 'é' came back as 'e'" in caplog.text
