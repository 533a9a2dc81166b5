"""The labels that there are: those of train, sorted, or as the config lists them; and records that have another one.

Found once all units are done, so that the numbers in the shards are the same however many ranks read the input.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from hvdlm.data.fields import FieldEntry, labels_digest
from hvdlm.data.manifest import SPLITS
from hvdlm.errors import UserError
from hvdlm.tables import counted
from hvdlm.world.interface import World

from .documents import one_line
from .fence import line_or_place
from .plan import WorkPlan, unit_of
from .spool import Spool, duplicates_of, mark

log = logging.getLogger("hvdlm")

UNKNOWN_LABELS = "unknown_label_records"
Found = dict[str, dict[str, tuple[int, int]]]  # by split and label: spool file and row where it stands first


def find_labels(
    plan: WorkPlan, fields: Mapping[str, FieldEntry], world: World, kind: int
) -> tuple[dict[str, FieldEntry], int]:
    """The fields with their lists, and how many records were marked as `kind` for a label that none has. Collective.

    UserError for such a record where bad records end the job.
    """
    named = [name for name, field in fields.items() if field.type in ("label", "labels")]
    if not named:
        return dict(fields), 0
    with world.together():
        for number in range(world.rank, len(plan.spools), world.size):
            if duplicates_of(plan.spools[number]).exists():  # of a run that died on the way
                mark(plan.spools[number], [], kind)
    found = _found(plan, named, world)
    lists = {name: fields[name].labels or _of_train(plan, name, found[name]) for name in named}
    unknown = {name: _unknown(found[name], lists[name]) for name in named}
    first = min((place for name in named for place in unknown[name].values()), default=None)
    num_marked = 0
    if first is not None:
        if plan.config.on_error == "fail":
            raise UserError.shared(world.on_root(lambda: _fault(plan, unknown, first, lists, remedy=True)))
        with world.together():
            num_marked = sum(
                _mark_unknown(plan.spools[number], lists, kind)
                for number in range(world.rank, len(plan.spools), world.size)
            )
        num_marked = sum(world.gather(num_marked))
        example = world.on_root(lambda: _fault(plan, unknown, first, lists, remedy=False))
        if world.rank == 0:
            log.warning("%s with a label that train lacks left out, such as %s", counted(num_marked, "record"), example)
    told = {name: {"labels": tuple(labels), "labels_digest": labels_digest(labels)} for name, labels in lists.items()}
    return {name: field.model_copy(update=told.get(name, {})) for name, field in fields.items()}, num_marked


def _found(plan: WorkPlan, named: Sequence[str], world: World) -> dict[str, Found]:
    """Of each field the labels by split, each with the place where it stands first."""
    mine: list[tuple[int, str, str, dict[str, int]]] = []
    with world.together():
        for number in range(world.rank, len(plan.spools), world.size):
            with Spool(plan.spools[number]) as spool:
                for name in named:
                    labels = spool.facts("labels")[name]
                    for split in SPLITS:
                        values, offsets = spool.column(name, split)
                        used, places = np.unique(values, return_index=True)
                        nth = np.searchsorted(offsets, places, side="right") - 1
                        rows = spool.kept(split)[nth].tolist()
                        mine.append((number, name, split, {labels[u]: r for u, r in zip(used, rows, strict=True)}))
    found: dict[str, Found] = {name: {split: {} for split in SPLITS} for name in named}
    for number, name, split, rows in sorted(part for parts in world.gather(mine) for part in parts):
        for label, row in rows.items():
            found[name][split].setdefault(label, (number, row))
    return found


def _of_train(plan: WorkPlan, name: str, found: Found) -> tuple[str, ...]:
    """Numbers by their size, all else by characters."""
    labels = found["train"]
    if not labels:
        raise UserError.shared(
            f"fields.{name}: there is no record of train to take its labels from; list them as fields.{name}.labels"
        )
    are_numbers = all(label.isascii() and label.removeprefix("-").isdigit() for label in labels)
    return tuple(sorted(labels, key=int)) if are_numbers else tuple(sorted(labels))


def _unknown(found: Found, labels: Sequence[str]) -> dict[str, tuple[int, int]]:
    known = set(labels)
    return {label: place for of_split in found.values() for label, place in of_split.items() if label not in known}


def _fault(
    plan: WorkPlan,
    unknown: Mapping[str, Mapping[str, tuple[int, int]]],
    first: tuple[int, int],
    lists: Mapping[str, Sequence[str]],
    *,
    remedy: bool,
) -> str:
    name, label = next((n, label) for n, of in unknown.items() for label, place in of.items() if place == first)
    path = plan.spools[first[0]]
    with Spool(path) as spool:
        position, part = spool["places"][first[1]].tolist()
    place = line_or_place(position, plan.units[unit_of(path)].parts[part], plan.config.read_options)
    known = ", ".join(lists[name][:8]) + (", …" if len(lists[name]) > 8 else "")
    fault = f"{one_line(place)}: {name}: {label!r} is no label of train ({known})"
    if not remedy:
        return fault
    return f"{fault}; mend it, or list all labels as fields.{name}.labels (on_error: skip would pass over it)"


def _mark_unknown(path: Path, lists: Mapping[str, Sequence[str]], kind: int) -> int:
    """Pass over the records of a spool file that have a label outside the lists; how many they are."""
    with Spool(path) as spool:
        spool.number_labels(lists)
        rows: set[int] = set()
        for name in lists:
            for split in SPLITS:
                values, offsets = spool.column(name, split)
                nth = np.searchsorted(offsets, np.flatnonzero(values < 0), side="right") - 1
                rows.update(spool.kept(split)[nth].tolist())
    mark(path, sorted(rows), kind)
    return len(rows)
