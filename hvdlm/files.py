"""Files that appear whole or not at all: written aside, flushed to disk, renamed, their folder flushed too."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import math
import os
import select
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from hvdlm.errors import UserError

TEXT_BYTES = 64 << 20  # more than any config, manifest or state of ours has
NO_SUCH_CALL = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)  # of a file system that cannot do it


def open_regular(path: Path) -> BinaryIO:
    """Open a file for reading; OSError for a folder, and for a pipe or a device, whose bytes may never end."""
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe that nobody writes to would keep us waiting here
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise OSError(errno.EINVAL, "is no regular file", str(path))
    return os.fdopen(file, "rb")


def open_stream(path: Path, *, wait_s: float = 10.0) -> BinaryIO:
    """Open what a user names for reading once, in order: a file, or a pipe such as `<(command)`.

    OSError for a folder, and for a pipe in a file's place to which nobody writes within `wait_s`.
    """
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        kind = os.fstat(file).st_mode
        if stat.S_ISDIR(kind):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if stat.S_ISFIFO(kind) and Path(os.path.realpath(path)).exists():  # it has a name: none of a shell's own
            poll = select.poll()
            poll.register(file, select.POLLIN)
            if not poll.poll(1000 * wait_s):
                raise OSError(errno.EINVAL, f"is a pipe, and nobody wrote to it for {wait_s:g} s", str(path))
        os.set_blocking(file, True)
    except BaseException:
        os.close(file)
        raise
    return os.fdopen(file, "rb")


def read_bytes(path: Path, *, limit: int = TEXT_BYTES) -> bytes:
    """What a regular file of at most `limit` bytes holds; OSError, or ValueError that says what is wrong."""
    with open_regular(path) as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise ValueError(f"larger than {limit:,} bytes")
    return data


def read_text(path: Path, *, limit: int = TEXT_BYTES) -> str:
    """The same as UTF-8 text."""
    return read_bytes(path, limit=limit).decode()


def read_json(path: Path) -> Any:
    """What a JSON file holds, null for NaN and infinity (as older versions wrote them); OSError or ValueError."""
    try:
        return json.loads(read_text(path), parse_constant=lambda _: None)
    except RecursionError:
        raise ValueError("nested too deeply") from None


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
    except OSError as error:
        if error.errno not in NO_SUCH_CALL:
            raise
    finally:
        os.close(descriptor)


def make_ready(option: str, path: Path) -> None:
    """Before the work whose result is to be written to `path`: make its folder, and see that a file can be made there.

    UserError for a folder in its place, OSError where it could not be written.
    """
    if path.is_dir():
        raise UserError(f"{option} {path}: is a folder; name a file in it")
    if path.parent.exists() and not path.parent.is_dir():
        raise UserError(f"{option} {path}: {path.parent} is no folder; name another one")
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = _aside(path)
        aside.touch()
        aside.unlink()


def _aside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}")


def write_text_durably(path: Path, text: str) -> None:
    aside = _aside(path)
    try:
        with naming(path):
            aside.write_text(text, encoding="utf-8")
            replace_durably(aside, path)
    except BaseException:  # half of it must not stay, nor take what is left of a full disk
        aside.unlink(missing_ok=True)
        raise


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
    """Name the file that could not be written: write() and fsync() do not know it, others know a file aside."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from None


def reserve(path: Path, num_bytes: int) -> None:
    """Take the space that a file will need, so that a full disk is met before it is written and not in the middle."""
    with naming(path), path.open("r+b") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, num_bytes)
        except OSError as error:
            if error.errno not in NO_SUCH_CALL:  # writing will tell
                raise


def sha256_of(path: Path) -> str:
    """Hex digest of a regular file's bytes, read in blocks."""
    digest = hashlib.sha256()
    with open_regular(path) as file:
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
