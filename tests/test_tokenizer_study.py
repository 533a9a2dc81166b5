"""A vocabulary's cost is counted as the definitions say."""

import gzip

import pytest

from hvdlm.errors import UserError
from hvdlm.preprocessing.vocabulary import sample_of
from hvdlm.tokenizer import ByteTokenizer, CharTokenizer
from hvdlm.tokenizer.study import compare, num_words, script_of, show, to_text

TEXTS = ["one two", "你好,世界", "мир", "3.14"]


def test_costs_are_by_script_and_overall():
    rows = compare({"byte": ByteTokenizer(), "char": CharTokenizer("one tw你好")}, TEXTS)
    assert [row["group"] for row in rows] == ["all", "latin", "cjk", "cyrillic", "other"] * 2
    byte, char = rows[:5], rows[5:]
    assert all(row["bytes_per_token"] == 1 and row["unknown_rate"] == 0 for row in byte)
    assert byte[2]["tokens"] == 13 and byte[2]["fertility"] == 13 / 5  # four characters and the comma
    assert char[2]["unknown_rate"] == 3 / 5 and char[1]["unknown_rate"] == 0
    assert char[0]["bytes"] == sum(row["bytes"] for row in char[1:]) == len("".join(TEXTS).encode())
    assert char[0]["unknown_rate"] == (3 + 3 + 4) / 19


def test_nothing_divides_by_zero():
    rows = compare({"byte": ByteTokenizer()}, [])
    assert [row["bytes_per_token"] for row in rows] == [None]
    assert to_text(rows).splitlines()[1].split()[-3:] == ["-", "-", "-"]
    assert to_text([]) == ""


def test_scripts_and_words():
    scripts = ["straße", "你好 ok", "こんにちは", "привет", "مرحبا", "안녕", "γειά", "नमस्ते", "!? 7"]
    names = ["latin", "cjk", "cjk", "cyrillic", "arabic", "hangul", "greek", "devanagari", "other"]
    assert [script_of(text) for text in scripts] == names
    assert num_words("他 said 你好, ok") == 6


def test_a_vocabulary_shows_its_tokens_and_the_pieces_of_a_text():
    facts = show(CharTokenizer("abc"), "cab!")
    assert facts["pieces"] == ["c", "a", "b", "\ufffd"] and facts["ids"] == [4, 2, 3, 0]
    assert (facts["kind"], facts["vocab_size"], facts["eos_id"], facts["unk_id"]) == ("char", 5, 1, 0)
    assert len(facts["digest"]) == 16 and facts["first_tokens"] == ["\ufffd", "<end of text>", "a", "b", "c"]


def test_what_is_compared_comes_from_everywhere_in_the_input(tmp_path):
    """A folder is often sorted: here English before Chinese."""
    for number in range(40):
        text = f"document {number} " * 40 if number < 20 else f"文档 {number} 汉字 " * 40
        (tmp_path / f"{number:02d}.txt").write_text(text, encoding="utf-8")
    total_mb = sum(path.stat().st_size for path in tmp_path.iterdir()) / 1e6
    sample = sample_of([str(tmp_path)], total_mb / 3)
    assert {script_of(text) for text in sample} == {"latin", "cjk"}
    assert 0.1 < sum(len(text.encode()) for text in sample) / 1e6 / total_mb < 0.6
    assert len(sample_of([str(tmp_path)], total_mb)) == 40
    assert len(sample_of([str(tmp_path / "03.txt")], 1e-6)) == 1


def test_a_sample_tells_what_it_leaves_out(tmp_path, caplog):
    (tmp_path / "other.jsonl").write_text('{"content": "hello"}\n')
    with pytest.raises(UserError, match=r"other.jsonl.*text"):
        sample_of([str(tmp_path / "other.jsonl")], 1)
    assert sample_of([str(tmp_path / "other.jsonl")], 1, "content") == ["hello"]
    (tmp_path / "half.jsonl.gz").write_bytes(gzip.compress(b'{"text": "hello"}\n' * 9)[:-9])
    assert set(sample_of([str(tmp_path / "half.jsonl.gz")], 1)) == {"hello"}  # what was whole before the break
    assert "1 bad record left out, the first: " in caplog.text and "half.jsonl.gz" in caplog.text
    caplog.clear()
    (tmp_path / "mixed.jsonl").write_text('{"text": "hello"}\nnonsense\n')
    assert sample_of([str(tmp_path / "mixed.jsonl")], 1) == ["hello"]
    assert "1 bad record left out, the first: " in caplog.text and "mixed.jsonl" in caplog.text
