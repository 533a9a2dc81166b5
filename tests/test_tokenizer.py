"""Each tokenizer gives back what it was given, and its digest names it."""

import numpy as np
import pytest
from harness import make_text

from hvdlm import tokenizer as tokenizers
from hvdlm.errors import UserError
from hvdlm.tokenizer import ByteTokenizer, from_json, train_bpe

TEXTS = ["plain words", "", "tabs\t and\n\nnewlines  ", "héllo wörld 你好 🙂", "def f(x):\n    return x\n"]


@pytest.fixture(scope="module", params=["byte", "bpe"])
def tokenizer(request):
    return ByteTokenizer() if request.param == "byte" else train_bpe((make_text(i, 400) for i in range(20)), 400)


def test_text_survives_the_round_trip(tokenizer):
    ids = tokenizer.encode_batch(TEXTS)
    assert [tokenizer.decode(part) for part in ids] == TEXTS
    assert all(part.dtype == np.int64 for part in ids)


def test_ids_stay_below_the_vocabulary_size_and_eos_is_never_text(tokenizer):
    ids = np.concatenate(tokenizer.encode_batch([*TEXTS, "<|endoftext|>"]))
    assert ids.max() < tokenizer.vocab_size
    assert tokenizer.eos_id < tokenizer.vocab_size
    assert tokenizer.eos_id not in ids


def test_json_restores_the_same_tokenizer(tokenizer):
    again = from_json(tokenizer.to_json())
    assert tokenizers.digest(again) == tokenizers.digest(tokenizer)
    assert [a.tolist() for a in again.encode_batch(TEXTS)] == [a.tolist() for a in tokenizer.encode_batch(TEXTS)]


def test_training_is_deterministic_and_compresses():
    texts = [make_text(i, 400) for i in range(20)]
    first, second = train_bpe(iter(texts), 400), train_bpe(iter(texts), 400)
    assert first.to_json() == second.to_json()
    assert len(first.encode_batch(texts[:1])[0]) < 0.6 * len(texts[0].encode())


def test_vocabulary_size_counts_added_tokens():
    """vocab_size without added tokens is a classic off-by-some that overflows embeddings."""
    import json

    content = json.loads(train_bpe(iter([make_text(0, 500)]), 300).to_json())
    top = max(content["model"]["vocab"].values())
    content["added_tokens"].append({**content["added_tokens"][0], "id": top + 1, "content": "<|added|>"})
    assert from_json(json.dumps(content)).vocab_size == top + 2


def test_a_file_that_is_no_tokenizer_is_named(tmp_path):
    path = tmp_path / "tokenizer.json"
    for content in ("nonsense", "[]", '{"a": 1}'):
        path.write_text(content)
        with pytest.raises(UserError, match=r"tokenizer.json: not a tokenizer.json"):
            tokenizers.load(path)
    with pytest.raises(UserError, match="cannot read"):
        tokenizers.load(tmp_path / "none.json")


def test_a_loaded_file_never_cuts_or_pads_a_document():
    import json

    content = json.loads(train_bpe(iter([make_text(0, 500)]), 300).to_json())
    content["truncation"] = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    assert len(from_json(json.dumps(content)).encode_batch(["a text of more than three tokens"])[0]) > 3


def test_a_binary_file_is_no_tokenizer(tmp_path):
    (tmp_path / "a.model").write_bytes(b"\x80\xff\x00")
    with pytest.raises(UserError, match=r"a.model: not a tokenizer.json"):
        tokenizers.load(tmp_path / "a.model")
