"""Shards are the same bytes at any number of ranks, and what one rank finds wrong is raised on all."""

import gzip
import json
import logging
import os
import random
import re
import shutil
import signal
import stat
import subprocess
from collections import Counter
from pathlib import Path

import h5py
import pytest
import yaml
from harness import HVDLM, ROOT, files_of, job_environment, make_text, preprocess, preprocess_values, write_config
from processes import ranks_of, until

from hvdlm.config import validate
from hvdlm.data.verify import verify
from hvdlm.errors import UserError
from hvdlm.launch.plan import start_command
from hvdlm.preprocessing.build import build
from hvdlm.preprocessing.plan import PreprocessConfig

on_two = pytest.mark.on_ranks(2)


def mix(corpus, folder):
    """Text files, and one jsonl file that several units share."""
    texts = [path.read_text() for path in sorted(corpus.iterdir())]
    lines = [json.dumps({"text": f"{i} {text}", "id": i}) for i in range(12) for text in texts]
    lines[7] = '{"text": 5}'
    lines += lines[3:6]
    lines.append(json.dumps({"text": f"now {texts[20]} with an end", "id": "near", "label": "x"}))
    (folder / "big.jsonl").write_text("\n".join(lines))
    for number, text in enumerate(texts[:5]):
        (folder / f"{number}.txt.gz").write_bytes(gzip.compress(text.encode()))


@pytest.fixture(scope="session")
def mixed_corpus(corpus, made_once):
    return made_once("mixed", lambda folder: mix(corpus, folder))


EVERYTHING = yaml.safe_load("""
    tokenizer: {kind: bpe, vocab_size: 500, sample_mb: 0.5}
    shard_tokens: 5000
    id_key: id
    label_key: label
    dropped: true
    on_error: skip
    clean: {unicode: NFKC, control: true, whitespace: true, repeated_lines: consecutive}
    pii: {email: true, phone: true}
    filter: {min_chars: 200}
    dedup: {near: true, threshold: 0.7}
""")


@pytest.fixture(scope="session")
def alone(mixed_corpus, made_once):
    """What one process makes with every stage on, so that each has its chance to depend on who does the work."""
    return made_once("shards-alone", lambda folder: preprocess(mixed_corpus, folder, **EVERYTHING))


@pytest.fixture
def preprocess_on_ranks(world):
    def preprocess_on_ranks(source, output, **changes):
        done = build(validate(PreprocessConfig, preprocess_values(source, output, **changes), Path("test")), world)
        world.barrier()  # rank 0 has written all
        return done

    return preprocess_on_ranks


@pytest.fixture
def refused(world, preprocess_on_ranks):
    """Demand an error of the user's on all ranks, and no manifest."""

    def refused(source, output, message):
        with pytest.raises(UserError, match=message) as caught:
            preprocess_on_ranks(source, output)
        assert caught.value.on_all_ranks
        assert not world.on_root((output / "manifest.json").exists)

    return refused


def test_every_stage_had_something_to_do(alone):
    files = files_of(alone)
    assert {"manifest.json", "tokenizer.json", "provenance.json", "dropped.jsonl"} < set(files)
    assert len(files) > 8
    statistics = json.loads(files["manifest.json"])["statistics"]
    assert min(statistics[name] for name in ("duplicate_documents", "near_duplicate_documents", "bad_records")) > 0
    reasons = Counter(json.loads(line)["reason"].split(":")[0] for line in files["dropped.jsonl"].splitlines())
    assert reasons["duplicate_documents"] == statistics["duplicate_documents"]
    assert reasons["near_duplicate_documents"] == statistics["near_duplicate_documents"]
    assert reasons["bad record"] == statistics["bad_records"]
    assert verify(alone) == []


@pytest.mark.on_ranks(1, 2, 3, 4)
def test_every_byte_is_the_same_at_any_number_of_ranks(world, preprocess_on_ranks, alone, mixed_corpus, tmp_path):
    preprocess_on_ranks(mixed_corpus, tmp_path / "out", **EVERYTHING)
    assert files_of(tmp_path / "out") == files_of(alone)
    summary = json.loads((tmp_path / "out" / "preprocess.json").read_text())
    assert summary["num_ranks"] == world.size
    assert summary["balance"] == json.loads((alone / "preprocess.json").read_text())["balance"]
    assert len(summary["seconds"]["tokenize"]) == world.size


def digests_of(folder):
    return [split["digest"] for split in json.loads((folder / "manifest.json").read_text())["splits"].values()]


LARGE = {"id_key": "id", "on_error": "skip", "shard_tokens": 50_000}


@pytest.mark.on_ranks(2, 4)
def test_one_file_by_all_ranks(world, preprocess_on_ranks, mixed_corpus, made_once, tmp_path):
    """layout: mpio. Two ranks of four have nothing to write, and the tokens are those of the shards."""
    out, wanted = tmp_path / "out", {**LARGE, "layout": "mpio"}
    if not h5py.get_config().mpi:
        with pytest.raises(UserError, match="layout: mpio needs MPI ranks and an h5py built against parallel HDF5"):
            preprocess_on_ranks(mixed_corpus, out, **wanted)
        pytest.skip("h5py here is not built against parallel HDF5: only the refusal was tested")
    shards = made_once("large-shards", lambda folder: preprocess(mixed_corpus, folder, **LARGE))
    whole = made_once("large-file", lambda folder: preprocess(mixed_corpus, folder, **wanted))
    preprocess_on_ranks(mixed_corpus, out, **wanted)
    assert {"train.h5", "val.h5"} <= set(files_of(whole))
    assert files_of(out) == files_of(whole)
    assert digests_of(out) == digests_of(shards)
    assert verify(out) == []


@pytest.mark.on_ranks(4)
def test_more_ranks_than_work(preprocess_on_ranks, tmp_path):
    (tmp_path / "one.txt").write_text("a single short document")
    done = preprocess_on_ranks(tmp_path / "one.txt", tmp_path / "out", split={"val": 0})
    assert sum(split.num_documents for split in done.splits.values()) == 1


CASES = {
    "empty corpus": ("a.txt", b"", "nothing but empty files (1)"),
    "not UTF-8": ("a.txt", b"abc\xff", "a.txt: byte 3: is not UTF-8; set encoding, or errors: replace"),
    "broken gzip": ("a.txt.gz", gzip.compress(b"text" * 999)[:-9], "a.txt.gz: broken gz ("),
    "missing key": (
        "a.jsonl",
        b'{"text": "a"}\n{"body": "b"}\n',
        "a.jsonl:2: no key 'text' (it has: body); set text_key",
    ),
    "no such input": ("", b"", "input '"),
}


@on_two
@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_raised_on_all_ranks(world, refused, tmp_path, case):
    name, content, message = CASES[case]
    if world.rank == 0 and name:
        (tmp_path / "in").mkdir()
        (tmp_path / "in" / name).write_bytes(content)
    world.barrier()
    refused(tmp_path / "in", tmp_path / "out", re.escape(message))


@on_two
def test_a_fault_found_by_another_rank_is_raised_on_all(world, refused, preprocess_on_ranks, corpus, tmp_path):
    """Units go to ranks in turn, so the fault in the last of two is met by rank 1."""
    source = tmp_path / "in"
    if world.rank == 0:
        shutil.copytree(corpus, source)
        for number in range(2):
            (source / f"x{number}.txt").write_bytes(b"word " * 1_000_000)
        (source / "y.txt").write_bytes(b"\xff")
    world.barrier()
    refused(source, tmp_path / "out", "y.txt: byte 0: is not UTF-8")
    world.on_root(lambda: (source / "y.txt").write_bytes(b"mended"))
    preprocess_on_ranks(source, tmp_path / "out")


@on_two
def test_an_output_that_cannot_be_written(preprocess_on_ranks, corpus, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=f"{tmp_path}/file.*Not a directory") as caught:
        preprocess_on_ranks(corpus, tmp_path / "file" / "out")
    assert caught.value.on_all_ranks
    assert stat.S_ISREG((tmp_path / "file").stat().st_mode)


SLOW_CLEANING = {"html": True, "wiki": True, "markdown": True, "repeated_lines": "document", "whitespace": True}
SLOW = {"shard_tokens": 4_000_000, "dedup": {"near": True}, "clean": SLOW_CLEANING}


def write_slow(folder):
    lines, source = make_text(5, 3_000).splitlines(), random.Random(0)
    with (folder / "big.jsonl").open("w") as file:
        for _ in range(1_400):
            source.shuffle(lines)
            text = "\n".join(lines)
            file.write(json.dumps({"text": f"<b>{text}</b>"}) + "\n")
    write_config(folder / "data.yaml", preprocess_values(folder / "big.jsonl", "set below", **SLOW))


@pytest.fixture(scope="session")
def slow_corpus(made_once):
    """The config of a file of several units, and cleaning that takes its time."""
    return made_once("slow", write_slow) / "data.yaml"


@pytest.fixture
def small_disk(world, tmp_path):
    """A file system of 24 MB."""
    folder = tmp_path / "small"

    def mount():
        folder.mkdir()
        return subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", folder], capture_output=True
        ).returncode

    if world.on_root(mount):
        pytest.skip("mounting a small file system needs root")
    yield folder
    world.on_root(lambda: subprocess.run(["umount", "--lazy", folder], check=True))  # its shards are still mapped


@on_two
def test_a_full_disk_loses_only_the_units_in_flight(world, preprocess_on_ranks, slow_corpus, small_disk, caplog):
    source, output = slow_corpus.parent / "big.jsonl", small_disk / "out"
    with pytest.raises(UserError, match="No space left on device") as caught:
        preprocess_on_ranks(source, output, **SLOW)
    assert caught.value.on_all_ranks
    finished = world.on_root(lambda: len(list(output.rglob("unit-*.npz"))))
    assert finished
    world.on_root(lambda: subprocess.run(["mount", "-o", "remount,size=200m", small_disk], check=True))
    with caplog.at_level(logging.INFO, "hvdlm"):
        preprocess_on_ranks(source, output, **SLOW)
    assert world.rank or f"{finished} of them done" in caplog.text
    assert world.on_root(lambda: verify(output)) == []


# --- jobs of their own: kills, signals, exit codes


@pytest.fixture
def start(slow_corpus, tmp_path):
    """Start preprocessing on some ranks; returns the process when there is one more file of a pattern."""
    started = []

    def start(ranks, pattern):
        command = start_command(ranks, [*HVDLM, "preprocess", str(slow_corpus), f"output={tmp_path}/out"])
        before = len(list((tmp_path / "out").rglob(pattern)))
        process = subprocess.Popen(command, cwd=ROOT, env=job_environment(), text=True, stderr=subprocess.PIPE)
        started.append(process)
        until(lambda: len(list((tmp_path / "out").rglob(pattern))) != before, process=process)
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


def test_bad_input_is_one_line_on_rank_0_and_exit_2(job, tmp_path):
    (tmp_path / "a.txt").write_bytes(b"abc\xff")
    config = write_config(tmp_path / "data.yaml", preprocess_values(tmp_path / "a.txt", tmp_path / "out"))
    done = job(2, "preprocess", config, code=2, timeout_s=30)
    lines = [line for line in done.stderr.splitlines() if "hvdlm: error:" in line]
    assert len(lines) == 1
    assert "a.txt: byte 3: is not UTF-8; set encoding, or errors: replace" in lines[0]
    assert "Traceback" not in done.stderr
    assert not done.stdout.strip()


def split_mixed(corpus, folder):
    """Each split's lines, with texts that come again in the same and in other splits; those of train in two files."""
    texts = [path.read_text() for path in sorted(corpus.iterdir())]
    by_split = {"train": texts[:25] + texts[3:6] + texts[:2], "val": texts[20:30] * 2, "test": texts[28:]}
    for split, found in by_split.items():
        lines = [json.dumps({"text": text, "id": f"{split} {n}"}) for n, text in enumerate(found)]
        (folder / f"{split}.jsonl").write_text("\n".join(lines))
    (folder / "more.jsonl").write_text("\n".join(json.dumps({"text": f"{n} {text}"}) for n, text in enumerate(texts)))


@pytest.fixture(scope="session")
def split_corpus(corpus, made_once):
    return made_once("split", lambda folder: split_mixed(corpus, folder))


def inputs_of(folder):
    return {"train": [f"{folder}/train.jsonl", f"{folder}/more.jsonl"], "val": f"{folder}/val.jsonl"} | {
        "test": f"{folder}/test.jsonl"
    }


SPLITS_KEPT = {"tokenizer": {"kind": "char"}, "shard_tokens": 5000, "id_key": "id", "dropped": True, "split": {}}


@pytest.mark.on_ranks(2, 3)
@pytest.mark.parametrize("dedup", [{}, {"near": True, "threshold": 0.7}], ids=["all kept", "near"])
def test_predefined_splits_are_the_same_at_any_number_of_ranks(
    preprocess_on_ranks, split_corpus, made_once, tmp_path, dedup
):
    settings = SPLITS_KEPT | {"input": inputs_of(split_corpus), "dedup": dedup}
    alone = made_once(f"splits-alone-{len(dedup)}", lambda folder: preprocess("", folder, **settings))
    done = preprocess_on_ranks("", tmp_path / "out", **settings)
    assert files_of(tmp_path / "out") == files_of(alone)
    assert done.splitting.kind == "predefined"
    assert done.statistics["test_documents_in_val"] == 2
    assert (done.statistics["val_documents_in_train"] == 0) == bool(dedup)
    assert done.splits["val"].num_documents == 18  # an empty one is there twice


CONTENTS = {"train": "one\ntwo\n", "val": "three\n", "test": "four\n", "empty": "", "blank": "\n \n"}
SPLIT_FAULTS = {
    "the same file": ({"val": "train"}, "is a file of input.train '"),
    "nothing there": ({"test": "none"}, "no such file, folder or match"),
    "an empty one": ({"val": "empty"}, "nothing but empty files (1)"),
    "blank lines": ({"test": "blank"}, "no document is left (there was none)"),
}


@on_two
@pytest.mark.parametrize("case", SPLIT_FAULTS)
def test_a_fault_of_a_split_is_raised_on_all_ranks(world, preprocess_on_ranks, tmp_path, case):
    names, message = SPLIT_FAULTS[case]
    if world.rank == 0:
        for name, content in CONTENTS.items():
            (tmp_path / f"{name}.txt").write_text(content)
    world.barrier()
    inputs = {split: f"{tmp_path}/{names.get(split, split)}.txt" for split in ("train", "val", "test")}
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        preprocess_on_ranks("", tmp_path / "out", input=inputs, split={}, format="lines")
    assert caught.value.on_all_ranks
    assert not world.on_root((tmp_path / "out" / "manifest.json").exists)
