"""The checkpoint to go on with, found by all ranks together: each hashes a share of its files."""

from __future__ import annotations

import logging
import socket
from functools import partial
from pathlib import Path

from hvdlm.checkpoint.folder import complete_steps, folder_of, path_of
from hvdlm.checkpoint.links import best_of, named
from hvdlm.checkpoint.reading import ENGINE, MODEL
from hvdlm.checkpoint.record import read_record
from hvdlm.checkpoint.soundness import ALL, cannot_be_read, damage, damages, fault_of
from hvdlm.errors import UserError
from hvdlm.world.interface import World
from hvdlm.world.serial import SerialWorld

log = logging.getLogger("hvdlm")


def newest(run_dir: Path, world: World | None = None, *, before: int | None = None) -> Path | None:
    """The newest checkpoint (before a step) that is whole (size and checksum of every file) and finite, or None.

    The same on all ranks of `world`; collective. UserError on all if there are checkpoints and none is sound, or one
    that a rank cannot get at: to start anew must be the user's decision.
    """
    world, fault = world or SerialWorld(), ""
    steps = world.on_root(lambda: [step for step in complete_steps(run_dir) if before is None or step < before])
    for step in reversed(steps):
        path = path_of(run_dir, step)
        found = [each for each in world.gather(world.patiently(partial(_fault_of_share, path, world))) if each]
        if not found:
            return path
        fault = found[0]
        log.warning("%s: %s; trying the checkpoint before it", path, fault)
    if steps and before is None:
        text = "every checkpoint is damaged; restore one, or remove them to start anew"
        raise UserError.shared(f"{folder_of(run_dir)}: {text} (the oldest: {fault})")
    return None


def _fault_of_share(path: Path, world: World) -> str:
    """What is wrong with the record, or with this rank's share of the files; or nothing."""
    try:
        record = read_record(path)
        if fault := fault_of(path, record):
            return fault
        mine = sorted(record["files"])[world.rank :: world.size]
        return next(damages(path, record, mine, ALL), "")
    except UserError as error:
        raise UserError(f"{world} on {socket.gethostname()}: {error}") from None
    except (OSError, ValueError) as error:
        return cannot_be_read(error)


def resolve(path: Path) -> Path:
    """The checkpoint that a user means by a checkpoint folder, `latest`, or a run folder.

    Of a checkpoint that is named itself the optimizer's state need not be finite: nothing is trained from it.
    """
    if (itself := named(path)) is not None:
        if fault := damage(itself, finite=(MODEL, ENGINE)):
            raise UserError(f"{itself}: {fault}; use another checkpoint of this run")
        return itself
    best = best_of(path)
    if best is not None and (fault := damage(best, finite=(MODEL, ENGINE))):
        raise UserError(f"{best}: {fault}; it was the best of this run: use another checkpoint")
    found = best or newest(path)
    if found is None:
        raise UserError(f"{path}: holds no complete checkpoint; give a run folder or RUN/checkpoints/step_…")
    return found
