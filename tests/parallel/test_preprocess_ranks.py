"""Shards are the same bytes at any number of ranks, and a bad input ends all ranks with one line."""

import gzip
import json
import shutil
import stat
import time

import pytest
from harness import preprocess_values, write_config


def checksums(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    return {shard["file"]: shard["checksum"] for split in manifest["splits"].values() for shard in split["shards"]}


@pytest.fixture(scope="module")
def mixed_corpus(corpus, tmp_path_factory):
    """Text files, and one jsonl file that several units share."""
    folder = tmp_path_factory.mktemp("mixed")
    texts = [path.read_text() for path in sorted(corpus.iterdir())]
    lines = [json.dumps({"text": f"{i} {text}"}) for i in range(12) for text in texts]
    (folder / "big.jsonl").write_text("\n".join(lines))
    for number, text in enumerate(texts[:5]):
        (folder / f"{number}.txt.gz").write_bytes(gzip.compress(text.encode()))
    return folder


def test_shards_are_identical_at_any_number_of_ranks(job, mixed_corpus, tmp_path):
    values = preprocess_values(
        mixed_corpus, "set below", tokenizer={"kind": "bpe", "vocab_size": 500, "sample_mb": 0.5}, shard_tokens=50_000
    )
    config = write_config(tmp_path / "data.yaml", values)
    found = {}
    for ranks in (0, 1, 2, 3):
        job(ranks, "preprocess", config, f"output={tmp_path}/out{ranks}")
        found[ranks] = checksums(tmp_path / f"out{ranks}")
        manifest = (tmp_path / f"out{ranks}" / "manifest.json").read_bytes()
        assert manifest == (tmp_path / "out0" / "manifest.json").read_bytes()
    assert len(found[0]) > 5
    assert found[0] == found[1] == found[2] == found[3]
    job(0, "data", "verify", tmp_path / "out3")


def test_more_ranks_than_work(job, tmp_path):
    (tmp_path / "one.txt").write_text("a single short document")
    config = write_config(
        tmp_path / "data.yaml", preprocess_values(tmp_path / "one.txt", tmp_path / "out", split={"val": 0})
    )
    done = job(4, "preprocess", config, "--json")
    assert json.loads(done.stdout.splitlines()[-1])["num_documents"] == 1


CASES = {
    "empty corpus": ("a.txt", b"", r"its 1 files are empty"),
    "not UTF-8": ("a.txt", b"abc\xff", r"a.txt: byte 3 is not UTF-8"),
    "broken gzip": ("a.txt.gz", gzip.compress(b"text" * 999)[:-9], r"a.txt.gz: broken gzip"),
    "missing key": (
        "a.jsonl",
        b'{"text": "a"}\n{"body": "b"}\n',
        r"a.jsonl:2: no key 'text' (it has: body); set text_key",
    ),
    "no such input": ("", b"", r"input '"),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_one_line_on_rank_0_and_exit_2(job, tmp_path, case):
    name, content, message = CASES[case]
    (tmp_path / "in").mkdir()
    if name:
        (tmp_path / "in" / name).write_bytes(content)
    config = write_config(tmp_path / "data.yaml", preprocess_values(tmp_path / "in", tmp_path / "out"))
    start = time.monotonic()
    done = job(2, "preprocess", config, code=2, timeout_s=30)
    assert time.monotonic() - start < 15
    lines = [line for line in done.stderr.splitlines() if "hvdlm: error:" in line]
    assert len(lines) == 1
    assert message in lines[0]
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out" / "manifest.json").exists()
    assert not done.stdout.strip()


def test_a_fault_found_by_another_rank_is_reported_once(job, corpus, tmp_path):
    """Units go to ranks in turn, so the fault in the last of two is met by rank 1."""
    shutil.copytree(corpus, tmp_path / "in")
    for number in range(2):
        (tmp_path / "in" / f"x{number}.txt").write_bytes(b"word " * 1_000_000)
    (tmp_path / "in" / "y.txt").write_bytes(b"\xff")
    config = write_config(tmp_path / "data.yaml", preprocess_values(tmp_path / "in", tmp_path / "out"))
    done = job(2, "preprocess", config, code=2)
    assert done.stderr.count("y.txt: byte 0 is not UTF-8") == 1
    (tmp_path / "in" / "y.txt").write_bytes(b"mended")
    job(2, "preprocess", config)


def test_an_output_that_cannot_be_written(job, corpus, tmp_path):
    (tmp_path / "file").write_text("in the way")
    config = write_config(tmp_path / "data.yaml", preprocess_values(corpus, tmp_path / "file" / "out"))
    done = job(2, "preprocess", config, code=2)
    assert done.stderr.count("hvdlm: error:") == 1
    assert f"{tmp_path}/file" in done.stderr
    assert "Not a directory" in done.stderr
    assert stat.S_ISREG((tmp_path / "file").stat().st_mode)
