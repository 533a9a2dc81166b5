"""The second pass: spool files to shards and the manifest's content, the same at any number of ranks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hvdlm.data.fields import OFFSETS, FieldEntry, Packed, all_columns, joined
from hvdlm.data.manifest import SPLITS, Manifest, ShardEntry, manifest_of
from hvdlm.data.shards import COLUMNS, ShardLabels, write_shard
from hvdlm.data.shared_file import SharedSizes, check_parallel, write_shared
from hvdlm.data.verify import read_back
from hvdlm.errors import UserError
from hvdlm.files import sha256_of, write_text_durably
from hvdlm.session.work_queue import Tasks, WorkQueue
from hvdlm.tokenizer import Tokenizer, dtype_for
from hvdlm.world.interface import World

from .balance import close_balance, passed_over, sum_round_trips
from .plan import ShardPlan, WorkPlan, shard_plans, unit_of, windows_of
from .spool import Spool

Labels = dict[str, ShardLabels]
Entries = dict[str, tuple[ShardEntry, ...]]
Piece = tuple[str, int, np.ndarray]  # dataset, start, what stands there


class Book:
    """What documents have beside their ids: the columns of all shards, each with its type."""

    def __init__(self, fields: Mapping[str, FieldEntry], ids: np.dtype) -> None:
        self._lists = {name: field.labels for name, field in fields.items() if field.type in ("label", "labels")}
        own = {column.name: np.dtype(column.dtype or ids) for column in all_columns(fields)}
        self._possible = {**dict.fromkeys(COLUMNS, np.dtype("u1")), **own}
        self.columns: dict[str, np.dtype] = own

    def look(self, totals: list[Any]) -> None:
        """Ids and labels of documents have a column where some unit has any."""
        found = {name for unit in totals for split in SPLITS for name, size in unit[split].items() if size is not None}
        self.columns = {name: kind for name, kind in self._possible.items() if name in found | self.columns.keys()}

    def totals(self, number: int, spool: Spool) -> dict[str, Any]:
        """What has to be known of a spool file before any shard is laid out."""
        totals: dict[str, Any] = {name: spool.facts(name) for name in ("statistics", "reads", "round_trip")}
        for split in SPLITS:
            kept = spool.kept(split)
            totals[split] = {
                "tokens": int(spool["lengths"][kept].sum()),
                "documents": len(kept),
                "text_bytes": int(spool["text_bytes"][kept].sum()),
            }
            for name in self._possible:
                totals[split][name] = len(spool.column(name, split)[0]) if spool.has_column(name) else None
        return totals

    def read(self, spool: Spool, name: str, split: str, first: int, last: int) -> Packed:
        """A column of a split's documents [first, last), labels by their places in the lists."""
        spool.number_labels(self._lists)
        return spool.column(name, split, first, last)


def assemble(
    plan: WorkPlan, tokenizer: Tokenizer, fields: Mapping[str, FieldEntry], counts: dict[str, int], queue: WorkQueue
) -> tuple[Manifest, dict[str, Any]]:
    """Shards from spool files: offsets by a prefix sum over units, each shard by one rank or, mpio, by all.

    `counts` of duplicates join the statistics. Returns the manifest, and the balance of what was read and kept.
    """
    labels = {split: ShardLabels.of(split, tokenizer) for split in SPLITS}
    book = Book(fields, dtype_for(tokenizer.vocab_size))
    with queue.timer.phase("offsets"):
        totals = _of_all(plan, queue.world, book.totals)
        book.look(totals)
        statistics = Counter(counts)
        for unit in totals:
            statistics.update(unit["statistics"])
        if fault := passed_over(statistics, plan.config):
            raise UserError.shared(fault)
        if fault := _nothing_left(plan, totals):
            raise UserError.shared(fault)
    write = _write_shared_files if plan.config.layout == "mpio" else _write_shards
    entries = write(plan, totals, labels, book, queue)
    text_bytes = {split: sum(unit[split]["text_bytes"] for unit in totals) for split in SPLITS}
    manifest = manifest_of(
        tokenizer,
        entries,
        text_bytes=text_bytes,
        statistics=statistics,
        plan=plan.digest,
        splitting=plan.config.splits.splitting,
        fields=fields,
    )
    reads = [read for unit in totals for read in unit["reads"]]
    balance = close_balance(plan.listed, reads, statistics, manifest.num_documents)
    balance["round_trip"] = sum_round_trips(unit["round_trip"] for unit in totals)
    queue.check_together()
    with queue.timer.phase("read back"):
        return read_back(plan.config.output, manifest, queue.world), balance


def _nothing_left(plan: WorkPlan, totals: list[Any]) -> str | None:
    """What is wrong where an input gave no document; one that is cut by a hash may leave a split without any."""
    splits, split_of = plan.config.splits, [plan.units[unit_of(path)].split for path in plan.spools]
    for named in splits.sources:
        units = [unit for unit, split in zip(totals, split_of, strict=True) if split == named]
        if not sum(unit[split]["tokens"] for unit in units for split in splits.filled_by(named)):
            counts = sum((Counter(unit["statistics"]) for unit in units), Counter[str]())
            found = ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))
            return f"{splits.told(named)}: no document is left ({found or 'there was none'})"
    return None


def _of_all(plan: WorkPlan, world: World, look: Callable[[int, Spool], Any]) -> list[Any]:
    """`look(number, spool)` for each spool file, in order, on all ranks; each rank opens its share."""
    mine = []
    with world.together():
        for number in range(world.rank, len(plan.spools), world.size):
            with Spool(plan.spools[number]) as spool:
                mine.append((number, look(number, spool)))
    found = dict(pair for pairs in world.gather(mine) for pair in pairs)
    return [found[number] for number in range(len(plan.spools))]


def _starts(totals: list[Any], split: str, of: str) -> list[int]:
    """Where each unit's share of a split begins, and the end."""
    return np.cumsum([0] + [unit[split][of] or 0 for unit in totals]).tolist()


def _write_shards(plan: WorkPlan, totals: list[Any], labels: Labels, book: Book, queue: WorkQueue) -> Entries:
    """Shards of about `shard_tokens`, each by one rank; those that an interrupted run finished are kept."""
    starts = {split: _starts(totals, split, "tokens") for split in SPLITS}

    def windows(number: int, spool: Spool) -> dict[str, list[int]]:
        return {
            split: np.unique(
                windows_of(spool.of_split("lengths", split), starts[split][number], plan.config.shard_tokens)
            ).tolist()
            for split in SPLITS
        }

    with queue.timer.phase("offsets"):
        planned = shard_plans(_of_all(plan, queue.world, windows))

    def write(number: int) -> int:
        shard = planned[number]
        if _finished(plan, shard) is None:
            entry = _write(plan, shard, starts[shard.split], labels[shard.split], book)
            write_text_durably(_note(plan, shard), entry.model_dump_json())
        return 1

    queue.run(Tasks("shards", range(len(planned)), write, len(planned), "shards"))
    entries = queue.world.on_root(
        lambda: [ShardEntry.model_validate_json(_note(plan, shard).read_text()) for shard in planned]
    )
    found = list(zip(planned, entries, strict=True))
    return {split: tuple(entry for shard, entry in found if shard.split == split) for split in SPLITS}


def _path(plan: WorkPlan, shard: ShardPlan) -> Path:
    return plan.config.output / f"{shard.split}-{shard.number:05d}.h5"


def _note(plan: WorkPlan, shard: ShardPlan) -> Path:
    """Where the manifest's entry of a finished shard is kept."""
    return plan.work / f"{_path(plan, shard).name}.json"


def _finished(plan: WorkPlan, shard: ShardPlan) -> ShardEntry | None:
    if not (_note(plan, shard).exists() and _path(plan, shard).exists()):
        return None
    try:
        entry = ShardEntry.model_validate_json(_note(plan, shard).read_text())
    except ValueError:  # changed since
        return None
    return entry if sha256_of(_path(plan, shard)) == entry.checksum else None


def _write(plan: WorkPlan, shard: ShardPlan, starts: list[int], labels: ShardLabels, book: Book) -> ShardEntry:
    """Assemble one shard."""
    lengths: list[np.ndarray] = []
    parts: dict[str, list[Packed]] = {name: [] for name in book.columns}
    spans: list[tuple[int, int, int]] = []
    for unit in shard.units:
        with Spool(plan.spools[unit]) as spool:
            of_unit = spool.of_split("lengths", shard.split)
            inside = np.flatnonzero(windows_of(of_unit, starts[unit], plan.config.shard_tokens) == shard.window)
            first, last = int(inside[0]), int(inside[-1]) + 1
            lengths.append(of_unit[first:last])
            spans.append((unit, first, last))
            for name in book.columns:
                parts[name].append(book.read(spool, name, shard.split, first, last))

    def pieces() -> Iterator[np.ndarray]:
        for unit, first, last in spans:
            with Spool(plan.spools[unit]) as spool:
                yield spool.tokens(shard.split, first, last)

    columns = {name: joined(parts[name], kind) for name, kind in book.columns.items()}
    return write_shard(_path(plan, shard), pieces(), np.concatenate(lengths), labels, columns)


def _write_shared_files(plan: WorkPlan, totals: list[Any], labels: Labels, book: Book, queue: WorkQueue) -> Entries:
    """One file a split, by all ranks; each writes what its units hold."""
    check_parallel(queue.world)
    entries: Entries = {}
    with queue.timer.phase("shards"):
        for split in SPLITS:
            sizes = SharedSizes(
                _starts(totals, split, "tokens")[-1],
                _starts(totals, split, "documents")[-1],
                {name: (kind, _starts(totals, split, name)[-1]) for name, kind in book.columns.items()},
            )
            path = plan.config.output / f"{split}.h5"
            pieces = _shared_pieces(plan, totals, split, book, queue.world)
            has_any = sizes.num_tokens > 0
            entries[split] = (write_shared(path, queue.world, labels[split], sizes, pieces),) if has_any else ()
    return entries


def _shared_pieces(plan: WorkPlan, totals: list[Any], split: str, book: Book, world: World) -> Iterator[Piece]:
    """(dataset, start, array) for this rank's spool files."""
    starts = {of: _starts(totals, split, of) for of in ("tokens", "documents", *book.columns)}
    if world.rank == 0:
        for name in ("doc_offsets", *[f"{name}{OFFSETS}" for name in book.columns]):
            yield name, 0, np.zeros(1, np.int64)
    for unit in range(world.rank, len(plan.spools), world.size):
        with Spool(plan.spools[unit]) as spool:
            count = totals[unit][split]["documents"]
            behind = starts["documents"][unit] + 1  # offset 0 stands before the first document's end
            yield "tokens", starts["tokens"][unit], spool.tokens(split, 0, count)
            yield "doc_offsets", behind, starts["tokens"][unit] + np.cumsum(spool.of_split("lengths", split))
            for name in book.columns:
                data, offsets = book.read(spool, name, split, 0, count)
                yield name, starts[name][unit], data
                yield f"{name}{OFFSETS}", behind, starts[name][unit] + offsets[1:]
