"""Shards are the same bytes at any number of ranks, and a bad input ends all ranks with one line."""

import gzip
import json
import os
import random
import shutil
import signal
import stat
import subprocess
import time
from collections import Counter

import h5py
import pytest
from harness import HVDLM, ROOT, job_environment, make_text, preprocess_values, ranks_of, write_config

from hvdlm.launch.plan import start_command


@pytest.fixture(scope="module")
def mixed_corpus(corpus, tmp_path_factory):
    """Text files, and one jsonl file that several units share."""
    folder = tmp_path_factory.mktemp("mixed")
    texts = [path.read_text() for path in sorted(corpus.iterdir())]
    lines = [json.dumps({"text": f"{i} {text}", "id": i}) for i in range(12) for text in texts]
    lines[7] = '{"text": 5}'
    lines += lines[3:6]
    lines.append(json.dumps({"text": f"now {texts[20]} with an end", "id": "near", "label": "x"}))
    (folder / "big.jsonl").write_text("\n".join(lines))
    for number, text in enumerate(texts[:5]):
        (folder / f"{number}.txt.gz").write_bytes(gzip.compress(text.encode()))
    return folder


EVERYTHING = {
    "tokenizer": {"kind": "bpe", "vocab_size": 500, "sample_mb": 0.5}, "shard_tokens": 5_000,
    "id_key": "id", "label_key": "label", "dropped": True, "on_error": "skip",
    "clean": {"unicode": "NFKC", "control": True, "whitespace": True, "repeated_lines": "consecutive"},
    "pii": {"email": True, "phone": True}, "filter": {"min_chars": 200}, "dedup": {"near": True, "threshold": 0.7},
}  # fmt: skip


def files_of(folder):
    """Every file but preprocess.json, which tells how long it took."""
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file() and p.name != "preprocess.json"}


def test_every_byte_is_the_same_at_any_number_of_ranks(job, mixed_corpus, tmp_path):
    """With every stage on, so that each has its chance to depend on who does the work."""
    config = write_config(tmp_path / "data.yaml", preprocess_values(mixed_corpus, "set below", **EVERYTHING))
    found = {}
    for ranks in (0, 1, 2, 3, 4):
        job(ranks, "preprocess", config, f"output={tmp_path}/out{ranks}")
        found[ranks] = files_of(tmp_path / f"out{ranks}")
    assert {"manifest.json", "tokenizer.json", "provenance.json", "dropped.jsonl"} < set(found[0])
    assert len(found[0]) > 8
    for ranks in (1, 2, 3, 4):
        assert found[ranks] == found[0], ranks
    statistics = json.loads(found[0]["manifest.json"])["statistics"]
    assert min(statistics[name] for name in ("duplicate_documents", "near_duplicate_documents", "bad_records")) > 0
    reasons = Counter(json.loads(line)["reason"].split(":")[0] for line in found[0]["dropped.jsonl"].splitlines())
    assert reasons["duplicate_documents"] == statistics["duplicate_documents"]
    assert reasons["near_duplicate_documents"] == statistics["near_duplicate_documents"]
    assert reasons["bad record"] == statistics["bad_records"]
    summary = json.loads((tmp_path / "out3" / "preprocess.json").read_text())
    assert summary["num_ranks"] == 3
    assert len(summary["seconds"]["tokenize"]) == 3
    job(0, "data", "verify", tmp_path / "out3")


def test_one_file_by_all_ranks(job, mixed_corpus, tmp_path):
    """layout: mpio. Two ranks of four have nothing to write, and the tokens are those of the shards."""
    config = write_config(
        tmp_path / "data.yaml",
        preprocess_values(mixed_corpus, "set below", id_key="id", on_error="skip", shard_tokens=50_000),
    )
    job(2, "preprocess", config, f"output={tmp_path}/shards")
    if not h5py.get_config().mpi:
        done = job(2, "preprocess", config, f"output={tmp_path}/out2", "layout=mpio", code=2)
        assert "layout: mpio needs MPI ranks and an h5py built against parallel HDF5" in done.stderr
        pytest.skip("h5py here is not built against parallel HDF5: only the refusal was tested")
    for ranks in (0, 2, 4):
        job(ranks, "preprocess", config, f"output={tmp_path}/out{ranks}", "layout=mpio")
    whole = files_of(tmp_path / "out0")
    assert {"train.h5", "val.h5"} <= set(whole)
    assert whole == files_of(tmp_path / "out2") == files_of(tmp_path / "out4")
    digests = [
        [entry["digest"] for entry in json.loads((tmp_path / name / "manifest.json").read_text())["splits"].values()]
        for name in ("shards", "out0")
    ]
    assert digests[0] == digests[1]
    job(0, "data", "verify", tmp_path / "out4")


@pytest.fixture(scope="module")
def slow_corpus(tmp_path_factory):
    """A file of several units, and cleaning that takes its time."""
    folder = tmp_path_factory.mktemp("slow")
    lines, source = make_text(5, 3_000).splitlines(), random.Random(0)
    with (folder / "big.jsonl").open("w") as file:
        for _ in range(1_400):
            source.shuffle(lines)
            text = "\n".join(lines)
            file.write(json.dumps({"text": f"<b>{text}</b>"}) + "\n")
    values = preprocess_values(
        folder / "big.jsonl", "set below", shard_tokens=4_000_000, dedup={"near": True},
        clean={"html": True, "wiki": True, "markdown": True, "repeated_lines": "document", "whitespace": True},
    )  # fmt: skip
    return write_config(folder / "data.yaml", values)


@pytest.fixture
def start(slow_corpus, tmp_path):
    """Start preprocessing on some ranks; returns the process when there is one more file of a pattern."""
    started = []

    def start(ranks, pattern):
        command = start_command(ranks, [*HVDLM, "preprocess", str(slow_corpus), f"output={tmp_path}/out"])
        before = len(list((tmp_path / "out").rglob(pattern)))
        process = subprocess.Popen(command, cwd=ROOT, env=job_environment(), text=True, stderr=subprocess.PIPE)
        started.append(process)
        deadline = time.monotonic() + 60
        while len(list((tmp_path / "out").rglob(pattern))) == before:
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stderr.close()


def test_killed_stopped_and_resumed_on_other_numbers_of_ranks(job, start, slow_corpus, tmp_path):
    """SIGKILL of one rank and of all, a stop by signal, another number of ranks each time: the same bytes."""
    one = start(2, "unit-*.npz")
    os.kill(ranks_of(one.pid)[1], signal.SIGKILL)
    assert one.wait(timeout=15) != 0
    stopped = start(3, "unit-*.npz")
    os.kill(ranks_of(stopped.pid)[2], signal.SIGUSR1)
    _, errors = stopped.communicate(timeout=15)
    assert stopped.returncode == 75, errors
    assert errors.count("stopped on request; the same command continues") == 1
    all_ = start(2, "train-*.h5")
    for rank in ranks_of(all_.pid):
        os.kill(rank, signal.SIGKILL)
    all_.wait(timeout=15)
    assert not (tmp_path / "out" / "manifest.json").exists()
    done = job(1, "preprocess", slow_corpus, f"output={tmp_path}/out")
    assert "of them done" in done.stderr
    job(0, "preprocess", slow_corpus, f"output={tmp_path}/whole")
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 24 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_loses_only_the_units_in_flight(job, slow_corpus, small_disk, tmp_path):
    output = small_disk / "out"
    done = job(2, "preprocess", slow_corpus, f"output={output}", code=2)
    (line,) = [line for line in done.stderr.splitlines() if "hvdlm: error:" in line]
    assert "No space left on device" in line
    finished = len(list(output.rglob("unit-*.npz")))
    assert finished
    subprocess.run(["mount", "-o", "remount,size=200m", small_disk], check=True)
    done = job(2, "preprocess", slow_corpus, f"output={output}")
    assert f"{finished} of them done" in done.stderr
    job(0, "data", "verify", output)


def test_more_ranks_than_work(job, tmp_path):
    (tmp_path / "one.txt").write_text("a single short document")
    config = write_config(
        tmp_path / "data.yaml", preprocess_values(tmp_path / "one.txt", tmp_path / "out", split={"val": 0})
    )
    done = job(4, "preprocess", config, "--json")
    assert json.loads(done.stdout.splitlines()[-1])["num_documents"] == 1


CASES = {
    "empty corpus": ("a.txt", b"", r"its 1 files are empty"),
    "not UTF-8": ("a.txt", b"abc\xff", r"a.txt: byte 3: is not UTF-8; set encoding, or errors: replace"),
    "broken gzip": ("a.txt.gz", gzip.compress(b"text" * 999)[:-9], r"a.txt.gz: broken gz ("),
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
    assert done.stderr.count("y.txt: byte 0: is not UTF-8") == 1
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
