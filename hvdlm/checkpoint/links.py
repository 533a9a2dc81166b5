"""`latest` and `best` beside a run's checkpoints: links, or texts where a file system has none."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import uuid
from pathlib import Path

from hvdlm.checkpoint.folder import STEP, folder_of, name_of, path_of, remove
from hvdlm.checkpoint.record import STATE, read_record
from hvdlm.checkpoint.soundness import damage
from hvdlm.errors import UserError
from hvdlm.files import NO_SUCH_CALL, read_text, sync_folder

log = logging.getLogger("hvdlm")

LATEST, BEST = "latest", "best"


def point_best(run_dir: Path, step: int | None) -> None:
    """From here on the checkpoint of this step is the best, and kept until another one is; None: there is no best."""
    if step is not None and (path_of(run_dir, step) / STATE).exists():
        _point(folder_of(run_dir), name_of(step), BEST)
    elif (folder_of(run_dir) / BEST).is_symlink() or (folder_of(run_dir) / BEST).exists():
        remove(folder_of(run_dir) / BEST)


def best_of(run_dir: Path) -> Path | None:
    """The checkpoint that was judged the best, if any was, and is still there."""
    best = folder_of(run_dir) / BEST
    if best.is_dir() and not best.is_symlink():  # as in a copy that followed links
        return best
    try:
        name = best.readlink().name if best.is_symlink() else read_text(best).strip()
    except (OSError, ValueError):
        return None
    path = folder_of(run_dir) / name
    return path if STEP.fullmatch(name) and (path / STATE).exists() else None


def point_latest(root: Path, name: str) -> None:
    settle_latest(root)
    _point(root, name, LATEST)


def _point(root: Path, name: str, link: str) -> None:
    """A link of that name to the checkpoint of that name, in place of what was there."""
    aside = root / f".{link}"
    remove(aside)
    try:
        aside.symlink_to(name)
    except OSError as error:
        if error.errno not in (errno.EPERM, *NO_SUCH_CALL):
            raise
        aside.write_text(name + "\n", encoding="utf-8")  # FAT and some network file systems have no links
    if (root / link).is_dir() and not (root / link).is_symlink():  # as in a copy that followed links
        remove(root / link)
    os.replace(aside, root / link)
    sync_folder(root)


def settle_latest(root: Path) -> None:
    """Where `latest` is a folder, as in a copy that followed links, make it what it is a copy of."""
    latest = root / LATEST
    if latest.is_symlink() or not latest.is_dir():
        return
    try:
        home = root / name_of(read_record(latest)["step"])
        is_copy = home.exists() and (home / STATE).read_bytes() == (latest / STATE).read_bytes()
    except (OSError, ValueError):
        home, is_copy = latest, False
    if is_copy and damage(home) is None:
        shutil.rmtree(latest)
        log.info("%s: was a copy of %s and is removed", latest, home.name)
        return
    home = root / f"{LATEST}.{uuid.uuid4().hex[:8]}" if home.exists() else home
    latest.rename(home)
    log.info("%s: was a folder, and is %s from now on", latest, home.name)


def named(path: Path) -> Path | None:
    """The checkpoint that a path stands for by itself: its folder, or `latest` or `best` beside it; None: a run's."""
    if path.name in (LATEST, BEST) and path.parent.name == folder_of(path).name:
        return _behind(path)
    return path if STEP.fullmatch(path.name) or (path / STATE).exists() else None


def _behind(link: Path) -> Path:
    """RUN/checkpoints/latest, or what it names where it is a text for want of links; never outside its own folder."""
    if link.is_symlink():
        if Path(os.path.realpath(link)).parent != link.parent.resolve():
            raise UserError(f"{link}: points out of its run, to {link.readlink()}; name the checkpoint itself")
        return link
    if not link.is_file():
        return link
    try:
        name = read_text(link, limit=100).strip()
    except ValueError:
        name = ""
    if not STEP.fullmatch(name):
        raise UserError(f"{link}: names no checkpoint beside it; give the run folder or RUN/checkpoints/step_…")
    return link.parent / name
