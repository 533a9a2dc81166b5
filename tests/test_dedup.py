"""Duplicates: exact and near ones go, the first stays, and what merely looks alike stays too."""

import json
import random

import numpy as np
import pytest
from harness import make_text, preprocess, texts_of

from hvdlm.errors import UserError
from hvdlm.preprocessing.dedup import Signer, all_but_first, later_of_equal, shingles
from hvdlm.preprocessing.plan import DedupConfig


def write_jsonl(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def change_words(text, share, seed):
    source = random.Random(seed)
    return " ".join("changed" if source.random() < share else word for word in text.split(" "))


def test_exact_duplicates_go_and_the_first_stays(tmp_path):
    texts = [make_text(n, 50) for n in (1, 2, 1, 3, 2, 1)]
    write_jsonl(tmp_path / "a.jsonl", texts)
    manifest = preprocess(tmp_path / "a.jsonl", tmp_path / "out", split={"val": 0}, dedup={"exact": True}, dropped=True)
    assert texts_of(tmp_path / "out") == [texts[0], texts[1], texts[3]]
    assert manifest.statistics["duplicate_documents"] == 3
    assert manifest.statistics["documents"] == manifest.num_documents == 3
    assert manifest.splits["train"].text_bytes == sum(len(texts[n].encode()) for n in (0, 1, 3))
    lines = [json.loads(line) for line in (tmp_path / "out" / "dropped.jsonl").read_text().splitlines()]
    position = sum(len(json.dumps({"text": text})) + 1 for text in texts[:2])
    place = {"path": str(tmp_path / "a.jsonl"), "position": position}
    assert lines[0] == {**place, "id": None, "reason": "duplicate_documents"}
    assert len(lines) == 3


def test_near_duplicates_go_and_different_texts_stay(tmp_path):
    originals = [make_text(n, 400) for n in range(20)]
    near = [change_words(text, 0.01, n) for n, text in enumerate(originals[:10])]
    far = [change_words(text, 0.4, n) for n, text in enumerate(originals[10:])]
    write_jsonl(tmp_path / "a.jsonl", originals + near + far)
    manifest = preprocess(tmp_path / "a.jsonl", tmp_path / "out", split={"val": 0}, dedup={"near": True})
    kept = texts_of(tmp_path / "out")
    assert kept[:20] == originals
    assert set(far) <= set(kept)
    assert manifest.statistics["near_duplicate_documents"] >= 9  # 9 bands of 12: found with a chance of 99 %


def test_chinese_is_compared_by_characters():
    """Without blanks between words, two sentences would otherwise be two different words."""
    one, two = "今天天气很好我们去公园散步吧" * 3, "今天天气很好我们去公园散步吗" * 3
    assert len(np.intersect1d(shingles(one), shingles(two))) > 5


def test_shingles_of_short_texts():
    assert len(shingles("")) == 1
    assert len(shingles("one two")) == 1
    assert len(shingles("a b c d e f")) == 2
    assert shingles("One, two!").tolist() == shingles("one two").tolist()


def test_minhash_estimates_the_jaccard_similarity():
    """Two texts share a band's key with the chance that the theory gives: surely at 0.95, hardly ever at 0.3."""
    signer = Signer(DedupConfig(near=True))
    num_bands, rows = signer.bands
    assert num_bands * rows <= 112
    text = make_text(7, 3000)

    def shares_a_band(share, seed):
        other = change_words(text, share, seed)
        a, b = (signer.sign(t, t.encode())[16:] for t in (text, other))
        return any(a[n : n + 8] == b[n : n + 8] for n in range(0, len(a), 8))

    assert all(shares_a_band(0.004, seed) for seed in range(10))
    assert not any(shares_a_band(0.3, seed) for seed in range(10))


def test_groups_keep_their_smallest_number():
    values = np.array([[1] * 16, [2] * 16, [1] * 16, [1] * 16], np.uint8)
    assert later_of_equal(values, np.array([9, 4, 3, 5])).tolist() == [5, 9]
    edges = np.array([[5, 7], [7, 9], [1, 2]])
    assert sorted(all_but_first(edges).tolist()) == [2, 7, 9]
    assert all_but_first(np.empty((0, 2), np.int64)).size == 0


def test_a_threshold_beyond_the_hashes_is_refused():
    with pytest.raises(UserError, match=r"dedup.threshold 0.999: too high for 16 hashes"):
        _ = Signer(DedupConfig(near=True, threshold=0.999, num_hashes=16)).bands
