"""The second pass: spool files to shards and the manifest's content, the same at any number of ranks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from hvdlm import tokenizer as tokenizers
from hvdlm.errors import UserError
from hvdlm.runlog import Progress
from hvdlm.shards import FORMAT_VERSION, SPLITS, Manifest, ShardEntry, ShardLabels, SplitEntry, dtype_for, write_shard
from hvdlm.tokenizer import Tokenizer
from hvdlm.world.interface import World

from .plan import Job, ShardPlan, shard_plans, windows_of

STATISTICS = ("documents", "empty_documents", "replaced_characters")


def assemble(job: Job, tokenizer: Tokenizer, world: World) -> Manifest:
    """Shards from spool files: offsets by a prefix sum over units, each shard by one rank."""
    mine = range(world.rank, len(job.units), world.size)
    spooled = [(unit, _totals(job.spool(unit))) for unit in mine]
    totals = dict(pair for pairs in world.gather(spooled) for pair in pairs)
    first_token: dict[str, list[int]] = {
        split: np.cumsum([0] + [totals[unit][split][0] for unit in range(len(job.units))]).tolist() for split in SPLITS
    }
    if not sum(offsets[-1] for offsets in first_token.values()):
        raise UserError.shared(f"input {job.config.input!r}: holds no text at all")
    windows = [(unit, _windows(job, unit, first_token)) for unit in mine]
    windows_of_unit = dict(pair for pairs in world.gather(windows) for pair in pairs)
    plans = shard_plans(windows_of_unit[unit] for unit in range(len(job.units)))
    counts = np.zeros((len(SPLITS), tokenizer.vocab_size), dtype=np.int64)
    written: list[tuple[int, ShardEntry]] = []
    with world.together(), Progress("write shards", len(plans[world.rank :: world.size]), "shards", world) as progress:
        for number in range(world.rank, len(plans), world.size):
            written.append((number, _write(job, plans[number], first_token, tokenizer, counts)))
            progress.advance(1)
    world.sum_(counts)
    entries = dict(pair for pairs in world.gather(written) for pair in pairs)
    return _manifest(job, tokenizer, plans, entries, totals, counts)


def _totals(spool: Path) -> dict[str, list[int]]:
    """Per split [tokens, text bytes] of a unit, and its statistics."""
    with np.load(spool) as arrays:
        totals = {
            split: [int(arrays[f"{split}_lengths"].sum()), int(arrays[f"{split}_text_bytes"])] for split in SPLITS
        }
        return {**totals, "statistics": arrays["statistics"].tolist()}


def _windows(job: Job, unit: int, first_token: dict[str, list[int]]) -> dict[str, list[int]]:
    with np.load(job.spool(unit)) as arrays:
        return {
            split: np.unique(
                windows_of(arrays[f"{split}_lengths"], first_token[split][unit], job.config.shard_tokens)
            ).tolist()
            for split in SPLITS
        }


def _write(
    job: Job, plan: ShardPlan, first_token: dict[str, list[int]], tokenizer: Tokenizer, counts: np.ndarray
) -> ShardEntry:
    """Assemble one shard; adds its token frequencies to `counts` (splits, vocab_size)."""
    lengths: list[np.ndarray] = []
    spans: list[tuple[int, int, int]] = []
    for unit in plan.units:
        with np.load(job.spool(unit)) as arrays:
            of_unit = arrays[f"{plan.split}_lengths"]
        inside = windows_of(of_unit, first_token[plan.split][unit], job.config.shard_tokens) == plan.window
        ends = np.concatenate([[0], np.cumsum(of_unit)])
        first, last = int(np.argmax(inside)), len(inside) - int(np.argmax(inside[::-1]))
        lengths.append(of_unit[first:last])
        spans.append((unit, int(ends[first]), int(ends[last])))

    def pieces() -> Iterator[np.ndarray]:
        for unit, start, stop in spans:
            with np.load(job.spool(unit)) as arrays:
                piece = arrays[f"{plan.split}_tokens"][start:stop]
            counts[SPLITS.index(plan.split)] += np.bincount(piece, minlength=counts.shape[1])
            yield piece

    return write_shard(
        job.config.output / f"{plan.split}-{plan.number:05d}.h5",
        pieces(),
        np.concatenate(lengths),
        ShardLabels(plan.split, tokenizer.vocab_size, tokenizer.eos_id, tokenizers.digest(tokenizer)),
    )


def _manifest(
    job: Job,
    tokenizer: Tokenizer,
    plans: list[ShardPlan],
    entries: dict[int, ShardEntry],
    totals: dict[int, dict[str, list[int]]],
    counts: np.ndarray,
) -> Manifest:
    splits = {}
    for row, split in enumerate(SPLITS):
        shards = tuple(entries[number] for number, plan in enumerate(plans) if plan.split == split)
        splits[split] = SplitEntry(
            shards=shards,
            num_tokens=sum(shard.num_tokens for shard in shards),
            num_documents=sum(shard.num_documents for shard in shards),
            text_bytes=sum(unit[split][1] for unit in totals.values()),
            unigram_loss=unigram_loss(counts[0], counts[row]),
        )
    statistics = np.sum([unit["statistics"] for unit in totals.values()], axis=0).tolist()
    return Manifest(
        format_version=FORMAT_VERSION,
        tokenizer_digest=tokenizers.digest(tokenizer),
        tokenizer_kind=tokenizer.kind,
        vocab_size=tokenizer.vocab_size,
        eos_id=tokenizer.eos_id,
        dtype=dtype_for(tokenizer.vocab_size).name,
        splits=splits,
        num_tokens=sum(entry.num_tokens for entry in splits.values()),
        num_documents=sum(entry.num_documents for entry in splits.values()),
        statistics=dict(zip(STATISTICS, statistics, strict=True)),
        plan=job.digest,
    )


def unigram_loss(train_counts: np.ndarray, counts: np.ndarray) -> float | None:
    """Nats per token of `counts` (vocab_size,) under the train frequencies with add-one smoothing.

    What a model without any context would reach: the bar that training has to clear.
    """
    if not counts.sum():
        return None
    log_p = np.log(train_counts + 1.0) - np.log(train_counts.sum() + len(train_counts))
    return float(-(counts * log_p).sum() / counts.sum())
