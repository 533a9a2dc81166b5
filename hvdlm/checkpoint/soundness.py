"""What is wrong with a checkpoint on disk: its record, size and sha256 of its files, numbers that are not finite."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from hvdlm.checkpoint.folder import STEP
from hvdlm.checkpoint.reading import ENGINE, MODEL, OF_VERSION_1, OPTIMIZER, faults, not_finite, table
from hvdlm.checkpoint.record import STATE, read_record
from hvdlm.errors import UserError

ALL = (MODEL, OPTIMIZER, ENGINE)
OF_THE_MACHINE = {
    errno.EACCES,
    errno.EIO,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
    errno.ENOTCONN,
    errno.ENXIO,
    errno.EPERM,
    errno.ESTALE,
    errno.ETIMEDOUT,
}


def damage(path: Path, *, finite: tuple[str, ...] = ALL) -> str | None:
    """What is wrong with a checkpoint folder, or None. Tensors whose keys begin so must hold neither inf nor NaN."""
    try:
        record = read_record(path)
        return fault_of(path, record) or next(damages(path, record, sorted(record["files"]), finite), None)
    except (OSError, ValueError, SafetensorError) as error:
        return cannot_be_read(error)


def fault_of(path: Path, record: Mapping[str, Any]) -> str:
    """What a checkpoint's record says that cannot be, or nothing; its files are not read."""
    named = STEP.fullmatch(path.name)
    if named and int(named.group(1)) != record["step"]:
        return f"{STATE} is of step {record['step']}"
    if record.get("schema", 1) == 1:  # whose tables stand in the files
        missing = {OF_VERSION_1[MODEL], OF_VERSION_1[OPTIMIZER]} - record["files"].keys()
        return f"{STATE} does not list {min(missing)}" if missing else ""
    table(path, record)
    return ""


def damages(path: Path, record: Mapping[str, Any], files: Sequence[str], finite: tuple[str, ...]) -> Iterator[str]:
    """What is wrong with some of the files that a sound record lists."""
    try:
        yield from faults(path, record, files)
        if culprit := not_finite(path, table(path, record), files, finite):
            yield f"{culprit} is not finite"
    except (OSError, ValueError, SafetensorError) as error:
        yield cannot_be_read(error)


def cannot_be_read(error: Exception) -> str:
    """What an error says of the files; UserError for one that is of the machine, and says nothing of them."""
    if isinstance(error, OSError) and error.errno in OF_THE_MACHINE:
        raise UserError(
            f"{error.filename or STATE}: {error.strerror}: whether it is sound cannot be seen from here; mend that, and"
            " run the same command again"
        ) from None
    return f"{STATE} or a file it lists cannot be read ({error})"
