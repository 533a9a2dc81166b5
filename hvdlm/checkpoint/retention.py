"""Which checkpoints of a run stay, and which go."""

from __future__ import annotations

import logging
from collections.abc import Collection
from pathlib import Path

from hvdlm.checkpoint.folder import complete_steps, path_of, remove
from hvdlm.checkpoint.links import best_of

log = logging.getLogger("hvdlm")


def outdated(
    run_dir: Path, *, keep: int, keep_every: int = 0, last: int | None = None, unsound: Collection[int] = ()
) -> list[Path]:
    """Of the checkpoints (up to step `last`) all but the best, the newest `keep` and those of each `keep_every` steps.

    The `unsound` do not count, and are among them.
    """
    best = best_of(run_dir)
    found = [step for step in complete_steps(run_dir) if last is None or step <= last]
    found = [step for step in found if path_of(run_dir, step) != best]
    sound = [step for step in found if step not in unsound]
    kept = set(sound[-keep:]) | {step for step in sound if keep_every and step % keep_every == 0}
    return [path_of(run_dir, step) for step in found if step not in kept]


def prune(
    run_dir: Path, *, keep: int, keep_every: int = 0, last: int | None = None, unsound: Collection[int] = ()
) -> None:
    """Remove what is `outdated`. What cannot be removed stays, with a warning: no reason to stop training."""
    for old in outdated(run_dir, keep=keep, keep_every=keep_every, last=last, unsound=unsound):
        try:
            remove(old)
        except OSError as error:
            log.warning("%s: cannot remove this old checkpoint (%s)", old, error.strerror)
