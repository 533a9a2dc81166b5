"""`hvdlm preprocess`: units to spool files, spool files to shards, the manifest last.

Two passes over ids make every byte of the output independent of the number of ranks: units (fixed by
the plan) are tokenized into spool files under OUTPUT/.work by whichever rank is free, then each shard is
assembled from the spool of the units it covers. Every file appears by rename when it is complete, so the
same command continues after a kill, on any number of ranks, and loses at most the units in flight.
"""

from __future__ import annotations

import gc
import json
import logging
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from hvdlm import tokenizer as tokenizers
from hvdlm.data.manifest import MANIFEST, SPLITS, TOKENIZER, Manifest, read_manifest, write_manifest
from hvdlm.data.shards import doc_column
from hvdlm.errors import UserError
from hvdlm.files import locked, write_text_durably
from hvdlm.records.encoder import ColumnParts, Encoded, RecordEncoder
from hvdlm.records.fields import entries
from hvdlm.session.stop import STOPPED, BatchJob, stop_flag
from hvdlm.session.work_queue import PhaseTimer, Tasks, WorkQueue
from hvdlm.tables import counted
from hvdlm.tokenizer import Tokenizer
from hvdlm.tokenizer.interface import dtype_for
from hvdlm.tokenizer.json_file import digest_of as digest_of_text
from hvdlm.tokenizer.loss import num_lost
from hvdlm.tokenizer.word import SlowPatternError
from hvdlm.world.interface import World

from .assemble import assemble
from .balance import (
    check_parts,
    check_read,
    check_replaced,
    check_resumed,
    count_suspect,
    forget_listed,
    note_listed,
    passed_over,
)
from .dedup import Signer, find_duplicates
from .documents import Document, one_line
from .excerpts import Excerpt, Excerpts, OtherIds, care_for, exactly_encoded, found_wrong, round_trip
from .fence import MOST_SHOWN, place_of, reason_of
from .label_lists import UNKNOWN_LABELS, find_labels
from .overlap import count_overlap
from .pipeline import Pipeline, check_first_records
from .plan import PreprocessConfig, Unit, WorkPlan, plan_digest, units_of, work_name
from .readers import check_formats, fitted, format_of
from .records import DROPPED, PROVENANCE, SUMMARY, digest_of, write_dropped, write_provenance, write_summary
from .remarks import of_names, of_overlap, of_settings, of_shares, tell
from .spool import Batch, UnitResult, is_as_saved, num_segments_of
from .vocabulary import make_vocabulary, with_fast_encoder

log = logging.getLogger("hvdlm")

ENCODE_BYTES = 4 << 20  # text handed to the tokenizer at once
SEGMENT_BYTES = 32 << 20  # text in one spool file: a unit that cannot be split may be of any size
DISTRUSTED = ".distrusted"  # in the spool's folder: the fast encoder was wrong, and what it made is not used
EXACTLY = "encode-exactly"  # there: the exact encoder made what is in it
TOKENIZER_DIGEST = f"{TOKENIZER}.digest"
LOCK = ".lock"  # held while a job writes to the folder
SHARD_NAME = re.compile(r"(train|val|test)(-[0-9]{5})?\.h5")


def build(config: PreprocessConfig, world: World, batch_job: BatchJob = BatchJob()) -> Manifest:  # noqa: B008 - frozen
    """Tokenize `config.input` into `config.output` with all ranks; returns the manifest on each.

    Raises StoppedOnRequest on all ranks when one was asked to stop; finished units stay.
    """
    timer = PhaseTimer()
    gc.freeze()  # the modules' objects need not be looked through again and again
    with ExitStack() as stack:
        with world.together():
            config.output.mkdir(parents=True, exist_ok=True)
            if world.rank == 0:
                stack.enter_context(locked(config.output / LOCK))
        stop = stack.enter_context(stop_flag(config.output, world, batch_job))
        with timer.phase("plan"):
            plan = world.on_root(lambda: _prepare(config))
        if isinstance(plan, Manifest):
            log.info("%s is complete already: %s tokens", config.output, f"{plan.num_tokens:,}")
            return plan
        with timer.phase("plan"):
            plan = _without_damaged(plan, world)
        try:
            return _build(plan, WorkQueue(plan.halt, str(config.output), world, stop, timer))
        except UserError:
            if world.rank == 0:
                forget_listed(plan.work)
            raise


def _build(plan: WorkPlan, queue: WorkQueue) -> Manifest:
    world, timer = queue.world, queue.timer
    with timer.phase("vocabulary"):
        tokenizer = _find_tokenizer(plan, world)
    queue.check_together()
    total = sum(plan.units[number].num_bytes for number in plan.todo)
    with Worker(plan, tokenizer, queue) as worker:
        counted_too = ("documents", "tokens")
        queue.run(Tasks("tokenize", plan.todo, worker.tokenize, total, "MB", 1_000_000, worker.finish, counted_too))
    with timer.phase("dedup"):
        plan = replace(plan, spools=world.on_root(plan.find_spools))
        spools, num_held_out = plan.with_held_out_first()
        duplicates = find_duplicates(plan.config.dedup, spools, world, num_held_out)
        fields, num_unknown = find_labels(plan, entries(plan.config.fields), world, len(duplicates))
        overlap = count_overlap(plan.spools, world) if len(plan.config.splits.sources) > 1 else {}
        kinds = {**duplicates, **({UNKNOWN_LABELS: num_unknown} if num_unknown else {})}
    queue.check_together()
    manifest, balance = assemble(plan, tokenizer, fields, {**kinds, **overlap}, queue)
    write_summary(plan, manifest, balance, queue)
    world.on_root(lambda: tell(balance, manifest.statistics, plan.config))
    world.on_root(lambda: _finish(plan, tokenizer, manifest, list(kinds)))
    return manifest


def _made_before(config: PreprocessConfig, digest: str) -> Manifest:
    """Of an output folder that is complete; UserError if that is not what is asked for."""
    done = read_manifest(config.output)
    if done.plan != digest:
        raise UserError(
            f"{config.output}: holds another data set (other input or config); remove it or set another output"
        )
    if fault := passed_over(done.statistics, config):
        raise UserError(fault)
    shutil.rmtree(config.output / ".work", ignore_errors=True)  # of a run that died after its manifest
    return done


def _prepare(config: PreprocessConfig) -> WorkPlan | Manifest:
    """On rank 0: list the input, fix the plan, make the folders; or the manifest if all is done."""
    inputs = config.splits.find()
    listed = {path: stamp for files in inputs.values() for path, stamp in files.items()}
    check_formats(listed, config.format)  # what cannot be read is found now, not after hours
    formats = {format_of(path, config.format) for path in listed}
    for remark in [*of_settings(config, formats), *of_names(config.splits, listed)]:
        log.warning("%s", remark)
    units = units_of(inputs, config.read_options)
    if config.dedup.near:
        _ = Signer(config.dedup).bands  # what cannot be is said before any work
    if config.fields:
        config = config.model_copy(update={"fields": fitted(config.fields, listed, config.format)})
        check_first_records(config, {split: list(files) for split, files in inputs.items()})
    digest, config_digest = plan_digest(config, listed), plan_digest(config, {})
    work = config.output / ".work" / work_name(digest)
    if (config.output / MANIFEST).exists():
        return _made_before(config, digest)
    if _shards_in(config.output) and not (config.output / ".work").exists():
        raise UserError(f"{config.output}: holds shards of another origin; set another output")
    for other in (config.output / ".work").glob("*"):
        if other != work:
            check_resumed(other, config_digest, listed)
            log.info("%s: what another input, config or version began here is thrown away", config.output)
            shutil.rmtree(other, ignore_errors=True)
    work.mkdir(parents=True, exist_ok=True)
    note_listed(work, config_digest, listed)
    _discard_distrusted(work)
    names = [f"{name}.[0-9]*" for name in (MANIFEST, TOKENIZER, PROVENANCE, SUMMARY)] + [DROPPED]
    names += [f"{split}{number}.h5.aside" for split in SPLITS for number in ("", "-*")]
    asides = [path for name in names for path in config.output.glob(f".{name}")]
    for leftover in [*asides, *work.glob(".*"), config.output / STOPPED]:
        leftover.unlink(missing_ok=True)
    plan = WorkPlan(config, units, digest, work, listed=listed)
    todo = [unit for unit in units if not plan.spool(unit.number).exists()]
    todo.sort(key=lambda unit: -unit.num_bytes)  # a large one at the end would keep the others waiting
    size_mb = sum(size for size, _ in listed.values()) / 1e6
    done_before = f", {len(units) - len(todo)} of them done" if len(todo) < len(units) else ""
    num_files, num_units = counted(len(listed), "file"), counted(len(units), "unit")
    log.info("plan %s: %s, %.1f MB, %s%s", digest, num_files, size_mb, num_units, done_before)
    return replace(plan, todo=tuple(unit.number for unit in todo))


def _find_tokenizer(plan: WorkPlan, world: World) -> Tokenizer:
    """The vocabulary, or what an interrupted run made, with its fastest exact encoder."""
    text = world.on_root(lambda: _kept_vocabulary(plan.work))
    if text is None:
        text = _make_vocabulary(plan, world)
        world.on_root(lambda: _keep_vocabulary(plan.work, text))
    origin = str(plan.config.tokenizer.path or TOKENIZER)
    tokenizer = tokenizers.from_json(text, origin)
    if world.on_root((plan.work / EXACTLY).exists):
        return tokenizer
    return with_fast_encoder(tokenizer, plan.config, plan.units, world)


def _make_vocabulary(plan: WorkPlan, world: World) -> str:
    try:
        return make_vocabulary(plan.config, plan.units, world)
    except UserError as error:
        if error.on_all_ranks:
            parts = (part for unit in plan.units for part in unit.parts)
            # A file that changed meanwhile explains the fault better, and then it is not the vocabulary's.
            world.on_root(lambda: check_parts(parts, plan.listed))
        raise


def _keep_vocabulary(work: Path, text: str) -> None:
    write_text_durably(work / TOKENIZER, text)
    write_text_durably(work / TOKENIZER_DIGEST, digest_of_text(text))


def _kept_vocabulary(work: Path) -> str | None:
    """What an interrupted run made, unless it has changed since: then it is made again, the same."""
    try:
        text = (work / TOKENIZER).read_text(encoding="utf-8")
        return text if (work / TOKENIZER_DIGEST).read_text(encoding="utf-8") == digest_of_text(text) else None
    except (FileNotFoundError, UnicodeDecodeError):
        return None


def _without_damaged(plan: WorkPlan, world: World) -> WorkPlan:
    """The plan in which units are done again whose files are not as an earlier start saved them. Collective."""
    done = sorted({unit.number for unit in plan.units}.difference(plan.todo))
    if done and world.rank == 0:
        log.info("%s: checking %s of an earlier start", plan.work, counted(len(done), "unit"))
    with world.together():
        damaged = [number for number in done[world.rank :: world.size] if not _is_as_saved(plan, number)]
    again = sorted(number for found in world.gather(damaged) for number in found)
    if not again:
        return plan
    if world.rank == 0:
        log.warning("%s: %s changed since the kill; done again", plan.work, counted(len(again), "unit"))
    world.on_root(lambda: _remove(plan, again))
    todo = sorted((*plan.todo, *again), key=lambda number: -plan.units[number].num_bytes)
    return replace(plan, todo=tuple(todo))


def _remove(plan: WorkPlan, numbers: list[int]) -> None:
    """What is kept of units, so that they count as not begun."""
    for number in numbers:
        for path in plan.files(number):
            path.unlink()


def _is_as_saved(plan: WorkPlan, number: int) -> bool:
    last, segments = plan.spool(number), plan.segments(number)
    return all(map(is_as_saved, [*segments, last])) and num_segments_of(last) == len(segments)


def _discard_distrusted(work: Path) -> None:
    """Begin anew with the exact encoder if the fast one was found to be wrong."""
    if (work / DISTRUSTED).exists():
        log.warning("begins anew with the exact encoder, as the faster one gave different ids")
        for path in work.glob("unit-*"):
            path.unlink()
        write_text_durably(work / EXACTLY, "")


class Worker:
    """Tokenizes units, one at a time; the last one is being saved while the next one is read."""

    def __init__(self, plan: WorkPlan, tokenizer: Tokenizer, queue: WorkQueue) -> None:
        self._plan, self._tokenizer, self._queue = plan, tokenizer, queue
        self._pipeline, self._signer = Pipeline(plan.config), Signer(plan.config.dedup, plan.config.compares_texts)
        self._splits = plan.config.splits
        self._care = care_for(tokenizer, len(plan.units))
        self._writer = ThreadPoolExecutor(1)
        reader = plan.config.read_options.fields
        self._records = RecordEncoder(reader, tokenizer) if reader else None
        self._saving: Future[None] | None = None
        self._result, self._number, self._num_segments = self._new_result(), 0, 0

    def _new_result(self) -> UnitResult:
        if self._records is None:
            return UnitResult()
        return UnitResult(ColumnParts(self._records.entries, dtype_for(self._tokenizer.vocab_size)))

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *exception: object) -> None:
        self._writer.shutdown()  # what is being saved shall not meet the next run's in the same folder

    def tokenize(self, number: int) -> int:
        """One unit into its spool file, or into several if it is long; returns its bytes."""
        unit, statistics = self._plan.units[number], Counter[str]()
        self._result, self._number, self._num_segments = self._new_result(), number, 0
        inodes = check_parts(unit.parts, self._plan.listed)
        inputs, reads = self._look_through(unit)
        excerpts = Excerpts(self._care)
        try:
            self._read(unit, reads, statistics, excerpts)
        except (UserError, OSError):
            check_parts(unit.parts, self._plan.listed)  # a file that was cut short explains a bad record better
            raise
        now = check_parts(unit.parts, self._plan.listed)  # as before the reading: nothing wrote to them meanwhile
        for part, found in zip(unit.parts, inputs, strict=True):
            check_replaced(part, found["xxh3_128"], inodes, now)
        for nth, read in enumerate(reads):
            read |= {"documents": self._pipeline.read[nth], "texts": self._pipeline.texts[nth]}
            if bad := self._pipeline.bad[read["path"]]:
                read |= {"bad_records": bad, "first_bad": self._pipeline.first_bad[read["path"]]}
        self._result.inputs, self._result.reads, self._result.statistics = inputs, reads, statistics
        self._result.round_trip = self._prove(list(excerpts), unit)
        self._result.num_segments = self._num_segments
        self._save(self._plan.spool(number))
        return unit.num_bytes

    def _read(self, unit: Unit, reads: list[dict[str, Any]], statistics: Counter[str], excerpts: Excerpts) -> None:
        """All documents of a unit into `_result`, and what is counted of them."""
        for whole in self._batches(unit, statistics):
            batch, encoded = self._encode(whole, unit, statistics)
            is_by_word = self._records is not None and self._records.is_by_word  # other ids than the text's as a whole
            if batch.documents and not is_by_word and (wrong := found_wrong(batch.documents, self._tokenizer)):
                self._distrust(wrong, unit)
            count_suspect(batch, reads, statistics)
            self._count_without_names(batch, statistics)
            if unit.number % self._care.units == 0 and not is_by_word:
                excerpts.look(batch.documents, encoded.ids, encoded.lengths)
            self._result.add(batch, encoded)
            self._queue.count(len(batch), len(encoded.ids))
            self._save_segment_if_due()

    def _look_through(self, unit: Unit) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Digest and bytes of each part; UserError unless it is what was listed."""
        inputs, reads = [], []
        for part in unit.parts:
            digest, num_bytes = digest_of(part)
            check_read(part, num_bytes, self._plan.listed)
            inputs.append(vars(part) | {"xxh3_128": digest})
            reads.append({"path": part.path, "bytes": num_bytes})
        return inputs, reads

    def _count_without_names(self, batch: Batch, statistics: Counter[str]) -> None:
        config = self._plan.config
        for key, name in ((config.id_key, "id"), (config.label_key, "label")):
            if key is not None and (without := sum(not getattr(document, name) for document in batch.documents)):
                statistics[f"documents_without_{name}"] += without

    def _prove(self, excerpts: list[Excerpt], unit: Unit) -> dict[str, Any]:
        """What becomes of a unit's excerpts; UserError if they went to other ids than the exact encoder's."""
        try:
            found = round_trip(exactly_encoded(excerpts, self._tokenizer), self._tokenizer)
        except OtherIds as error:
            self._distrust(error.excerpt, unit)
        if "example" in found:
            part = unit.parts[found.pop("part")]
            found["place"] = place_of(found.pop("position"), part, self._plan.config.read_options)
        return found

    def _distrust(self, wrong: Excerpt, unit: Unit) -> NoReturn:
        """End the job; the next start encodes all anew without the fast encoder."""
        (self._plan.work / DISTRUSTED).touch()
        place = place_of(wrong.position, unit.parts[wrong.part], self._plan.config.read_options)
        raise UserError(
            f"{one_line(place)}: the job's encoder gives other ids than the {self._tokenizer.kind} tokenizer alone for "
            f"{wrong.text[:MOST_SHOWN]!r}; please report this; the same command begins anew with the exact encoder"
        ) from None

    def _save_segment_if_due(self) -> None:
        if self._result.num_bytes >= SEGMENT_BYTES:
            self._save(self._plan.segment(self._number, self._num_segments))
            self._num_segments += 1

    def _save(self, path: Path) -> None:
        """Begin to save what there is, once what came before is safe."""
        self.finish()
        if self._records is not None:
            self._result.labels = {name: list(numbers) for name, numbers in self._records.labels.items()}
        self._saving = self._writer.submit(self._result.save, path, dtype_for(self._tokenizer.vocab_size))
        self._result = self._new_result()

    def finish(self) -> None:
        """Wait until the last unit is saved."""
        if self._saving is not None:
            self._saving.result()
            self._saving = None

    def _batches(self, unit: Unit, statistics: Counter[str]) -> Iterator[Batch]:
        """The unit's documents, about ENCODE_BYTES at once."""
        batch = Batch()
        for document in self._pipeline.documents(unit, statistics, self._drop):
            try:
                data = document.text.encode()
                signature = self._signer.sign(document.text, self._compared(document, data))
            except BaseException as error:
                self._refuse(document, unit, f"it cannot be signed for dedup ({reason_of(error)})", statistics)
                continue
            split = self._splits.of_document(data, unit.split, self._plan.config.seed)
            batch.append(document, SPLITS.index(split), data, signature)
            if batch.num_bytes >= ENCODE_BYTES:
                yield batch
                batch = Batch()
        if batch.documents:
            yield batch

    def _compared(self, document: Document, data: bytes) -> bytes:
        """What makes two documents the same: for dedup all of a record, that none is lost; else the text."""
        if document.record is None or not self._plan.config.dedup.is_on:
            return data
        return data + json.dumps(document.record.values, ensure_ascii=False).encode()

    def _encode(self, batch: Batch, unit: Unit, statistics: Counter[str]) -> tuple[Batch, Encoded]:
        """Documents and what they are encoded to; without those that the tokenizer cannot take."""
        try:
            return batch, self._encoded(batch.documents, statistics)
        except BaseException as error:
            _ = _fault_of_text(error)  # raises what is no document's fault
        taken = Batch()
        for document, split, data, signature in batch.rows():
            try:
                self._encoded([document], Counter())
            except BaseException as error:
                self._refuse(document, unit, f"the tokenizer cannot take it ({_fault_of_text(error)})", statistics)
                continue
            taken.append(document, split, data, signature)
        return taken, self._encoded(taken.documents, statistics)

    def _encoded(self, documents: list[Document], statistics: Counter[str]) -> Encoded:
        """Ids and columns; counts what no id stands for, as where a BPE without unk drops a character."""
        texts = [document.text for document in documents]
        if self._records is not None:
            encoded = self._records.encode(documents)
        else:
            encoded = Encoded(*self._tokenizer.encode_documents(texts))
        ids = encoded.ids
        if lost := num_lost(self._tokenizer, texts, ids):
            statistics["lost_characters"] += lost
        unknown = self._tokenizer.unk_id
        for name, field in self._records.entries.items() if self._records else ():
            if unknown is not None and field.type == "pair":
                second = encoded.columns[name][0]
                statistics["unknown_tokens"] += int(np.count_nonzero(second == unknown))
                statistics["encoded_tokens"] += len(second)
        if unknown is not None:
            statistics["unknown_tokens"] += int(np.count_nonzero(ids == unknown))
            statistics["encoded_tokens"] += len(ids)
        return encoded

    def _refuse(self, document: Document, unit: Unit, reason: str, statistics: Counter[str]) -> None:
        self._pipeline.refuse(document, unit.parts[document.part], reason, statistics, self._drop)

    def _drop(self, line: dict[str, Any]) -> None:
        if self._plan.config.dropped:
            self._result.drop(line)
            self._save_segment_if_due()


def _fault_of_text(error: BaseException) -> str:
    """`reason_of` for what a tokenizer raises, whose own UserError tells of a text that its vocabulary cannot spell."""
    if isinstance(error, SlowPatternError):  # the output must not depend on how fast a machine is
        raise error
    return str(error) if isinstance(error, UserError) else reason_of(error)


def _shards_in(output: Path) -> list[Path]:
    """Files that are named as we name shards."""
    return [path for path in output.glob("*.h5") if SHARD_NAME.fullmatch(path.name)]


def _finish(plan: WorkPlan, tokenizer: Tokenizer, manifest: Manifest, kinds: list[str]) -> None:
    output = plan.config.output
    listed = {shard.file for split in manifest.splits.values() for shard in split.shards}
    for path in _shards_in(output):
        if path.name not in listed:
            path.unlink()  # of a run with another config that never finished
    for remark in [*of_shares(plan.config.splits, manifest), *of_overlap(manifest)]:
        log.warning("%s", remark)
    shard = next(shard for split in manifest.splits.values() for shard in split.shards)  # all have the same columns
    for key, name in ((plan.config.id_key, "doc_ids"), (plan.config.label_key, "doc_labels")):
        if key is not None and doc_column(output, shard, name) is None:
            log.warning("no document has %r, so there are no %s", key, name)
    write_text_durably(output / TOKENIZER, tokenizer.to_json())
    write_provenance(plan)
    if plan.config.dropped:
        write_dropped(plan, kinds)
    write_manifest(output, manifest)
    shutil.rmtree(output / ".work", ignore_errors=True)
    shards = [
        f"{name} {counted(s.num_tokens, 'token')} in {counted(len(s.shards), 'shard')}"
        for name, s in manifest.splits.items()
        if s.shards
    ]
    log.info("%s: %s", output, "; ".join(shards))
