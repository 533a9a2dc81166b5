"""The shard format: what is written is read, and what is damaged is noticed and named."""

import json
import shutil
import zlib
from dataclasses import asdict
from pathlib import Path

import h5py
import numpy as np
import pytest
from harness import preprocess

from hvdlm import files
from hvdlm.data import verify as digests
from hvdlm.data.manifest import read_manifest
from hvdlm.data.shards import ShardLabels, doc_column, pack_strings, write_shard
from hvdlm.data.stream import TokenStream
from hvdlm.data.verify import stream_digest, verify
from hvdlm.errors import UserError
from hvdlm.tokenizer import dtype_for


def labels(vocab_size=300):
    return ShardLabels("train", vocab_size, 256, "digest")


@pytest.mark.parametrize(
    ("vocab_size", "dtype"), [(257, "uint16"), (65535, "uint16"), (65536, "uint16"), (65537, "uint32")]
)
def test_the_smallest_type_that_holds_the_largest_id(vocab_size, dtype, tmp_path):
    assert dtype_for(vocab_size).name == dtype
    ids = np.array([0, vocab_size - 1])
    write_shard(tmp_path / "a.h5", [ids], np.array([2]), labels(vocab_size))
    with h5py.File(tmp_path / "a.h5") as file:
        assert file["tokens"].dtype == dtype
        assert file["tokens"][:].tolist() == ids.tolist()


def test_a_shard_is_one_contiguous_block_with_its_labels(tmp_path):
    entry = write_shard(tmp_path / "a.h5", [np.arange(5), np.arange(3)], np.array([4, 4]), labels())
    with h5py.File(tmp_path / "a.h5") as file:
        tokens = file["tokens"]
        assert (tokens.ndim, tokens.chunks, tokens.compression) == (1, None, None)
        raw = np.memmap(tmp_path / "a.h5", dtype="<u2", mode="r", offset=tokens.id.get_offset(), shape=8)
        assert raw.tolist() == [0, 1, 2, 3, 4, 0, 1, 2]
        assert file["doc_offsets"][:].tolist() == [0, 4, 8]
        written = {name: value for name, value in asdict(labels()).items() if name != "bos_id"}  # none, so not there
        assert dict(file.attrs) == {"format_version": 1, "num_documents": 2, **written}
        assert (file.attrs["split"], file.attrs["vocab_size"], file.attrs["eos_id"]) == ("train", 300, 256)
        assert file.attrs["tokenizer_digest"] == "digest"
    assert (entry.num_tokens, entry.num_documents) == (8, 2)


def test_an_id_outside_the_vocabulary_leaves_no_shard(tmp_path):
    with pytest.raises(ValueError, match="id 300 is not in a vocabulary of 300"):
        write_shard(tmp_path / "a.h5", [np.array([300])], np.array([1]), labels())
    assert not (tmp_path / "a.h5").exists()


def test_the_same_tokens_give_the_same_bytes(tmp_path):
    for name in ("a.h5", "b.h5"):
        write_shard(tmp_path / name, [np.arange(100)], np.array([100]), labels())
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


def test_windows_equal_slices_of_the_whole_across_shards(data_dir):
    stream = TokenStream(data_dir, "train")
    entries = read_manifest(data_dir).splits["train"].shards
    assert len(entries) > 2
    whole = np.concatenate([h5py.File(data_dir / entry.file)["tokens"][:] for entry in entries])
    assert len(stream) == len(whole)
    assert stream.read(0, len(whole)).tolist() == whole.tolist()
    starts = np.random.default_rng(0).integers(0, len(whole) - 50, size=200)
    starts[:3] = entries[0].num_tokens - 49, entries[0].num_tokens - 50, entries[0].num_tokens
    expected = np.stack([whole[start : start + 50] for start in starts])
    assert (stream.read_windows(starts, 50) == expected).all()
    assert (stream.read_windows(starts[:1], 50) == expected[:1]).all()
    with pytest.raises(IndexError):
        stream.read(len(whole) - 5, 6)


@pytest.fixture
def copy(data_dir, tmp_path):
    return Path(shutil.copytree(data_dir, tmp_path / "copy"))


def test_any_flipped_byte_is_found_and_named(copy):
    """With its block where it is a token's, with what else it is where it is none."""
    assert verify(copy) == []
    path = copy / "train-00001.h5"
    content = bytearray(path.read_bytes())
    with h5py.File(path) as file:
        first = file["tokens"].id.get_offset()
        last = first + file["tokens"].nbytes
    for position in [*np.random.default_rng(0).integers(0, len(content), size=40), 0, first, last - 1, last]:
        damaged = bytearray(content)
        damaged[position] ^= 1
        path.write_bytes(damaged)
        (fault,) = verify(copy)
        assert fault.startswith(f"{path}: ")
        if first <= position < last:
            assert "1 of 1 blocks differ, the first is block 0 (tokens 0 to " in fault
        else:
            assert "its tokens are as written" in fault or "its HDF5 structure is damaged" in fault or "blocks" in fault


def test_the_damaged_block_is_named(copy):
    entry = write_shard(copy / "train-00000.h5", [np.arange(1_500_000) % 250], np.array([1_500_000]), labels(257))
    with h5py.File(copy / "train-00000.h5") as file:
        assert file["block_crc32"].shape == (3,)
        assert file["block_crc32"][1] == zlib.crc32(file["tokens"][1 << 19 : 1 << 20].tobytes())
        place = file["tokens"].id.get_offset()
    manifest = json.loads((copy / "manifest.json").read_text())
    old = manifest["splits"]
    more = {what: getattr(entry, what) - old["train"]["shards"][0][what] for what in ("num_tokens", "num_documents")}
    old["train"]["shards"][0] = entry.model_dump()
    for what, count in more.items():
        old["train"][what] += count
        manifest[what] += count
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with (copy / "train-00000.h5").open("r+b") as file:
        file.seek(place + 2 * 1_200_000)
        file.write(b"\xff")
    (fault,) = verify(copy)
    assert fault.endswith("1 of 3 blocks differ, the first is block 2 (tokens 1,048,576 to 1,500,000)")


def test_ids_and_labels_of_documents(tmp_path):
    columns = {"doc_ids": ["a", "", "中文"], "doc_labels": ["x", "y", "é"]}
    packed = {name: pack_strings(values) for name, values in columns.items()}
    entry = write_shard(tmp_path / "a.h5", [np.arange(6)], np.array([1, 2, 3]), labels(), packed)
    assert doc_column(tmp_path, entry, "doc_ids") == columns["doc_ids"]
    assert doc_column(tmp_path, entry, "doc_labels") == columns["doc_labels"]
    entry = write_shard(tmp_path / "b.h5", [np.arange(6)], np.array([1, 2, 3]), labels())
    assert doc_column(tmp_path, entry, "doc_ids") is None


def test_the_digest_names_tokens_not_files(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(digests, "DIGEST_TOKENS", 1000)
    manifests = [preprocess(corpus, tmp_path / str(size), shard_tokens=size) for size in (5_000, 20_000)]
    manifests.append(preprocess(corpus, tmp_path / "one", layout="mpio"))
    assert len({len(manifest.splits["train"].shards) for manifest in manifests}) == 3
    assert len({manifest.splits["train"].digest for manifest in manifests}) == 1
    assert stream_digest(TokenStream(tmp_path / "one", "train")) == manifests[0].splits["train"].digest
    assert preprocess(corpus, tmp_path / "other", seed=3).splits["train"].digest != manifests[0].splits["train"].digest


def test_a_failed_write_leaves_nothing(tmp_path):
    def pieces():
        yield np.arange(3)
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_shard(tmp_path / "a.h5", pieces(), np.array([6]), labels())
    assert list(tmp_path.iterdir()) == []


def test_a_shard_cut_short_is_refused_by_the_reader(copy):
    path = copy / "train-00001.h5"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"train-00001.h5: has \d+ bytes, the manifest says \d+; copy it again"):
        TokenStream(copy, "train")
    assert "has" in verify(copy)[0]


def test_a_missing_shard_is_named(copy):
    (copy / "val-00000.h5").unlink()
    assert verify(copy) == [f"{copy / 'val-00000.h5'}: is missing"]
    with pytest.raises(UserError, match="val-00000.h5: cannot read"):
        TokenStream(copy, "val")


def test_a_folder_without_manifest_is_no_data_set(copy):
    (copy / "manifest.json").unlink()
    with pytest.raises(UserError, match="no finished data set; run `hvdlm preprocess`"):
        read_manifest(copy)


@pytest.mark.parametrize("name", ["", "train.bin", "wiki"])
@pytest.mark.parametrize("file", ["train.bin", "wiki-train.bin", "wiki_text_document.idx"])
def test_ids_of_other_tools_are_to_be_converted(name, file, tmp_path):
    """A folder of them, one of the files, or the prefix of their names."""
    (tmp_path / file).touch()
    is_of_it = not name or file.startswith(name)
    with pytest.raises(UserError, match="`hvdlm data convert`" if is_of_it else "run `hvdlm preprocess`"):
        read_manifest(tmp_path / name)


def test_a_model_is_not_to_be_converted(tmp_path):
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(UserError, match="run `hvdlm preprocess`"):
        read_manifest(tmp_path)


def test_a_foreign_manifest_is_named(copy):
    (copy / "manifest.json").write_text('{"format_version": 9}')
    with pytest.raises(UserError, match="made by another version"):
        read_manifest(copy)


def test_a_shard_of_another_tokenizer_is_refused(copy):
    path = copy / "train-00000.h5"
    path.write_bytes(path.read_bytes().replace(read_manifest(copy).tokenizer_digest.encode(), b"x" * 16))
    with pytest.raises(UserError, match=r"train-00000.h5: was made with tokenizer x+, the manifest says"):
        TokenStream(copy, "train")


def test_a_split_that_is_empty_is_named_with_what_there_is(corpus, tmp_path):
    preprocess(corpus, tmp_path, split={"val": 0.0})
    with pytest.raises(UserError, match=r"has no val tokens \(it has: train\)"):
        TokenStream(tmp_path, "val")


def test_durable_replacement_syncs_before_it_renames(tmp_path, monkeypatch):
    calls = []
    for name in ("fsync", "replace"):
        real = getattr(files.os, name)
        monkeypatch.setattr(files.os, name, lambda *a, name=name, real=real: (calls.append(name), real(*a))[1])
    files.write_text_durably(tmp_path / "a.txt", "text")
    assert calls == ["fsync", "replace", "fsync"]  # the file, the rename, the folder
