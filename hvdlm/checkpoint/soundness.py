"""What is wrong with a checkpoint on disk: its record, size and sha256 of its files, numbers that are not finite."""

from __future__ import annotations

import errno
import math
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from hvdlm.checkpoint.folder import STEP
from hvdlm.checkpoint.reading import ENGINE, MODEL, OF_VERSION_1, OPTIMIZER, Entry, read_boxes, table
from hvdlm.checkpoint.record import STATE, read_record
from hvdlm.errors import UserError
from hvdlm.files import sha256_of

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


def damage(path: Path, *, finite: tuple[str, ...] = ALL, share: tuple[int, int] = (0, 1)) -> str | None:
    """What is wrong with a checkpoint folder, or None. Tensors whose keys begin so must hold neither inf nor NaN.

    With `share` (i, n) of its files the i-th of n shares is looked at. UserError where the machine cannot read them,
    which says nothing of what they hold.
    """
    try:
        record = read_record(path)
        if fault := _fault_of_record(path, record):
            return fault
        # Before anything is hashed, but of version 1, whose tables stand in the files.
        entries = table(path, record) if record.get("schema", 1) > 1 else {}
        number, size = share
        files = sorted(record["files"])[number::size]
        if fault := next(_faults_of_files(path, record, files), ""):
            return fault
        culprit = _not_finite(path, entries or table(path, record), files, finite)
        return f"{culprit} is not finite" if culprit else None
    except (OSError, ValueError, SafetensorError) as error:
        if isinstance(error, OSError) and error.errno in OF_THE_MACHINE:
            raise UserError(
                f"{error.filename or path}: {error.strerror}: whether it is sound cannot be seen from here; mend that,"
                " and run the same command again"
            ) from None
        return f"{STATE} or a file it lists cannot be read ({error})"


def _fault_of_record(path: Path, record: Mapping[str, Any]) -> str:
    """What a checkpoint's record says that cannot be of its step or files, or nothing; these are not read."""
    named = STEP.fullmatch(path.name)
    if named and int(named.group(1)) != record["step"]:
        return f"{STATE} is of step {record['step']}"
    if record.get("schema", 1) > 1:
        return ""
    missing = {OF_VERSION_1[MODEL], OF_VERSION_1[OPTIMIZER]} - record["files"].keys()
    return f"{STATE} does not list {min(missing)}" if missing else ""


def _faults_of_files(path: Path, record: Mapping[str, Any], files: Iterable[str]) -> Iterator[str]:
    """What is wrong with some of a checkpoint's files: size and checksum; they are hashed side by side."""

    def fault(name: str) -> str:
        facts = record["files"][name]
        if not stat.S_ISREG(os.lstat(path / name).st_mode):
            return f"{name} is no regular file"
        if (path / name).stat().st_size != facts["bytes"]:
            return f"{name} is cut short"
        return "" if sha256_of(path / name) == facts["sha256"] else f"{name} is damaged (checksum)"

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        yield from filter(None, pool.map(fault, files))


def _not_finite(path: Path, entries: Mapping[str, Entry], files: Iterable[str], prefixes: tuple[str, ...]) -> str:
    """The first tensor that holds inf or NaN among the boxes that some of a checkpoint's files hold; or nothing."""
    chosen = set(files)
    for key, entry in entries.items():
        if key.startswith(prefixes):
            mine = [stored.box for stored in entry.boxes if stored.file in chosen]
            if not all(map(is_finite, read_boxes(path, entries, {key: mine})[key])):
                return key
    return ""


def is_finite(tensor: Tensor) -> bool:
    """Whether no element is inf or NaN, in one pass (a sixth of what hashing takes): one NaN makes both ends NaN."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    if tensor.dtype.itemsize == 1:  # torch compares no float8
        tensor = tensor.float()
    return all(math.isfinite(end) for end in torch.aminmax(tensor.detach()))
