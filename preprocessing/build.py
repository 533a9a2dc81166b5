"""`hvdlm preprocess`: units to spool files, spool files to shards, the manifest last.

Two passes over ids make every byte of the output independent of the number of ranks: units (fixed by
the plan) are tokenized into spool files under OUTPUT/.work, then each shard is assembled from the
spool of the units it covers. Every file appears by rename when it is complete, so the same command
continues after a kill, on any number of ranks, and loses at most the units in flight.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hvdlm import tokenizer as tokenizers
from hvdlm.errors import UserError
from hvdlm.partition import fraction_of
from hvdlm.runlog import Progress
from hvdlm.shards import (
    MANIFEST,
    SPLITS,
    TOKENIZER,
    Manifest,
    ShardEntry,
    ShardLabels,
    SplitEntry,
    dtype_for,
    read_manifest,
    replace_durably,
    write_manifest,
    write_shard,
    write_text_durably,
)
from hvdlm.tokenizer import Tokenizer
from hvdlm.world.interface import World

from .documents import find_files, read_documents
from .plan import (
    PreprocessConfig,
    ShardPlan,
    Unit,
    make_units,
    plan_digest,
    sample_units,
    shard_plans,
    split_of,
    windows_of,
)

log = logging.getLogger("hvdlm")

ENCODE_BYTES = 1 << 20  # text handed to the tokenizer at once
STATISTICS = ("documents", "empty_documents", "replaced_characters")


@dataclass(frozen=True)
class Job:
    """What all ranks agree on before the first unit."""

    config: PreprocessConfig
    units: list[Unit]
    digest: str

    @property
    def work(self) -> Path:
        return self.config.output / ".work" / self.digest

    @property
    def failed(self) -> Path:
        """Exists once some rank has failed; the next start removes it."""
        return self.work / ".failed"

    def spool(self, unit: int) -> Path:
        return self.work / f"unit-{unit:06d}.npz"


def build(config: PreprocessConfig, world: World) -> Manifest:
    """Tokenize `config.input` into `config.output` with all ranks; returns the manifest on each."""
    job = world.on_root(lambda: _prepare(config))
    if isinstance(job, Manifest):
        log.info("%s is complete already: %s tokens", config.output, f"{job.num_tokens:,}")
        return job
    tokenizer = tokenizers.from_json(world.on_root(lambda: _tokenizer_json(job)))
    _tokenize_units(job, tokenizer, world)
    manifest = _assemble(job, tokenizer, world)
    world.on_root(lambda: _finish(job, tokenizer, manifest))
    return manifest


def _prepare(config: PreprocessConfig) -> Job | Manifest:
    """On rank 0: list the input, fix the plan, make the folders; or the manifest if all is done."""
    files = find_files(config.sources)
    if not sum(size for _, size in files):
        raise UserError(f"input {config.input!r}: its {len(files)} files are empty")
    job = Job(config, make_units(files, config.format), plan_digest(config, files))
    if (config.output / MANIFEST).exists():
        done = read_manifest(config.output)
        if done.plan == job.digest:
            return done
        raise UserError(
            f"{config.output}: holds another data set (other input or config); remove it or set another output"
        )
    job.work.mkdir(parents=True, exist_ok=True)
    for leftover in [*config.output.glob(".*.h5.*"), *job.work.glob(".*")]:
        leftover.unlink()
    log.info(
        "plan %s: %d files, %.1f MB, %d units", job.digest, len(files), sum(s for _, s in files) / 1e6, len(job.units)
    )
    return job


def _tokenizer_json(job: Job) -> str:
    """On rank 0: the vocabulary, trained or loaded, or what an interrupted run trained."""
    kept = job.work / TOKENIZER
    if not kept.exists():
        config = job.config.tokenizer
        if config.kind == "bpe" and config.path is None:
            log.info("training a byte-level BPE of %d ids on %g MB", config.vocab_size, config.sample_mb)
        made = tokenizers.TOKENIZERS[config.kind](config, lambda: _sample(job))
        write_text_durably(kept, made.to_json())
    return kept.read_text(encoding="utf-8")


def _sample(job: Job) -> Iterator[str]:
    units, fraction = sample_units(job.units, job.config.tokenizer.sample_mb * 1e6)
    for unit in units:
        for part in unit.parts:
            for text in read_documents(part, job.config.read_options):
                if fraction_of(text.encode(), job.config.seed + 1) < fraction:
                    yield text


def _tokenize_units(job: Job, tokenizer: Tokenizer, world: World) -> None:
    mine = job.units[world.rank :: world.size]
    with world.together(), Progress("tokenize", sum(unit.num_bytes for unit in mine) / 1e6, "MB", world) as progress:
        for unit in mine:
            if job.failed.exists():  # another rank has met an error: it will tell, the rest of the work is in vain
                return
            if not job.spool(unit.number).exists():
                try:
                    _tokenize(job, unit, tokenizer)
                except (UserError, OSError):
                    job.failed.touch()
                    raise
            progress.advance(unit.num_bytes / 1e6)


def _tokenize(job: Job, unit: Unit, tokenizer: Tokenizer) -> None:
    """One unit into one spool file: per split the ids, the tokens a document, and text bytes."""
    ids: dict[str, list[np.ndarray]] = {split: [] for split in SPLITS}
    text_bytes = dict.fromkeys(SPLITS, 0)
    counts = dict.fromkeys(STATISTICS, 0)
    eos = np.array([tokenizer.eos_id])
    for texts, splits in _batches_of_text(job, unit, counts, text_bytes):
        for split, encoded in zip(splits, tokenizer.encode_batch(texts), strict=True):
            ids[split].append(np.concatenate([encoded, eos]))
    dtype = dtype_for(tokenizer.vocab_size)
    arrays: dict[str, np.ndarray] = {"statistics": np.array([counts[name] for name in STATISTICS])}
    for split in SPLITS:
        arrays[f"{split}_tokens"] = np.concatenate(ids[split] or [eos[:0]]).astype(dtype)
        arrays[f"{split}_lengths"] = np.array([len(document) for document in ids[split]], dtype=np.int64)
        arrays[f"{split}_text_bytes"] = np.array(text_bytes[split])
    final = job.spool(unit.number)
    aside = final.with_name(f".{final.name}")
    with aside.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
    replace_durably(aside, final)


def _batches_of_text(
    job: Job, unit: Unit, counts: dict[str, int], text_bytes: dict[str, int]
) -> Iterator[tuple[list[str], list[str]]]:
    """(texts, splits) in batches of about ENCODE_BYTES; fills the counts on the way."""
    texts: list[str] = []
    splits: list[str] = []
    held = 0
    for part in unit.parts:
        for text in read_documents(part, job.config.read_options):
            if not text.strip():
                counts["empty_documents"] += 1
                continue
            data = text.encode()
            split = split_of(data, job.config)
            counts["documents"] += 1
            counts["replaced_characters"] += text.count("\ufffd")
            text_bytes[split] += len(data)
            texts.append(text)
            splits.append(split)
            held += len(data)
            if held >= ENCODE_BYTES:
                yield texts, splits
                texts, splits, held = [], [], 0
    if texts:
        yield texts, splits


def _assemble(job: Job, tokenizer: Tokenizer, world: World) -> Manifest:
    """Shards from spool files: offsets by a prefix sum over units, each shard by one rank."""
    mine = range(world.rank, len(job.units), world.size)
    spooled = [(unit, _totals(job.spool(unit))) for unit in mine]
    totals = dict(pair for pairs in world.gather(spooled) for pair in pairs)
    first_token: dict[str, list[int]] = {
        split: np.cumsum([0] + [totals[unit][split][0] for unit in range(len(job.units))]).tolist() for split in SPLITS
    }
    if not sum(offsets[-1] for offsets in first_token.values()):
        raise _shared(UserError(f"input {job.config.input!r}: holds no text at all"))
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


def _shared(error: UserError) -> UserError:
    error.on_all_ranks = True  # every rank computed it from the same gathered numbers
    return error


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
        format_version=1,
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


def _finish(job: Job, tokenizer: Tokenizer, manifest: Manifest) -> None:
    write_text_durably(job.config.output / TOKENIZER, tokenizer.to_json())
    write_manifest(job.config.output, manifest)
    shutil.rmtree(job.config.output / ".work")
    log.info(
        "%s",
        json.dumps(
            {
                name: f"{s.num_tokens:,} tokens in {len(s.shards)} shards"
                for name, s in manifest.splits.items()
                if s.shards
            }
        ),
    )
