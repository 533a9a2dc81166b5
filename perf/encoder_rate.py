"""One process of `hvdlm bench preprocess`: how fast an encoder turns its share of a corpus into ids, from cold."""

from __future__ import annotations

import time
from pathlib import Path

from hvdlm import tokenizer as tokenizers

from .bench_preprocess import texts_of

BATCH_BYTES = 1 << 20


def measure(kind: str, corpus: Path, path: Path, rank: int, size: int) -> float:
    """MB of text a second, reading and imports left out."""
    texts = [text for number, text in enumerate(texts_of(corpus)) if number % size == rank]
    tokenizer = tokenizers.load(path)
    if kind == "fast":
        tokenizer = tokenizers.make_fast(tokenizer, texts[:1])
    num_bytes = sum(len(text.encode()) for text in texts)
    start = time.perf_counter()
    batch: list[str] = []
    held = 0
    for text in texts:
        batch.append(text)
        held += len(text)
        if held >= BATCH_BYTES:
            tokenizer.encode_documents(batch)
            batch, held = [], 0
    tokenizer.encode_documents(batch)
    return num_bytes / 1e6 / (time.perf_counter() - start)
