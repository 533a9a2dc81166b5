"""What stays beside the shards to tell where they came from and how: provenance, dropped documents, a summary."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import xxhash

from hvdlm.data.manifest import Manifest
from hvdlm.files import replace_durably, write_text_durably
from hvdlm.host import memory_bytes
from hvdlm.session.work_queue import WorkQueue

from .documents import Part
from .pipeline import dropped_line
from .plan import WorkPlan, unit_of, versions
from .readers.parallel import files_of
from .spool import Spool, lines_of

PROVENANCE = "provenance.json"
DROPPED = "dropped.jsonl"
SUMMARY = "preprocess.json"


def digest_of(part: Part) -> tuple[str, int]:
    """XXH3 (128 bits) of a part's raw bytes, as `xxhsum -H2` prints it for a whole file, and how many they are."""
    digest, num_bytes = xxhash.xxh3_128(), 0
    with Path(part.path).open("rb") as file:
        file.seek(part.start)
        left = sys.maxsize if part.stop is None else part.stop - part.start
        while left > 0 and (block := file.read(min(1 << 20, left))):
            digest.update(block)
            left -= len(block)
            num_bytes += len(block)
    return digest.hexdigest(), num_bytes


def write_provenance(plan: WorkPlan) -> None:
    """Digests of all that was read, the config, and the versions of what read it."""
    inputs = []
    for path in plan.spools:
        with Spool(path) as spool:
            inputs += spool.facts("inputs")
    inputs += [vars(part) | {"xxh3_128": digest_of(part)[0]} for part in _beside(plan)]
    config = plan.config.model_dump(mode="json", exclude={"output", *(() if plan.config.fields else ("fields",))})
    content = {"plan": plan.digest, "versions": versions(), "config": config, "inputs": inputs}
    write_text_durably(plan.config.output / PROVENANCE, json.dumps(content, indent=1) + "\n")


def _beside(plan: WorkPlan) -> list[Part]:
    """Files that are read with those of the input: the other sides of parallel ones."""
    if plan.config.format != "parallel":
        return []
    options = plan.config.read_options
    return [Part(path, 0, None) for one in plan.listed for path in files_of(one, options) if path != one]


def write_dropped(plan: WorkPlan, kinds: list[str]) -> None:
    """A line for each document that is in no shard: where it was, and why. Never its text."""
    final = plan.config.output / DROPPED
    aside = final.with_name(f".{DROPPED}")
    with aside.open("wb") as file:
        for path in plan.spools:
            parts = plan.units[unit_of(path)].parts
            with Spool(path) as spool:
                file.write(spool["dropped"].tobytes())
                lines = []
                ids = spool.strings("doc_ids") if spool.has_column("doc_ids") else None
                for row, kind in sorted(spool.duplicates.tolist(), key=lambda pair: spool["order"][pair[0]]):
                    position, part = spool["places"][row].tolist()
                    lines.append(dropped_line(parts[part].path, position, ids[row] if ids else None, kinds[kind]))
                file.write(lines_of(lines))
    replace_durably(aside, final)


def write_summary(plan: WorkPlan, manifest: Manifest, balance: dict[str, Any], queue: WorkQueue) -> None:
    """`preprocess.json`: the balance, seconds by phase and rank, and how uneven the work was. Collective."""
    world, timer = queue.world, queue.timer
    phases = world.gather(timer.seconds)
    peaks = world.gather(memory_bytes("VmHWM"))
    names = dict.fromkeys(name for rank in phases for name in rank)
    seconds = {name: [round(rank.get(name, 0.0), 3) for rank in phases] for name in names}
    if world.rank:
        return
    tokenize = [rank.get("tokenize", 0.0) for rank in phases]
    units = plan.units
    summary = {
        "num_ranks": world.size,
        "wall_s": round(time.monotonic() - timer.start, 3),
        "input_bytes": sum(unit.num_bytes for unit in units),
        "num_units": len(units),
        "num_units_resumed": len(units) - len(plan.todo),
        "num_documents": manifest.num_documents,
        "num_tokens": manifest.num_tokens,
        "balance": balance,
        "seconds": seconds,
        "peak_memory_mb": [round(peak / 1e6) for peak in peaks],
        "imbalance": round(max(tokenize) * len(tokenize) / sum(tokenize), 4) if sum(tokenize) else 1.0,
    }
    write_text_durably(plan.config.output / SUMMARY, json.dumps(summary, indent=1) + "\n")
