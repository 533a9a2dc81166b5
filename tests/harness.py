"""What tests share: a small corpus made from a seed, configs over it, and real jobs under mpirun."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from hvdlm.config import validate
from hvdlm.data.manifest import Manifest, read_manifest
from hvdlm.data.shards import doc_offsets
from hvdlm.data.stream import TokenStream
from hvdlm.launch.plan import fresh_environment, start_command
from hvdlm.preprocessing.build import build
from hvdlm.preprocessing.plan import PreprocessConfig
from hvdlm.tokenizer import load
from hvdlm.train.config import RunConfig
from hvdlm.train.setup import train
from hvdlm.world.serial import SerialWorld

ROOT = Path(__file__).resolve().parent.parent
HVDLM = [sys.executable, "-m", "hvdlm"]
STATE = {"config": {}, "data_digest": "0", "tokenizer_digest": "0", "vocab_size": 7, "eos_id": 0}  # of a checkpoint
LONG = ("train.steps=20000", "train.eval_every=20000")  # minutes


def make_text(seed: int, num_words: int) -> str:
    """Text with the frequencies of language (Zipf) from a fixed generator: the same on every machine."""
    source = random.Random(seed)
    words = ["".join(source.choices("etaoinshrdlucmwé", k=source.randint(1, 8))) for _ in range(200)]
    weights = [1 / (rank + 1) for rank in range(len(words))]
    chosen = source.choices(words, weights, k=num_words)
    return "\n".join(" ".join(chosen[i : i + 12]) for i in range(0, len(chosen), 12)) + "\n"


def preprocess_values(source: Path | str, output: Path, **changes: object) -> dict:
    places = {"input": str(source), "output": str(output)}
    return {**places, "tokenizer": {"kind": "byte"}, "split": {"val": 0.15}, "shard_tokens": 20_000, **changes}


def preprocess(source: Path | str, output: Path, **changes: object) -> Manifest:
    """Shards made by one process."""
    config = validate(PreprocessConfig, preprocess_values(source, output, **changes), Path("test"))
    return build(config, SerialWorld())


def documents_of(data: Path, split: str = "train") -> list[np.ndarray]:
    """The ids of every document of a split, by way of its shards."""
    manifest = read_manifest(data)
    entry = manifest.splits[split]
    lengths = [length for shard in entry.shards for length in np.diff(doc_offsets(data, shard))]
    ids = TokenStream(data, split, manifest).read(0, entry.num_tokens) if entry.num_tokens else np.empty(0, np.int64)
    return np.split(ids, np.cumsum(lengths)[:-1]) if lengths else []


def texts_of(data: Path, split: str = "train") -> list[str]:
    """Every document of a split as text; each must have its end."""
    tokenizer = load(data / "tokenizer.json")
    documents = documents_of(data, split)
    assert all(ids[-1] == tokenizer.eos_id for ids in documents)
    return [tokenizer.decode(ids[:-1]) for ids in documents]


def files_of(data: Path) -> dict[str, bytes]:
    """Every file but preprocess.json, which tells how long it took."""
    return {p.name: p.read_bytes() for p in data.iterdir() if p.is_file() and p.name != "preprocess.json"}


def check_time_is_linear(work: Callable[[str], object], pieces: Iterable[str]) -> None:
    """5 s is 20 to 50 times what 1 MB takes; a quadratic search would take minutes to hours."""
    for piece in pieces:
        start = time.process_time()
        work(piece * (1_000_000 // len(piece)))
        assert time.process_time() - start < 5, piece


def run_values(data: Path, run_dir: Path) -> dict:
    """A tiny transformer whose global batch of 12 divides for 1, 2 and 3 ranks."""
    return {
        "run_dir": str(run_dir),
        "seed": 1,
        "data": {"path": str(data), "seq_len": 32},
        "model": {"family": "transformer", "layers": 2, "heads": 2, "width": 32},
        "optim": {"name": "adamw", "lr": 2e-3, "warmup_steps": 5},
        "train": {"steps": 20, "global_batch": 12, "micro_batch": 2, "eval_every": 10, "threads": 1},
        "checkpoint": {"every": 10},
        "log": {"tensorboard": False},
    }


def make_config(data: Path, run_dir: Path, *overrides: str) -> RunConfig:
    return validate(RunConfig, run_values(data, run_dir), Path("test"), overrides)


def run_training(data: Path, run_dir: Path, *overrides: str) -> dict:
    """The summary of a run by one process."""
    return train(make_config(data, run_dir, *overrides), SerialWorld())


def write_config(path: Path, values: dict) -> Path:
    path.write_text(json.dumps(values))  # JSON is YAML
    return path


def write_program(path: Path, body: str) -> None:
    """A shell script that stands in for another program."""
    path.write_text(f"#!/bin/bash\n{body}\n")
    path.chmod(0o755)


def job_environment() -> dict[str, str]:
    """The environment of a test job: this Python's tools first, root and oversubscription allowed."""
    return {
        **fresh_environment(),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "OMP_NUM_THREADS": "1",
    }


def run_command(
    command: Sequence[str | Path], timeout_s: float = 120, **options: object
) -> subprocess.CompletedProcess[str]:
    """Run `command` in ROOT as a test job, or with other `options` of subprocess.run; output captured."""
    options = {"cwd": ROOT, "env": job_environment(), "stdin": subprocess.DEVNULL, **options}
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=timeout_s, **options)


def run_ranks(ranks: int, command: Sequence[str | Path], timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
    """`command` by itself (ranks 0) or on real MPI ranks; output captured."""
    words = [str(word) for word in command]
    return run_command(start_command(ranks, words) if ranks else words, timeout_s)
