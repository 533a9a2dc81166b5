"""The benches run and their ratios are what they say; how fast anything is, no test decides."""

import json

import pytest

from hvdlm.perf import bench_preprocess, bench_reading


def test_ratios_are_taken_within_a_round():
    """A machine that becomes twice as slow in one round changes no ratio."""
    rates = {
        "hvdlm preprocess, 1 rank": {"whole": 40.0, "without start-up": 80.0},
        "hvdlm preprocess, 2 ranks": {"whole": 60.0, "without start-up": 150.0},
        "encoder alone, 2 processes": {"whole": 300.0},
        "tokenizers encode_batch, 2 threads": {"whole": 5.0},
    }
    slow = {name: {key: rate / 2 for key, rate in row.items()} for name, row in rates.items()}
    ratios = bench_preprocess.ratios_of([rates, slow, rates], (1, 2))
    assert ratios == {
        "without start-up, to the encoder alone (2)": 0.5,
        "whole process, 2 ranks to 1": 1.5,
        "without start-up, 2 ranks to 1": 1.88,
        "whole process, to tokenizers encode_batch": 12.0,
    }


def test_the_preprocess_bench_runs_and_leaves_out_a_peer_that_is_not_there(job, tmp_path):
    corpus = tmp_path / "mine.jsonl"
    texts = [f"line {n} of a small corpus, {n * n}" for n in range(30_000)]
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    options = ["--vocab-size", "300", "--ranks", "1", "--repeats", "1", "--out", tmp_path / "bench"]
    done = job(0, "bench", "preprocess", "--corpus", corpus, *options, "--json")
    found = json.loads(done.stdout.splitlines()[-1])
    assert found == json.loads((tmp_path / "bench" / "bench.json").read_text())
    rows = {"hvdlm preprocess, 1 rank", "encoder alone, 1 process", "tokenizers encode_batch, 1 thread"}
    assert set(found["median_mb_per_s"]) == rows
    assert all(rate > 0 for row in found["median_mb_per_s"].values() for rate in row.values())


def test_the_reading_bench_reads_the_same_windows(monkeypatch):
    for name, value in (("NUM_TOKENS", 20_000), ("BATCHES", 3), ("NUM_TEXTS", 50)):
        monkeypatch.setattr(bench_reading, name, value)
    found = bench_reading.bench(repeats=1)
    assert set(found["us_per_batch"]) == {"hvdlm", "numpy.memmap gather", "h5py slices"}
    rates = found["mb_per_s"]
    assert found["byte_tokenizer_to_memcpy"] == pytest.approx(rates["byte tokenizer"] / rates["memcpy"], abs=0.02)
    assert "times as long" in bench_reading.to_text(found)
