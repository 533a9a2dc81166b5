"""Every format gives its documents, ranges share a file without loss, and a fault is named with its place."""

import gzip
import itertools
import json

import pytest
from hvdlm.preprocessing.documents import Part, ReadOptions, find_files, read_documents

from hvdlm.errors import UserError

STRICT = ReadOptions("auto", "text", "strict")


def read(path, options=STRICT):
    return list(read_documents(Part(str(path), 0, None), options))


@pytest.fixture(params=["plain", "gzip"])
def write(request, tmp_path):
    def write(name: str, content: bytes):
        path = tmp_path / (name + (".gz" if request.param == "gzip" else ""))
        path.write_bytes(gzip.compress(content) if request.param == "gzip" else content)
        return path

    return write


def test_txt_is_a_document_a_file(write):
    assert read(write("a.txt", "one\n\ntwo é\n".encode())) == ["one\n\ntwo é\n"]


def test_paragraphs_are_documents_between_blank_lines(write):
    options = ReadOptions("paragraphs", "text", "strict")
    path = write("a.txt", "\n\none\nmore é\n \n\ntwo\n\nthree".encode())
    assert read(path, options) == ["one\nmore é\n", "two\n", "three"]
    with pytest.raises(UserError, match="byte 8 is not UTF-8"):
        read(write("b.txt", b"one\n\n\nab\xff\n"), options)


def test_jsonl_is_a_document_a_line(write):
    lines = [{"text": "one\nwith newline"}, {"id": 3, "text": "zwei ü"}]
    content = "\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
    assert read(write("a.jsonl", content.encode())) == ["one\nwith newline", "zwei ü"]
    assert read(write("b.jsonl", content.encode() + b"\n\n")) == ["one\nwith newline", "zwei ü"]


def test_half_a_surrogate_pair_becomes_a_question_mark(write):
    (text,) = read(write("a.jsonl", b'{"text": "a\\ud83dz"}'))
    assert text.encode() == b"a?z"


@pytest.mark.parametrize("num_parts", [2, 3, 7, 40])
def test_ranges_share_a_jsonl_file_without_loss(tmp_path, num_parts):
    """A document belongs to the range in which it starts, wherever the cuts fall."""
    texts = ["é" * (i * 7 % 23) + str(i) for i in range(50)]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts))
    size = path.stat().st_size
    cuts = [size * part // num_parts for part in range(num_parts + 1)]
    parts = [Part(str(path), start, stop) for start, stop in itertools.pairwise(cuts)]
    assert [text for part in parts for text in read_documents(part, STRICT)] == texts


def test_every_cut_of_a_small_file(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text":"a"}\n\n{"text":"bb"}\n{"text":"c"}')
    size = path.stat().st_size
    for cut in range(1, size):
        parts = Part(str(path), 0, cut), Part(str(path), cut, size)
        assert [text for part in parts for text in read_documents(part, STRICT)] == ["a", "bb", "c"], cut


FAULTS = {
    "missing key": (
        "a.jsonl",
        b'{"text": "a"}\n{"body": "b", "id": 1}\n',
        r":2: no key 'text' \(it has: body, id\); set text_key",
    ),
    "not JSON": ("a.jsonl", b'{"text": "a"}\n\n{"text": \n', r":3: not valid JSON"),
    "not an object": ("a.jsonl", b"[1]\n", r":1: no key 'text' \(it has: list\)"),
    "not text": ("a.jsonl", b'{"text": 5}\n', r":1: 'text' is int, not text"),
    "not UTF-8 in jsonl": ("a.jsonl", b'{"text": "a"}\n{"text": "\xff"}\n', r": byte 24 is not UTF-8"),
    "not UTF-8": ("a.txt", b"abc\xe9def", r": byte 3 is not UTF-8; convert the file, or set errors: replace"),
    "unknown suffix": ("a.xyz", b"abc", r"cannot tell its format from '.xyz'; set format: txt or paragraphs or jsonl"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_a_fault_is_named_with_its_place(case, write):
    name, content, pattern = FAULTS[case]
    path = write(name, content)
    with pytest.raises(UserError, match=pattern) as caught:
        read(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_replace_keeps_what_can_be_read(write):
    assert read(write("a.txt", b"abc\xe9def"), ReadOptions("auto", "text", "replace")) == ["abc\ufffddef"]


@pytest.mark.parametrize(
    "damage", [lambda data: data[: len(data) // 2], lambda data: b"no gzip at all", lambda data: data[:-6] + b"123456"]
)
def test_a_broken_gzip_is_named(tmp_path, damage):
    path = tmp_path / "a.txt.gz"
    path.write_bytes(damage(gzip.compress(b"some text " * 1000)))
    with pytest.raises(UserError, match=r"a.txt.gz: broken gzip \(.*\); fetch or compress it again"):
        read(path)


def test_sources_are_files_folders_globs_and_lists(tmp_path):
    for name in ("b.txt", "a.txt", "sub/c.txt", ".hidden", ".git/x.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    names = [path.removeprefix(str(tmp_path) + "/") for path, _ in find_files([str(tmp_path)])]
    assert names == ["a.txt", "b.txt", "sub/c.txt"]
    assert len(find_files([f"{tmp_path}/*.txt", f"{tmp_path}/a.txt"])) == 2  # each file once
    assert [size for _, size in find_files([f"{tmp_path}/**/c.txt"])] == [1]
    with pytest.raises(UserError, match=r"input '.*nothing': no such file, folder or match"):
        find_files([str(tmp_path / "nothing")])


def test_the_builtin_corpus_is_tens_of_megabytes_of_real_text():
    files = find_files(["python-stdlib"])
    assert sum(size for _, size in files) > 8e6
    assert not any("site-packages" in path for path, _ in files)
