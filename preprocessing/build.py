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

import numpy as np

from hvdlm import tokenizer as tokenizers
from hvdlm.durable import replace_durably, write_text_durably
from hvdlm.errors import UserError
from hvdlm.partition import fraction_of
from hvdlm.runlog import Progress
from hvdlm.shards import MANIFEST, SPLITS, TOKENIZER, Manifest, dtype_for, read_manifest, write_manifest
from hvdlm.tokenizer import Tokenizer
from hvdlm.world.interface import World

from .assemble import STATISTICS, assemble
from .documents import find_files, read_documents
from .plan import Job, PreprocessConfig, Unit, make_units, plan_digest, sample_units, split_of

log = logging.getLogger("hvdlm")

ENCODE_BYTES = 1 << 20  # text handed to the tokenizer at once
SAMPLE_PIECE = 8192  # characters of a document that enter the tokenizer's sample or not: a book is many draws


def build(config: PreprocessConfig, world: World) -> Manifest:
    """Tokenize `config.input` into `config.output` with all ranks; returns the manifest on each."""
    job = world.on_root(lambda: _prepare(config))
    if isinstance(job, Manifest):
        log.info("%s is complete already: %s tokens", config.output, f"{job.num_tokens:,}")
        return job
    tokenizer = tokenizers.from_json(world.on_root(lambda: _tokenizer_json(job)))
    _tokenize_units(job, tokenizer, world)
    manifest = assemble(job, tokenizer, world)
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
            shutil.rmtree(config.output / ".work", ignore_errors=True)  # of a run that died after its manifest
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
        if config.kind == "bpe" and config.path is None and made.vocab_size < config.vocab_size:
            log.warning("the text has only enough for a vocabulary of %d ids", made.vocab_size)
        write_text_durably(kept, made.to_json())
    return kept.read_text(encoding="utf-8")


def _sample(job: Job) -> Iterator[str]:
    units, fraction = sample_units(job.units, job.config.tokenizer.sample_mb * 1e6)
    for unit in units:
        for part in unit.parts:
            for text in read_documents(part, job.config.read_options):
                for start in range(0, len(text), SAMPLE_PIECE):
                    piece = text[start : start + SAMPLE_PIECE]
                    if fraction_of(piece.encode(), job.config.seed + 1) < fraction:
                        yield piece


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


def _finish(job: Job, tokenizer: Tokenizer, manifest: Manifest) -> None:
    output, config = job.config.output, job.config.split
    listed = {shard.file for split in manifest.splits.values() for shard in split.shards}
    for path in output.glob("*-[0-9][0-9][0-9][0-9][0-9].h5"):
        if path.name not in listed and path.name.split("-")[0] in SPLITS:
            path.unlink()  # of a run with another config that never finished
    for split, fraction in (("val", config.val), ("test", config.test)):
        if fraction and not manifest.splits[split].num_tokens:
            log.warning(
                "no document fell into %s (%g of %d); raise split.%s", split, fraction, manifest.num_documents, split
            )
    write_text_durably(output / TOKENIZER, tokenizer.to_json())
    write_manifest(output, manifest)
    shutil.rmtree(output / ".work")
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
