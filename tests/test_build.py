"""Preprocessing as one process: complete or absent, resumable, every document once."""

import errno
import itertools
import json
import shutil
from unittest.mock import Mock, create_autospec

import numpy as np
import pytest
from harness import files_of, make_text, preprocess, texts_of

from hvdlm.data.manifest import SPLITS, read_manifest
from hvdlm.data.verify import unigram_loss
from hvdlm.errors import UserError
from hvdlm.preprocessing import assemble, build
from hvdlm.preprocessing.documents import Document
from hvdlm.preprocessing.spool import Batch, Spool, UnitResult, is_as_saved
from hvdlm.records.encoder import Encoded


def spy_on(monkeypatch, owner, name):
    """A mock that does what the function of this name does, in its place."""
    spy = create_autospec(getattr(owner, name), side_effect=getattr(owner, name))
    monkeypatch.setattr(owner, name, spy)
    return spy


@pytest.mark.parametrize("tokenizer", [{"kind": "byte"}, {"kind": "bpe", "vocab_size": 400}])
def test_every_document_comes_back_once(corpus, tmp_path, tokenizer):
    manifest = preprocess(corpus, tmp_path, tokenizer=tokenizer, split={"val": 0.2, "test": 0.2})
    found = {split: texts_of(tmp_path, split) for split in SPLITS}
    texts = [path.read_text() for path in sorted(corpus.iterdir())]
    assert sorted(sum(found.values(), [])) == sorted(text for text in texts if text)
    assert all(found.values())
    assert [text for text in texts if text in found["train"]] == found["train"]  # input order
    assert manifest.statistics == {"documents": 37, "empty_documents": 3, "replaced_characters": 0}
    assert manifest.splits["val"].text_bytes == sum(len(text.encode()) for text in found["val"])
    assert not (tmp_path / ".work").exists()


def test_a_document_never_changes_its_split_when_data_is_added(corpus, tmp_path):
    preprocess(corpus, tmp_path / "before")
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "new.txt").write_text(make_text(999, 500))
    preprocess(str(corpus), tmp_path / "after", input=[str(tmp_path / "more"), str(corpus)])
    for split in ("val", "train"):
        assert set(texts_of(tmp_path / "before", split)) <= set(texts_of(tmp_path / "after", split))


def test_shards_hold_about_shard_tokens(corpus, tmp_path):
    manifest = preprocess(corpus, tmp_path, shard_tokens=10_000)
    sizes = [shard.num_tokens for shard in manifest.splits["train"].shards]
    assert len(sizes) > 5
    longest = max(len(text) for text in texts_of(tmp_path))
    assert all(abs(size - 10_000) <= 2 * longest for size in sizes[:-1])


@pytest.mark.parametrize("units_before_the_end", [0, 1, 2])
@pytest.mark.parametrize("stage", [(build.Worker, "tokenize"), (assemble, "_write")], ids=["tokenize", "assemble"])
def test_an_interrupted_run_is_no_data_set_and_continues_to_the_same_bytes(
    corpus, tmp_path, monkeypatch, units_before_the_end, stage
):
    monkeypatch.setattr(build, "ENCODE_BYTES", 1000)
    monkeypatch.setattr("hvdlm.preprocessing.plan.MIN_UNIT_BYTES", 20_000)
    preprocess(corpus, tmp_path / "whole", shard_tokens=5_000)
    real, done = getattr(*stage), itertools.count()

    def dies(*arguments):
        if next(done) == units_before_the_end:
            raise KeyboardInterrupt
        return real(*arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(*stage, dies)
        preprocess(corpus, tmp_path / "resumed", shard_tokens=5_000)
    with pytest.raises(UserError, match="no finished data set"):
        read_manifest(tmp_path / "resumed")
    tokenize = spy_on(monkeypatch, build.Worker, "tokenize")
    preprocess(corpus, tmp_path / "resumed", shard_tokens=5_000)
    assert files_of(tmp_path / "resumed") == files_of(tmp_path / "whole")
    if stage[0] is assemble:
        tokenize.assert_not_called()  # nothing is done twice


def flip(path, place):
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def cut_short(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGES = {
    "an id": ("unit-000000.npz", lambda path: flip(path, 40)),
    "the last id": ("unit-000000.npz", lambda path: flip(path, path.read_bytes().index(b"PK\x03\x04") - 1)),
    "a number of tokens": ("unit-000001.npz", lambda path: flip(path, path.read_bytes().index(b"lengths.npy") + 160)),
    "the facts": ("unit-000001.npz", lambda path: flip(path, path.read_bytes().index(b'"documents"') + 13)),
    "the end": ("unit-000001.npz", lambda path: flip(path, path.stat().st_size - 30)),
    "half of it": ("unit-000000.npz", cut_short),
    "all of it": ("unit-000000.npz", lambda path: path.write_bytes(b"")),
    "a segment": ("unit-000000.part-00001.npz", lambda path: flip(path, 40)),
    "a whole segment": ("unit-000000.part-00001.npz", lambda path: path.unlink()),
    "marks of dedup": ("unit-*.duplicates.npy", lambda path: path.write_bytes(b"")),
    "half of the marks": ("unit-*.duplicates.npy", cut_short),
    "the vocabulary": ("tokenizer.json", lambda path: flip(path, path.stat().st_size // 2)),
    "half of the vocabulary": ("tokenizer.json", cut_short),
}


@pytest.mark.parametrize("what", DAMAGES)
def test_what_changed_since_a_kill_is_made_again(what, corpus, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(build, "ENCODE_BYTES", 1_000)
    monkeypatch.setattr(build, "SEGMENT_BYTES", 9_000)
    monkeypatch.setattr("hvdlm.preprocessing.plan.MIN_UNIT_BYTES", 20_000)
    (tmp_path / "again").mkdir()
    shutil.copy(corpus / "text-030.txt", tmp_path / "again")
    settings = {"tokenizer": {"kind": "char"}, "shard_tokens": 20_000, "dedup": {"exact": True}}
    settings["input"] = [str(corpus), str(tmp_path / "again")]
    assert preprocess(corpus, tmp_path / "whole", **settings).statistics["duplicate_documents"] == 1
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(assemble, "_write", Mock(side_effect=KeyboardInterrupt))
        preprocess(corpus, tmp_path / "resumed", **settings)
    name, damage = DAMAGES[what]
    damage(next((tmp_path / "resumed" / ".work").glob(f"*/{name}")))
    tokenize = spy_on(monkeypatch, build.Worker, "tokenize")
    preprocess(corpus, tmp_path / "resumed", **settings)
    assert files_of(tmp_path / "resumed") == files_of(tmp_path / "whole")
    assert tokenize.call_count == ("vocabulary" not in what)
    assert ("1 unit changed since the kill; done again" in caplog.text) == ("vocabulary" not in what)


@pytest.fixture
def spool_file(tmp_path):
    """Of one unit with a few documents."""
    batch, result = Batch(), UnitResult()
    for n in range(9):
        batch.append(Document("a" * n, n), 0, b"a" * n, b"%16d" % n)
    result.add(batch, Encoded(np.arange(36), np.arange(9)))
    result.save(tmp_path / "unit-000000.npz", np.dtype(np.uint16))
    return tmp_path / "unit-000000.npz"


def test_whatever_bytes_of_a_spool_file_are_damaged_is_told_by_no_error(spool_file):
    """Also where the archive's own lists point before its start, which an OSError tells."""
    assert is_as_saved(spool_file)
    saved = spool_file.read_bytes()
    for place in [*range(0, len(saved), 97), *range(len(saved) - 24, len(saved))]:
        for bits in (0xFF, 0x01):
            spool_file.write_bytes(saved[:place] + bytes([saved[place] ^ bits]) + saved[place + 1 :])
            assert isinstance(is_as_saved(spool_file), bool)
    assert not is_as_saved(cut_short(spool_file) or spool_file)


@pytest.mark.parametrize("error", [MemoryError(), OSError(errno.EIO, "Input/output error")])
def test_what_hinders_to_read_a_spool_file_is_no_damage(spool_file, monkeypatch, error):
    monkeypatch.setattr(Spool, "has_its_tokens", Mock(side_effect=error))
    with pytest.raises(type(error)):
        is_as_saved(spool_file)


def test_a_finished_run_is_not_repeated(corpus, tmp_path, monkeypatch):
    first = preprocess(corpus, tmp_path)
    monkeypatch.setattr(build.Worker, "tokenize", None)
    assert preprocess(corpus, tmp_path) == first


def test_another_data_set_is_never_overwritten(corpus, tmp_path):
    preprocess(corpus, tmp_path)
    with pytest.raises(UserError, match="holds another data set"):
        preprocess(corpus, tmp_path, seed=5)


def test_an_empty_corpus_is_an_error(tmp_path):
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(UserError, match=r"nothing but empty files \(1\)"):
        preprocess(tmp_path / "empty.txt", tmp_path / "out")
    (tmp_path / "empty.txt").write_text("  \n")
    with pytest.raises(UserError, match=r"no document is left \(empty_documents 1\)"):
        preprocess(tmp_path / "empty.txt", tmp_path / "out")
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_unigram_loss_is_the_entropy_for_equal_frequencies():
    counts = np.full(50, 10_000)
    assert unigram_loss(counts, counts) == pytest.approx(np.log(50), rel=1e-6)
    assert unigram_loss(counts, np.zeros(50)) is None


def test_unigram_loss_gives_unseen_tokens_a_chance():
    assert np.isfinite(unigram_loss(np.array([5, 0]), np.array([0, 3])))


def test_one_large_file_is_sampled_in_pieces(tmp_path):
    """A book is one document; its vocabulary must not depend on one throw of the dice."""
    (tmp_path / "book.txt").write_text(make_text(3, 100_000))
    manifest = preprocess(
        tmp_path / "book.txt", tmp_path / "out", split={"val": 0.0}, tokenizer={"vocab_size": 600, "sample_mb": 0.2}
    )
    assert manifest.vocab_size == 600


def test_a_split_that_stays_empty_is_said(tmp_path, caplog):
    (tmp_path / "one.txt").write_text("text")
    with caplog.at_level("WARNING", "hvdlm"):
        preprocess(tmp_path / "one.txt", tmp_path / "out", split={"val": 0.01}, seed=1)
    assert "no document fell into val (a share of 0.01 of 1)" in caplog.text


def test_a_run_that_was_abandoned_leaves_no_shards_behind(corpus, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(build, "_finish", Mock(side_effect=KeyboardInterrupt))
        preprocess(corpus, tmp_path, shard_tokens=5_000)
    manifest = preprocess(corpus, tmp_path, shard_tokens=50_000)
    assert {path.name for path in tmp_path.glob("*.h5")} == {s.file for e in manifest.splits.values() for s in e.shards}


def test_a_unit_that_cannot_be_split_is_spooled_in_segments(corpus, tmp_path, monkeypatch):
    """One archive may hold more than memory; its documents and their order are the same."""
    whole = preprocess(corpus, tmp_path / "whole", dedup={"exact": True}, dropped=True)
    monkeypatch.setattr(build, "SEGMENT_BYTES", 3_000)
    monkeypatch.setattr(build, "ENCODE_BYTES", 1_000)
    find_duplicates = spy_on(monkeypatch, build, "find_duplicates")
    assert preprocess(corpus, tmp_path / "parts", dedup={"exact": True}, dropped=True) == whole
    assert len(find_duplicates.call_args.args[1]) > 5
    assert files_of(tmp_path / "parts") == files_of(tmp_path / "whole")


def test_the_cut_into_units_changes_no_byte_of_the_data(tmp_path, monkeypatch):
    """However the same documents are shared out: shards, manifest and dropped documents are the same."""
    lines = [json.dumps({"text": make_text(n % 20, 40), "id": n}) for n in range(60)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    found = []
    for size in (300, 2_000, 10_000_000):
        monkeypatch.setattr("hvdlm.preprocessing.plan.MIN_UNIT_BYTES", size)
        output = tmp_path / str(size)
        preprocess(tmp_path / "a.jsonl", output, id_key="id", dedup={"exact": True}, dropped=True, shard_tokens=1_000)
        found.append({name: data for name, data in files_of(output).items() if name != "provenance.json"})
    assert found[0] == found[1] == found[2]
    assert len(found[0]) > 4


def test_a_pattern_that_never_ends_ends_the_job_whatever_becomes_of_bad_records(tmp_path, monkeypatch):
    """Which texts a pattern takes long for is a machine's matter, and so may not choose the data."""
    monkeypatch.setattr("hvdlm.tokenizer.word.PATTERN_S", 0.05)
    (tmp_path / "a.jsonl").write_text('{"text": "b"}\n{"text": "' + "a" * 40 + '!"}\n')
    (tmp_path / "vocabulary").write_text("b\n")
    words = {"kind": "word", "words": "regex", "pattern": "(a+)+$|b", "vocabulary": str(tmp_path / "vocabulary")}
    with pytest.raises(UserError, match=r"tokenizer.pattern '\(a\+\)\+\$\|b': takes more than 0.05 s"):
        preprocess(tmp_path / "a.jsonl", tmp_path / "out", tokenizer=words, on_error="skip")
