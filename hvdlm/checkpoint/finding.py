"""The checkpoint to go on with, found by all ranks together: each hashes a share of its files."""

from __future__ import annotations

import logging
from pathlib import Path

from hvdlm.checkpoint.reading import ENGINE, MODEL, OPTIMIZER
from hvdlm.checkpoint.record import read_record
from hvdlm.checkpoint.store import cannot_be_read, complete_steps, damages, fault_of, nothing_sound, path_of
from hvdlm.world.interface import World

log = logging.getLogger("hvdlm")


def newest_together(run_dir: Path, world: World, *, before: int | None = None) -> Path | None:
    """As `newest`, on all ranks alike; collective. UserError on all if there are checkpoints and none is sound."""
    steps = world.on_root(lambda: [step for step in complete_steps(run_dir) if before is None or step < before])
    fault = ""
    for step in reversed(steps):
        path = path_of(run_dir, step)
        found = [each for each in world.gather(_fault_of_share(path, world)) if each]
        if not found:
            return path
        fault = found[0]
        log.warning("%s: %s; trying the checkpoint before it", path, fault)
    if steps and before is None:
        raise nothing_sound(run_dir, fault)
    return None


def _fault_of_share(path: Path, world: World) -> str:
    """What is wrong with the record, or with this rank's share of the files; or nothing."""
    try:
        record = read_record(path)
        if fault := fault_of(path, record):
            return fault
        mine = sorted(record["files"])[world.rank :: world.size]
        return next(damages(path, record, mine, (MODEL, OPTIMIZER, ENGINE)), "")
    except (OSError, ValueError) as error:
        return cannot_be_read(error)
