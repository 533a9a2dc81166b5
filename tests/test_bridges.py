"""To other tools' formats and back with the same tokens, documents and splits; damage is one clear line."""

import bz2
import gzip
import io
import itertools
import json
import lzma
import pickle
import struct
import tempfile
import zlib
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import zstandard
from harness import documents_of, preprocess
from hypothesis import given, settings
from hypothesis import strategies as st

from hvdlm.data.bridges import convert, folder, interface, jsonl, megatron, to_text
from hvdlm.data.bridges.interface import ConvertOptions
from hvdlm.data.inspection import inspect
from hvdlm.data.manifest import read_manifest
from hvdlm.data.shards import doc_column
from hvdlm.data.verify import verify
from hvdlm.errors import UserError
from hvdlm.tokenizer import CharTokenizer, FastTokenizer, load

EOS = 256
CODES = {4: "<i4", 8: "<u2", 5: "<i8"}

utf8_text = partial(st.text, st.characters(codec="utf-8"))
NAMES = {key: utf8_text(min_size=1, max_size=3) for key in ("id", "label")}
sixty = settings(max_examples=60, deadline=None)
any_documents = st.lists(st.lists(st.integers(0, 256), max_size=8), max_size=8)


@pytest.fixture(scope="session")
def tokenizer_file(data_dir):
    return data_dir / "tokenizer.json"


@contextmanager
def new_folder():
    """One for each example; a fixture's would be the same for all."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def megatron_bytes(documents, code=8):
    """(.bin, .idx) by hand from the description of the format."""
    dtype = np.dtype(CODES[code])
    idx = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, code, len(documents), len(documents) + 1)
    idx += b"".join(struct.pack("<i", len(document)) for document in documents)
    ends = list(itertools.accumulate((len(document) * dtype.itemsize for document in documents), initial=0))
    idx += b"".join(struct.pack("<q", pointer) for pointer in ends[:-1])
    idx += b"".join(struct.pack("<q", number) for number in range(len(documents) + 1))
    return b"".join(np.array(document, dtype).tobytes() for document in documents), idx


def write_megatron(where, code=8, **splits):
    where.mkdir(parents=True, exist_ok=True)
    for split, documents in splits.items():
        for suffix, data in zip((".bin", ".idx"), megatron_bytes(documents, code), strict=True):
            (where / f"{split}{suffix}").write_bytes(data)
    return where


def ids_of(data, split="train"):
    return [ids.tolist() for ids in documents_of(data, split)]


def same_data(one, other):
    """Splits with the same digests, documents and totals."""
    for split, entry in read_manifest(one).splits.items():
        again = read_manifest(other).splits[split]
        facts, again_facts = (found.model_dump(exclude={"shards"}) for found in (entry, again))
        assert facts == again_facts | {"unigram_loss": pytest.approx(again.unigram_loss)}
        assert ids_of(one, split) == ids_of(other, split)


@pytest.mark.parametrize("form", ["megatron", "nanogpt", "jsonl", "hvdlm"])
def test_preprocessed_data_comes_back_the_same(form, data_dir, tmp_path):
    convert(data_dir, tmp_path / "there", to=form)
    back = convert(tmp_path / "there", tmp_path / "back", to="hvdlm", options=ConvertOptions(shard_tokens=20_000))
    assert back["from"] == form
    same_data(data_dir, tmp_path / "back")
    assert verify(tmp_path / "back") == []
    shards = [read_manifest(path).splits["train"].shards for path in (data_dir, tmp_path / "back")]
    assert shards[0] == shards[1]
    assert len(shards[0]) > 1


@pytest.mark.parametrize("form", ["megatron", "nanogpt", "jsonl"])
def test_a_trained_vocabulary_travels_along(form, corpus, tmp_path):
    preprocess(corpus, tmp_path / "data", tokenizer={"kind": "bpe", "vocab_size": 400})
    convert(tmp_path / "data", tmp_path / "there", to=form)
    convert(tmp_path / "there", tmp_path / "back", to="hvdlm")
    same_data(tmp_path / "data", tmp_path / "back")


@sixty
@given(any_documents, st.none() | any_documents, st.sampled_from(sorted(CODES)), st.integers(1, 20))
def test_megatron_comes_back_byte_for_byte(tokenizer_file, train, val, code, shard):
    """Documents without an end, empty ones and empty files included, in the dtype that they had."""
    with new_folder() as room:
        source = write_megatron(room / "a", code, train=train, **({} if val is None else {"val": val}))
        convert(source, room / "b", to="hvdlm", tokenizer=tokenizer_file, options=ConvertOptions(shard_tokens=shard))
        assert ids_of(room / "b") == train
        assert ids_of(room / "b", "val") == (val or [])
        convert(room / "b", room / "c", to="megatron")
        files = sorted(path.name for path in source.iterdir())
        assert sorted(path.name for path in (room / "c").iterdir()) == sorted([*files, "tokenizer.json"])
        for file in files:
            assert (room / "c" / file).read_bytes() == (source / file).read_bytes()


@sixty
@given(train=any_documents, tail=st.lists(st.integers(0, 255), max_size=3))
def test_nanogpt_comes_back_byte_for_byte(train, tail, tokenizer_file):
    ids = [*itertools.chain(*train), *tail]
    with new_folder() as room:
        (room / "a").mkdir()
        np.array(ids, "<u2").tofile(room / "a" / "train.bin")
        convert(room / "a", room / "b", to="hvdlm", tokenizer=tokenizer_file)
        documents = ids_of(room / "b")
        assert list(itertools.chain(*documents)) == ids
        assert all(document[-1] == EOS for document in documents[:-1])
        assert all(EOS not in document[:-1] for document in documents)
        convert(room / "b", room / "c", to="nanogpt")
        assert (room / "c" / "train.bin").read_bytes() == (room / "a" / "train.bin").read_bytes()


@sixty
@given(documents=any_documents)
def test_nanogpt_gets_what_it_gives_back_and_nothing_else(documents, tokenizer_file):
    with new_folder() as room:
        convert(write_megatron(room / "a", train=documents), room / "b", to="hvdlm", tokenizer=tokenizer_file)
        is_regular = all(document and EOS not in document[:-1] for document in documents) and all(
            document[-1] == EOS for document in documents[:-1]
        )
        if not is_regular:
            with pytest.raises(UserError, match=r"document \d+ does not end with its one end-of-text id 256"):
                convert(room / "b", room / "c", to="nanogpt")
            convert(room / "b", room / "c", to="nanogpt", options=ConvertOptions(is_lossy=True))
        else:
            convert(room / "b", room / "c", to="nanogpt")
            convert(room / "c", room / "d", to="hvdlm")
            same_data(room / "b", room / "d")
        assert np.fromfile(room / "c" / "train.bin", "<u2").tolist() == list(itertools.chain(*documents))


@sixty
@given(records=st.lists(st.fixed_dictionaries({"text": utf8_text(max_size=12)}, optional=NAMES), max_size=8))
def test_jsonl_comes_back_with_ids_and_labels(records, tokenizer_file):
    records = [{key: record[key] for key in ("text", "id", "label") if key in record} for record in records]
    with new_folder() as room:
        lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        (room / "mine.jsonl").write_bytes(lines.encode())
        convert(room / "mine.jsonl", room / "b", to="hvdlm", tokenizer=tokenizer_file)
        entry = read_manifest(room / "b").splits["train"]
        assert entry.text_bytes == sum(len(record["text"].encode()) for record in records)
        for key, column in (("id", "doc_ids"), ("label", "doc_labels")):
            expected = [record.get(key, "") for record in records]
            assert doc_column(room / "b", entry.shards[0], column) == (expected if any(expected) else None)
        convert(room / "b", room / "c", to="jsonl")
        assert (room / "c" / "train.jsonl").read_bytes() == lines.encode()


class OtherIds(FastTokenizer):
    """Finds other ids than any document has."""

    wrong = None

    def __init__(self, exact):
        self.asked = 0

    def encode_documents(self, texts):
        self.asked += len(texts)
        return np.zeros(len(texts), np.int64), np.ones(len(texts), np.int64)


def test_the_fast_encoder_is_never_the_last_word_on_documents_that_change(tmp_path, tokenizer_file, monkeypatch):
    source = write_megatron(tmp_path / "a", train=[[*b"abc", EOS]] * 9 + [[104, 105]])
    other = OtherIds(None)
    monkeypatch.setattr(jsonl, "BATCH_TOKENS", 4)
    monkeypatch.setattr(jsonl, "make_fast", lambda exact, texts: other)
    with pytest.raises(UserError, match=r"train.bin: document 9 has other ids than its text has"):
        convert(source, tmp_path / "b", to="jsonl", tokenizer=tokenizer_file)
    assert other.asked == 9  # all but the first batch
    other.wrong = "abc"
    with pytest.raises(UserError, match=r"gigatoken encodes 'abc' otherwise than .*please report"):
        convert(source, tmp_path / "b", to="jsonl", tokenizer=tokenizer_file)


@pytest.mark.parametrize("document", [[104, 105], [195, EOS], [104, EOS, 105, EOS], []])
def test_ids_that_no_text_has_do_not_go_to_jsonl(document, tmp_path, tokenizer_file):
    source = write_megatron(tmp_path / "a", train=[[104, 105, EOS], document])
    with pytest.raises(UserError, match=r"train.bin: document 1 has other ids than its text has"):
        convert(source, tmp_path / "b", to="jsonl", tokenizer=tokenizer_file)
    assert not (tmp_path / "b").exists()
    convert(source, tmp_path / "b", to="jsonl", tokenizer=tokenizer_file, options=ConvertOptions(is_lossy=True))
    assert json.loads((tmp_path / "b" / "train.jsonl").read_text().splitlines()[0]) == {"text": "hi"}


def test_megatron_files_are_what_the_format_says(data_dir, tmp_path):
    """Read by numpy alone, as Megatron-Core's reader does."""
    convert(data_dir, tmp_path / "there", to="megatron")
    for split in ("train", "val"):
        raw = (tmp_path / "there" / f"{split}.idx").read_bytes()
        assert raw[:9] == b"MMIDIDX\x00\x00"
        version, code, num, num_indices = struct.unpack("<QBQQ", raw[9:34])
        sizes = np.frombuffer(raw, "<i4", num, 34)
        pointers = np.frombuffer(raw, "<i8", num, 34 + 4 * num)
        indices = np.frombuffer(raw, "<i8", num_indices, 34 + 12 * num)
        assert len(raw) == 34 + 12 * num + 8 * num_indices
        tokens = np.fromfile(tmp_path / "there" / f"{split}.bin", "<u2")
        assert (version, code, indices.tolist()) == (1, 8, list(range(num + 1)))
        documents = [tokens[p // 2 : p // 2 + n].tolist() for p, n in zip(pointers, sizes, strict=True)]
        assert documents == ids_of(data_dir, split)


def test_a_prefix_and_a_single_prefix_are_found(tmp_path, tokenizer_file):
    documents = [[1, 2, EOS], [3, EOS]]
    for split in ("train", "val", "my.text_document"):
        for suffix, data in zip((".bin", ".idx"), megatron_bytes(documents), strict=True):
            (tmp_path / f"{'' if '.' in split else 'wiki-'}{split}{suffix}").write_bytes(data)
    for number, (source, splits) in enumerate(
        {"wiki": ["train", "val"], "my.text_document": ["train"], "wiki-val.idx": ["train"]}.items()
    ):
        told = convert(tmp_path / source, tmp_path / f"out{number}", to="hvdlm", tokenizer=tokenizer_file)
        assert list(told["splits"]) == splits
        assert ids_of(tmp_path / f"out{number}", splits[-1]) == documents


def test_a_file_is_taken_as_what_it_is_named_and_what_else_a_folder_holds_is_told(tmp_path, tokenizer_file, caplog):
    source = write_megatron(tmp_path / "a", train=[[1, 2, EOS], [3, EOS]])
    (source / "train.jsonl").write_text('{"text": "hi"}\n')
    (source / "train-train.jsonl").write_text('{"text": "another"}\n')
    told = convert(source / "train.jsonl", tmp_path / "b", to="hvdlm", tokenizer=tokenizer_file)
    assert told["from"] == "jsonl"
    assert ids_of(tmp_path / "b") == [[*b"hi", EOS]]
    assert convert(source / "train.bin", tmp_path / "c", to="hvdlm", tokenizer=tokenizer_file)["from"] == "megatron"
    assert not warnings_of(caplog)
    assert convert(source, tmp_path / "d", to="hvdlm", tokenizer=tokenizer_file)["from"] == "megatron"
    assert warnings_of(caplog) == [f"{source}: is read as megatron; what it holds as jsonl is left out, name its file"]


def test_text_bytes_are_counted_across_pieces(data_dir, tmp_path, monkeypatch, tokenizer_file):
    """A long document is decoded in parts that are cut between characters."""
    monkeypatch.setattr(folder, "TEXT_TOKENS", 64)
    monkeypatch.setattr(interface, "PIECE_TOKENS", 50)
    document = [*("é€😀x" * 300).encode(), EOS]
    source = write_megatron(tmp_path / "a", train=[document, document])
    convert(source, tmp_path / "b", to="hvdlm", tokenizer=tokenizer_file)
    assert read_manifest(tmp_path / "b").splits["train"].text_bytes == 2 * (len(document) - 1)
    assert ids_of(tmp_path / "b") == [document, document]


def test_inspect_tells_empty_documents_apart_and_no_token_that_is_not_there(tmp_path, tokenizer_file):
    source = write_megatron(tmp_path / "a", train=[[], [EOS], [], [*b"a" * 3000, 7, EOS]])
    convert(source, tmp_path / "b", to="hvdlm", tokenizer=tokenizer_file)
    split = inspect(tmp_path / "b")["splits"]["train"]
    assert split["histogram"] == [(0, 2), (1, 1), *((2**power, 0) for power in range(1, 11)), (2048, 1)]
    assert [(one["id"], one["share"]) for one in split["frequent"]] == [(97, 0.999), (EOS, 0.0007)]


def test_a_wide_vocabulary_is_int32_in_megatron_and_uint32_in_nanogpt(tmp_path):
    vocabulary = {f"t{number}": number for number in range(70_000)} | {"<|endoftext|>": 70_000}
    model = {"type": "WordLevel", "vocab": vocabulary, "unk_token": "t0"}
    (tmp_path / "tokenizer.json").write_text(json.dumps({"version": "1.0", "added_tokens": [], "model": model}))
    assert load(tmp_path / "tokenizer.json").vocab_size == 70_001
    ids = [1, 69_999, 70_000]
    source = write_megatron(tmp_path / "a", 5, train=[ids])
    convert(source, tmp_path / "n", to="nanogpt", tokenizer=tmp_path / "tokenizer.json")
    assert np.fromfile(tmp_path / "n" / "train.bin", "<u4").tolist() == ids
    convert(tmp_path / "n", tmp_path / "m", to="megatron")
    assert np.fromfile(tmp_path / "m" / "train.bin", "<i4").tolist() == ids
    assert (tmp_path / "m" / "train.idx").read_bytes() == megatron_bytes([ids], 4)[1]


def replaced(data, start, new):
    return data[:start] + new + data[start + len(new) :]


GOOD_BIN, GOOD_IDX = megatron_bytes([[1, 2, EOS], [3, EOS]])
DAMAGE = {
    "magic": (".idx", b"MMIDIDY" + GOOD_IDX[7:], r"train.idx: begins with b'MMIDIDY.*is it another file\?"),
    "cut in the header": (".idx", GOOD_IDX[:20], r"train.idx: is cut short after 20 bytes; copy"),
    "cut": (".idx", GOOD_IDX[:-8], r"train.idx: has 74 bytes, its header says 82; copy"),
    "multimodal": (".idx", GOOD_IDX + b"\0\0", r"train.idx: .*multimodal"),
    "floats": (".idx", replaced(GOOD_IDX, 17, b"\x06"), r"train.idx: is version 1 with dtype code 6; this reads"),
    "version": (".idx", replaced(GOOD_IDX, 9, b"\x02"), r"train.idx: is version 2 "),
    "pointers": (".idx", replaced(GOOD_IDX, 50, b"\x01"), r"train.idx: its sequences do not stand one behind the"),
    "indices": (".idx", replaced(GOOD_IDX, 74, b"\x07"), r"train.idx: its document indices do not go from 0 to 2"),
    "sentences": (".idx", replaced(GOOD_IDX, 66, b"\x00"), r"has 2 sequences in 2 documents.*--split-sentences"),
    "bin cut": (".bin", GOOD_BIN[:-1], r"train.bin: has 9 bytes, train.idx says 10; copy"),
    "no bin": (".bin", None, r"train.bin: is missing beside train.idx; copy"),
    "no idx": (".idx", None, r"train.idx: is missing beside train.bin; copy"),
    "vocabulary": (".bin", replaced(GOOD_BIN, 6, b"\xff\xff"), r"train.bin: token 3 is id 65535, the .* has 257"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_source_is_one_clear_line(case, tmp_path, tokenizer_file):
    suffix, data, message = DAMAGE[case]
    source = write_megatron(tmp_path / "a", train=[[1, 2, EOS], [3, EOS]], val=[[1]])
    path = source / f"train{suffix}"
    path.write_bytes(data) if data is not None else path.unlink()
    with pytest.raises(UserError, match=message) as caught:
        convert(source, tmp_path / "b", to="hvdlm", tokenizer=tokenizer_file)
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]


LLM_C_IDS = [EOS, 104, 105, EOS, 97, 98]


def llm_c_bytes(ids, magic=20240520, version=1, num_tokens=None, kind="<u2"):
    header = np.zeros(256, "<i4")
    header[:3] = magic, version, len(ids) if num_tokens is None else num_tokens
    return header.tobytes() + np.array(ids, kind).tobytes()


@pytest.mark.parametrize("width", [512, 1000])
def test_rows_padded_by_zeros_are_no_header(width, tmp_path, tokenizer_file):
    rows = np.zeros((3, width), np.uint16)
    rows[:, :20] = np.arange(40, 60)
    rows[:, 20] = 256
    rows.tofile(tmp_path / "train.bin")
    convert(tmp_path / "train.bin", tmp_path / "out", to="hvdlm", tokenizer=tokenizer_file)
    assert h5py.File(tmp_path / "out" / "train-00000.h5")["tokens"][:].tolist() == rows.ravel().tolist()


@pytest.mark.parametrize(("magic", "kind"), [(20240520, "<u2"), (20240801, "<u4")])
def test_a_file_of_llm_c_is_its_ids_without_the_header(magic, kind, tmp_path, tokenizer_file):
    (tmp_path / "train.bin").write_bytes(llm_c_bytes(LLM_C_IDS, magic, kind=kind))
    (tmp_path / "val.bin").write_bytes(llm_c_bytes([], magic, kind=kind))
    convert(tmp_path, tmp_path / "b", to="hvdlm", tokenizer=tokenizer_file)
    assert ids_of(tmp_path / "b") == [[EOS], [104, 105, EOS], [97, 98]]
    assert read_manifest(tmp_path / "b").num_tokens == len(LLM_C_IDS)


@pytest.mark.parametrize("kind", ["<u4", "<i4", "<i8"])
def test_ids_wider_than_need_be_are_read_as_they_are_and_it_is_said(kind, tmp_path, tokenizer_file, caplog):
    ids = [104, 0, 105, EOS, 97, EOS]
    np.array(ids, kind).tofile(tmp_path / "train.bin")
    with caplog.at_level("WARNING", "hvdlm"):
        convert(tmp_path, tmp_path / "b", to="hvdlm", tokenizer=tokenizer_file)
    assert list(itertools.chain(*ids_of(tmp_path / "b"))) == ids
    assert "though 257 ids need only uint16" in caplog.text


@pytest.mark.parametrize("ids", [[1, 0], [1, 0, 1, 0, 1, 0], [0] * 16, [1, 0] * 20 + [0, 1]])
def test_narrow_ids_with_zeros_are_not_taken_for_wide_ones(ids, tmp_path, tokenizer_file, caplog):
    np.array(ids, "<u2").tofile(tmp_path / "train.bin")
    with caplog.at_level("WARNING", "hvdlm"):
        convert(tmp_path, tmp_path / "b", to="hvdlm", tokenizer=tokenizer_file)
    assert list(itertools.chain(*ids_of(tmp_path / "b"))) == ids
    assert "hold no end-of-text id 256, so they are one document" in caplog.text


FOREIGN = {
    "cut": (llm_c_bytes(LLM_C_IDS)[:-2], "has 1034 bytes, its header of llm.c says 1036"),
    "version": (llm_c_bytes(LLM_C_IDS, version=2), "has a header of llm.c of version 2"),
    "big-endian header": (np.array([20240520] * 256, ">i4").tobytes(), "has a big-endian header of llm.c"),
    "npy": (b"\x93NUMPY\x01\x00" + bytes(120), "is an array saved by numpy.save"),
    "big-endian": (np.array([104, 105, EOS], ">u2").tobytes(), "its numbers are big-endian uint16, not little-endian"),
    "of a larger vocabulary": (np.array([104, 999, EOS], "<u2").tobytes(), "token 1 is id 999, the tokenizer has 257"),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_a_bin_of_another_layout_is_refused(case, tmp_path, tokenizer_file):
    data, message = FOREIGN[case]
    (tmp_path / "train.bin").write_bytes(data)
    with pytest.raises(UserError, match=message):
        convert(tmp_path, tmp_path / "b", to="hvdlm", tokenizer=tokenizer_file)
    assert not (tmp_path / "b").exists()


WIDE_IDS = np.random.default_rng(0).zipf(1.3, 400).clip(max=59_999) * (np.arange(400) % 40 != 39)


@pytest.fixture(scope="module")
def wide_tokenizer(tmp_path_factory):
    """60,000 ids, of which 0 ends a text."""
    vocabulary = {"<|endoftext|>": 0} | {f"t{number}": number for number in range(1, 60_000)}
    model = {"type": "WordLevel", "vocab": vocabulary, "unk_token": "t1"}
    path = tmp_path_factory.mktemp("wide") / "tokenizer.json"
    path.write_text(json.dumps({"version": "1.0", "added_tokens": [], "model": model}))
    return path


def npz_bytes():
    content = io.BytesIO()
    np.savez(content, ids=WIDE_IDS.astype("<u2"))
    return content.getvalue()


def torch_bytes(**settings):
    content = io.BytesIO()
    torch.save(torch.arange(99), content, **settings)
    return content.getvalue()


def hdf5_bytes():
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        file["ids"] = WIDE_IDS
    return content.getvalue()


IDS_BYTES = WIDE_IDS.astype("<u2").tobytes()
NO_IDS = {
    "big-endian uint32": (WIDE_IDS.astype(">u4").tobytes(), "its numbers are big-endian uint32, not little-endian ids"),
    "big-endian int64": (WIDE_IDS.astype(">i8").tobytes(), "its numbers are big-endian int64, not little-endian ids"),
    "float16": (np.minimum(WIDE_IDS, 2048).astype("<f2").tobytes(), "its numbers are float16, not little-endian ids"),
    "float32": (WIDE_IDS.astype("<f4").tobytes(), "its numbers are float32, not little-endian ids"),
    "float64": (WIDE_IDS.astype("<f8").tobytes(), "its numbers are float64, not little-endian ids"),
    "big-endian float32": (WIDE_IDS.astype(">f4").tobytes(), "its numbers are big-endian float32, not"),
    "big-endian float64": (WIDE_IDS.astype(">f8").tobytes(), "its numbers are big-endian float64, not"),
    "bfloat16": ((np.minimum(WIDE_IDS, 256).astype("<f4").view("<u4") >> 16).astype("<u2").tobytes(), "are bfloat16,"),
    "big-endian": ((WIDE_IDS.clip(max=59_000) | 255).astype(">u2").tobytes(), "are big-endian uint16,"),
    "marked int16": (np.where(WIDE_IDS > 99, -100, WIDE_IDS).astype("<i2").tobytes(), r"int16, and number \d+ is"),
    "marked int32": (np.append(WIDE_IDS, -100).astype("<i4").tobytes(), "are int32, and number 400 is below 0.* marks"),
    "marked int64": (np.append(WIDE_IDS, -1).astype("<i8").tobytes(), "are int64, and number 400 is below 0"),
    "llm.c's evaluation": (
        llm_c_bytes(WIDE_IDS, 20240522),
        r"a header that is not known \(its first number is 20240522",
    ),
    "another header": (llm_c_bytes(WIDE_IDS, 278895051), "a header that is not known .*278895051"),
    "npz": (npz_bytes(), "is a zip archive, or saved by torch.save"),
    "torch": (torch_bytes(), "is a zip archive, or saved by torch.save"),
    "old torch": (torch_bytes(_use_new_zipfile_serialization=False), "is saved by torch.save, not bare ids"),
    "pickle": (pickle.dumps(WIDE_IDS.tolist()), "is a pickle, not bare ids"),
    "hdf5": (hdf5_bytes(), "is HDF5, not bare ids; write its ids alone"),
    "parquet": (b"PAR1\x15\x04" + bytes(range(200)), "is Parquet, not bare ids"),
    "arrow": (b"ARROW1\0\0" + bytes(range(200)), "is an Arrow file, not bare ids"),
    "safetensors": ((64).to_bytes(8, "little") + b'{"ids":' + b" " * 99, "is safetensors, not bare ids"),
    "gzip": (gzip.compress(IDS_BYTES, mtime=0), "is compressed by gzip, not bare ids; unpack it"),
    "bzip2": (bz2.compress(IDS_BYTES), "is compressed by bzip2, not bare ids; unpack it"),
    "lzma": (lzma.compress(IDS_BYTES, lzma.FORMAT_ALONE), "is compressed by lzma, not bare ids; unpack it"),
    "zlib": (zlib.compress(IDS_BYTES), "is compressed by zlib, not bare ids; unpack it"),
    "web page": (b"<!DOCTYPE html><title>No pages</title>", "is text, not bare ids; download the file itself"),
    "xz": (lzma.compress(IDS_BYTES), "is compressed by xz, not bare ids; unpack it"),
    "zstd": (zstandard.compress(IDS_BYTES), "is compressed by zstd, not bare ids; unpack it"),
    "text": ("Ein Text, naïve 中文 and more.\n".encode() * 9, "is text, not bare ids; preprocess it"),
    "jsonl": (b'{"text": "a line"}\n' * 8, "is text, not bare ids; preprocess it, or name it .jsonl"),
    "git lfs": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7\n",
        "is a pointer of Git LFS.*git lfs pull",
    ),
}


@pytest.mark.parametrize("case", NO_IDS)
def test_a_bin_that_holds_no_bare_ids_says_what_it_is(case, tmp_path, wide_tokenizer):
    data, message = NO_IDS[case]
    (tmp_path / "train.bin").write_bytes(data + b"\0" * (len(data) % 2))
    with pytest.raises(UserError, match=message):
        convert(tmp_path, tmp_path / "b", to="hvdlm", tokenizer=wide_tokenizer)
    assert not (tmp_path / "b").exists()


def test_characters_as_bytes_are_no_ids_of_two_bytes(tmp_path):
    """Of a small vocabulary, as older copies of nanoGPT's Shakespeare have it."""
    (tmp_path / "tokenizer.json").write_text(CharTokenizer("abcdefghij").to_json())
    for data in (bytes([1, 4, 7, 9, 3, 11]) * 20, bytes([1, 4, 7, 9, 3]) * 21):
        (tmp_path / "train.bin").write_bytes(data)
        with pytest.raises(UserError, match=r"train.bin: its numbers are uint8, not little-endian ids; write them as"):
            convert(tmp_path, tmp_path / "b", to="hvdlm")


def test_narrow_ids_under_a_wide_vocabulary_are_told(tmp_path, caplog):
    vocabulary = {"<|endoftext|>": 0} | {f"t{number}": number for number in range(1, 70_000)}
    model = {"type": "WordLevel", "vocab": vocabulary, "unk_token": "t1"}
    (tmp_path / "tokenizer.json").write_text(json.dumps({"version": "1.0", "added_tokens": [], "model": model}))
    WIDE_IDS.astype("<u2").tofile(tmp_path / "train.bin")
    with pytest.raises(UserError, match="no ids as uint32, which 70000 ids take; if they are uint16, a smaller voc"):
        convert(tmp_path, tmp_path / "b", to="hvdlm")
    (WIDE_IDS + 20_000).astype("<u4").tofile(tmp_path / "train.bin")
    with pytest.raises(UserError, match=r"token \d+ is id 7\d+, the tokenizer has 70000 ids; give the tokenizer.json"):
        convert(tmp_path, tmp_path / "b", to="hvdlm")


def test_ids_that_are_too_few_to_tell_their_width_are_remarked_once(tmp_path, tokenizer_file, caplog):
    np.array([5, EOS, 7], "<u4").tofile(tmp_path / "train.bin")
    convert(tmp_path, tmp_path / "b", to="nanogpt", tokenizer=tokenizer_file)
    remarks = [line for line in warnings_of(caplog) if "is read as 6 ids of uint16; if it holds 3 of uint32" in line]
    assert len(remarks) == 1
    assert (tmp_path / "b" / "train.bin").read_bytes() == (tmp_path / "train.bin").read_bytes()


@pytest.mark.parametrize(
    ("data", "remark"),
    [
        (np.minimum(WIDE_IDS, 200).astype(">u2").tobytes(), "its ids are smaller the other way round"),
        (bytes(800), "all its 400 tokens are id 0"),
        (np.array([7] * 20, "<u2").tobytes(), "all its 20 tokens are id 7"),
        (np.array([7, 0, 0, 9] * 20 + [0], "<u2").tobytes(), "41 of its 81 tokens are the end-of-text id 0"),
        (np.random.default_rng(0).normal(size=400).astype("<f2").tobytes(), "hold no end-of-text id 0"),
        (b"", "is empty"),
        (IDS_BYTES, None),
        (np.array([29, 1, 0], "<u2").tobytes(), None),
        (np.minimum(WIDE_IDS, 255).astype("<u2").tobytes(), None),
    ],
)
def test_ids_that_are_hardly_a_text_are_remarked(data, remark, tmp_path, wide_tokenizer, caplog):
    (tmp_path / "train.bin").write_bytes(data)
    with caplog.at_level("WARNING", "hvdlm"):
        convert(tmp_path, tmp_path / "b", to="hvdlm", tokenizer=wide_tokenizer)
    remarks = [m for m in warnings_of(caplog) if "train.bin: " in m]
    assert any(remark in m for m in remarks) if remark else not remarks


@pytest.mark.parametrize("documents", [[0, 1, 1, 2], [0, 0, 1, 2], [0, 1, 2, 2, 2], [0, 0, 1, 1, 2, 2]])
def test_megatron_documents_without_a_sequence_are_empty_documents(documents, tmp_path, tokenizer_file):
    sequences = [[104, 105, EOS], [97, EOS]]
    source = write_megatron(tmp_path / "a", train=sequences)
    idx = (source / "train.idx").read_bytes()[: -8 * 3]
    head = replaced(idx, 26, struct.pack("<Q", len(documents)))
    (source / "train.idx").write_bytes(head + np.array(documents, "<i8").tobytes())
    convert(source, tmp_path / "b", to="hvdlm", tokenizer=tokenizer_file)
    assert ids_of(tmp_path / "b") == [sequences[a] if a < b else [] for a, b in itertools.pairwise(documents)]
    convert(tmp_path / "b", tmp_path / "c", to="megatron")
    convert(tmp_path / "c", tmp_path / "d", to="hvdlm")
    same_data(tmp_path / "b", tmp_path / "d")


def test_negative_ids_are_named(tmp_path, tokenizer_file):
    source = write_megatron(tmp_path / "a", 4, train=[[1, -1]])
    with pytest.raises(UserError, match=r"train.bin: token 1 is id -1"):
        convert(source, tmp_path / "b", to="nanogpt", tokenizer=tokenizer_file)


def test_what_is_missing_or_there_already_is_named(data_dir, tmp_path, tokenizer_file):
    with pytest.raises(UserError, match=r"nowhere: is no file or folder, nor the PREFIX of PREFIX-train.bin"):
        convert(tmp_path / "nowhere", tmp_path / "b", to="hvdlm")
    (tmp_path / "texts").mkdir()
    with pytest.raises(
        UserError, match=r"texts: holds no manifest.json, and no train, val or test .*; hvdlm preprocess"
    ):
        convert(tmp_path / "texts", tmp_path / "b", to="hvdlm")
    (tmp_path / "texts" / "valid.bin").touch()
    with pytest.raises(UserError, match=r"texts: holds no manifest.json.*; name a file, such as .*/texts/valid.bin"):
        convert(tmp_path / "texts", tmp_path / "b", to="hvdlm")
    for name, remedy in {"a.jsonl.gz": "unpack it", "a.parquet": "hvdlm preprocess reads texts"}.items():
        (tmp_path / "texts" / name).touch()
        with pytest.raises(UserError, match=f"{name}: is no .bin, .idx or .jsonl; {remedy}"):
            convert(tmp_path / "texts" / name, tmp_path / "b", to="hvdlm")
    with pytest.raises(UserError, match=r"exists already; remove it or give another destination"):
        convert(data_dir, tmp_path, to="jsonl")
    source = write_megatron(tmp_path / "a", train=[])
    with pytest.raises(UserError, match=r"a: has no tokenizer.json beside it; give the one .*--tokenizer"):
        convert(source, tmp_path / "b", to="hvdlm")
    (tmp_path / "n").mkdir()
    (tmp_path / "n" / "train.bin").write_bytes(b"123")
    with pytest.raises(UserError, match=r"train.bin: has 3 bytes, no whole number of uint16 for 257 ids"):
        convert(tmp_path / "n", tmp_path / "b", to="hvdlm", tokenizer=tokenizer_file)


OVER_SEVERAL = "preprocess it with format: json, or write one object a line"
BAD_LINES = {
    b"{": f"is no JSON object .*; {OVER_SEVERAL}",
    b'  "text": "a",': f"is no JSON object .*; {OVER_SEVERAL}",
    b'{"text": "a"} {"text": "b"}': f"is no JSON object .Extra data, character 14.; {OVER_SEVERAL}",
    b'{"text": "a"} , {"text": "b"': f"is no JSON object .Extra data, character 14.; {OVER_SEVERAL}",
    b'{"text": "if (a) {b},{c}': "is no JSON object .*; mend or remove this line",
    b'"text": "a' + b"\\n" * 9: f"is no JSON object .*; {OVER_SEVERAL}",
    b'[{"text": "a"}]': f"is an array, not a JSON object; {OVER_SEVERAL}",
    b'\x1e{"text": "a"}': r"it begins with the mark of a JSON text sequence .RFC 7464.; take it",
    b'{"text": "a"}\r{"text": "b"}': "carriage returns alone end its lines; preprocess it",
    bytes(99): "it is nothing but zeros, so copy the file again",
    b'"text"': "is a text, not a JSON object; mend or remove this line",
    b"null": "is null, not a JSON object",
    b"1e3": "is a number, not a JSON object",
    b'{"content": "a", "n": 1}': r"""has no key "text" \(it has: 'content', 'n'\); name it so, or prepro""",
    b'{"text": 1e3}': '"text" is a number, no text; mend or remove this line',
    b'{"text": ["a"]}': '"text" is an array, no text',
    rb'{"text": "\ud800"}': "has half a surrogate pair",
    rb'{"text": "a", "id": "\ud800"}': "has half a surrogate pair",
    b'{"text": "a", "id": ' + b"[" * 99_999: "is nested too deeply",
    b'{"text": "a\xff"}': "byte 11 of it is not UTF-8; mend it, or preprocess with encoding",
}


@pytest.mark.parametrize("line", BAD_LINES, ids=lambda line: line[:30])
def test_a_bad_line_is_named_with_what_to_do(line, tmp_path, tokenizer_file):
    (tmp_path / "x.jsonl").write_bytes(b'{"text": "a"}\n\n' + line + b"\n")
    with pytest.raises(UserError, match=f"x.jsonl:3: .*{BAD_LINES[line]}"):
        convert(tmp_path / "x.jsonl", tmp_path / "b", to="hvdlm", tokenizer=tokenizer_file)


def test_a_long_bad_line_is_told_at_once(tmp_path, tokenizer_file):
    """To look for what is wrong takes no time that grows with the square of its length, and so an hour."""
    for line in (b'{"text": "' + b"},{" * 200_000, b'"' + b'\\"' * 200_000, b"{" * 200_000 + b"x"):
        (tmp_path / "x.jsonl").write_bytes(line + b"\n")
        with pytest.raises(UserError, match=r"x.jsonl:1: is n"):
            convert(tmp_path / "x.jsonl", tmp_path / "b", to="hvdlm", tokenizer=tokenizer_file)


LINES = b'{"text": "a"}\n' * 9
NO_LINES = {
    gzip.compress(LINES, mtime=0): "is compressed by gzip, not lines of JSON; unpack it",
    zlib.compress(LINES): "is compressed by zlib, not lines of JSON; unpack it",
    LINES.decode().encode("utf-16"): "is UTF-16 or UTF-32, not lines of JSON; save it as UTF-8",
    LINES.decode().encode("utf-16-le"): "is UTF-16 or UTF-32, not lines of JSON; save it as UTF-8",
    LINES.decode().encode("utf-32-be"): "is UTF-16 or UTF-32, not lines of JSON; save it as UTF-8",
    b"PAR1\x15\x04": "is Parquet, not lines of JSON; preprocess it",
    b"\x93NUMPY\x01": "is an array saved by numpy.save, not lines of JSON; write its texts as JSON lines",
    b"version https://git-lfs.github.com/spec/v1\n": "is a pointer of Git LFS, not lines of JSON; fetch the file",
    b"<!doctype html>\n": "is a web page or XML, not lines of JSON; download the file itself",
    bytes(99): "is nothing but zeros, not lines of JSON; copy it again",
}


@pytest.mark.parametrize("data", NO_LINES, ids=lambda data: data[:12])
def test_a_jsonl_that_holds_no_lines_says_what_it_is(data, tmp_path, tokenizer_file):
    (tmp_path / "x.jsonl").write_bytes(data)
    with pytest.raises(UserError, match=f"x.jsonl: {NO_LINES[data]}"):
        convert(tmp_path / "x.jsonl", tmp_path / "b", to="hvdlm", tokenizer=tokenizer_file)


def warnings_of(caplog):
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


def test_ids_and_labels_are_kept_as_they_are_written_and_other_keys_are_counted(tmp_path, tokenizer_file, caplog):
    values = {
        "1e3": "1e3",
        "1.50": "1.50",
        "true": "true",
        '{"a": [1e3,  -0]}': '{"a": [1e3,  -0]}',
        "[" + "8" * 5000 + "]": "[" + "8" * 5000 + "]",
        "9" * 5000: "9" * 5000,
        "null": "",
        '"é"': "é",
        "7": "7",
    }
    lines = [f'{{"text": "a", "id": {value}, "source": "web"}}\n' for value in values]
    (tmp_path / "x.jsonl").write_text("".join(lines) + '{"text": "b", "score": 1, "source": 2}\n')
    convert(tmp_path / "x.jsonl", tmp_path / "b", to="hvdlm", tokenizer=tokenizer_file)
    shard = read_manifest(tmp_path / "b").splits["train"].shards[0]
    assert doc_column(tmp_path / "b", shard, "doc_ids") == [*values.values(), ""]
    assert [line.partition(": ")[2] for line in warnings_of(caplog)] == [
        "left out: 'source' of 10 records, 'score' of 1 record"
    ]


@pytest.mark.parametrize("name", ["valid.jsonl", "train.jsonl.gz", "train_000001.jsonl"])
@pytest.mark.parametrize("prefix", ["", "web-"])
def test_files_that_are_no_split_are_told(name, prefix, tmp_path, tokenizer_file, caplog):
    source = tmp_path / "in"
    source.mkdir()
    for file in (f"{prefix}train.jsonl", f"{prefix}{name}", "notes.txt"):
        (source / file).write_text('{"text": "a"}\n')
    convert(source / prefix[:-1] if prefix else source, tmp_path / "b", to="hvdlm", tokenizer=tokenizer_file)
    (line,) = warnings_of(caplog)
    assert f"1 file of .jsonl left out, such as {prefix}{name}: splits are train, val and test" in line
    caplog.clear()
    convert(source / f"{prefix}train.jsonl", tmp_path / "c", to="hvdlm", tokenizer=tokenizer_file)
    assert warnings_of(caplog) == []  # one file was asked for


@pytest.mark.parametrize(("name", "split"), {"val": "val", "web-valid": "val", "test": "test", "web": None}.items())
def test_a_single_file_that_is_named_as_held_out_is_remarked_where_it_becomes_train(
    name, split, tmp_path, tokenizer_file, caplog
):
    (tmp_path / f"{name}.jsonl").write_text('{"text": "a"}\n')
    convert(tmp_path / f"{name}.jsonl", tmp_path / "b", to="hvdlm", tokenizer=tokenizer_file)
    wanted = [f"{tmp_path}/{name}.jsonl: is read as train, as every single file is; give its folder to keep it {split}"]
    assert warnings_of(caplog) == (wanted if split else [])


def test_what_is_lost_where_losses_are_allowed_is_counted(tmp_path, tokenizer_file, caplog):
    lossy = ConvertOptions(is_lossy=True)
    (tmp_path / "x.jsonl").write_text('{"text": "a", "id": "1"}\n{"text": "b"}\n')
    convert(tmp_path / "x.jsonl", tmp_path / "columns", to="megatron", tokenizer=tokenizer_file, options=lossy)
    source = write_megatron(tmp_path / "a", train=[[1, 2], [0xFF, EOS], [65, EOS], [3, EOS, 4, EOS], [5, EOS]])
    convert(source, tmp_path / "texts", to="jsonl", tokenizer=tokenizer_file, options=lossy)
    convert(source, tmp_path / "ends", to="nanogpt", tokenizer=tokenizer_file, options=lossy)
    assert [line.partition(": ")[2] for line in warnings_of(caplog)] == [
        "doc_ids of 2 documents are left out",
        "3 documents would come back with different ids",
        "of 5 documents 1 do not end with their one end-of-text id 256; there are 5 now",
    ]


def test_documents_are_told_as_the_files_hold_them(tmp_path, tokenizer_file):
    lossy = ConvertOptions(is_lossy=True)
    source = write_megatron(tmp_path / "a", train=[[1], [2, EOS], [3], [4], [5, EOS]], val=[[6, EOS]])
    told = convert(source, tmp_path / "b", to="nanogpt", tokenizer=tokenizer_file, options=lossy)
    assert told["splits"]["train"] == {"num_tokens": 7, "num_documents": 2}
    assert to_text(told).splitlines() == [
        f"{tmp_path}/b: nanogpt, from megatron {source}",
        "  train  7 tokens  2 documents",
        "  val    2 tokens   1 document",
    ]


def test_a_writer_that_loses_something_ends_the_conversion(data_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(megatron, "totals", lambda folder, tokenizer: {"train": (3, 5), "val": (0, 0)})
    with pytest.raises(UserError, match=r"there: train would hold 3 documents and 5 tokens, .* please report this"):
        convert(data_dir, tmp_path / "there", to="megatron")
    assert list(tmp_path.iterdir()) == []


def test_text_that_no_token_stands_for_is_counted_or_named(tmp_path, caplog):
    token = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    ends = [{"id": 0, "content": "</s>", "special": True} | token]
    models = {
        "bpe": {"type": "BPE", "vocab": {"</s>": 0, "a": 1, "b": 2}, "merges": []},
        "word": {"type": "WordLevel", "vocab": {"</s>": 0, "a": 1}, "unk_token": "<unk>"},
    }
    for name, model in models.items():
        (tmp_path / f"{name}.json").write_text(json.dumps({"version": "1.0", "added_tokens": ends, "model": model}))
    (tmp_path / "x.jsonl").write_text('{"text": "a"}\n{"text": "b\u00e9\u00e9"}\n')
    convert(tmp_path / "x.jsonl", tmp_path / "b", to="hvdlm", tokenizer=tmp_path / "bpe.json")
    assert [line.partition(": ")[2] for line in warnings_of(caplog)] == [
        "2 characters no token stands for, and are lost"
    ]
    with pytest.raises(UserError, match=r"x.jsonl:2: .*cannot encode a text"):
        convert(tmp_path / "x.jsonl", tmp_path / "c", to="hvdlm", tokenizer=tmp_path / "word.json")
