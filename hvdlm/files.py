"""Files that appear whole or not at all: written aside, flushed to disk, renamed, their folder flushed too."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hvdlm.errors import UserError


def replace_durably(aside: Path, final: Path) -> None:
    """Move a finished file into place so that a crash leaves either nothing or all of it."""
    with aside.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(aside, final)
    sync_folder(final.parent)


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries: without it a rename may be lost with the power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text_durably(path: Path, text: str) -> None:
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    with naming(path):
        aside.write_text(text, encoding="utf-8")
        replace_durably(aside, path)


def to_json(value: Any, *, indent: int | None = None) -> str:
    """`value` as JSON (RFC 8259), which has no NaN and no infinity: such a number becomes null.

    Example: `to_json({"loss": math.nan})` is `{"loss": null}`.
    """
    return json.dumps(_without_nan(value), indent=indent, allow_nan=False)


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nan(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Say which file it was when writing it fails: an error of write() or fsync() does not know."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from None


def reserve(path: Path, num_bytes: int) -> None:
    """Take the space that a file will need, so that a full disk is met before it is written and not in the middle."""
    with naming(path), path.open("r+b") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, num_bytes)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):  # a file system that cannot: writing will tell
                raise


def sha256_of(path: Path) -> str:
    """Hex digest of a file's bytes, read in blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a file for this process, which loses it however it ends; UserError if another one has it."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{path.parent}: another job is writing here; wait for it, or set another output") from None
        except OSError:  # a file system without locks
            pass
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
