"""`hvdlm bench reading`: batches of windows by hvdlm, by h5py and by a plain memory map; bytes against memcpy."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np

from hvdlm.data.stream import TokenStream
from hvdlm.host import keep_freed_memory
from hvdlm.tables import table
from hvdlm.tokenizer import ByteTokenizer

from .random_shards import write_random_shards

NUM_TOKENS, VOCAB_SIZE = 64_000_000, 50_000
BATCH, SEQ_LEN = 8, 256
BATCHES = 2000  # a repeat
TEXT = "The quick brown fox jumps over the lazy dog; 0123456789. " * 110  # of 6 kB, a usual document
NUM_TEXTS = 20_000
BATCH_BYTES = 1 << 20  # of text at once, as `hvdlm preprocess` does


def bench(repeats: int) -> dict:
    """Medians over interleaved repeats: microseconds a batch, and MB/s of the byte tokenizer and of memcpy."""
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        batches = _reading(Path(folder), repeats)
    texts = [f"{TEXT[n % 50 :]}{n}" for n in range(NUM_TEXTS)]
    joined = np.frombuffer("".join(texts).encode(), np.uint8)
    per_call = BATCH_BYTES * NUM_TEXTS // joined.nbytes
    shares = [texts[n : n + per_call] for n in range(0, NUM_TEXTS, per_call)]
    rows: dict[str, Callable[[], object]] = {
        "byte tokenizer": lambda: [ByteTokenizer().encode_documents(share) for share in shares],
        "memcpy": lambda: joined.copy(),
    }
    rates = _interleaved(rows, repeats, lambda seconds: joined.nbytes / 1e6 / seconds)
    us = {name: round(value, 1) for name, value in batches.items()}
    return {
        "us_per_batch": us,
        "batch": BATCH,
        "seq_len": SEQ_LEN,
        "h5py_slices_to_hvdlm": round(us["h5py slices"] / us["hvdlm"], 2),
        "memmap_gather_to_hvdlm": round(us["numpy.memmap gather"] / us["hvdlm"], 2),
        "mb_per_s": {name: round(rate) for name, rate in rates.items()},
        "byte_tokenizer_to_memcpy": round(rates["byte tokenizer"] / rates["memcpy"], 2),
    }


def _interleaved(
    rows: dict[str, Callable[[], object]], repeats: int, value: Callable[[float], float]
) -> dict[str, float]:
    times: dict[str, list[float]] = {name: [] for name in rows}
    for _ in range(repeats + 1):
        for name, run in rows.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(map(value, found[1:])) for name, found in times.items()}  # the first warms up


def _reading(folder: Path, repeats: int) -> dict[str, float]:
    write_random_shards(folder, VOCAB_SIZE, NUM_TOKENS)
    stream = TokenStream(folder, "train")
    stream.read(0, NUM_TOKENS).astype(np.uint16).tofile(folder / "train.bin")
    starts = np.random.default_rng(1).integers(0, NUM_TOKENS - SEQ_LEN - 1, (BATCHES, BATCH))
    plain = np.memmap(folder / "train.bin", dtype=np.uint16, mode="r")
    offsets = np.arange(SEQ_LEN + 1)
    rows: dict[str, Callable[[], object]] = {
        "hvdlm": lambda: [stream.read_windows(row, SEQ_LEN + 1) for row in starts],
        "numpy.memmap gather": lambda: [plain[row[:, None] + offsets].astype(np.int64) for row in starts],
        "h5py slices": lambda: _slices_by_h5py(folder / "train-00000.h5", starts, SEQ_LEN + 1),
    }
    return _interleaved(rows, repeats, lambda seconds: seconds * 1e6 / BATCHES)


def _slices_by_h5py(path: Path, starts: np.ndarray, length: int) -> None:
    with h5py.File(path, "r") as file:
        tokens = file["tokens"]
        for row in starts:
            np.stack([tokens[start : start + length] for start in row]).astype(np.int64)


def to_text(result: dict) -> str:
    """Times of a batch and rates as plain columns, and below each what follows from them."""
    heads = [f"batch of {result['batch']} windows of {result['seq_len']}", "us"]
    times = [[name, f"{us:.1f}"] for name, us in result["us_per_batch"].items()]
    rates = [[name, f"{rate:,}"] for name, rate in result["mb_per_s"].items()]
    return "\n".join(
        [
            table(heads, times),
            f"h5py slices take {result['h5py_slices_to_hvdlm']} times as long, "
            f"a gather from a plain memory map {result['memmap_gather_to_hvdlm']} times",
            "",
            table(["", "MB/s"], rates),
            f"the byte tokenizer runs at {result['byte_tokenizer_to_memcpy']} of memcpy",
        ]
    )
